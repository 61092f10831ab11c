//! Network address translation: the destination is rewritten on the way in, the source on the way back, which runs
//! through this node because the backends' route to the clients does.

use aya_ebpf::{bindings::xdp_md, helpers::generated::bpf_check_mtu as check_mtu};
use lb_common::{
    addr::Addr,
    backend::{Backend, Keep, backend_flag},
    control::{Control, Peer},
    flow::{FlowKey, Meta, flow_flag, is_finished},
    flow_table::{Entries, Entry, Lookup},
    outcome::Outcome,
    service::{SHARED_BY, Service, service_flag, vip_kind},
    tcp::{self, Segment, flag},
    time,
    vlan::Tag,
};

use super::{Sent, address_frame, forgotten, retagged, write_mac_words};
use crate::{
    by_family, clock, count,
    entry::{FlowMap, FlowRef},
    family::Family,
    fragment,
    maps::{CONTROL, PEERS, SERVICES},
    nat_port,
    packet::Packet,
    parse::{self, Ip, Part, protocol},
    peers, rare,
    rewrite::{self, Side, Translation},
    scratch::{self, NONE, NatQuery},
    services, steer, tally, too_big,
    track::Place,
};

/// Sends a packet of a client to its backend.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_nat(ctx: *mut xdp_md, frame: u32, backend: u32, entry: u32) -> u64 {
    rare::word(by_family!(ctx, frame, inbound(backend, entry)))
}

#[inline(always)]
fn inbound<F: Family>(packet: &Packet, offset: usize, backend: u32, entry: u32) -> Result<Sent, Outcome> {
    let ip = F::parse(packet, offset)?;
    let row = steer::row(backend).ok_or(Outcome::DroppedNoBackend)?;
    if row.addr.is_v4() == F::V6 {
        return Err(Outcome::DroppedUnresolved);
    }
    if row.mtu != 0 && ip.len > row.mtu as usize {
        return too_big::answer::<F>(packet, offset, row.mtu as usize);
    }
    let known = if entry == NONE { None } else { FlowMap.at(entry) };
    if known.is_some_and(|known| !peers::is_from(packet, offset, known.peer())) {
        peers::ebb_peer_moved(packet.context(), ip.frame().0, entry);
    }
    let nat_port = known.map_or(0, FlowRef::nat_port);
    let to = Translation { side: Side::Destination, addr: row.addr, port: row.port, other_port: nat_port };
    rewrite::translate::<F>(packet, &ip, to)?;
    let ifindex = address_frame(packet, offset, row)?;
    Ok(Sent { ifindex, outcome: Outcome::Forwarded })
}

/// Takes a backend's packet back to the client, if it is a reply on a flow.
#[inline(always)]
pub fn reply(packet: &Packet, frame: u32) -> Result<Sent, Outcome> {
    match ebb_reply_flow(packet.context(), frame) {
        NONE => rare::result(forgotten::ebb_reply_forgotten(packet.context(), frame)),
        OVER => rare::result(rare::ebb_reset(packet.context(), frame)),
        OVER_SILENTLY => Err(Outcome::DroppedCut),
        entry => rare::result(ebb_reply(packet.context(), frame, entry)),
    }
}

/// The reply's flow is over, and the backend is told, unless it already says so itself.
const OVER: u32 = NONE - 1;
/// The reply's flow is over, and it is a datagram, or nobody is to be told.
const OVER_SILENTLY: u32 = NONE - 2;

/// The entry of the flow that a backend's packet is a reply on, with the reply taken into its state; or else [`NONE`],
/// [`OVER`] or [`OVER_SILENTLY`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_reply_flow(ctx: *mut xdp_md, frame: u32) -> u32 {
    by_family!(ctx, frame, reply_flow()).unwrap_or(NONE)
}

#[inline(always)]
fn reply_flow<F: Family>(packet: &Packet, offset: usize) -> Result<u32, Outcome> {
    let ip = F::parse(packet, offset)?;
    let ports = parse::ports(packet, &ip).ok_or(Outcome::PassedMalformed)?;
    let control = CONTROL.get(0).ok_or(Outcome::NotForService)?;
    let (backend, client) = ((&ip.source, ports as u16), (&ip.destination, (ports >> 16) as u16));
    let segment = if ip.protocol == protocol::TCP { parse::segment(packet, &ip)? } else { Segment::NONE };
    let index = flow_between(&ip, backend, client, segment);
    if index == NONE {
        return Ok(NONE);
    }
    let entry = FlowMap.at(index).ok_or(Outcome::NotForService)?;
    let backend = steer::row(entry.backend()).ok_or(Outcome::NotForService)?;
    let now_ns = clock(control);
    let meta = entry.meta();
    let share = entry.key().hash(&control.table_keys) as u16;
    let keep = backend.keeps(entry.generation(), is_finished(meta.flags()), share, now_ns);
    if keep as u8 != Keep::Forward as u8 || meta.any(flow_flag::CUT) {
        let told = ip.protocol == protocol::TCP && !is_silent(entry, backend, keep, meta);
        return Ok(if told { OVER } else { OVER_SILENTLY });
    }
    follow(ip.protocol, segment, control, entry, meta, time::ticks(now_ns));
    Ok(index)
}

