//! Whether a frame is one that a receiver would take: lengths and checksums, by etherparse.

use std::fmt;

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};

/// Why a receiver would drop the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Broken {
    /// It does not parse.
    Headers(String),
    /// A checksum is wrong.
    Checksum {
        /// Of which header.
        of: &'static str,
        /// As it stands there.
        stands: u16,
        /// As it should be.
        should_be: u16,
    },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Headers(why) => write!(f, "headers do not parse: {why}"),
            Self::Checksum { of, stands, should_be } => {
                write!(f, "{of} checksum {stands:#06x}, should be {should_be:#06x}")
            }
        }
    }
}

/// Parses the frame and verifies the IPv4 header's and the transport's checksum.
pub fn verify(frame: &[u8]) -> Result<(), Broken> {
    let headers = PacketHeaders::from_ethernet_slice(frame).map_err(|error| Broken::Headers(error.to_string()))?;
    let is = |of, stands, should_be| {
        if stands == should_be { Ok(()) } else { Err(Broken::Checksum { of, stands, should_be }) }
    };
    if let Some(NetHeaders::Ipv4(ip, _)) = &headers.net {
        is("IPv4 header", ip.header_checksum, ip.calc_header_checksum())?;
    }
    let payload = headers.payload.slice();
    let too_long = |error: etherparse::err::ValueTooBigError<usize>| Broken::Headers(error.to_string());
    match (&headers.net, &headers.transport) {
        (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Tcp(tcp))) => {
            is("TCP", tcp.checksum, tcp.calc_checksum_ipv4(ip, payload).map_err(too_long)?)
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Tcp(tcp))) => {
            is("TCP", tcp.checksum, tcp.calc_checksum_ipv6(ip, payload).map_err(too_long)?)
        }
        (Some(NetHeaders::Ipv4(ip, _)), Some(TransportHeader::Udp(udp))) if udp.checksum != 0 => {
            is("UDP", udp.checksum, udp.calc_checksum_ipv4(ip, payload).map_err(too_long)?)
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Udp(udp))) => {
            is("UDP", udp.checksum, udp.calc_checksum_ipv6(ip, payload).map_err(too_long)?)
        }
        (Some(NetHeaders::Ipv4(..)), Some(TransportHeader::Icmpv4(icmp))) => {
            is("ICMP", icmp.checksum, icmp.icmp_type.calc_checksum(payload))
        }
        (Some(NetHeaders::Ipv6(ip, _)), Some(TransportHeader::Icmpv6(icmp))) => {
            let right = icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload).map_err(too_long)?;
            is("ICMPv6", icmp.checksum, right)
        }
        _ => Ok(()),
    }
}
