//! The maps. Who writes which is told by the table in ARCHITECTURE.md; sizes given here are those of the smallest
//! table, the daemon sets the real ones at load.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap},
    macros::btf_map,
};
use lb_common::{
    backend::{Backend, BackendStats},
    control::{Control, PEERS as PEER_ROWS, PeerRow},
    flow::FlowEntry,
    service::{Service, VipEntry},
    tally::FlowTally,
};

use crate::fragment::{FragmentKey, FragmentOwner};

/// `BPF_F_MMAPABLE`: the daemon reads and writes these by memory mapping (include/uapi/linux/bpf.h).
const MMAPABLE: usize = 1 << 10;
/// `BPF_F_INNER_MAP`: inner arrays may differ in length.
const INNER_MAP: usize = 1 << 12;

/// Settings, one row.
#[btf_map]
pub static CONTROL: Array<Control, 1, MMAPABLE> = Array::new();
/// Table of VIPs, two halves.
#[btf_map]
pub static VIPS: Array<VipEntry, 128, MMAPABLE> = Array::new();
/// Services by slot.
#[btf_map]
pub static SERVICES: Array<Service, 4, MMAPABLE> = Array::new();
/// Backends by slot.
#[btf_map]
pub static BACKENDS: Array<Backend, 16, MMAPABLE> = Array::new();
/// A service's ring: words of `lb_common::ring::RingSlot`.
pub type Ring = Array<u64, 1, { MMAPABLE | INNER_MAP }>;
/// Rings, two for each service slot: see `lb_common::ring::Published`.
#[btf_map]
pub static RINGS: ArrayOfMaps<Ring, 4> = ArrayOfMaps::new();
/// The flow table.
#[btf_map]
pub static FLOWS: Array<FlowEntry, 64, MMAPABLE> = Array::new();
/// What each entry's flow has carried, if that is counted: see [`crate::tally`].
#[btf_map]
pub static TALLIES: Array<FlowTally, 1, MMAPABLE> = Array::new();
/// Link-layer peers: see `lb_common::control::Peer`.
#[btf_map]
pub static PEERS: Array<PeerRow, { PEER_ROWS as usize }, MMAPABLE> = Array::new();
/// Counters by CPU and backend slot.
#[btf_map]
pub static STATS: Array<BackendStats, 16, MMAPABLE> = Array::new();
/// Counters by CPU and outcome.
#[btf_map]
pub static OUTCOMES: Array<u64, 64, MMAPABLE> = Array::new();
/// Where a datagram's later fragments go. Losing an entry loses a datagram, never a promise.
#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentOwner, 8192> = LruHashMap::new();
/// The MAC address of each interface that the program is on, in memory order in the low 48 bits, by its index. It belongs
/// to one load of the program, and is filled before the program is attached.
#[btf_map]
pub static LINKS: HashMap<u32, u64, 256> = HashMap::new();