/// Whether the backend of a flow that is over gets no more answer than the client does: as its row says while it has the
/// flow's slot, as the service says after that.
#[inline(always)]
fn is_silent(entry: FlowRef, backend: &Backend, keep: Keep, meta: Meta) -> bool {
    let gone =
        backend.generation != entry.generation() || (keep as u8 == Keep::Gone as u8 && !meta.any(flow_flag::CUT));
    if !gone {
        return backend.flags & backend_flag::SILENT != 0;
    }
    SERVICES.get(entry.key().service() as u32).is_some_and(|service| service.flags & service_flag::SILENT != 0)
}

/// Rewrites a reply on the flow of an entry and sends it to the client.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_reply(ctx: *mut xdp_md, frame: u32, entry: u32) -> u64 {
    rare::word(by_family!(ctx, frame, outbound(entry)))
}

#[inline(always)]
fn outbound<F: Family>(packet: &Packet, offset: usize, index: u32) -> Result<Sent, Outcome> {
    let ip = F::parse(packet, offset)?;
    let entry = FlowMap.at(index).ok_or(Outcome::NotForService)?;
    let key = entry.key();
    let service = SERVICES.get(key.service() as u32).ok_or(Outcome::NotForService)?;
    if ip.fragment.is(Part::First)
        && let Some(control) = CONTROL.get(0)
    {
        fragment::remember_reply(&ip, entry, clock(control));
    }
    if let Some(mtu) = narrower(packet, entry.peer(), ip.len) {
        return too_big::answer::<F>(packet, offset, mtu);
    }
    let to = Translation { side: Side::Source, addr: service.vip, port: service.port, other_port: key.port() };
    rewrite::translate::<F>(packet, &ip, to)?;
    let sent = to_peer(packet, offset, entry.peer(), Outcome::Reply)?;
    tally::count(index, ip.len, tally::SERVER);
    Ok(sent)
}

/// Packets of up to this many bytes pass unasked: every host must take them (RFC 791, section 3.1).
const SMALL: usize = 576;

/// The MTU of the peer's interface, if a packet of `len` bytes does not fit it. The kernel would drop such a one without a
/// word (net/core/filter.c, `xdp_ok_fwd_dev`), and its sender would never learn why.
#[inline(always)]
fn narrower(packet: &Packet, peer: u16, len: usize) -> Option<usize> {
    if len <= SMALL {
        return None;
    }
    let peer = Peer::unpack(PEERS.get(peer as u32)?.peer)?;
    // In: the packet's own length, so that tags do not count. Out: the MTU.
    let mut mtu = len as u32;
    // SAFETY: the context is the kernel's, and the word is ours.
    let result = unsafe { check_mtu(packet.context().cast(), peer.ifindex, &raw mut mtu, 0, 0) };
    (result == FRAGMENTATION_NEEDED).then_some(mtu as usize)
}

/// `BPF_MTU_CHK_RET_FRAG_NEEDED` (include/uapi/linux/bpf.h).
const FRAGMENTATION_NEEDED: i64 = 1;

/// Takes the reply into the flow's state.
#[inline(always)]
fn follow(protocol: u8, segment: Segment, control: &Control, entry: FlowRef, meta: Meta, now: u32) {
    if protocol != protocol::TCP {
        entry.touch(meta, meta.flags() | flow_flag::ESTABLISHED | flow_flag::REPLY_SEEN, now);
        return;
    }
    let old = entry.track(meta);
    let new = tcp::from_server(old, segment);
    entry.put_track(old, new);
    // What a server repeats to a client that has never answered, SYN-ACKs for a minute, keeps no half-open flow.
    if new.flags != old.flags || new.flags & flow_flag::ESTABLISHED != 0 {
        entry.touch(meta, new.flags, now);
    }
    if segment.has(flag::RST) && new.flags & !old.flags & flow_flag::RST != 0 {
        count::reset(control, entry.backend());
    }
}

/// Gives a frame whose IP header is at `offset` the tags and addresses for the peer that the client's packets come from.
#[inline(always)]
pub fn to_peer(packet: &Packet, offset: usize, row: u16, outcome: Outcome) -> Result<Sent, Outcome> {
    let row = PEERS.get(row as u32).ok_or(Outcome::DroppedUnresolved)?;
    let peer = Peer::unpack(row.peer).ok_or(Outcome::DroppedUnresolved)?;
    let packet = retagged(packet, offset, Tag((row.own_mac >> 48) as u16)).ok_or(Outcome::DroppedResize)?;
    write_mac_words(&packet, peer.mac, row.own_mac).ok_or(Outcome::DroppedMalformed)?;
    Ok(Sent { ifindex: peer.ifindex, outcome })
}

