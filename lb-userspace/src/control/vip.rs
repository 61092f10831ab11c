//! Addresses and names as people write them.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Error;
use crate::datapath::Protocol;

/// The longest name of a service or backend.
pub const MAX_NAME_BYTES: usize = 64;

/// Where clients send to: `10.0.0.100:80/tcp`, `[fd00::1]:80/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct Vip {
    /// Address and port.
    pub address: SocketAddr,
    /// Transport.
    pub protocol: Protocol,
}

/// A backend's address, under `nat` with a port where it differs from the VIP's: `10.0.0.11`, `10.0.0.11:8080`, `[fd00::b]:8080`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub struct BackendAddress {
    /// The host.
    pub ip: IpAddr,
    /// The port, where one was given.
    pub port: Option<u16>,
}

impl BackendAddress {
    /// Where packets for this VIP go there: to the VIP's port unless it has one of its own.
    pub fn endpoint(self, vip: Vip) -> SocketAddr {
        SocketAddr::new(self.ip, self.port.unwrap_or(vip.address.port()))
    }
}

/// Checks the name of a `what` ("service", "backend").
pub fn check_name(what: &str, name: &str) -> Result<(), Error> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let starts_well = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if starts_well && name.len() <= MAX_NAME_BYTES && name.chars().all(fit) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "'{name}' cannot name a {what}: use up to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.', a letter or digit first"
    )))
}

impl FromStr for Vip {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| {
            Error::Invalid(format!("'{text}' is not a VIP: {why}; write 10.0.0.100:80/tcp or [fd00::1]:80/udp"))
        };
        let (socket, protocol) = text.rsplit_once('/').ok_or_else(|| invalid("the protocol is missing"))?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(invalid("the protocol is tcp or udp")),
        };
        let address: SocketAddr =
            socket.parse().map_err(|_| invalid("an address, a colon and a port come first (IPv6 in brackets)"))?;
        if address.port() == 0 {
            return Err(invalid("the port is 1 to 65535"));
        }
        if scoped(&address) {
            return Err(invalid("an address with a zone is not supported"));
        }
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if let Some(why) = not_a_host(address.ip()) {
            return Err(invalid(why));
        }
        Ok(Self { address, protocol })
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.protocol)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for BackendAddress {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |why: &str| {
            Error::Invalid(format!(
                "'{text}' is not a backend's address: {why}; write 10.0.0.11 or fd00::b, under nat also 10.0.0.11:8080 or [fd00::b]:8080"
            ))
        };
        let (ip, port) = if let Ok(ip) = text.parse::<IpAddr>() {
            (ip, None)
        } else {
            let socket: SocketAddr = text.parse().map_err(|_| invalid("it is no IP address"))?;
            if socket.port() == 0 {
                return Err(invalid("the port is 1 to 65535"));
            }
            if scoped(&socket) {
                return Err(invalid("an address with a zone is not supported"));
            }
            (socket.ip(), Some(socket.port()))
        };
        let ip = ip.to_canonical();
        match not_a_host(ip) {
            Some(why) => Err(invalid(why)),
            None => Ok(Self { ip, port }),
        }
    }
}

impl fmt::Display for BackendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => SocketAddr::new(self.ip, port).fmt(f),
            None => self.ip.fmt(f),
        }
    }
}

/// Why no host can have this address, if none can.
fn not_a_host(ip: IpAddr) -> Option<&'static str> {
    if ip.is_unspecified() {
        Some("it is the unspecified address")
    } else if ip.is_multicast() {
        Some("it is a multicast address")
    } else if ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("it is the broadcast address")
    } else if ip.is_loopback() {
        Some("it is a loopback address, which never crosses a wire")
    } else if matches!(ip, IpAddr::V6(v6) if link_local(v6)) {
        Some("it is a link-local address, which means nothing without an interface")
    } else {
        None
    }
}

fn scoped(address: &SocketAddr) -> bool {
    matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0)
}

fn link_local(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xffc0 == 0xfe80
}

macro_rules! through_string {
    ($type:ty) => {
        impl TryFrom<String> for $type {
            type Error = Error;

            fn try_from(text: String) -> Result<Self, Error> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.to_string()
            }
        }
    };
}
through_string!(Vip);
through_string!(BackendAddress);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vips_read_and_write_back() {
        for text in ["10.0.0.100:80/tcp", "[fd00::1]:80/udp", "192.0.2.1:65535/udp"] {
            assert_eq!(text.parse::<Vip>().expect(text).to_string(), text);
        }
        assert_eq!("[::ffff:10.0.0.1]:80/tcp".parse::<Vip>().expect("mapped").to_string(), "10.0.0.1:80/tcp");
    }

    #[test]
    fn a_bad_vip_is_told_what_is_wrong() {
        for (text, why) in [
            ("10.0.0.100:80", "protocol is missing"),
            ("10.0.0.100:80/icmp", "tcp or udp"),
            ("10.0.0.100/tcp", "a colon and a port"),
            ("10.0.0.100:0/tcp", "1 to 65535"),
            ("10.0.0.100:65536/tcp", "a colon and a port"),
            ("fd00::1:80/tcp", "in brackets"),
            ("0.0.0.0:80/tcp", "unspecified"),
            ("224.0.0.1:80/udp", "multicast"),
            ("255.255.255.255:80/udp", "broadcast"),
            ("127.0.0.1:80/tcp", "loopback"),
            ("[fe80::1]:80/tcp", "link-local"),
            ("[fd00::1%3]:80/tcp", "zone"),
            ("", "protocol is missing"),
        ] {
            let error = text.parse::<Vip>().expect_err(text).to_string();
            assert!(error.contains(why) && error.contains("write 10.0.0.100:80/tcp"), "{text}: {error}");
        }
    }

    #[test]
    fn backend_addresses_read_and_write_back() {
        for text in ["10.0.0.11", "10.0.0.11:8080", "fd00::b", "[fd00::b]:8080"] {
            assert_eq!(text.parse::<BackendAddress>().expect(text).to_string(), text);
        }
        for text in ["", "web-1", "10.0.0", "10.0.0.11:0", "10.0.0.11:99999", "0.0.0.0", "127.0.0.1", "fe80::1"] {
            assert!(text.parse::<BackendAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["web", "web-1", "a", "10.0.0.11", "A_b.c", &"x".repeat(64)] {
            check_name("service", name).expect(name);
        }
        for name in ["", "-web", ".web", "we b", "web/1", "wéb", "a\n", &"x".repeat(65)] {
            let error = check_name("backend", name).expect_err(name).to_string();
            assert!(error.contains("cannot name a backend"), "{error}");
        }
    }
}
