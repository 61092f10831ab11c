//! Questions for the link-layer address of a VIP, packet by packet through the real program: which are answered, and to
//! the byte how. Every other frame must pass untouched.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Result, ensure};
use ebb_tests::rig::{Action, CLIENT_MAC, Rig, Sizes};
use etherparse::{Icmpv6Slice, SlicedPacket};
use lb_common::{
    control::control_flag,
    outcome::Outcome,
    service::{VipEntry, address_flag, vip_kind},
};

/// What the program is told to be its address.
const OWN: [u8; 6] = [2, 0xeb, 0xb0, 0, 1, 1];
const BROADCAST: [u8; 6] = [0xff; 6];
const VIP: [u8; 4] = [10, 1, 0, 100];
const CLIENT: [u8; 4] = [10, 1, 0, 10];
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0x12, 0x3456);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, 0xa);

/// The program with one VIP of each family, that has these flags.
fn rig(flags: u32) -> Result<Rig> {
    let mut rig = Rig::load(Sizes::SMALL)?;
    for vip in [IpAddr::from(VIP), IpAddr::from(VIP6)] {
        let kind = vip_kind::ADDRESS;
        rig.put_vip(VipEntry { addr: vip.into(), port: 0, protocol: 0, kind, target: flags, pad: [0; 2] })?;
    }
    rig.control.change(0, |control| control.flags |= control_flag::ANSWERS);
    rig.put_own_mac(OWN)?;
    Ok(rig)
}

fn announcing() -> Result<Rig> {
    rig(address_flag::ANNOUNCE)
}

fn link(to: [u8; 6], from: [u8; 6], tags: &[u16], ethertype: u16) -> Vec<u8> {
    let mut bytes = [to, from].concat();
    for tag in tags {
        bytes.extend_from_slice(&[0x81, 0]);
        bytes.extend_from_slice(&tag.to_be_bytes());
    }
    bytes.extend_from_slice(&ethertype.to_be_bytes());
    bytes
}

fn arp(operation: u8, sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4, 0, operation];
    for (mac, ip) in [sender, target] {
        bytes.extend_from_slice(&mac);
        bytes.extend_from_slice(&ip);
    }
    bytes
}

