//! The fast path: a packet of a flow that the table knows and whose backend takes it. All else is for [`crate::slow`].

use lb_common::{
    backend::Keep,
    control::Control,
    flow::{FlowKey, Meta, flow_flag},
    flow_table::{self, Entries, Geometry, Lookup},
    outcome::Outcome,
    service::{Service, service_flag},
    tcp::{self, Segment, flag},
    time,
};

use crate::{
    count,
    entry::{FlowMap, FlowRef},
    log, open,
    packet::Packet,
    parse::Ip,
    peers, quic,
    scratch::{self, Decision, NONE, New, Request, Scratch},
    slow, steer,
};

/// One packet for a service.
pub struct Arrival<'a> {
    /// The frame.
    pub packet: &'a Packet,
    /// Its IP header.
    pub ip: &'a Ip,
    /// Both ports as loaded.
    pub ports: u32,
    /// Settings.
    pub control: &'a Control,
    /// Service slot.
    pub service_slot: u32,
    /// The service.
    pub service: &'a Service,
    /// Coarse time.
    pub now_ns: u64,
}

/// A flow's place in the table.
pub struct Place {
    /// Its key.
    pub key: FlowKey,
    /// Size of the table.
    pub geometry: Geometry,
    /// Its home.
    pub home: u32,
    /// Sixteen bits of its hash, which choose its moment in a cut window.
    pub share: u16,
}

impl Place {
    /// Place of a key.
    #[inline(always)]
    pub fn of(control: &Control, key: FlowKey) -> Self {
        let geometry = control.geometry();
        let hash = key.hash(&control.table_keys);
        Self { key, geometry, home: geometry.home(hash), share: hash as u16 }
    }

    /// The main entry of the tuple.
    #[inline(always)]
    pub fn main(&self) -> Lookup {
        flow_table::lookup(FlowMap, self.geometry, self.home, &self.key, 0, flow_flag::CANDIDATE)
    }

    /// The second entry of the tuple, see [`flow_flag::CANDIDATE`].
    #[inline(always)]
    pub fn second(&self) -> Lookup {
        const SECOND: u16 = flow_flag::CANDIDATE;
        flow_table::lookup(FlowMap, self.geometry, self.home, &self.key, SECOND, SECOND)
    }
}

/// A datagram.
#[inline(always)]
pub fn datagram(arrival: &Arrival<'_>) -> Result<Decision, Outcome> {
    if arrival.service.flags & service_flag::PER_DATAGRAM != 0 {
        return hand_over(arrival, Segment::NONE, NONE);
    }
    let place = arrival.place();
    match place.main() {
        Lookup::Missing { hop } => {
            let named = quic::named(arrival);
            open_new(arrival, Segment::NONE, named, New { hop, home: place.home, replaces: NONE, flags: 0 })
        }
        Lookup::Found { index, meta } => match kept(arrival, &place, index, meta) {
            Some(entry) => {
                entry.touch(meta, meta.flags() | flow_flag::ESTABLISHED, time::ticks(arrival.now_ns));
                Ok(forwarded(entry.backend(), index))
            }
            None => hand_over(arrival, Segment::NONE, quic::named(arrival)),
        },
    }
}

/// A TCP segment.
#[inline(always)]
pub fn segment(arrival: &Arrival<'_>, segment: Segment) -> Result<Decision, Outcome> {
    let place = arrival.place();
    match place.main() {
        Lookup::Missing { hop } => {
            let opens = segment.opens();
            if !opens && segment.has(flag::SYN | flag::RST) {
                return hand_over(arrival, segment, NONE);
            }
            let flags = if opens { 0 } else { flow_flag::PROVISIONAL };
            open_new(arrival, segment, NONE, New { hop, home: place.home, replaces: NONE, flags })
        }
        Lookup::Found { index, meta } => match kept(arrival, &place, index, meta) {
            Some(entry) if !segment.opens() && !meta.any(flow_flag::TWIN) => {
                follow(arrival.control, entry, meta, segment, time::ticks(arrival.now_ns));
                Ok(forwarded(entry.backend(), index))
            }
            _ => hand_over(arrival, segment, NONE),
        },
    }
}

impl Arrival<'_> {
    #[inline(always)]
    fn place(&self) -> Place {
        let key = FlowKey::new(self.ip.source, self.ports as u16, self.service_slot as u16);
        Place::of(self.control, key)
    }
}

/// A flow's entry, if its backend takes the flow's packets.
#[inline(always)]
fn kept(arrival: &Arrival<'_>, place: &Place, index: u32, meta: Meta) -> Option<FlowRef> {
    let entry = FlowMap.at(index)?;
    let backend = steer::row(entry.backend())?;
    let kept = backend.keeps(entry.generation(), false, place.share, arrival.now_ns) == Keep::Forward;
    (kept && !meta.any(flow_flag::CUT)).then_some(entry)
}

#[inline(always)]
fn forwarded(backend: u32, entry: u32) -> Decision {
    Decision { backend, entry, outcome: Outcome::Forwarded, cut: false, silent: false }
}

/// Takes a segment of the client into the flow's state.
#[inline(always)]
pub fn follow(control: &Control, entry: FlowRef, meta: Meta, segment: Segment, now: u32) {
    let old = entry.track(meta);
    let new = tcp::from_client(old, segment);
    entry.put_track(old, new);
    entry.touch(meta, new.flags, now);
    if segment.has(flag::RST) && new.flags & !old.flags & flow_flag::RST != 0 {
        count::reset(control, entry.backend());
    }
}

/// Writes the packet down for the functions that take it on.
#[inline(always)]
fn write_down(arrival: &Arrival<'_>, segment: Segment, named: u32) -> Option<&'static mut Scratch> {
    let (source_mac, own_mac) = peers::way(arrival.packet, arrival.ip.offset)?;
    let scratch = scratch::row()?;
    scratch.request = Request {
        client: arrival.ip.source,
        now_ns: arrival.now_ns,
        source_mac,
        own_mac,
        ingress: arrival.packet.ingress(),
        ports: arrival.ports,
        service: arrival.service_slot,
        named,
        segment,
    };
    Some(scratch)
}

/// Opens a flow that the table does not have.
#[inline(always)]
fn open_new(arrival: &Arrival<'_>, segment: Segment, named: u32, new: New) -> Result<Decision, Outcome> {
    write_down(arrival, segment, named).ok_or(Outcome::DroppedMalformed)?.new = new;
    opened(open::open().is_some())
}

/// Lets the slow path decide.
#[inline(always)]
fn hand_over(arrival: &Arrival<'_>, segment: Segment, named: u32) -> Result<Decision, Outcome> {
    write_down(arrival, segment, named).ok_or(Outcome::DroppedMalformed)?;
    opened(match slow::ebb_slow() {
        slow::DECIDED => true,
        slow::OPEN => open::open().is_some(),
        _ => false,
    })
}

/// The decision in the scratch row, if some backend takes the packet.
#[inline(always)]
fn opened(taken: bool) -> Result<Decision, Outcome> {
    if !taken {
        log::ebb_log(Outcome::DroppedNoBackend as u32);
        return Err(Outcome::DroppedNoBackend);
    }
    let scratch = scratch::row().ok_or(Outcome::DroppedMalformed)?;
    let outcome = scratch.decision.outcome;
    if matches!(outcome, Outcome::Untracked | Outcome::DroppedNatConflict) {
        log::ebb_log(outcome as u32);
    }
    Ok(scratch.decision)
}
