//! The model's idea of what leaves: bytes put together anew, and checksums held against each other by plain sums.

use std::collections::BTreeSet;

use lb_common::{backend::Backend, outcome::Outcome};

use super::{
    BACKENDS, Fate, Key, Mistake, Model, Run, Way, cells,
    parse::{Ip, number},
};
use crate::rig::{Action, CLIENT_MAC, INGRESS, Mode, OWN_MAC};

/// How a packet of a flow may be counted.
const OF_A_FLOW: [Outcome; 7] = [
    Outcome::Forwarded,
    Outcome::NewFlow,
    Outcome::Adopted,
    Outcome::Untracked,
    Outcome::Stateless,
    Outcome::RemembersOwner,
    Outcome::NamedById,
];

impl Model {
    /// Compares what the program did with a frame with its fate.
    pub(super) fn compare(&self, fate: &Fate, ip: Option<&Ip>, run: &Run) -> Result<(), String> {
        match (fate, ip) {
            (Fate::Ends(outcome), _) => ends(*outcome, run),
            (Fate::To(slots), Some(ip)) => {
                check(OF_A_FLOW.contains(&run.outcome), "counted as something else")?;
                self.sent(slots, ip, run)
            }
            (Fate::Fragment(slots), Some(ip)) => {
                check(run.outcome == Outcome::Fragment, "counted as something else")?;
                self.sent(slots, ip, run)
            }
            (Fate::Reply(service), Some(ip)) => self.returned(Outcome::Reply, *service, ip, run),
            (Fate::ReplyFragment(service), Some(ip)) => self.returned(Outcome::Fragment, *service, ip, run),
            (Fate::ReplyOrPass(service), Some(ip)) => {
                let returned = self.returned(Outcome::Reply, *service, ip, run);
                let others = [Outcome::NotForService, Outcome::DroppedHopLimit, Outcome::DroppedMalformed];
                returned.or_else(|_| {
                    others
                        .iter()
                        .map(|&outcome| ends(outcome, run))
                        .find(Result::is_ok)
                        .unwrap_or(Err("no reply".into()))
                })
            }
            _ => Err("a fate without a packet".to_owned()),
        }
    }

    /// It went to one of those backends, in its service's way.
    fn sent(&self, slots: &BTreeSet<u32>, ip: &Ip, run: &Run) -> Result<(), String> {
        let slot = slots.iter().copied().find(|&slot| run.out[..6] == self.backends[slot as usize].dst_mac);
        let slot = slot.ok_or("not sent to its backend")?;
        let row = &self.backends[slot as usize];
        let action = if row.ifindex == INGRESS { Action::Tx } else { Action::Redirect };
        check(run.action == action, "another action")?;
        let mut out = match cells()[(slot / BACKENDS) as usize].mode {
            Mode::Dsr => run.frame.clone(),
            Mode::Nat => {
                let mut out = self.translated(ip, run, false, row.addr.octets(), row.port)?;
                out[hop_at(ip)] -= 1;
                out
            }
            Mode::Tunnel | Mode::Across => tunnelled(ip, &run.frame, row, &run.out),
        };
        out[..6].copy_from_slice(&row.dst_mac);
        out[6..12].copy_from_slice(&row.src_mac);
        check(out == run.out, "other bytes")
    }

    /// It went to the client as the VIP's.
    fn returned(&self, outcome: Outcome, service: usize, ip: &Ip, run: &Run) -> Result<(), String> {
        check(run.outcome == outcome && run.action == Action::Tx, "no reply")?;
        let port = run.frame.get(ip.payload + 2..ip.payload + 4).filter(|_| !ip.is_later()).map(number);
        let of_client =
            |key: &Key| (key.0, key.1) == (service, ip.destination) && port.is_none_or(|port| key.2 == port);
        let ways: BTreeSet<&Way> =
            self.ways.iter().filter(|(key, _)| of_client(key)).flat_map(|(_, ways)| ways).collect();
        let mut differs = Err("a reply to nobody".to_owned());
        for way in ways {
            differs = self.returned_by(way, service, ip, run);
            if differs.is_ok() {
                break;
            }
        }
        differs
    }

    /// It went to the client as the VIP's, with the tags of the way that the client's packets came.
    fn returned_by(&self, way: &Way, service: usize, ip: &Ip, run: &Run) -> Result<(), String> {
        let its = &run.frame[12..ip.at - 2];
        let tags = way.as_deref().unwrap_or(its);
        check(run.out.get(12..12 + tags.len()) == Some(tags), "other tags in the reply")?;
        // As if it had kept its tags: what is compared then is the rest.
        let out = [&run.out[..12], its, &run.out[12 + tags.len()..]].concat();
        let run = &Run { out, ..run.clone() };
        let vip = cells()[service].vip();
        let addr = lb_common::addr::Addr::from(vip.ip()).octets();
        let mut out = self.translated(ip, run, true, addr, vip.port().to_be())?;
        out[hop_at(ip)] -= 1;
        out[..6].copy_from_slice(&CLIENT_MAC);
        out[6..12].copy_from_slice(&OWN_MAC);
        check(out == run.out, "other bytes in the reply")
    }

