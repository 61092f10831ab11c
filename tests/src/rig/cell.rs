//! Modes, families and protocols, and the addresses, service and backends that stand for each combination.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use bytemuck::Zeroable as _;
use lb_common::{
    addr::Addr,
    backend::{Backend, BackendState, NO_DEADLINE, backend_flag},
    service::{Service, TCP, UDP, VipEntry, forward, vip_kind},
    time,
};

use crate::{
    lab::Family,
    packets::Mac,
    rig::{INGRESS, seconds},
};

/// A forwarding mode.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Mode {
    /// Direct server return.
    Dsr,
    /// Destination rewritten.
    Nat,
    /// IP-in-IP, both of one family.
    Tunnel,
    /// IP-in-IP, the outer packet of the other family.
    Across,
}

/// All modes.
pub const MODES: [Mode; 4] = [Mode::Dsr, Mode::Nat, Mode::Tunnel, Mode::Across];

impl Mode {
    /// Whether packets go to backends inside others.
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Self::Tunnel | Self::Across)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dsr => "dsr",
            Self::Nat => "nat",
            Self::Tunnel => "tunnel",
            Self::Across => "tunnel across families",
        })
    }
}

/// A protocol with ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// Both protocols.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

impl Protocol {
    /// Its IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// MAC address that clients' frames come from.
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0x0c, 1];
/// Our MAC address on the clients' link.
pub const OWN_MAC: Mac = [2, 0, 0, 0, 0x0b, 1];

/// MAC address of backend `n`'s next hop.
pub const fn backend_mac(n: u8) -> Mac {
    [2, 0, 0, 0, 0xba, n]
}

/// One combination.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cell {
    /// Forwarding mode.
    pub mode: Mode,
    /// Family of the VIP and its clients.
    pub family: Family,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |family| match family {
            Family::V4 => "ipv4",
            Family::V6 => "ipv6",
        };
        let (mode, family) = (self.mode, name(self.family));
        match mode {
            Mode::Dsr | Mode::Nat => write!(f, "{mode}/{family}/{}", self.protocol),
            Mode::Tunnel | Mode::Across => write!(f, "tunnel/{family} in {}/{}", name(self.outer()), self.protocol),
        }
    }
}

impl Cell {
    /// The family in which backends are reached.
    pub const fn outer(self) -> Family {
        match (self.mode, self.family) {
            (Mode::Across, Family::V4) => Family::V6,
            (Mode::Across, Family::V6) => Family::V4,
            (_, family) => family,
        }
    }

    /// The address of a family in network `net`.
    fn address(family: Family, net: u8, host: u8) -> IpAddr {
        match family {
            Family::V4 => Ipv4Addr::new(10, net, 0, host).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, u16::from(net), 0, 0, 0, 0, 0, u16::from(host)).into(),
        }
    }

    /// The service's VIP, which each mode has one of, and its port.
    pub fn vip(self) -> SocketAddr {
        (Self::address(self.family, 9, 1 + self.mode as u8), 80).into()
    }

    /// A client, whose address and port are none of the others'.
    pub fn client(self) -> SocketAddr {
        (Self::address(self.family, 1, 10), 40_000).into()
    }

    /// Address of backend `n`; under NAT its port is 8080.
    pub fn backend(self, n: u8) -> IpAddr {
        Self::address(self.outer(), 2, 10 + n)
    }

    /// The entry that finds the service.
    pub fn vip_entry(self, service: u16) -> VipEntry {
        VipEntry {
            addr: self.vip().ip().into(),
            port: self.vip().port().to_be(),
            protocol: self.protocol.number(),
            kind: vip_kind::SERVICE,
            target: service.into(),
            pad: [0; 2],
        }
    }

    /// The service's row, without a ring.
    pub fn service_row(self) -> Service {
        Service {
            vip: self.vip().ip().into(),
            port: self.vip().port().to_be(),
            protocol: self.protocol.number(),
            forward: match self.mode {
                Mode::Dsr => forward::DSR,
                Mode::Nat => forward::NAT,
                Mode::Tunnel | Mode::Across => forward::TUNNEL,
            },
            idle_ticks: seconds(300),
            fin_quiet_ticks: time::duration_ticks(1_000_000_000),
            ..Service::zeroed()
        }
    }

    /// The row of backend `n` in its first life: active and resolved. Those with an odd number are on the link that
    /// clients' packets come in by, the others on another.
    pub fn backend_row(self, n: u8, service: u16) -> Backend {
        Backend {
            generation: 7,
            state: BackendState::Active as u8,
            flags: backend_flag::RESOLVED,
            service,
            deadline_ns: NO_DEADLINE,
            ifindex: if n % 2 == 1 { INGRESS } else { INGRESS + 1 },
            dst_mac: backend_mac(n),
            src_mac: OWN_MAC,
            addr: self.backend(n).into(),
            port: match self.mode {
                Mode::Nat => 8080_u16.to_be(),
                Mode::Dsr | Mode::Tunnel | Mode::Across => self.vip().port().to_be(),
            },
            mtu: 1500,
            tunnel_source: Addr::from(Self::address(self.outer(), 2, 1)),
            ..Backend::zeroed()
        }
    }
}

/// The entry that finds a backend by its server id in QUIC connection ids.
pub fn server_id_entry(service: u16, id: &[u8], backend: u32) -> VipEntry {
    let mut bytes = [0; 16];
    bytes[..id.len()].copy_from_slice(id);
    let addr = Ipv6Addr::from(bytes);
    VipEntry {
        addr: IpAddr::from(addr).into(),
        port: service,
        protocol: 0,
        kind: vip_kind::SERVER_ID,
        target: backend,
        pad: [0; 2],
    }
}
