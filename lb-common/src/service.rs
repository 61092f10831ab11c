//! Services and the table that finds them.

use bytemuck::{Pod, Zeroable};

use crate::addr::Addr;

/// IP protocol number of TCP.
pub const TCP: u8 = 6;
/// IP protocol number of UDP.
pub const UDP: u8 = 17;

/// How a service's packets reach its backends ([`Service::forward`]).
pub mod forward {
    /// Direct server return: only the frame's addresses change.
    pub const DSR: u8 = 0;
    /// Destination rewritten on the way in, source on the way out.
    pub const NAT: u8 = 1;
    /// IP-in-IP encapsulation.
    pub const TUNNEL: u8 = 2;
}

/// Bits of [`Service::flags`].
pub mod service_flag {
    /// Datagrams are steered one by one and no flow is kept.
    pub const PER_DATAGRAM: u8 = 1;
    /// Steer by the source address alone, cut to [`super::Service::affinity_prefix`].
    pub const AFFINITY: u8 = 1 << 1;
    /// Cut flows get no reset ([`on_drain_timeout`](super) `silent`).
    pub const SILENT: u8 = 1 << 2;
}

/// One service.
#[repr(C, align(64))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct Service {
    /// Its VIP.
    pub vip: Addr,
    /// Its port, network order.
    pub port: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// One of [`forward`].
    pub forward: u8,
    /// Bits of [`service_flag`].
    pub flags: u8,
    /// With affinity, how many leading bits of the 128-bit (mapped) source address count.
    pub affinity_prefix: u8,
    /// UDP: length of the server ids in QUIC connection ids, bytes; 0 for no look at them. See [`crate::quic`].
    pub server_id_len: u8,
    /// With them, the configuration that an id's first octet has to tell.
    pub cid_rotation: u8,
    /// Where its ring is and how long it is, see [`crate::ring::Published`]; 0 while it has none.
    pub ring: u32,
    /// Silence after which an established flow is over, in ticks.
    pub idle_ticks: u32,
    /// Silence after the client's FIN after which a flow seen from one side is over, in ticks.
    pub fin_quiet_ticks: u32,
    /// Explicit padding.
    pub pad1: [u32; 7],
}

const _: () = assert!(size_of::<Service>() == 64);

/// What an entry of the VIP table stands for ([`VipEntry::kind`]).
pub mod vip_kind {
    /// Nothing: a probe ends here.
    pub const EMPTY: u8 = 0;
    /// A service: its VIP, port and protocol. `target` is the service slot.
    pub const SERVICE: u8 = 1;
    /// A VIP whatever the port (port and protocol 0 in the key). `target` has bits of [`super::address_flag`].
    pub const ADDRESS: u8 = 2;
    /// A NAT backend's endpoint, found by the source of a reply. `target` is the service slot; a backend endpoint
    /// that several services share has an entry for each.
    pub const NAT_SOURCE: u8 = 3;
    /// A backend's server id in QUIC connection ids ([`crate::quic::key`] as the address, the service slot as the port, no
    /// protocol). `target` is the backend slot.
    pub const SERVER_ID: u8 = 4;
}

/// Bits of [`VipEntry::target`] of an `ADDRESS` entry.
pub mod address_flag {
    /// The host uses the address itself too: what no service claims passes to it.
    pub const SHARED_WITH_HOST: u32 = 1;
    /// ICMP echo requests are answered by the packet path.
    pub const ANSWER_ECHO: u32 = 1 << 1;
    /// ARP requests and neighbour solicitations are answered by the packet path.
    pub const ANNOUNCE: u32 = 1 << 2;
}

/// One entry of the VIP table.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
pub struct VipEntry {
    /// Address looked up.
    pub addr: Addr,
    /// Port looked up, network order.
    pub port: u16,
    /// Protocol looked up.
    pub protocol: u8,
    /// One of [`vip_kind`].
    pub kind: u8,
    /// Depends on the kind.
    pub target: u32,
    /// Explicit padding.
    pub pad: [u32; 2],
}

const _: () = assert!(size_of::<VipEntry>() == 32);

/// How many consecutive entries a look-up in the VIP table reads at most; the daemon grows or re-seeds the table until
/// every key is found within them.
pub const VIP_PROBES: u32 = 8;

/// How many `nat` services may share a backend endpoint: a reply is looked for in so many, and the daemon refuses another.
pub const SHARED_BY: u32 = 4;

const _: () = assert!(SHARED_BY <= VIP_PROBES);
