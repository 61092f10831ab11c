//! Which backend a QUIC connection id names: what a service's ids look like, and the backends' ids in them.

use std::{collections::BTreeSet, fmt, str::FromStr};

use lb_common::{
    hash,
    quic::{MAX_SERVER_ID, UNROUTABLE},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Error,
    model::{BackendSpec, NumberOrText, ServiceSpec},
    ring::member_key,
    state::service::{Entry, Service},
};
use crate::datapath::{self, CidFormat};

/// QUIC-LB's plaintext connection ids: `4`, or `"sid=4,cr=0"`: so many bytes are a server's id, in that configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "NumberOrText", into = "String")]
pub struct QuicCid {
    /// Bytes of a server's id, 1 to 15.
    pub server_id_len: u8,
    /// The configuration that an id's first three bits tell, 0 to 6.
    pub rotation: u8,
}

/// A server's id, 1 to 15 bytes in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct ServerId {
    len: u8,
    /// Zeros behind the first `len`.
    bytes: [u8; 16],
}

impl FromStr for QuicCid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let mut cid = Self { server_id_len: 0, rotation: 0 };
        let parts =
            if text.bytes().all(|byte| byte.is_ascii_digit()) { format!("sid={text}") } else { text.to_owned() };
        let understood = parts.split(',').all(|part| {
            let number = |text: &str| text.parse::<u8>().ok();
            match part.split_once('=').map(|(key, value)| (key, number(value))) {
                Some(("sid", Some(len @ 1..=MAX_SERVER_ID))) => cid.server_id_len = len,
                Some(("cr", Some(rotation @ 0..UNROUTABLE))) => cid.rotation = rotation,
                _ => return false,
            }
            true
        });
        if understood && cid.server_id_len > 0 {
            return Ok(cid);
        }
        Err(Error::Invalid(format!(
            "'{text}' is no form of QUIC connection ids: write the length of server ids, 1 to {MAX_SERVER_ID}, or sid=4,cr=0 with a \
             configuration of 0 to {}",
            UNROUTABLE - 1
        )))
    }
}

impl fmt::Display for QuicCid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sid={},cr={}", self.server_id_len, self.rotation)
    }
}

impl TryFrom<NumberOrText> for QuicCid {
    type Error = Error;

