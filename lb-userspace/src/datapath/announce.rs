//! Telling neighbours that a VIP is here: gratuitous ARP (RFC 5227, section 2.3) and unsolicited neighbour advertisements
//! (RFC 4861, section 7.2.6), and hearing those who ask a group for an IPv6 address.
//!
//! Questions are answered by the packet path, also when the daemon is away; this is only what nobody has asked for.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd as _,
};

use lb_common::checksum;

use super::frame::{Frame, Sender};

/// ICMPv6's number as a next header.
const ICMPV6: u8 = 58;
/// Bytes of an advertisement with its one option.
const ADVERTISED: u8 = 32;

/// An interface to announce on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its name.
    pub(crate) name: String,
    /// Its index.
    pub(crate) ifindex: u32,
    /// Its MAC address.
    pub(crate) mac: [u8; 6],
}

/// What is announced.
#[derive(Debug, Default)]
pub(crate) struct Announcer {
    sender: Sender,
    /// The addresses that questions are answered for.
    addresses: BTreeSet<IpAddr>,
    /// Groups that interfaces listen to, so that the questions come through.
    joined: BTreeSet<(u32, [u8; 6])>,
}

impl Announcer {
    /// Sends each address's news on each interface, once.
    pub(crate) fn send(&mut self, addresses: &[IpAddr], places: &[Place]) {
        let frames = places.iter().flat_map(|place| addresses.iter().filter_map(|address| frame(*address, place)));
        let frames: Vec<Frame> = frames.collect();
        let failed = self.sender.send(&frames);
        if failed > 0 {
            tracing::warn!("{failed} of {} announcements could not be sent", frames.len());
        }
    }

    /// These addresses are announced from now on, and no others.
    pub(crate) fn set(&mut self, addresses: BTreeSet<IpAddr>, places: &[Place]) {
        self.addresses = addresses;
        self.listen(places);
    }

    /// Has these interfaces listen to the groups in which neighbours ask. The memberships stay when the daemon ends, as
    /// its answers do.
    pub(crate) fn listen(&mut self, places: &[Place]) {
        let mut wanted = BTreeSet::new();
        for place in places {
            for address in &self.addresses {
                let IpAddr::V6(address) = address else { continue };
                let group = solicited_group(*address);
                wanted.insert((place.ifindex, group));
                if !self.joined.contains(&(place.ifindex, group))
                    && let Err(error) = change_group(libc::SIOCADDMULTI, &place.name, group)
                {
                    tracing::warn!("{} cannot listen to those who ask for {address}: {error}", place.name);
                }
            }
        }
        for (ifindex, group) in self.joined.difference(&wanted) {
            if let Some(place) = places.iter().find(|place| place.ifindex == *ifindex)
                && let Err(error) = change_group(libc::SIOCDELMULTI, &place.name, *group)
            {
                tracing::debug!("{} goes on listening to a group in vain: {error}", place.name);
            }
        }
        self.joined = wanted;
    }
}

/// The MAC address of the group in which neighbours ask for an address (RFC 4291, section 2.7.1; RFC 2464, section 7).
fn solicited_group(address: Ipv6Addr) -> [u8; 6] {
    let [.., a, b, c] = address.octets();
    [0x33, 0x33, 0xff, a, b, c]
}

/// `SIOCADDMULTI` or `SIOCDELMULTI` (netdevice(7)).
fn change_group(request: libc::Ioctl, name: &str, group: [u8; 6]) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // SAFETY: an all-zero ifreq is a valid one: integers, arrays of them and a null pointer.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= ifreq.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let mut hardware = libc::sockaddr { sa_family: libc::AF_UNSPEC as libc::sa_family_t, sa_data: [0; 14] };
    for (to, from) in hardware.sa_data.iter_mut().zip(group) {
        *to = from.cast_signed();
    }
    ifreq.ifr_ifru.ifru_hwaddr = hardware;
    // SAFETY: the request reads the name, which ends in a zero, and the address; both outlive the call.
    let failed = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut ifreq) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn frame(address: IpAddr, place: &Place) -> Option<Frame> {
    match address {
        IpAddr::V4(address) => gratuitous_arp(address, place),
        IpAddr::V6(address) => unsolicited_advertisement(address, place),
    }
}

fn gratuitous_arp(address: Ipv4Addr, place: &Place) -> Option<Frame> {
    let vip = address.octets();
    Frame::of(
        place.ifindex,
        &[
            &[0xff; 6],
            &place.mac,
            // ARP; Ethernet, IPv4, the lengths of their addresses, a request.
            &[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1],
            &place.mac,
            &vip,
            &[0; 6],
            &vip,
        ],
    )
}

fn unsolicited_advertisement(address: Ipv6Addr, place: &Place) -> Option<Frame> {
    const OVERRIDE: u8 = 0x20;
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut message = vec![136, 0, 0, 0, OVERRIDE, 0, 0, 0];
    message.extend_from_slice(&address.octets());
    // The target's link-layer address, in one unit of eight bytes.
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&place.mac);
    let pseudo = [0, ADVERTISED, 0, ICMPV6];
    let sum = checksum::sum(&message)
        + checksum::sum(&address.octets())
        + checksum::sum(&ALL_NODES.octets())
        + checksum::sum(&pseudo);
    message[2..4].copy_from_slice(&(!checksum::fold(sum)).to_ne_bytes());
    Frame::of(
        place.ifindex,
        &[
            &[0x33, 0x33, 0, 0, 0, 1],
            &place.mac,
            &[0x86, 0xdd, 0x60, 0, 0, 0, 0, ADVERTISED, ICMPV6, 255],
            &address.octets(),
            &ALL_NODES.octets(),
            &message,
        ],
    )
}

#[cfg(test)]
mod tests {
    use etherparse::{Icmpv6Slice, NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn place() -> Place {
        Place { name: "eth0".to_owned(), ifindex: 3, mac: [2, 0, 0, 0, 0, 9] }
    }

    #[test]
    fn a_gratuitous_arp_names_the_vip_twice() {
        let frame = gratuitous_arp("10.0.0.100".parse().unwrap(), &place()).unwrap();
        let packet = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
        let Some(NetSlice::Arp(arp)) = packet.net else { panic!("{packet:?}") };
        assert_eq!(arp.operation().0, 1);
        assert_eq!((arp.sender_hw_addr(), arp.sender_protocol_addr()), (&place().mac[..], &[10, 0, 0, 100][..]));
        assert_eq!(arp.target_protocol_addr(), [10, 0, 0, 100]);
    }

    #[test]
    fn an_advertisement_has_its_checksum_and_overrides() {
        let vip: Ipv6Addr = "fd00::100".parse().unwrap();
        let frame = unsolicited_advertisement(vip, &place()).unwrap();
        let packet = SlicedPacket::from_ethernet(frame.bytes()).unwrap();
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (packet.net, packet.transport) else {
            panic!("not ICMPv6")
        };
        let (from, to) = (ip.header().source(), ip.header().destination());
        assert!(Icmpv6Slice::from_slice(icmp.slice()).unwrap().is_checksum_valid(from, to));
        assert_eq!((ip.header().hop_limit(), from), (255, vip.octets()));
        assert_eq!((icmp.slice()[0], icmp.slice()[4]), (136, 0x20));
        assert_eq!(icmp.slice()[26..], place().mac);
    }

    #[test]
    fn neighbours_ask_in_the_group_of_the_last_three_bytes() {
        assert_eq!(solicited_group("fd00::12:3456:789a".parse().unwrap()), [0x33, 0x33, 0xff, 0x56, 0x78, 0x9a]);
    }
}
