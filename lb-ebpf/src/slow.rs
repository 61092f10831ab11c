//! The slow path: new flows, forgotten ones, reused tuples, and flows whose backend takes them no more.
//!
//! [`ebb_slow`] is a global BPF function: the verifier checks it by itself, whatever its caller's state.

use lb_common::{
    backend::{Backend, BackendState, Keep, backend_flag},
    flow::{FlowKey, Meta, Phase, Timers, flow_flag, is_finished, phase},
    flow_table::{Entries, Entry, Lookup},
    outcome::Outcome,
    service::{Service, UDP, service_flag},
    tcp::{self, WINDOW, flag},
    time,
};

use crate::{
    entry::{FlowMap, FlowRef},
    maps::{CONTROL, SERVICES},
    scratch::{self, Decision, NONE, New, Request},
    steer,
    track::{self, Place},
};

/// No backend takes the packet.
struct NoBackend;

/// What the slow path has come to.
///
/// A struct and not an enum, so that no field is ever undefined (see [`crate::parse::Fragment`]), and one place opens
/// flows, since that is long code.
#[derive(Clone, Copy)]
struct Plan {
    /// What is to be done, unless a flow is to be opened.
    decision: Decision,
    /// The flow to open.
    new: New,
    /// Whether to open it.
    opens: bool,
}

type Planned = Result<Plan, NoBackend>;

/// The scratch row's decision counts.
pub const DECIDED: u32 = 0;
/// The scratch row says which flow to open: [`crate::open::open`] does it.
pub const OPEN: u32 = 1;
/// No backend takes the packet.
pub const NO_BACKEND: u32 = 2;

/// Decides on the packet in this CPU's scratch row: [`DECIDED`], [`OPEN`] or [`NO_BACKEND`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_slow() -> u32 {
    let Some(scratch) = scratch::row() else { return NO_BACKEND };
    let request = &scratch.request;
    let Some(service) = SERVICES.get(request.service) else { return NO_BACKEND };
    let Some(control) = CONTROL.get(0) else { return NO_BACKEND };
    let key = FlowKey::new(request.client, request.ports as u16, request.service as u16);
    let slow = Slow { request, service, place: Place::of(control, key), now: time::ticks(request.now_ns) };
    let planned = if service.protocol == UDP { slow.datagram() } else { slow.segment() };
    let Ok(plan) = planned else { return NO_BACKEND };
    scratch.decision = plan.decision;
    scratch.new = plan.new;
    if plan.opens { OPEN } else { DECIDED }
}

/// The packet, and where its flow is or would be.
struct Slow<'a> {
    request: &'a Request,
    service: &'a Service,
    place: Place,
    now: u32,
}

