//! What the fast path hands to the slow path, and what comes back: a row of a per-CPU map, since the two together would
//! not fit the 512 bytes of stack, and since the verifier then checks the slow path once and by itself.

use lb_common::{addr::Addr, flow::FlowInit, outcome::Outcome, tcp::Segment};

use aya_ebpf::{btf_maps::PerCpuArray, macros::btf_map};

/// A packet of a service that the fast path does not settle.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Request {
    /// Client address.
    pub client: Addr,
    /// Coarse time.
    pub now_ns: u64,
    /// MAC address that the frame comes from, see [`crate::peers::way`].
    pub source_mac: u64,
    /// MAC address that it was sent to and the tag of its way.
    pub own_mac: u64,
    /// Interface that it came in on.
    pub ingress: u32,
    /// Both ports as loaded: the client's in the low half.
    pub ports: u32,
    /// Service slot.
    pub service: u32,
    /// Backend slot that a QUIC connection id names, or [`NONE`].
    pub named: u32,
    /// TCP: the segment. Zero for a datagram.
    pub segment: Segment,
}

/// What is to be done with it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Decision {
    /// Backend slot.
    pub backend: u32,
    /// The flow's entry, or [`NONE`].
    pub entry: u32,
    /// What to count, once it is sent.
    pub outcome: Outcome,
    /// The flow is over: nothing is sent to a backend.
    pub cut: bool,
    /// And whoever sent this is not told.
    pub silent: bool,
}

/// A flow to open.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct New {
    /// The home's `hop` when the look-up missed, or before the entry that is replaced was found.
    pub hop: u64,
    /// The flow's home.
    pub home: u32,
    /// Entry that it takes the place of, or [`NONE`].
    pub replaces: u32,
    /// Flags of the new entry.
    pub flags: u16,
}

/// A question for [`crate::forward::nat::ebb_nat_flow`]: whose flow is it between these two?
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NatQuery {
    /// Backend's address.
    pub backend: Addr,
    /// Client's address.
    pub client: Addr,
    /// Backend's port, network order.
    pub backend_port: u16,
    /// Client's port as the backend knows it, network order.
    pub client_port: u16,
    /// Protocol.
    pub protocol: u32,
    /// TCP: the backend's segment, whose acknowledgement tells twins apart that both go to it. [`Segment::NONE`] if it is not
    /// known.
    pub segment: Segment,
}

/// No entry, in a field that holds an index.
pub const NONE: u32 = u32::MAX;

/// One row a CPU.
#[repr(C)]
pub struct Scratch {
    /// In.
    pub request: Request,
    /// Out.
    pub decision: Decision,
    /// When this CPU last logged, ns.
    pub logged_ns: u64,
    /// When this CPU last found the flow table full, in ticks; 0 is never.
    pub full_ticks: u32,
    /// What the slow path wants opened.
    pub new: New,
    /// The entry to be made.
    pub init: FlowInit,
    /// In.
    pub nat_query: NatQuery,
}

#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// This CPU's row.
#[inline(always)]
pub fn row() -> Option<&'static mut Scratch> {
    // SAFETY: the row is this CPU's alone, the program is not re-entered on a CPU, and each function of it takes the
    // row once and lets go of it before it calls another that does.
    SCRATCH.get_ptr_mut(0).map(|row| unsafe { &mut *row })
}