    fn try_from(value: NumberOrText) -> Result<Self, Error> {
        match value {
            NumberOrText::Number(len) => len.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl From<QuicCid> for String {
    fn from(cid: QuicCid) -> Self {
        cid.to_string()
    }
}

impl QuicCid {
    /// As the packet path takes it.
    pub fn format(self) -> CidFormat {
        CidFormat { server_id_len: self.server_id_len, rotation: self.rotation }
    }
}

impl FromStr for ServerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || {
            Error::Invalid(format!(
                "'{text}' is no server id: write 1 to {MAX_SERVER_ID} bytes in hexadecimal, as in 0a1b2c3d"
            ))
        };
        let whole =
            text.is_ascii() && text.len().is_multiple_of(2) && (1..=MAX_SERVER_ID.into()).contains(&(text.len() / 2));
        if !whole || text.bytes().any(|byte| !byte.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut bytes = [0; 16];
        for (at, byte) in bytes.iter_mut().take(text.len() / 2).enumerate() {
            *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).map_err(|_| wrong())?;
        }
        Ok(Self { len: (text.len() / 2) as u8, bytes })
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes[..self.len.into()].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl TryFrom<String> for ServerId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<ServerId> for String {
    fn from(id: ServerId) -> Self {
        id.to_string()
    }
}

impl ServerId {
    /// Whether it is as long as a service's ids.
    pub fn fits(&self, cid: QuicCid) -> bool {
        self.len == cid.server_id_len
    }

    /// Its bytes, and zeros behind them.
    pub fn padded(self) -> [u8; 16] {
        self.bytes
    }

    /// One for a backend that was given none: the first that is free from a place on that follows from its name and address,
    /// so that it is the same on every node whose backends are the same, as long as there is room.
    fn of(spec: &BackendSpec, cid: QuicCid, is_free: impl Fn(&Self) -> bool, taken: usize) -> Option<Self> {
        let key = member_key(&spec.name, &spec.address.to_string());
        let start = u128::from(hash::mix(key)) << 64 | u128::from(hash::mix(key ^ 1));
        let shift = u32::from(16 - cid.server_id_len) * 8;
        (0..=taken as u128).find_map(|step| {
            let bytes = ((start >> shift).wrapping_add(step) << shift).to_be_bytes();
            Some(Self { len: cid.server_id_len, bytes }).filter(&is_free)
        })
    }
}

impl Service {
    /// A backend's server id, where connection ids have one.
    pub fn server_id(&self, entry: &Entry) -> Option<ServerId> {
        let cid = self.spec.quic_cid?;
        entry.spec.server_id.or(entry.assigned_id).filter(|id| id.fits(cid))
    }

    /// Who is to be found by a server id.
    pub fn server_ids(&self) -> impl Iterator<Item = datapath::NamedBackend> {
        self.backends.iter().filter_map(|entry| {
            let id = self.server_id(entry)?.padded();
            Some(datapath::NamedBackend { backend: entry.slot, service: self.slot, id })
        })
    }

    /// The id to assign to a backend that is to be as `spec` says; `None` where it needs none. `present` is its place, if it is
    /// there already.
    pub fn id_for(&self, spec: &BackendSpec, present: Option<usize>) -> Result<Option<ServerId>, Error> {
        let Some(cid) = self.spec.quic_cid else { return Ok(None) };
        let others = || self.backends.iter().enumerate().filter(|(at, _)| Some(*at) != present);
        let holder = |id: &ServerId| others().find(|(_, entry)| self.server_id(entry) == Some(*id));
        if let Some(id) = spec.server_id {
            return match holder(&id) {
                Some((_, other)) => Err(taken(&self.spec, &other.spec.name, id)),
                None => Ok(None),
            };
        }
        let id = ServerId::of(spec, cid, |id| holder(id).is_none(), self.backends.len());
        id.map(Some).ok_or_else(|| used_up(&self.spec, cid))
    }

    /// The assigned ids of all backends once the service is to be as `wanted` says: those that fit stay.
    pub fn ids_for(&self, wanted: &ServiceSpec) -> Result<Vec<Option<ServerId>>, Error> {
        let Some(cid) = wanted.quic_cid else {
            return Ok(self.backends.iter().map(|entry| entry.assigned_id).collect());
        };
        let mut used = BTreeSet::new();
        for entry in &self.backends {
            let Some(id) = entry.spec.server_id else { continue };
            fits(wanted, &entry.spec)?;
            if !used.insert(id) {
                return Err(taken(wanted, "another", id));
            }
        }
        let mut ids = Vec::new();
        for entry in &self.backends {
            let kept = entry.assigned_id.filter(|id| id.fits(cid) && !used.contains(id));
            let id = match (entry.spec.server_id, kept) {
                (Some(_), _) => None,
                (None, Some(id)) => Some(id),
                (None, None) => {
                    let id = ServerId::of(&entry.spec, cid, |id| !used.contains(id), used.len());
                    Some(id.ok_or_else(|| used_up(wanted, cid))?)
                }
            };
            used.extend(id);
            ids.push(id);
        }
        Ok(ids)
    }
}

/// Refuses a backend's id that is longer or shorter than the service's.
pub fn fits(service: &ServiceSpec, spec: &BackendSpec) -> Result<(), Error> {
    match (service.quic_cid, spec.server_id) {
        (Some(cid), Some(id)) if !id.fits(cid) => Err(Error::Invalid(format!(
            "backend {}/{}: its server id {id} has {} bytes, and the service's have {}: give it one of that length, or none",
            service.name, spec.name, id.len, cid.server_id_len
        ))),
        _ => Ok(()),
    }
}

fn taken(service: &ServiceSpec, other: &str, id: ServerId) -> Error {
    Error::Conflict(format!("server id {id} is backend {}/{other}'s already: give each its own", service.name))
}

fn used_up(service: &ServiceSpec, cid: QuicCid) -> Error {
    Error::Refused(format!(
        "service {}: no server id of {} bytes is left: make them longer with --quic-cid",
        service.name, cid.server_id_len
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> BackendSpec {
        serde_json::from_value(serde_json::json!({ "name": name, "address": "10.0.0.11" })).expect("a backend")
    }

    #[test]
    fn forms_of_ids_are_read_and_said() {
        for (text, said) in [("4", "sid=4,cr=0"), ("sid=15", "sid=15,cr=0"), ("cr=6,sid=1", "sid=1,cr=6")] {
            let cid: QuicCid = text.parse().expect("well formed");
            assert_eq!(cid.to_string(), said);
            assert_eq!(said.parse(), Ok(cid));
        }
        for wrong in ["", "0", "16", "sid=4,cr=7", "cr=1", "sid=", "sid=4;cr=0", "x", "sid=4,", "-4"] {
            assert!(wrong.parse::<QuicCid>().is_err(), "{wrong:?}");
        }
        assert_eq!(serde_json::from_str::<QuicCid>("4").ok(), "4".parse().ok());
    }

    #[test]
    fn server_ids_are_read_and_said() {
        let id: ServerId = "0A1b".parse().expect("well formed");
        assert_eq!((id.to_string().as_str(), id.len), ("0a1b", 2));
        for wrong in ["", "a", "0x0a", "zz", "+1", &"00".repeat(16), "ä0"] {
            assert!(wrong.parse::<ServerId>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn an_assigned_id_follows_from_the_name_and_avoids_others() {
        let cid = QuicCid { server_id_len: 1, rotation: 0 };
        let mut used = BTreeSet::new();
        for n in 0..256 {
            let id = ServerId::of(&spec(&format!("b{n}")), cid, |id| !used.contains(id), used.len());
            assert!(used.insert(id.expect("one is left")), "{n}");
        }
        assert_eq!(ServerId::of(&spec("b256"), cid, |id| !used.contains(id), used.len()), None);
        let long = QuicCid { server_id_len: 15, rotation: 0 };
        let id = |name| ServerId::of(&spec(name), long, |_| true, 0);
        assert_eq!(id("web-1"), id("web-1"));
        assert_ne!(id("web-1"), id("web-2"));
    }
}
