//! What the daemon asks of the packet path.
//!
//! One owner (the engine) calls a [`Datapath`]; the calls are synchronous. This file has the words of that conversation only: no
//! map, no I/O, so that the control core and its tests build without a kernel.
//!
//! **Invariant:** a packet belongs to a flow, a flow to a {backend slot, generation}. A slot is reused only under a higher
//! generation, so no packet of an old flow can reach the slot's new holder.

mod announce;
mod attach;
pub mod clock;
mod decap;
mod ebpf;
mod error;
mod flows;
pub(crate) mod frame;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;
mod interfaces;
pub mod kernel;
mod log;
mod maps;
mod mmap;
pub mod object;
mod ops;
mod pins;
mod program;
mod reset;
mod ring_store;
mod rows;
mod sys;
mod unload;
mod vips;

pub use attach::Mode;
pub(crate) use attach::ONE_PAGE_MTU;
pub use decap::Decap;
pub use ebpf::{EbpfDatapath, Options};
pub use error::OpenError;
pub use log::ProgramLog;
pub use pins::default_pin_path;
pub use unload::{Unloaded, pinned_at, unload, unload_directories};

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::net::links::Link;

/// A service's row in the packet path's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServiceSlot(pub u16);

/// A backend's row in the packet path's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BackendSlot(pub u32);

/// The transport a service balances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Connections: opened by a SYN, closed by FINs or an RST.
    Tcp,
    /// Datagrams: a flow opens with its first and ends by idling.
    Udp,
}

/// How a packet travels from here to its backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Forward {
    /// Direct server return: only the MAC addresses change; the backend holds the VIP and answers the client itself.
    #[default]
    Dsr,
    /// Addresses are rewritten both ways; replies run through this node.
    Nat,
    /// IP in IP to the backend, which decapsulates and answers the client itself.
    Tunnel,
}

/// What happens to flows that outlive their drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CutPolicy {
    /// Both ends get an RST that they accept.
    #[default]
    Reset,
    /// Packets are dropped without a word.
    Silent,
}

/// Who answers echo requests (ping) to a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Echo {
    /// The host, if the address is one of its own; Ebb otherwise.
    #[default]
    Auto,
    /// Ebb.
    Answer,
    /// Not Ebb: they are passed to the host.
    Pass,
}

/// A service as the packet path needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceConfig {
    /// Where clients send to.
    pub vip: SocketAddr,
    /// The transport.
    pub protocol: Protocol,
    /// How packets reach the backends.
    pub forward: Forward,
    /// Silence after which a flow counts as finished.
    pub idle_timeout: Duration,
    /// In `dsr` and `tunnel`: silence after the client's FIN that counts as the end.
    pub fin_quiet: Duration,
    /// What a segment of a retired generation, or of a flow past its deadline, gets.
    pub on_drain_timeout: CutPolicy,
    /// Prefix length of the client's address that decides the backend; `None` for the whole 5-tuple.
    pub affinity: Option<u8>,
    /// UDP only: each datagram is steered by itself and no flow is kept.
    pub per_datagram: bool,
    /// UDP only: what QUIC connection ids look like that name their backend.
    pub quic_cid: Option<CidFormat>,
    /// Who answers echo requests to the VIP's address.
    pub echo: Echo,
    /// ARP requests and neighbour solicitations for the VIP's address are answered.
    pub announce: bool,
}

impl ServiceConfig {
    /// A TCP service with nothing set: all that it does not name is as the control core has it by default.
    pub fn tcp(vip: SocketAddr, forward: Forward) -> Self {
        Self {
            vip,
            protocol: Protocol::Tcp,
            forward,
            idle_timeout: TCP_IDLE,
            fin_quiet: Duration::from_secs(1),
            on_drain_timeout: CutPolicy::Reset,
            affinity: None,
            per_datagram: false,
            quic_cid: None,
            echo: Echo::Auto,
            announce: false,
        }
    }
}