impl Slow<'_> {
    /// A datagram: new, or its backend is gone, and then it is steered anew, which is not a cut.
    #[inline(always)]
    fn datagram(&self) -> Planned {
        if self.service.flags & service_flag::PER_DATAGRAM != 0 {
            return self.one_datagram();
        }
        let hop = self.hop();
        match self.place.main() {
            Lookup::Missing { hop } => Ok(opening(New { hop, home: self.place.home, replaces: NONE, flags: 0 })),
            Lookup::Found { index, .. } => Ok(opening(New { hop, home: self.place.home, replaces: index, flags: 0 })),
        }
    }

    /// A datagram of a service that keeps no flows: each may go anywhere.
    #[inline(always)]
    fn one_datagram(&self) -> Planned {
        // SAFETY: a helper without arguments.
        let hash = unsafe { aya_ebpf::helpers::bpf_get_prandom_u32() };
        let choice = steer::new_flow(self.request.service, self.service, hash).ok_or(NoBackend)?;
        Ok(forward(choice.backend, NONE, Outcome::Stateless))
    }

    /// A segment.
    #[inline(always)]
    fn segment(&self) -> Planned {
        let segment = self.request.segment;
        let hop = self.hop();
        match self.place.main() {
            Lookup::Found { index, meta } if segment.opens() => self.syn_on_known(hop, index, meta),
            Lookup::Found { index, meta } => self.on_known(index, meta),
            Lookup::Missing { hop } if segment.opens() => {
                Ok(opening(New { hop, home: self.place.home, replaces: NONE, flags: 0 }))
            }
            // Not enough to make a flow of, and a handshake is never begun by a SYN with an ACK.
            Lookup::Missing { .. } if segment.has(flag::SYN | flag::RST) => self.stateless(),
            Lookup::Missing { hop } => {
                Ok(opening(New { hop, home: self.place.home, replaces: NONE, flags: flow_flag::PROVISIONAL }))
            }
        }
    }

    /// The home's `hop`, read before the entry that may be replaced is looked up.
    #[inline(always)]
    fn hop(&self) -> u64 {
        FlowMap.at(self.place.home).map_or(0, Entry::hop)
    }

    #[inline(always)]
    fn timers(&self) -> Timers {
        Timers { idle_ticks: self.service.idle_ticks, fin_quiet_ticks: self.service.fin_quiet_ticks }
    }

    #[inline(always)]
    fn age(&self, meta: Meta) -> u32 {
        time::age(self.now, meta.last_seen())
    }

    /// By the hash alone, leaving no trace in the table.
    #[inline(always)]
    fn stateless(&self) -> Planned {
        let hash = steer::hash(self.service, &self.request.client, self.request.ports);
        let choice = steer::forgotten(self.request.service, self.service, hash, self.request.now_ns);
        Ok(forward(choice.ok_or(NoBackend)?.backend, NONE, Outcome::Stateless))
    }

    /// A segment of a flow with a twin, or of one whose backend may take it no more.
    #[inline(always)]
    fn on_known(&self, main: u32, main_meta: Meta) -> Planned {
        let index = if main_meta.any(flow_flag::TWIN) { self.which_twin(main) } else { main };
        let entry = FlowMap.at(index).ok_or(NoBackend)?;
        let meta = entry.meta();
        let backend = steer::row(entry.backend()).ok_or(NoBackend)?;
        let segment = self.request.segment;
        match self.keeps(backend, entry, meta) {
            Keep::Forward => {
                if let Some(control) = CONTROL.get(0) {
                    track::follow(control, entry, meta, segment, self.now);
                }
                Ok(forward(entry.backend(), index, Outcome::Forwarded))
            }
            // The old backend too must let go: the client's own RST still goes to it.
            Keep::Refuse if segment.has(flag::RST) => Ok(forward(entry.backend(), index, Outcome::Forwarded)),
            Keep::Refuse => Ok(cut(backend.flags & backend_flag::SILENT != 0)),
            Keep::Gone => Ok(cut(self.service.flags & service_flag::SILENT != 0)),
        }
    }

    /// Whether the flow's backend still takes its segments.
    #[inline(always)]
    fn keeps(&self, backend: &Backend, entry: FlowRef, meta: Meta) -> Keep {
        let generation = entry.generation();
        if meta.any(flow_flag::CUT) {
            return if backend.generation == generation { Keep::Refuse } else { Keep::Gone };
        }
        let closing = self.is_closing(meta, backend);
        backend.keeps(generation, closing, self.place.share, self.request.now_ns)
    }

    /// Whether the flow only says goodbye. Once its backend's drain is over this includes a client's last words after
    /// its FIN, however long they take: had they counted as live, the drain would not be over.
    #[inline(always)]
    fn is_closing(&self, meta: Meta, backend: &Backend) -> bool {
        let drained = backend.state == BackendState::Drained as u8;
        matches!(phase(meta.flags(), self.age(meta), self.timers()), Phase::Closing)
            || (drained && meta.any(flow_flag::CLIENT_FIN))
    }

    /// A SYN on a known tuple: a retransmission, a reused port, or a forgery.
    #[inline(always)]
    fn syn_on_known(&self, hop: u64, index: u32, meta: Meta) -> Planned {
        let entry = FlowMap.at(index).ok_or(NoBackend)?;
        let backend = steer::row(entry.backend()).ok_or(NoBackend)?;
        let kept = !meta.any(flow_flag::CUT)
            && backend.keeps(entry.generation(), false, self.place.share, self.request.now_ns) == Keep::Forward;
        match phase(meta.flags(), self.age(meta), self.timers()) {
            Phase::Opening if kept && entry.client_seq() == self.request.segment.resumes_at() => {
                entry.touch(meta, meta.flags(), self.now);
                Ok(forward(entry.backend(), index, Outcome::Forwarded))
            }
            Phase::Established | Phase::HalfClosed if kept && !is_finished(meta.flags()) => {
                self.candidate(hop, entry, meta)
            }
            _ => Ok(opening(New { hop, home: self.place.home, replaces: index, flags: 0 })),
        }
    }

    /// A SYN on an established flow's tuple: steered as a new flow, while the established one stays until the
    /// newcomer's handshake is complete.
    #[inline(always)]
    fn candidate(&self, hop: u64, main: FlowRef, meta: Meta) -> Planned {
        let replaces = match self.place.second() {
            Lookup::Found { index, meta: second } => {
                let entry = FlowMap.at(index).ok_or(NoBackend)?;
                let retransmitted =
                    !second.any(flow_flag::ESTABLISHED) && entry.client_seq() == self.request.segment.resumes_at();
                if retransmitted {
                    entry.touch(second, second.flags(), self.now);
                    return Ok(forward(entry.backend(), index, Outcome::Forwarded));
                }
                index
            }
            Lookup::Missing { .. } => NONE,
        };
        // The time of the established flow's last packet stays: this was not one of its own.
        main.touch(meta, meta.flags() | flow_flag::TWIN, meta.last_seen());
        Ok(opening(New { hop, home: self.place.home, replaces, flags: flow_flag::CANDIDATE }))
    }

    /// Which of the two entries of a tuple the segment belongs to.
    ///
    /// Each has its own sequence space; the main one comes first. When the second one's handshake is complete it takes
    /// the tuple over and becomes the main one, and segments in the old one's space still go where they went, in case
    /// the newcomer was a forgery.
    #[inline(always)]
    fn which_twin(&self, main: u32) -> u32 {
        let segment = self.request.segment;
        let Lookup::Found { index, meta } = self.place.second() else { return main };
        let (Some(first), Some(second)) = (FlowMap.at(main), FlowMap.at(index)) else { return main };
        let seq = second.client_seq();
        // A reused port's new initial sequence number may lie within a window of the old flow's numbers (they advance by
        // some 16 million a second, RFC 6528), so the nearer of the two decides.
        if tcp::distance(segment.seq, first.client_seq()) <= tcp::distance(segment.seq, seq) {
            return main;
        }
        if meta.any(flow_flag::ESTABLISHED) {
            return if tcp::near(segment.seq, seq, WINDOW) { index } else { main };
        }
        if segment.seq != seq && !tcp::ahead(segment.seq, seq, WINDOW) {
            return main;
        }
        // Where replies are seen, an acknowledgement of what the backend never said is a forgery.
        if tcp::from_client(second.track(meta), segment).flags & flow_flag::ESTABLISHED != 0 {
            let taken_over = (meta.flags() | flow_flag::ESTABLISHED | flow_flag::TWIN) & !flow_flag::CANDIDATE;
            second.touch(meta, taken_over, self.now);
            let old = first.meta();
            first.touch(old, (old.flags() | flow_flag::CANDIDATE) & !flow_flag::TWIN, old.last_seen());
        }
        index
    }
}

const NOTHING_NEW: New = New { hop: 0, home: 0, replaces: NONE, flags: 0 };

#[inline(always)]
fn opening(new: New) -> Plan {
    let decision = Decision { backend: 0, entry: NONE, outcome: Outcome::NewFlow, cut: false, silent: false };
    Plan { decision, new, opens: true }
}

#[inline(always)]
fn forward(backend: u32, entry: u32, outcome: Outcome) -> Plan {
    let decision = Decision { backend, entry, outcome, cut: false, silent: false };
    Plan { decision, new: NOTHING_NEW, opens: false }
}

#[inline(always)]
fn cut(silent: bool) -> Plan {
    let decision = Decision { backend: 0, entry: NONE, outcome: Outcome::DroppedCut, cut: true, silent };
    Plan { decision, new: NOTHING_NEW, opens: false }
}
