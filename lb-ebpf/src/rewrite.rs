//! Address and port translation with checksums updated in place (RFC 1624), for `nat` in both directions.

use lb_common::{addr::Addr, checksum, outcome::Outcome};

use crate::{
    family::Family,
    packet::Packet,
    parse::{Ip, Part, protocol},
};

/// Which of a packet's two ends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where it comes from.
    Source,
    /// Where it goes.
    Destination,
}

/// New values for a packet: one end's address and port, and the other end's port if that is not 0.
#[derive(Clone, Copy)]
pub struct Translation {
    /// End that is replaced.
    pub side: Side,
    /// Its new address, of the packet's family.
    pub addr: Addr,
    /// Its new port, network order.
    pub port: u16,
    /// New port of the other end, network order; 0 leaves it.
    pub other_port: u16,
}

/// Translates a packet and takes one off its hop limit, as a router does.
#[inline(always)]
pub fn translate<F: Family>(packet: &Packet, ip: &Ip, to: Translation) -> Result<(), Outcome> {
    let delta = F::rewrite_address(packet, ip.offset, to.side, to.addr, true)?;
    if ip.fragment.is(Part::Later) {
        return Ok(());
    }
    let done = match ip.protocol {
        protocol::TCP => tcp(packet, ip, to, delta),
        protocol::UDP => udp(packet, ip, to, delta),
        _ => Some(()),
    };
    done.ok_or(Outcome::DroppedMalformed)
}

/// The two ports of a packet after translation, as one word, and what that adds to a checksum.
#[inline(always)]
pub fn new_ports(old: u32, to: Translation) -> (u32, u64) {
    let (mut source, mut destination) = (old as u16, (old >> 16) as u16);
    let (this, other) = match to.side {
        Side::Source => (&mut source, &mut destination),
        Side::Destination => (&mut destination, &mut source),
    };
    *this = to.port;
    if to.other_port != 0 {
        *other = to.other_port;
    }
    let new = source as u32 | (destination as u32) << 16;
    (new, checksum::replace32(0, old, new))
}

#[inline(always)]
fn tcp(packet: &Packet, ip: &Ip, to: Translation, delta: u64) -> Option<()> {
    let header = packet.window::<20>(ip.payload)?;
    let (ports, change) = new_ports(header.get::<u32, 0>(), to);
    header.put::<u32, 0>(ports);
    header.put::<u16, 16>(checksum::update(header.get::<u16, 16>(), delta + change));
    Some(())
}

#[inline(always)]
fn udp(packet: &Packet, ip: &Ip, to: Translation, delta: u64) -> Option<()> {
    let header = packet.window::<8>(ip.payload)?;
    let (ports, change) = new_ports(header.get::<u32, 0>(), to);
    header.put::<u32, 0>(ports);
    header.put::<u16, 6>(checksum::update_udp(header.get::<u16, 6>(), delta + change));
    Some(())
}