/// Whether an entry's flow goes to this endpoint.
#[inline(always)]
fn goes_to(entry: FlowRef, source: &Addr, port: u16) -> bool {
    match steer::row(entry.backend()) {
        Some(Backend { addr, port: its, .. }) => addr == source && *its == port,
        None => false,
    }
}

/// The entry of the flow between a backend's endpoint and a client as the backend knows it, or [`NONE`].
#[inline(always)]
pub fn flow_between(ip: &Ip, backend: (&Addr, u16), client: (&Addr, u16), segment: Segment) -> u32 {
    let Some(scratch) = scratch::row() else { return NONE };
    scratch.nat_query = NatQuery {
        backend: *backend.0,
        client: *client.0,
        backend_port: backend.1,
        client_port: client.1,
        protocol: ip.protocol as u32,
        segment,
    };
    ebb_nat_flow()
}

/// Answers this CPU's [`NatQuery`], whichever of the services that share the endpoint has the flow.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_nat_flow() -> u32 {
    let (Some(scratch), Some(control)) = (scratch::row(), CONTROL.get(0)) else { return NONE };
    let query = &scratch.nat_query;
    let (backend, port) = (&query.backend, query.backend_port);
    let mut probe = 0;
    for _ in 0..SHARED_BY {
        let found = services::find(control, vip_kind::NAT_SOURCE, backend, port, query.protocol as u8, probe);
        let Some((service, next)) = found else { return NONE };
        probe = next;
        for mask in nat_port::MASKS {
            let index = flow_at(query, service, query.client_port ^ mask);
            if index != NONE {
                return index;
            }
        }
    }
    NONE
}

/// The entry of the flow of a query at a service, if the client's own port is this one; or [`NONE`].
#[inline(always)]
pub fn flow_at(query: &NatQuery, service: u32, original: u16) -> u32 {
    let main = ebb_flow_of(service, original as u32);
    let Some(entry) = FlowMap.at(main) else { return NONE };
    if entry.meta().any(flow_flag::TWIN) {
        return ebb_twin_asked_for(main, ebb_second_of(main));
    }
    if is_asked_for(entry, query) { main } else { NONE }
}

/// Of the two entries of a tuple the one that this CPU's [`NatQuery`] asks for, or [`NONE`]. If both go to that backend, it
/// is the one whose sequence space the packet acknowledges.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_twin_asked_for(main: u32, second: u32) -> u32 {
    let (Some(scratch), Some(first)) = (scratch::row(), FlowMap.at(main)) else { return NONE };
    let query = &scratch.nat_query;
    let otherwise = if is_asked_for(first, query) { main } else { NONE };
    let Some(entry) = FlowMap.at(second).filter(|entry| is_asked_for(*entry, query)) else { return otherwise };
    let acked = query.segment.ack;
    let nearer = || tcp::distance(acked, entry.client_seq()) < tcp::distance(acked, first.client_seq());
    if otherwise == NONE || (query.segment.has(flag::ACK) && nearer()) { second } else { main }
}

/// The second entry of a main one's tuple, or [`NONE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_second_of(main: u32) -> u32 {
    let (Some(entry), Some(control)) = (FlowMap.at(main), CONTROL.get(0)) else { return NONE };
    match Place::of(control, entry.key()).second() {
        Lookup::Found { index, .. } => index,
        Lookup::Missing { .. } => NONE,
    }
}

/// Whether an entry's flow is between the two of a query.
#[inline(always)]
fn is_asked_for(entry: FlowRef, query: &NatQuery) -> bool {
    goes_to(entry, &query.backend, query.backend_port) && knows_by(entry, entry.key().port(), query.client_port)
}

/// The main entry of the flow of this CPU's [`NatQuery::client`] with that port at a service, or [`NONE`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_flow_of(service: u32, port: u32) -> u32 {
    let (Some(scratch), Some(control)) = (scratch::row(), CONTROL.get(0)) else { return NONE };
    let key = FlowKey::new(scratch.nat_query.client, port as u16, service as u16);
    match Place::of(control, key).main() {
        Lookup::Found { index, .. } => index,
        Lookup::Missing { .. } => NONE,
    }
}

/// Whether the backend knows the client of a flow, whose own port is `original`, by `port`.
#[inline(always)]
fn knows_by(entry: FlowRef, original: u16, port: u16) -> bool {
    let rewritten = entry.nat_port();
    (if rewritten == 0 { original } else { rewritten }) == port
}

/// Whether a service's packets take this way.
#[inline(always)]
pub fn is_nat(service: &Service) -> bool {
    service.forward == lb_common::service::forward::NAT
}
