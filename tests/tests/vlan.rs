//! VLAN tags, packet by packet through the real program: a frame leaves with those of its way, whatever it came with; and
//! without knowledge of the way, with those that it had.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use ebb_tests::{
    lab::FAMILIES,
    packets::{Frame, Transport, tcp_flag::SYN, verify},
    rig::{Action, CLIENT_MAC, Cell, MODES, Mode, OWN_MAC, PROTOCOLS, Protocol, Rig, Sizes},
};
use lb_common::{
    control::control_flag,
    ring::RingSlot,
    service::{VipEntry, vip_kind},
    vlan::Tag,
};

const SERVICE: u16 = 3;
const BACKEND: u32 = 4;
/// The tags of the clients' side that are tried.
const ARRIVING: [&[u16]; 3] = [&[], &[100], &[7, 100]];

/// One backend, whose next hop takes these tags.
fn set_up(rig: &mut Rig, cell: Cell, tag: Tag) -> Result<()> {
    rig.reset()?;
    rig.put_vip(cell.vip_entry(SERVICE))?;
    rig.services.set(SERVICE.into(), cell.service_row());
    let mut row = cell.backend_row(0, SERVICE);
    row.tag = tag.0;
    rig.backends.set(BACKEND, row);
    if cell.mode == Mode::Nat {
        let (kind, protocol) = (vip_kind::NAT_SOURCE, cell.protocol.number());
        let target = SERVICE.into();
        rig.put_vip(VipEntry { addr: row.addr, port: row.port, protocol, kind, target, pad: [0; 2] })?;
        rig.control.change(0, |control| control.flags |= control_flag::NAT);
    }
    rig.put_ring(SERVICE, 0, &[RingSlot { owner: BACKEND + 1, previous: 0 }; 7])
}

fn opening(cell: Cell, tags: &[u16]) -> Frame {
    let transport = match cell.protocol {
        Protocol::Tcp => Transport::tcp(SYN, 1000, 0),
        Protocol::Udp => Transport::Udp { checksum: true },
    };
    let mut frame = Frame::new(cell.client(), cell.vip(), transport);
    (frame.source_mac, frame.destination_mac) = (CLIENT_MAC, OWN_MAC);
    frame.tags = tags.to_vec();
    frame
}

/// What the backend answers, to the client.
fn answer(rig: &Rig, cell: Cell, tags: &[u16]) -> Frame {
    let row = rig.backends.get(BACKEND);
    let transport = match cell.protocol {
        Protocol::Tcp => Transport::tcp(SYN | 0x10, 5000, 1001),
        Protocol::Udp => Transport::Udp { checksum: true },
    };
    let source = (IpAddr::from(row.addr), u16::from_be(row.port)).into();
    let mut frame = Frame::new(source, cell.client(), transport);
    (frame.source_mac, frame.destination_mac) = (row.dst_mac, OWN_MAC);
    frame.tags = tags.to_vec();
    frame
}

/// The frame without tags, with those in their place.
fn tagged(plain: &[u8], tags: &[u8]) -> Vec<u8> {
    [&plain[..12], tags, &plain[12..]].concat()
}

/// The tags in a frame's bytes, as they stand there.
fn tags_of(frame: &Frame) -> Vec<u8> {
    frame.bytes()[12..frame.ip_offset() - 2].to_vec()
}

/// The tags that a frame leaves with.
fn wanted(tag: Tag, kept: &Frame) -> Vec<u8> {
    match (tag, tag.vlan()) {
        (Tag::KEEP, _) => tags_of(kept),
        (_, Some(id)) => [[0x81, 0], id.to_be_bytes()].concat(),
        _ => Vec::new(),
    }
}

fn cells() -> impl Iterator<Item = Cell> {
    MODES.into_iter().flat_map(|mode| {
        FAMILIES
            .into_iter()
            .flat_map(move |family| PROTOCOLS.into_iter().map(move |protocol| Cell { mode, family, protocol }))
    })
}

fn check(what: &str, got: &(Action, Vec<u8>), action: Action, wanted: &[u8]) -> Result<()> {
    ensure!(
        got.0 == action && got.1 == wanted,
        "{what}: {:?}\n  {:02x?}\n  should be {action:?}\n  {wanted:02x?}",
        got.0,
        got.1
    );
    verify(&got.1).map_err(|broken| anyhow::anyhow!("{what}: a receiver would drop it: {broken}"))
}

#[test]
fn frames_leave_with_the_tags_of_their_way() -> Result<()> {
    let mut rig = Rig::load(Sizes::SMALL)?;
    for cell in cells() {
        set_up(&mut rig, cell, Tag::KEEP)?;
        let (action, plain) = rig.run(&opening(cell, &[]).bytes())?;
        let reply = (cell.mode == Mode::Nat).then(|| rig.run(&answer(&rig, cell, &[]).bytes())).transpose()?;
        for arriving in ARRIVING {
            for tag in [Tag::KEEP, Tag::NONE, Tag::tagged(200), Tag::tagged(4094)] {
                let what = format!("{cell}, arriving with {arriving:?}, sent by {tag:?}");
                set_up(&mut rig, cell, tag)?;
                let frame = opening(cell, arriving);
                let leaves = tagged(&plain, &wanted(tag, &frame));
                // The first goes by the slow path, the second by the fast one.
                for packet in ["first", "second"] {
                    let got = rig.run(&frame.bytes()).with_context(|| what.clone())?;
                    check(&format!("{what}, {packet}"), &got, action, &leaves)?;
                }
                if let Some((reply_action, plain_reply)) = &reply {
                    // Of two tags nothing is remembered: what the backend's own frame has stays.
                    let back = answer(&rig, cell, &[300]);
                    let tags = if arriving.len() == 2 { tags_of(&back) } else { tags_of(&frame) };
                    let got = rig.run(&back.bytes())?;
                    check(&format!("{what}, the reply"), &got, *reply_action, &tagged(plain_reply, &tags))?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn one_neighbour_in_two_vlans_is_two_peers() -> Result<()> {
    let mut rig = Rig::load(Sizes::SMALL)?;
    let cell = Cell { mode: Mode::Nat, family: FAMILIES[0], protocol: Protocol::Tcp };
    set_up(&mut rig, cell, Tag::NONE)?;
    let port = |frame: &mut Frame, port| frame.source.set_port(port);
    for (from, tags) in [(2001, &[100][..]), (2002, &[101][..]), (2003, &[][..]), (2004, &[100][..])] {
        let mut frame = opening(cell, tags);
        port(&mut frame, from);
        rig.run(&frame.bytes())?;
        let mut back = answer(&rig, cell, &[]);
        back.destination.set_port(from);
        let (_, out) = rig.run(&back.bytes())?;
        let tags = tags_of(&frame);
        assert_eq!(out[12..12 + tags.len()], tags, "port {from}");
        assert_eq!(out.len(), back.bytes().len() + tags.len(), "port {from}");
    }
    Ok(())
}