/// Idle timeout of TCP flows where none is set, as AWS's network load balancer has it.
pub const TCP_IDLE: Duration = Duration::from_secs(350);

/// Connection ids by QUIC-LB's plaintext algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CidFormat {
    /// Bytes of a server's id, 1 to 15.
    pub server_id_len: u8,
    /// The configuration that an id's first three bits tell, 0 to 6.
    pub rotation: u8,
}

/// What the packet path may do with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendState {
    /// The row is not in use.
    Free,
    /// Registered, not to be used yet: no new flow goes to it.
    Initial,
    /// Takes new flows and keeps its own. (Also what a failing backend is given while its service fails open.)
    Active,
    /// Keeps its flows until the deadline, takes no new one.
    Draining,
    /// Out of rotation. Only closing flows may still say goodbye.
    Drained,
    /// Out of rotation; its flows are refused by the cut policy.
    Unhealthy,
    /// Keeps its flows (until the deadline, if there is one), takes no new one.
    UnhealthyDraining,
}

/// Where the frames for a backend go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NextHop {
    /// The interface they leave by.
    pub ifindex: u32,
    /// The next hop's MAC address.
    pub dst_mac: [u8; 6],
    /// The interface's own MAC address.
    pub src_mac: [u8; 6],
    /// The interface's MTU in bytes.
    pub mtu: u16,
    /// Our address on that interface, the outer source of a tunnel.
    pub source: Option<IpAddr>,
    /// The VLAN whose tag the frames need: its interface is another's child, and that one is meant above.
    #[serde(default)]
    pub vlan: Option<u16>,
}

/// A backend's whole row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConfig {
    /// The service it belongs to.
    pub service: ServiceSlot,
    /// Its address.
    pub address: IpAddr,
    /// Its port; the VIP's unless the service forwards by `nat`.
    pub port: u16,
    /// Bumped each time the slot gets another holder.
    pub generation: u32,
    /// What may be done with it.
    pub state: BackendState,
    /// When its flows end, in nanoseconds of the coarse monotonic clock.
    pub deadline_ns: Option<u64>,
    /// How they end.
    pub on_timeout: CutPolicy,
    /// Spreads the cuts: each flow has a deadline of its own within the window of this length that *ends* at
    /// `deadline_ns`, so that nothing outlives the deadline. Zero cuts all at the deadline.
    pub cut_window: Duration,
    /// Where frames go; the last known one is kept for pinned flows. `None` until first resolved.
    pub next_hop: Option<NextHop>,
    /// Its id in QUIC connection ids, and zeros. Not in the row: [`Datapath::publish_vips`] publishes it.
    pub server_id: Option<[u8; 16]>,
}

/// One slot of a service's ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RingSlot {
    /// Who gets new flows that hash here.
    pub owner: Option<BackendSlot>,
    /// Who had the slot before the earliest drain still running: asked first about a segment of an unknown flow.
    pub previous: Option<BackendSlot>,
}

/// A backend whose replies are to be recognised under `nat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NatEndpoint {
    /// The backend's row.
    pub backend: BackendSlot,
    /// Its service's row.
    pub service: ServiceSlot,
    /// Where it answers from.
    pub address: IpAddr,
    /// The port it answers from.
    pub port: u16,
    /// The transport.
    pub protocol: Protocol,
}

/// A backend that is found by its id in QUIC connection ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NamedBackend {
    /// The backend's row.
    pub backend: BackendSlot,
    /// Its service's row.
    pub service: ServiceSlot,
    /// The id, and zeros.
    pub id: [u8; 16],
}

/// Those whom packets name otherwise than by a VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// Backends whose replies are recognised.
    pub nat: Vec<NatEndpoint>,
    /// Backends found by QUIC connection ids.
    pub ids: Vec<NamedBackend>,
}

