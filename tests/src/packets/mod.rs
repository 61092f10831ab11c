//! Frames as bytes, built by etherparse: headers, lengths and checksums come from a library that has nothing to do with
//! Ebb's own code.

mod check;
pub mod quic;

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6FragmentHeader, Ipv6Header,
    Ipv6RawExtHeader, PacketBuilder, PacketBuilderStep, TcpHeader, VlanId,
};

pub use self::check::{Broken, verify};

/// A link-layer address.
pub type Mac = [u8; 6];

/// Bits of the flags byte of a TCP header (RFC 9293, section 3.1).
pub mod tcp_flag {
    /// No more data.
    pub const FIN: u8 = 0x01;
    /// Synchronize.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Push.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement counts.
    pub const ACK: u8 = 0x10;
}

/// What follows the IP header.
#[derive(Clone, Debug)]
pub enum Transport {
    /// A TCP segment.
    Tcp {
        /// Bits of [`tcp_flag`].
        flags: u8,
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
        /// Window.
        window: u16,
        /// Options, a multiple of four bytes.
        options: Vec<u8>,
    },
    /// A datagram.
    Udp {
        /// Whether it has a checksum (IPv4 only may do without).
        checksum: bool,
    },
    /// Something else: the payload is all there is.
    Other(u8),
}

impl Transport {
    /// A segment without options.
    pub const fn tcp(flags: u8, seq: u32, ack: u32) -> Self {
        Self::Tcp { flags, seq, ack, window: 65_535, options: Vec::new() }
    }
}

/// A fragment's place.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Identification.
    pub id: u32,
    /// Offset in units of eight bytes.
    pub offset: u16,
    /// Whether more follow.
    pub more: bool,
}

/// An extension header of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options.
    HopByHop,
    /// Destination options.
    Destination,
}

/// One frame, header by header.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Source MAC address.
    pub source_mac: Mac,
    /// Destination MAC address.
    pub destination_mac: Mac,
    /// VLAN ids from the outside in; two at most.
    pub tags: Vec<u16>,
    /// Source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// Time to live, or hop limit.
    pub hop_limit: u8,
    /// Type of service, or traffic class: DSCP and ECN.
    pub class: u8,
    /// IPv4: whether it must not be fragmented.
    pub dont_fragment: bool,
    /// IPv4: options, a multiple of four bytes.
    pub ip_options: Vec<u8>,
    /// IPv6: extension headers, each of eight bytes.
    pub extensions: Vec<Extension>,
    /// Place in a fragmented packet.
    pub piece: Option<Piece>,
    /// What follows.
    pub transport: Transport,
    /// And its payload.
    pub payload: Vec<u8>,
    /// Bytes of Ethernet padding behind the IP packet.
    pub padding: Vec<u8>,
}

impl Frame {
    /// A frame with nothing unusual, and no payload.
    pub fn new(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Self {
        Self {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            tags: Vec::new(),
            source,
            destination,
            hop_limit: 61,
            class: 0,
            dont_fragment: true,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            piece: None,
            transport,
            payload: Vec::new(),
            padding: Vec::new(),
        }
    }

    /// Bytes in front of the IP header.
    pub fn ip_offset(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Bytes in front of what follows the IP header and its extensions.
    pub fn payload_offset(&self) -> usize {
        let ip = match self.source {
            SocketAddr::V4(_) => 20 + self.ip_options.len(),
            SocketAddr::V6(_) => 40 + 8 * self.extensions.len() + if self.piece.is_some() { 8 } else { 0 },
        };
        self.ip_offset() + ip
    }

    /// The frame's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        let id = |tag: u16| VlanId::try_new(tag).expect("VLAN ids have twelve bits");
        let mut bytes = match self.tags[..] {
            [] => self.with_ip(ethernet.ip(self.ip())),
            [tag] => self.with_ip(ethernet.single_vlan(id(tag)).ip(self.ip())),
            [outer, inner] => self.with_ip(ethernet.double_vlan(id(outer), id(inner)).ip(self.ip())),
            _ => panic!("at most two tags"),
        };
        bytes.extend_from_slice(&self.padding);
        bytes
    }

    fn ip(&self) -> IpHeaders {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut header = Ipv4Header::new(0, self.hop_limit, IpNumber(0), source.octets(), destination.octets())
                    .expect("an empty payload fits");
                header.dscp = (self.class >> 2).try_into().expect("six bits");
                header.ecn = (self.class & 3).try_into().expect("two bits");
                header.dont_fragment = self.dont_fragment && self.piece.is_none();
                header.options = self.ip_options[..].try_into().expect("a multiple of four bytes, at most forty");
                if let Some(piece) = self.piece {
                    header.identification = piece.id as u16;
                    header.fragment_offset = offset(piece);
                    header.more_fragments = piece.more;
                }
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let header = Ipv6Header {
                    traffic_class: self.class,
                    hop_limit: self.hop_limit,
                    source: source.octets(),
                    destination: destination.octets(),
                    ..Ipv6Header::default()
                };
                IpHeaders::Ipv6(header, self.ipv6_extensions())
            }
            _ => panic!("both addresses are of one family"),
        }
    }

    fn ipv6_extensions(&self) -> Ipv6Extensions {
        // PadN over the remaining six bytes (RFC 8200, section 4.2).
        let options = |kind| {
            let padding = Ipv6RawExtHeader::new_raw(IpNumber(0), &[1, 4, 0, 0, 0, 0]).expect("eight bytes");
            self.extensions.contains(&kind).then_some(padding)
        };
        Ipv6Extensions {
            hop_by_hop_options: options(Extension::HopByHop),
            destination_options: options(Extension::Destination),
            fragment: self.piece.map(|piece| Ipv6FragmentHeader::new(IpNumber(0), offset(piece), piece.more, piece.id)),
            ..Ipv6Extensions::default()
        }
    }

    fn with_ip(&self, builder: PacketBuilderStep<IpHeaders>) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (source, destination) = (self.source.port(), self.destination.port());
        match &self.transport {
            Transport::Tcp { flags, seq, ack, window, options } => {
                let mut header = TcpHeader::new(source, destination, *seq, *window);
                header.acknowledgment_number = *ack;
                header.fin = flags & tcp_flag::FIN != 0;
                header.syn = flags & tcp_flag::SYN != 0;
                header.rst = flags & tcp_flag::RST != 0;
                header.psh = flags & tcp_flag::PSH != 0;
                header.ack = flags & tcp_flag::ACK != 0;
                header.set_options_raw(options).expect("at most forty bytes");
                builder.tcp_header(header).write_to_vec(&mut bytes, &self.payload).expect("fits");
            }
            Transport::Udp { checksum } => {
                builder.udp(source, destination).write_to_vec(&mut bytes, &self.payload).expect("fits");
                if !checksum {
                    let at = self.payload_offset() + 6;
                    bytes[at..at + 2].fill(0);
                }
            }
            Transport::Other(number) => {
                builder.write_to_vec(&mut bytes, IpNumber(*number), &self.payload).expect("fits");
            }
        }
        bytes
    }
}

fn offset(piece: Piece) -> IpFragOffset {
    piece.offset.try_into().expect("thirteen bits")
}

/// A frame that carries no IP packet.
pub fn not_ip(destination: Mac, source: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&destination[..], &source[..], &ether_type.to_be_bytes()[..]].concat();
    bytes.extend_from_slice(payload);
    bytes
}
