//! Interfaces, asked for and answered at once.

use std::io;

use rtnetlink::{
    packet_core::NetlinkMessage,
    packet_route::{
        RouteNetlinkMessage,
        link::{
            InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, VlanProtocol,
            XdpAttached,
        },
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};

use super::request::{self, ATTEMPTS, List, RequestError};

/// What runs an XDP program at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// The driver (or its hardware).
    Native,
    /// The stack, after the driver.
    Generic,
}

impl XdpMode {
    /// The word for people and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// The interface that it is a VLAN of, and the VLAN's number (802.1Q).
    pub vlan: Option<(u32, u16)>,
    /// One end of a veth pair, for which checksums and XDP at the other end need care.
    pub is_veth: bool,
    /// The XDP program on it: its mode and id.
    pub xdp: Option<(XdpMode, u32)>,
}

impl Link {
    /// The interface that a message of a list tells of.
    pub(super) fn of(message: &RouteNetlinkMessage) -> Option<Self> {
        match message {
            RouteNetlinkMessage::NewLink(link) => Some(Self::from_message(link)),
            _ => None,
        }
    }

    /// Reads the kernel's message.
    pub fn from_message(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: None,
            mtu: 0,
            up: message.header.flags.contains(LinkFlags::Up),
            vlan: None,
            is_veth: false,
            xdp: None,
        };
        let (mut parent, mut vlan) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Link(index) => parent = Some(*index),
                LinkAttribute::LinkInfo(infos) => {
                    link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    vlan = vlan_of(infos);
                }
                LinkAttribute::Xdp(xdp) => link.xdp = xdp_of(xdp),
                _ => {}
            }
        }
        link.vlan = parent.zip(vlan);
        link
    }
}

/// The number of an 802.1Q VLAN.
fn vlan_of(infos: &[LinkInfo]) -> Option<u16> {
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    })?;
    if data.contains(&InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)) {
        return None;
    }
    data.iter().find_map(|item| match item {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    })
}

fn xdp_of(attributes: &[LinkXdp]) -> Option<(XdpMode, u32)> {
    let mut mode = None;
    let mut program = 0;
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(XdpAttached::None) => return None,
            LinkXdp::Attached(XdpAttached::SocketBuffer) => mode = Some(XdpMode::Generic),
            LinkXdp::Attached(_) => mode = Some(XdpMode::Native),
            LinkXdp::ProgId(id) => program = *id,
            // Several at once: one in the driver, one in hardware.
            LinkXdp::DrvProgId(id) if program == 0 => program = *id,
            _ => {}
        }
    }
    mode.map(|mode| (mode, program))
}

/// All interfaces of the calling thread's network namespace.
pub fn list() -> io::Result<Vec<Link>> {
    for _ in 0..ATTEMPTS {
        if let Some(messages) = listed()? {
            return Ok(messages.iter().filter_map(Link::of).collect());
        }
    }
    Err(RequestError::Changing.into())
}

fn listed() -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = request::dump(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    request.finalize();
    let mut buffer = vec![0; request.buffer_len()];
    request.serialize(&mut buffer);
    socket.send(&buffer, 0)?;

    let mut list = List::default();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            let length = (message.header.length as usize).next_multiple_of(4);
            if list.take(message)? {
                return Ok(list.whole());
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_listed() {
        let links = list().unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((lo.index, lo.is_veth), (1, false));
        assert!(lo.mtu >= 1280 && lo.xdp.is_none());
    }
}