/// One backend's flows at one look. *Live* is opening, established and half closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendFlows {
    /// The backend's row.
    pub slot: BackendSlot,
    /// The generation these flows belong to; flows of retired generations are not reported.
    pub generation: u32,
    /// A SYN or a first datagram seen.
    pub opening: u64,
    /// Open both ways. Adopted flows count from when their segments prove to be in sequence.
    pub established: u64,
    /// One end has said it is done.
    pub half_closed: u64,
    /// Finished, the entry lingers.
    pub closing: u64,
    /// When the oldest live flow was first seen (coarse monotonic nanoseconds).
    pub oldest_ns: Option<u64>,
}

impl BackendFlows {
    /// Flows that a drain waits for.
    pub fn live(&self) -> u64 {
        self.opening + self.established + self.half_closed
    }
}

/// The flow table as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTotals {
    /// Opening, established and half-closed flows.
    pub live: u64,
    /// Of these, the opening ones.
    pub opening: u64,
    /// Finished flows whose entries linger.
    pub closing: u64,
    /// How many flows, since the table was made, were steered by the hash alone because there was no room. Only grows;
    /// the engine takes a rise as "the table does not know everything".
    pub untracked: u64,
    /// Flows the table can hold.
    pub capacity: u64,
}

/// One complete look at the flow table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// When the look began: every flow recorded before is in it.
    pub begun_ns: u64,
    /// Backends that have any flow, in any order. A backend that is missing has none.
    pub backends: Vec<BackendFlows>,
    /// The whole table.
    pub totals: FlowTotals,
    /// Somebody has wiped the table since the last look: a backend that is missing proves nothing.
    pub wiped: bool,
    /// Established flows found to be over, each once.
    pub ended: Vec<EndedFlow>,
}

/// A flow that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedFlow {
    /// Its service.
    pub service: ServiceSlot,
    /// Its backend.
    pub backend: BackendSlot,
    /// The backend's generation.
    pub generation: u32,
    /// From its first packet until it finished; one that fell silent lasted until its idle timeout.
    pub length_ms: u32,
    /// It was cut: left alone it would have lasted longer.
    pub cut: bool,
}

/// How a flow ended, as far as the table shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowEnd {
    /// Both ends, or the one that is seen, said goodbye.
    Fin,
    /// One end reset it.
    Rst,
    /// It fell silent.
    Idle,
    /// It was cut.
    Cut,
}

/// What a flow has carried. Bytes are those of IP packets as they came in; later fragments of a packet are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The client's packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The backend's packets, where replies pass through here.
    pub reply_packets: u64,
    /// Their bytes.
    pub reply_bytes: u64,
}

/// A flow that is over, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedFlow {
    /// The flow as it last was.
    pub flow: FlowRecord,
    /// What it has carried, if that was counted from its beginning; replies only where they pass through here.
    pub carried: Option<Carried>,
    /// Whether its replies passed through here.
    pub both_ways: bool,
    /// How it ended.
    pub end: FlowEnd,
}

/// What a cut did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CutReport {
    /// Live connections ended by this call. Re-steered datagram flows are not among them.
    pub cut: u64,
    /// Live flows of that generation left, because their own deadline within the cut window is still ahead.
    pub remaining: u64,
}

/// How far a flow has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowState {
    /// A SYN or a first datagram seen.
    Opening,
    /// Open both ways.
    Established,
    /// One end has said it is done.
    HalfClosed,
    /// Finished, the entry lingers.
    Closing,
}

/// Which flows to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowFilter {
    /// Only this service's.
    pub service: Option<ServiceSlot>,
    /// Only this backend's.
    pub backend: Option<BackendSlot>,
}

/// One entry of the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowRecord {
    /// The transport.
    pub protocol: Protocol,
    /// The client's end.
    pub client: SocketAddr,
    /// The service's row.
    pub service: ServiceSlot,
    /// The backend's row.
    pub backend: BackendSlot,
    /// The backend's generation when the flow was recorded.
    pub generation: u32,
    /// How far it has got.
    pub state: FlowState,
    /// First packet (coarse monotonic nanoseconds).
    pub created_ns: u64,
    /// Latest packet (coarse monotonic nanoseconds).
    pub last_seen_ns: u64,
}