fn request(tags: &[u16]) -> Vec<u8> {
    let mut frame = link(BROADCAST, CLIENT_MAC, tags, 0x0806);
    frame.extend(arp(1, (CLIENT_MAC, CLIENT), ([0; 6], VIP)));
    // As Ethernet pads it.
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A solicitation. Its checksum is left out: one that is damaged is answered too, which harms nobody.
struct Solicitation {
    from: Ipv6Addr,
    to: Ipv6Addr,
    hops: u8,
    code: u8,
    target: Ipv6Addr,
    option: bool,
    tags: Vec<u16>,
}

impl Solicitation {
    fn usual() -> Self {
        let [.., a, b, c] = VIP6.octets();
        let mut group = [0u8; 16];
        group[..2].copy_from_slice(&[0xff, 2]);
        group[11..].copy_from_slice(&[1, 0xff, a, b, c]);
        Self { from: CLIENT6, to: group.into(), hops: 255, code: 0, target: VIP6, option: true, tags: Vec::new() }
    }

    fn frame(&self) -> Vec<u8> {
        let mut message = vec![135, self.code, 0, 0, 0, 0, 0, 0];
        message.extend_from_slice(&self.target.octets());
        if self.option {
            message.extend_from_slice(&[1, 1]);
            message.extend_from_slice(&CLIENT_MAC);
        }
        let mut bytes = link([0x33, 0x33, 0xff, 0x12, 0x34, 0x56], CLIENT_MAC, &self.tags, 0x86dd);
        bytes.extend_from_slice(&[0x60, 0, 0, 0, 0, message.len() as u8, 58, self.hops]);
        bytes.extend_from_slice(&self.from.octets());
        bytes.extend_from_slice(&self.to.octets());
        bytes.extend_from_slice(&message);
        bytes
    }
}

/// The frame must pass as it is.
fn passes(rig: &Rig, frame: &[u8], why: &str) -> Result<()> {
    let before = rig.counters();
    let (action, out) = rig.run(frame)?;
    ensure!(action == Action::Pass && out == frame, "{why}: {action:?}");
    let answered = before.plus(Outcome::NeighbourAnswered);
    ensure!(rig.counters() != answered, "{why}: counted as answered");
    Ok(())
}

#[test]
fn an_arp_request_for_an_announced_vip_is_answered_in_place() -> Result<()> {
    let rig = announcing()?;
    for tags in [&[][..], &[100][..], &[7, 100][..]] {
        let before = rig.counters();
        let (action, out) = rig.run(&request(tags))?;
        let mut wanted = link(CLIENT_MAC, OWN, tags, 0x0806);
        wanted.extend(arp(2, (OWN, VIP), (CLIENT_MAC, CLIENT)));
        wanted.resize(wanted.len().max(60), 0);
        assert_eq!((action, &out), (Action::Tx, &wanted), "tags {tags:?}");
        assert_eq!(rig.counters(), before.plus(Outcome::NeighbourAnswered));
    }
    Ok(())
}

#[test]
fn other_arp_passes() -> Result<()> {
    let rig = announcing()?;
    let frame = |arp: Vec<u8>| [link(BROADCAST, CLIENT_MAC, &[], 0x0806), arp].concat();
    let other = [10, 1, 0, 101];
    passes(&rig, &frame(arp(1, (CLIENT_MAC, CLIENT), ([0; 6], other))), "for another address")?;
    passes(&rig, &frame(arp(2, (CLIENT_MAC, CLIENT), (OWN, VIP))), "an answer")?;
    passes(&rig, &frame(arp(1, (CLIENT_MAC, VIP), ([0; 6], VIP))), "another host's announcement of the VIP")?;
    for byte in 0..8 {
        let mut lying = arp(1, (CLIENT_MAC, CLIENT), ([0; 6], VIP));
        lying[byte] ^= 0x40;
        passes(&rig, &frame(lying), "of another kind")?;
    }
    let whole = frame(arp(1, (CLIENT_MAC, CLIENT), ([0; 6], VIP)));
    for length in 14..whole.len() {
        passes(&rig, &whole[..length], "cut short")?;
    }
    let silent = self::rig(address_flag::SHARED_WITH_HOST | address_flag::ANSWER_ECHO)?;
    passes(&silent, &whole, "a VIP that is not announced")
}

/// What an answer to a solicitation says: its destination MAC address and IP address, and the flags.
fn check_advertisement(out: &[u8], to_mac: [u8; 6], to: Ipv6Addr, flags: u8, tags: usize) -> Result<()> {
    let at = 14 + 4 * tags;
    assert_eq!((&out[..6], &out[6..12]), (&to_mac[..], &OWN[..]));
    let packet = SlicedPacket::from_ethernet(out)?;
    let Some(etherparse::NetSlice::Ipv6(ip)) = packet.net else { anyhow::bail!("not IPv6: {out:x?}") };
    let header = ip.header();
    assert_eq!((header.source(), header.destination(), header.hop_limit()), (VIP6.octets(), to.octets(), 255));
    let message = &out[at + 40..];
    let icmp = Icmpv6Slice::from_slice(message)?;
    assert!(icmp.is_checksum_valid(header.source(), header.destination()), "its checksum");
    assert_eq!((message[0], message[1], message[4]), (136, 0, flags));
    assert_eq!(message[8..24], VIP6.octets());
    assert_eq!((&message[24..26], &message[26..]), (&[2u8, 1][..], &OWN[..]), "the option, and nothing after it");
    Ok(())
}

#[test]
fn a_solicitation_for_an_announced_vip_is_answered() -> Result<()> {
    let rig = announcing()?;
    for tags in [vec![], vec![100], vec![7, 100]] {
        for option in [true, false] {
            let before = rig.counters();
            let count = tags.len();
            let asked = Solicitation { tags: tags.clone(), option, ..Solicitation::usual() };
            let (action, out) = rig.run(&asked.frame())?;
            assert_eq!(action, Action::Tx, "tags {tags:?}, with option: {option}");
            check_advertisement(&out, CLIENT_MAC, CLIENT6, 0x60, count)?;
            assert_eq!(rig.counters(), before.plus(Outcome::NeighbourAnswered));
        }
    }
    let unicast = Solicitation { to: VIP6, ..Solicitation::usual() };
    check_advertisement(&rig.run(&unicast.frame())?.1, CLIENT_MAC, CLIENT6, 0x60, 0)
}

#[test]
fn one_who_looks_whether_the_address_is_taken_is_told_before_all() -> Result<()> {
    let asked = Solicitation { from: Ipv6Addr::UNSPECIFIED, option: false, ..Solicitation::usual() };
    let (action, out) = announcing()?.run(&asked.frame())?;
    assert_eq!(action, Action::Tx);
    check_advertisement(&out, [0x33, 0x33, 0, 0, 0, 1], "ff02::1".parse()?, 0x20, 0)
}

#[test]
fn other_neighbour_discovery_passes() -> Result<()> {
    let rig = announcing()?;
    let usual = Solicitation::usual;
    passes(&rig, &Solicitation { target: CLIENT6, ..usual() }.frame(), "for another address")?;
    passes(&rig, &Solicitation { hops: 64, ..usual() }.frame(), "passed on by a router")?;
    passes(&rig, &Solicitation { code: 1, ..usual() }.frame(), "of another code")?;
    let mut advertisement = usual().frame();
    advertisement[14 + 40] = 136;
    passes(&rig, &advertisement, "an advertisement")?;
    let whole = Solicitation { option: false, ..usual() }.frame();
    for length in 14..whole.len() {
        passes(&rig, &whole[..length], "cut short")?;
    }
    passes(&self::rig(0)?, &usual().frame(), "a VIP that is not announced")
}
