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
    scratch::{self, Decision, Request},
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
    const NONE_OF_TCP: Segment = Segment { seq: 0, ack: 0, len: 0, flags: 0 };
    if arrival.service.flags & service_flag::PER_DATAGRAM == 0
        && let Some((index, meta, entry)) = kept(arrival)
    {
        entry.touch(meta, meta.flags() | flow_flag::ESTABLISHED, time::ticks(arrival.now_ns));
        return Ok(forwarded(entry.backend(), index));
    }
    hand_over(arrival, NONE_OF_TCP)
}

/// A TCP segment.
#[inline(always)]
pub fn segment(arrival: &Arrival<'_>, segment: Segment) -> Result<Decision, Outcome> {
    if !segment.opens()
        && let Some((index, meta, entry)) = kept(arrival)
        && !meta.any(flow_flag::TWIN)
    {
        follow(arrival.control, entry, meta, segment, time::ticks(arrival.now_ns));
        return Ok(forwarded(entry.backend(), index));
    }
    hand_over(arrival, segment)
}

/// The flow's entry, if its backend takes the flow's packets.
#[inline(always)]
fn kept(arrival: &Arrival<'_>) -> Option<(u32, Meta, FlowRef)> {
    let key = FlowKey::new(arrival.ip.source, arrival.ports as u16, arrival.service_slot as u16);
    let place = Place::of(arrival.control, key);
    let Lookup::Found { index, meta } = place.main() else { return None };
    let entry = FlowMap.at(index)?;
    let backend = steer::row(entry.backend())?;
    let kept = backend.keeps(entry.generation(), false, place.share, arrival.now_ns) == Keep::Forward;
    (kept && !meta.any(flow_flag::CUT)).then_some((index, meta, entry))
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

/// Lets the slow path decide.
#[inline(always)]
fn hand_over(arrival: &Arrival<'_>, segment: Segment) -> Result<Decision, Outcome> {
    let (source_mac, own_mac) = arrival.packet.macs().ok_or(Outcome::DroppedMalformed)?;
    let scratch = scratch::row().ok_or(Outcome::DroppedMalformed)?;
    scratch.request = Request {
        client: arrival.ip.source,
        now_ns: arrival.now_ns,
        source_mac,
        own_mac,
        ingress: arrival.packet.ingress(),
        ports: arrival.ports,
        service: arrival.service_slot,
        segment,
    };
    match slow::ebb_slow() {
        slow::DECIDED => {}
        slow::OPEN if open::open().is_some() => {}
        _ => {
            log::ebb_log(Outcome::DroppedNoBackend as u32);
            return Err(Outcome::DroppedNoBackend);
        }
    }
    let scratch = scratch::row().ok_or(Outcome::DroppedMalformed)?;
    let outcome = scratch.decision.outcome;
    if matches!(outcome, Outcome::Untracked | Outcome::DroppedNatConflict) {
        log::ebb_log(outcome as u32);
    }
    Ok(scratch.decision)
}