/// One backend row's counts. They only grow, over the slot's reuse too; the engine keeps baselines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendCounters {
    /// Flows opened on it.
    pub new_flows: u64,
    /// Packets forwarded to it.
    pub packets: u64,
    /// Bytes forwarded to it.
    pub bytes: u64,
    /// Flows that an RST has ended.
    #[serde(default)]
    pub resets: u64,
}

/// Everything the packet path counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By backend row; rows never used may be missing.
    pub backends: Vec<(BackendSlot, BackendCounters)>,
    /// Packets by outcome, in the order of the outcome list.
    pub outcomes: Vec<(&'static str, u64)>,
    /// How long the program has run and how often, where the kernel counts that (`kernel.bpf_stats_enabled`).
    pub program: Option<(Duration, u64)>,
}

/// An interface the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceInfo {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// `native` or `generic`; `missing` while there is no such interface.
    pub mode: String,
}

/// What happened to an interface that the program is, or is to be, attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceChange {
    /// Its name.
    pub interface: String,
    /// What happened.
    pub news: InterfaceNews,
}

/// See [`InterfaceChange`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InterfaceNews {
    /// It is gone, and the program with it.
    Gone,
    /// It is there again, and the program is attached in this mode.
    Attached(String),
    /// It is there again and does not take the program, for this reason. To be tried again.
    Refused(String),
    /// It went up, or has another MAC address: neighbours may have to be told.
    Up,
    /// It went down.
    Down,
}

/// A backend row found in pinned maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdoptedBackend {
    /// The row.
    pub slot: BackendSlot,
    /// Its generation. For a free row, that of its last holder.
    pub generation: u32,
    /// Its state; `Free` rows with a generation above zero are listed too.
    pub state: BackendState,
    /// Its deadline, as written.
    pub deadline_ns: Option<u64>,
}

/// What the datapath found when it was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Adopted {
    /// True when the flow table of an earlier daemon was taken over with its entries.
    pub flow_table_kept: bool,
    /// True when the service and backend rows and the rings of an earlier daemon were taken over and are in force.
    pub rows_kept: bool,
    /// The backend rows that were found.
    pub backends: Vec<AdoptedBackend>,
}

/// How many rows there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Services.
    pub services: u16,
    /// Backends of all services together.
    pub backends: u32,
}

/// Why the packet path could not do as asked. Nothing was changed unless the variant says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A table has no room.
    #[error("no room for another {what}: the datapath was loaded for {capacity}")]
    Full {
        /// What did not fit.
        what: &'static str,
        /// How many fit.
        capacity: u64,
    },
    /// The kernel refused. The change may have been made in part; asking again is safe.
    #[error("{action}: {source}")]
    Kernel {
        /// What was being done, on what.
        action: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// This forwarding mode, family or option is not there.
    #[error("{0}")]
    Unsupported(String),
}

/// The packet path, as its only owner sees it. Every call is idempotent: after an error the same call may be made again.
///
/// The order of a drain's start is the caller's: `set_backend_state(Draining)`, ring, `grace`, `sweep`.
pub trait Datapath: Send {
    /// Keeps flows that are over for [`Datapath::take_logged`]: one in so many. None are kept unless this is called.
    fn log_flows(&mut self, _sample: NonZeroU16) {}

    /// Flows that established themselves and have been taken out of the table since the last call, and how many more there were
    /// for which there was no room, or that the packet path has taken out.
    fn take_logged(&mut self) -> (Vec<LoggedFlow>, u64) {
        (Vec::new(), 0)
    }

    /// How many rows there are.
    fn limits(&self) -> Limits;

    /// What was found when the datapath was opened. Asked once, before anything else is called.
    fn adopted(&mut self) -> Result<Adopted, DatapathError>;