    /// The frame with one end's address and port (network order, as loaded) replaced. Checksums are taken from what was
    /// sent, after they are found to be as wrong as those that came in, which for most is not at all.
    fn translated(&self, ip: &Ip, run: &Run, source: bool, addr: [u8; 16], port: u16) -> Result<Vec<u8>, String> {
        check(run.out.len() == run.frame.len(), "another length")?;
        let mut out = run.frame.clone();
        let v4 = ip.source.is_ipv4();
        let (at, bytes) = match (v4, source) {
            (true, true) => (12, &addr[12..]),
            (true, false) => (16, &addr[12..]),
            (false, true) => (8, &addr[..]),
            (false, false) => (24, &addr[..]),
        };
        out[ip.at + at..ip.at + at + bytes.len()].copy_from_slice(bytes);
        let mut sums = if v4 { vec![ip.at + 10] } else { vec![] };
        if !ip.is_later() {
            let port_at = ip.payload + if source { 0 } else { 2 };
            out[port_at..port_at + 2].copy_from_slice(&port.to_ne_bytes());
            let sum_at = ip.payload + if ip.protocol == 6 { 16 } else { 6 };
            let without = ip.protocol == 17 && run.frame[sum_at..sum_at + 2] == [0, 0];
            if !without {
                check(transport(ip, &run.frame) == transport(ip, &run.out), "the transport's checksum is off")?;
                check(ip.protocol == 6 || run.out[sum_at..sum_at + 2] != [0, 0], "a checksum was lost")?;
                sums.push(sum_at);
            }
        }
        check(!v4 || header(ip, &run.frame) == header(ip, &run.out), "the header's checksum is off")?;
        for at in sums.into_iter().filter(|_| !self.errs(Mistake::StaleChecksums)) {
            out[at..at + 2].copy_from_slice(&run.out[at..at + 2]);
        }
        Ok(out)
    }
}

fn check(holds: bool, otherwise: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(otherwise.to_owned()) }
}

fn ends(outcome: Outcome, run: &Run) -> Result<(), String> {
    let passes = matches!(outcome, Outcome::NotForService | Outcome::PassedMalformed | Outcome::PassedHost);
    check(run.outcome == outcome, "counted as something else")?;
    check(run.action == if passes { Action::Pass } else { Action::Drop }, "another action")?;
    check(!passes || run.out == run.frame, "passed, but not untouched")
}

fn hop_at(ip: &Ip) -> usize {
    ip.at + if ip.source.is_ipv4() { 8 } else { 7 }
}

/// Sum of bytes as numbers of sixteen bits in ones' complement arithmetic (RFC 1071); 0 and ffff are one.
fn sum(parts: &[&[u8]]) -> u64 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let total: u64 = words.map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0))).sum();
    total % 0xffff
}

/// What an IPv4 header sums up to, its checksum included.
fn header(ip: &Ip, frame: &[u8]) -> u64 {
    sum(&[&frame[ip.at..ip.at + 20]])
}

/// What a segment or datagram sums up to with the addresses, its checksum included. What is the same before and after
/// (lengths, protocol, payload) is left out or does not matter.
fn transport(ip: &Ip, frame: &[u8]) -> u64 {
    let addresses = if ip.source.is_ipv4() { 12..20 } else { 8..40 };
    let end = ip.payload + if ip.protocol == 6 { 20 } else { 8 };
    sum(&[&frame[ip.at + addresses.start..ip.at + addresses.end], &frame[ip.payload..end]])
}

/// The packet in another one.
fn tunnelled(ip: &Ip, frame: &[u8], row: &Backend, sent: &[u8]) -> Vec<u8> {
    let (from, to) = (row.tunnel_source.octets(), row.addr.octets());
    let v4 = ip.source.is_ipv4();
    let first = u16::from_be_bytes([frame[ip.at], frame[ip.at + 1]]);
    let class = if v4 { first as u8 } else { (first >> 4) as u8 };
    let number = if v4 { 4 } else { 41 };
    let outer = if row.addr.is_v4() {
        let [l0, l1] = ((ip.total + 20) as u16).to_be_bytes();
        let mut outer = vec![0x45, class, l0, l1, 0, 0, 0x40, 0, 64, number, 0, 0];
        outer.extend_from_slice(&from[12..]);
        outer.extend_from_slice(&to[12..]);
        let check = 0xffff - sum(&[&outer]) as u16;
        outer[10..12].copy_from_slice(&check.to_be_bytes());
        outer
    } else {
        let [l0, l1] = (ip.total as u16).to_be_bytes();
        // The flow label is free.
        let label = |at: usize| sent.get(ip.at + at).copied().unwrap_or(0);
        let mut outer = vec![0x60 | class >> 4, class << 4 | (label(1) & 15), label(2), label(3), l0, l1, number, 64];
        outer.extend_from_slice(&from);
        outer.extend_from_slice(&to);
        outer
    };
    let mut inner = frame[ip.at..].to_vec();
    if v4 {
        let before = u64::from(u16::from_be_bytes([inner[8], inner[9]]));
        let old = u64::from(u16::from_be_bytes([inner[10], inner[11]]));
        inner[8] -= 1;
        // As wrong as it was: the sum of the header stays.
        let after = u64::from(u16::from_be_bytes([inner[8], inner[9]]));
        let new = (old + before + 0xffff - after) % 0xffff;
        let sent_new = sent.get(ip.at + outer.len() + 10..ip.at + outer.len() + 12);
        // Of the two ways to write nothing, that which was sent.
        let new = if new == 0 && sent_new == Some(&[0xff, 0xff]) { 0xffff } else { new as u16 };
        inner[10..12].copy_from_slice(&new.to_be_bytes());
    } else {
        inner[7] -= 1;
    }
    let mut out = frame[..ip.at].to_vec();
    let kind: [u8; 2] = if row.addr.is_v4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    out[ip.at - 2..].copy_from_slice(&kind);
    out.extend_from_slice(&outer);
    out.extend_from_slice(&inner);
    out
}