    /// Writes a service's row. No packet meets it until [`Datapath::publish_vips`] names it.
    fn put_service(&mut self, slot: ServiceSlot, config: &ServiceConfig) -> Result<(), DatapathError>;

    /// Frees a service's row and its ring. The VIP has been unpublished before.
    fn clear_service(&mut self, slot: ServiceSlot) -> Result<(), DatapathError>;

    /// Publishes the whole set of VIPs, and of backends that packets name, by one atomic step; returns after a grace period.
    /// `own` are the addresses that this host uses itself.
    fn publish_vips(
        &mut self,
        services: &[(ServiceSlot, &ServiceConfig)],
        own: &BTreeSet<IpAddr>,
        named: &Named,
    ) -> Result<(), DatapathError>;

    /// Writes a backend's whole row. A rise of the generation retires all flows of the row's last holder at once.
    fn put_backend(&mut self, slot: BackendSlot, config: &BackendConfig) -> Result<(), DatapathError>;

    /// Changes in place what may be done with a backend.
    fn set_backend_state(
        &mut self,
        slot: BackendSlot,
        state: BackendState,
        deadline_ns: Option<u64>,
        on_timeout: CutPolicy,
    ) -> Result<(), DatapathError>;

    /// Changes in place where a backend's frames go.
    fn set_next_hop(&mut self, slot: BackendSlot, next_hop: &NextHop) -> Result<(), DatapathError>;

    /// Makes `ring` the service's own. One of another size is built aside and swapped in; of the same size, the
    /// slots that differ are stored in place, each whole.
    fn put_ring(&mut self, service: ServiceSlot, ring: &[RingSlot]) -> Result<(), DatapathError>;

    /// Stores some slots of the present ring in place, each whole: costs what the changed slots cost.
    fn set_ring_slots(&mut self, service: ServiceSlot, changes: &[(u32, RingSlot)]) -> Result<(), DatapathError>;

    /// Returns when every packet that was in the program at the call has left it.
    fn grace(&mut self) -> Result<(), DatapathError>;

    /// One complete look at the flow table; reclaims dead entries on its way.
    fn sweep(&mut self, now_ns: u64) -> Result<Sweep, DatapathError>;

    /// Frees all entries of one generation of a backend; returns how many there were.
    fn purge(&mut self, slot: BackendSlot, generation: u32) -> Result<u64, DatapathError>;

    /// Ends the live flows of one generation of a backend whose own deadline (see [`BackendConfig::cut_window`]) is at or
    /// before `now_ns`: marks their entries cut and under [`CutPolicy::Reset`] sends both ends an RST.
    fn cut(
        &mut self,
        slot: BackendSlot,
        generation: u32,
        policy: CutPolicy,
        now_ns: u64,
    ) -> Result<CutReport, DatapathError>;

    /// Ends, in the same manner, the live flows of one generation that have been silent since before `silent_since_ns`.
    fn cut_idle(
        &mut self,
        slot: BackendSlot,
        generation: u32,
        policy: CutPolicy,
        silent_since_ns: u64,
    ) -> Result<CutReport, DatapathError>;

    /// Lists flows, at most `limit`.
    fn flows(&mut self, filter: FlowFilter, limit: usize) -> Result<Vec<FlowRecord>, DatapathError>;

    /// Shows how long, in nanoseconds, each connection of a service that is open has lasted.
    fn open_lengths(
        &mut self,
        service: ServiceSlot,
        now_ns: u64,
        see: &mut dyn FnMut(u64),
    ) -> Result<(), DatapathError>;

    /// Reads all counters.
    fn counters(&mut self) -> Result<Counters, DatapathError>;

    /// Takes in what interfaces there are: attaches the program where one has come back, and tells what changed.
    fn follow_links(&mut self, links: &[Link]) -> Vec<InterfaceChange>;

    /// Tells all neighbours, on each interface with the program, that these addresses are here.
    fn announce(&mut self, addresses: &[IpAddr]);

    /// Where the program is attached.
    fn interfaces(&self) -> Vec<InterfaceInfo>;
}
