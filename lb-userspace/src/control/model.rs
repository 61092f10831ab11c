//! What is asked of Ebb and what it answers: the shapes that the engine, the API, the CLI and the state file share.
//!
//! Names are snake_case, durations numbers of seconds, times RFC 3339; a request's missing field means its default, a patch's
//! missing field means "as it is".

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::{
    duration::{Limit, Seconds},
    hold::{Held, HoldResult, HoldStatus},
    quic::{QuicCid, ServerId},
    vip::{BackendAddress, Vip},
};
pub use crate::datapath::{CutPolicy, Echo, FlowState, FlowTotals, Forward, Protocol};

/// The drain timeout where none is given.
pub const DEFAULT_DRAIN_TIMEOUT: Limit = Limit::seconds(300);
/// The largest weight.
pub const MAX_WEIGHT: u32 = 65_535;

/// A service as it is asked for, kept and shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Its name.
    pub name: String,
    /// Where clients send to.
    pub vip: Vip,
    /// How packets reach the backends.
    #[serde(default)]
    pub forward: Forward,
    /// How long a drain may take.
    #[serde(default = "default_drain_timeout")]
    pub drain_timeout_s: Limit,
    /// What happens to flows that take longer.
    #[serde(default)]
    pub on_drain_timeout: CutPolicy,
    /// Cuts are spread over this time, which ends at the deadline.
    #[serde(default)]
    pub cut_window_s: Seconds,
    /// During a drain, a flow silent for that long is ended.
    #[serde(default)]
    pub drain_idle_s: Limit,
    /// Once its flows are over, a drain waits so long for `continue`, `abandon` or a heartbeat; `null` for not at all.
    #[serde(default)]
    pub drain_hold_s: Limit,
    /// What that wait counts as when nobody answers.
    #[serde(default)]
    pub on_hold_timeout: HoldResult,
    /// Silence after which a flow counts as finished; 350 s for TCP and 120 s for UDP unless given.
    #[serde(default)]
    pub idle_timeout_s: Option<Seconds>,
    /// In `dsr` and `tunnel`: silence after the client's FIN that counts as the end.
    #[serde(default = "default_fin_quiet")]
    pub fin_quiet_s: Seconds,
    /// Steer by the client's address alone.
    #[serde(default)]
    pub affinity: Option<Affinity>,
    /// UDP only: each datagram is steered by itself.
    #[serde(default)]
    pub per_datagram: bool,
    /// UDP only: a QUIC connection whose client changes its address keeps the backend that its connection id names.
    #[serde(default)]
    pub quic_cid: Option<QuicCid>,
    /// Who answers echo requests (ping) to the VIP's address.
    #[serde(default)]
    pub echo: Echo,
    /// The VIP's address is announced on the interfaces' segments: ARP requests and neighbour solicitations for it are
    /// answered, and unasked-for ones are sent when it appears here.
    #[serde(default)]
    pub announce: bool,
    /// How long a new or returning backend takes to its whole share.
    #[serde(default)]
    pub slow_start_s: Seconds,
    /// How many backends operators may have out of rotation at once.
    #[serde(default)]
    pub max_out: Option<MaxOut>,
    /// What happens when no backend is healthy.
    #[serde(default)]
    pub when_unhealthy: WhenUnhealthy,
    /// How long the flows of a backend that fails its checks are kept; 0 cuts them at once.
    #[serde(default)]
    pub unhealthy_drain_s: Limit,
    /// The health check; none means that a resolved backend is healthy.
    #[serde(default, rename = "health_check")]
    pub health: Option<HealthSpec>,
}

/// The fields of a [`ServiceSpec`] that can be changed while it runs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServicePatch {
    /// See [`ServiceSpec::drain_timeout_s`]; running drains keep the deadline they have.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub drain_timeout_s: Option<Limit>,
    /// See [`ServiceSpec::on_drain_timeout`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_drain_timeout: Option<CutPolicy>,
    /// See [`ServiceSpec::cut_window_s`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_window_s: Option<Seconds>,
    /// See [`ServiceSpec::drain_idle_s`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub drain_idle_s: Option<Limit>,
    /// See [`ServiceSpec::drain_hold_s`]; a drain that is held already keeps the time it has.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub drain_hold_s: Option<Limit>,
    /// See [`ServiceSpec::on_hold_timeout`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_hold_timeout: Option<HoldResult>,
    /// See [`ServiceSpec::idle_timeout_s`]; `null` for the protocol's own.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub idle_timeout_s: Option<Option<Seconds>>,
    /// See [`ServiceSpec::fin_quiet_s`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fin_quiet_s: Option<Seconds>,
    /// See [`ServiceSpec::affinity`]; `null` takes it away.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Option<Affinity>>,
    /// See [`ServiceSpec::per_datagram`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_datagram: Option<bool>,
    /// See [`ServiceSpec::quic_cid`]; `null` takes it away.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub quic_cid: Option<Option<QuicCid>>,
    /// See [`ServiceSpec::echo`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub echo: Option<Echo>,
    /// See [`ServiceSpec::announce`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce: Option<bool>,
    /// See [`ServiceSpec::slow_start_s`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slow_start_s: Option<Seconds>,
    /// See [`ServiceSpec::max_out`]; `null` takes it away.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub max_out: Option<Option<MaxOut>>,
    /// See [`ServiceSpec::when_unhealthy`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when_unhealthy: Option<WhenUnhealthy>,
    /// See [`ServiceSpec::unhealthy_drain_s`].
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub unhealthy_drain_s: Option<Limit>,
    /// See [`ServiceSpec::health`]; `null` takes it away.
    #[serde(rename = "health_check", deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub health: Option<Option<HealthSpec>>,
}

/// Steering by the client's address alone: `"source"`, or `"source/24"` for its leading bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "NumberOrText", into = "String")]
pub struct Affinity {
    /// How many leading bits decide; `None` for all of them, 32 of IPv4 and 128 of IPv6.
    pub prefix: Option<u8>,
}

/// How many backends of a service may be out of rotation at once: `3` or `"25%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "NumberOrText", into = "NumberOrText")]
pub enum MaxOut {
    /// So many.
    Count(u32),
    /// So many in a hundred, rounded down, but never less than one.
    Percent(u8),
}

/// What a service does when no backend is healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenUnhealthy {
    /// The unhealthy ones serve, never the draining: the checks may be what is wrong.
    #[default]
    FailOpen,
    /// New flows are refused.
    Refuse,
}

/// A service's health check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HealthSpec {
    /// What is done to a backend.
    pub check: Check,
    /// Time between two checks of a backend.
    #[serde(default = "default_interval")]
    pub interval_s: Seconds,
    /// How long one may take.
    #[serde(default = "default_timeout")]
    pub timeout_s: Seconds,
    /// So many passes in a row make a backend healthy.
    #[serde(default = "default_rise")]
    pub rise: u32,
    /// So many failures in a row make it unhealthy.
    #[serde(default = "default_fall")]
    pub fall: u32,
    /// Intervals vary by up to this share (0 to 1).
    #[serde(default = "default_jitter")]
    pub jitter: f64,
    /// The port to check; the backend's own unless given.
    #[serde(default)]
    pub port: Option<u16>,
    /// `dsr` and `tunnel`: that the backend answers for the VIP is checked too; instead of a `tcp` check of its own address.
    #[serde(default)]
    pub vip: bool,
}

/// What a health check does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Check {
    /// A TCP connection is accepted.
    Tcp,
    /// An HTTP request is answered with one of these statuses.
    Http {
        /// The path asked for.
        #[serde(default = "default_path")]
        path: String,
        /// Good answers; 200 to 399 unless given.
        #[serde(default)]
        statuses: Vec<u16>,
        /// The host header.
        #[serde(default)]
        host: Option<String>,
    },
    /// A datagram is answered.
    Udp {
        /// What is sent.
        #[serde(default)]
        send: String,
        /// What the answer begins with; anything will do unless given.
        #[serde(default)]
        expect: Option<String>,
    },
    /// A command exits with 0; it finds the target in its environment.
    Command {
        /// The program and its arguments.
        argv: Vec<String>,
    },
}

/// A backend as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendSpec {
    /// Its name, unique in its service.
    pub name: String,
    /// Where it is.
    pub address: BackendAddress,
    /// Its share of new flows relative to the others'; 0 means no new flow.
    #[serde(default = "default_weight")]
    pub weight: u32,
    /// Its id in QUIC connection ids, in hexadecimal; assigned unless given, where the service's `quic_cid` asks for one.
    #[serde(default)]
    pub server_id: Option<ServerId>,
}

/// What can be changed of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BackendPatch {
    /// See [`BackendSpec::weight`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// See [`BackendSpec::server_id`]; `null` for the assigned one.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub server_id: Option<Option<ServerId>>,
}

/// A service with its backends, as a file wants them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WantedService {
    /// The service.
    pub service: ServiceSpec,
    /// Its backends.
    pub backends: Vec<BackendSpec>,
}

/// What applying a file changes, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApplyReport {
    /// What `If-Match` and `--if-revision` compare with: of what there is now, a dry run having changed nothing.
    #[serde(default)]
    pub revision: String,
    /// True when nothing was done.
    pub dry_run: bool,
    /// In the order in which they are made; none when everything is as wanted.
    pub changes: Vec<Change>,
}

/// One step of an [`ApplyReport`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Change {
    /// What is done.
    pub action: ChangeAction,
    /// To which service.
    pub service: String,
    /// To which backend, if to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// In words.
    pub detail: String,
}

/// What a [`Change`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ChangeAction {
    /// Something new is added.
    Add,
    /// Something is changed in place.
    Set,
    /// Something is drained and then removed.
    Remove,
}

/// How to drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DrainRequest {
    /// How long it may take, from now; the service's unless given. `null` means no deadline, 0 ends it now.
    #[serde(deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<Limit>,
    /// What happens to flows that take longer; the service's unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<CutPolicy>,
    /// Overrides the guards.
    pub force: bool,
}

/// A backend's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Registered; not yet checked, or its next hop not yet resolved.
    Initial,
    /// In rotation.
    Active,
    /// Keeps its flows, gets no new one.
    Draining,
    /// Kept, out of rotation.
    Drained,
    /// Failed its checks; its flows are over.
    Unhealthy,
    /// Failed its checks; existing flows still go to it.
    UnhealthyDraining,
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// No live flow was left.
    Completed,
    /// Some were cut at the deadline.
    Deadline,
    /// An operator ended it.
    Forced,
    /// The backend went back into rotation, or failed.
    Cancelled,
}

/// A running drain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrainStatus {
    /// When it began.
    pub started_at: Timestamp,
    /// When it ends at the latest; `null` when it may take for ever.
    pub deadline: Option<Timestamp>,
    /// Seconds until then.
    pub remaining_s: Option<f64>,
    /// Live flows when it began.
    pub initial_flows: u64,
    /// Live flows now.
    pub remaining_flows: u64,
    /// What happens to what is left at the deadline.
    pub on_timeout: CutPolicy,
    /// Flows ended because they were silent for the service's `drain_idle`.
    pub idle_flows: u64,
    /// Age of the oldest live flow, in seconds.
    pub oldest_flow_s: Option<f64>,
    /// How many flows ended a second, lately.
    pub rate_per_s: Option<f64>,
    /// At that rate, so many seconds are left, and never more than until the deadline.
    pub estimate_s: Option<f64>,
    /// Its flows are over, and it waits to be told that it may end.
    #[serde(default)]
    pub hold: Option<HoldStatus>,
}

/// A drain that is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LastDrain {
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub ended_at: Timestamp,
    /// How.
    pub outcome: Outcome,
    /// Live flows when it began.
    pub initial_flows: u64,
    /// Connections cut at its end.
    pub cut_flows: u64,
    /// Connections ended because they were silent for the service's `drain_idle`.
    #[serde(default)]
    pub idle_flows: u64,
    /// The wait at its end, if it was held.
    #[serde(default)]
    pub held: Option<Held>,
}

/// A backend as `ebb status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendStatus {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub address: BackendAddress,
    /// Its weight.
    pub weight: u32,
    /// Its id in QUIC connection ids, where the service looks at them.
    #[serde(default)]
    pub server_id: Option<ServerId>,
    /// Its state.
    pub state: State,
    /// Why, in words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// True when it is deleted as soon as its drain is over.
    pub removing: bool,
    /// Live flows.
    pub active_flows: u64,
    /// Flows ever opened on it.
    pub new_flows_total: u64,
    /// Flows that were established and are over.
    #[serde(default)]
    pub finished_flows_total: u64,
    /// Flows that an RST has ended.
    #[serde(default)]
    pub reset_flows_total: u64,
    /// Packets ever forwarded to it.
    pub packets_total: u64,
    /// Bytes ever forwarded to it.
    pub bytes_total: u64,
    /// The drain that runs.
    pub drain: Option<DrainStatus>,
    /// The latest that is over.
    pub last_drain: Option<LastDrain>,
}

/// A service as `ebb status` shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Where clients send to.
    pub vip: Vip,
    /// How packets reach the backends.
    pub forward: Forward,
    /// How long a drain may take.
    pub drain_timeout_s: Limit,
    /// What happens to flows that take longer.
    pub on_drain_timeout: CutPolicy,
    /// Its backends, in the order in which they were added.
    pub backends: Vec<BackendStatus>,
}

/// `ebb status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Status {
    /// The services, in the order in which they were added.
    pub services: Vec<ServiceStatus>,
    /// The packet path.
    pub datapath: DatapathStatus,
}

/// The packet path in a [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DatapathStatus {
    /// Where the program is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// The flow table.
    pub flows: FlowTotals,
    /// The flow log, where there is one.
    #[serde(default)]
    pub flow_log: Option<FlowLogStatus>,
}

/// What became of the lines of the flow log since the daemon's start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FlowLogStatus {
    /// Lines written.
    pub written: u64,
    /// Flows whose lines the disk did not take, or whose backend is not known any more.
    pub lost: u64,
}

/// An interface in a [`Status`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct InterfaceStatus {
    /// Its name.
    pub name: String,
    /// `native` or `generic`; `missing` while there is no such interface.
    pub mode: String,
}

/// A backend whose drain was started or changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DrainStarted {
    /// Its service.
    pub service: String,
    /// Its name.
    pub backend: String,
    /// Its state now: `draining`, or already what comes after.
    pub state: State,
    /// The drain, if it still runs.
    pub drain: Option<DrainStatus>,
    /// The latest that is over.
    pub last_drain: Option<LastDrain>,
}

/// What to wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// The end of the latest drain, however it ends.
    #[default]
    Drained,
    /// The backend takes new flows.
    Active,
}

/// How a wait ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WaitResult {
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// Its state; `null` when it has been deleted.
    pub state: Option<State>,
    /// Its latest drain that is over.
    pub last_drain: Option<LastDrain>,
}

/// Which flows to list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct FlowsRequest {
    /// Only this service's.
    pub service: Option<String>,
    /// Only this backend's; needs the service.
    pub backend: Option<String>,
    /// At most so many; 1,000 unless given.
    pub limit: Option<usize>,
}

/// One flow.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowView {
    /// The transport.
    pub protocol: Protocol,
    /// The client's end.
    pub client: std::net::SocketAddr,
    /// The service's VIP.
    pub vip: Vip,
    /// The service.
    pub service: String,
    /// The backend.
    pub backend: String,
    /// How far it has got.
    pub state: FlowState,
    /// Seconds since its first packet.
    pub age_s: f64,
    /// Seconds since its latest packet.
    pub idle_s: f64,
}

/// The packet path's counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CountersView {
    /// Packets by outcome.
    pub outcomes: Vec<OutcomeCount>,
    /// The program's running time, where the kernel counts it (`sysctl kernel.bpf_stats_enabled=1`).
    #[serde(default)]
    pub program: Option<ProgramRuns>,
}

/// How long the packet path has run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProgramRuns {
    /// All together, on all CPUs.
    pub run_time_s: f64,
    /// For so many packets.
    pub runs: u64,
}

/// Packets of one outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct OutcomeCount {
    /// The outcome's name.
    pub name: String,
    /// Packets that ended in it.
    pub packets: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Grows by one with each event, over restarts too.
    pub id: u64,
    /// When.
    pub at: Timestamp,
    /// What.
    pub kind: EventKind,
    /// To which service; missing when it concerns all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// To which backend, if to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// That backend's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<BackendAddress>,
    /// The backend's state before, for `backend_state`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<State>,
    /// The backend's state after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// To which interface, for `interface_…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Why, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The drain, for `drain_started`, `drain_changed`, `drain_held` and `hold_extended`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainStatus>,
    /// The drain that ended, for `drain_ended`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_drain: Option<LastDrain>,
}

impl Event {
    /// One that says nothing more yet.
    pub fn new(id: u64, at: Timestamp, kind: EventKind) -> Self {
        Self {
            id,
            at,
            kind,
            service: None,
            backend: None,
            address: None,
            from: None,
            state: None,
            interface: None,
            reason: None,
            drain: None,
            last_drain: None,
        }
    }
}

/// What an [`Event`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// A service was added.
    ServiceAdded,
    /// A service's settings were changed.
    ServiceChanged,
    /// A service is gone.
    ServiceRemoved,
    /// A backend was added.
    BackendAdded,
    /// A backend's weight was changed, or that it is to be removed.
    BackendChanged,
    /// A backend is gone.
    BackendRemoved,
    /// A backend went from one state to another.
    BackendState,
    /// A drain began.
    DrainStarted,
    /// A running drain's deadline or policy was changed.
    DrainChanged,
    /// A drain's flows are over, and it waits for `continue` or `abandon`.
    DrainHeld,
    /// A heartbeat put off the end of that wait.
    HoldExtended,
    /// A drain is over.
    DrainEnded,
    /// The flow table was lost or full: no drain ends early for one idle timeout.
    FlowStateLost,
    /// The daemon has started and taken over what was there.
    Started,
    /// An interface that was balanced on is gone.
    InterfaceGone,
    /// An interface came back and is balanced on again.
    InterfaceBack,
    /// An interface went up or down.
    InterfaceState,
    /// Stands for events up to its id that are no longer remembered; `reason` says how many. Only readers of events see it.
    EventsMissed,
}

/// `3` or `"25%"` on the wire.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum NumberOrText {
    /// A JSON number.
    Number(u32),
    /// A JSON string.
    Text(String),
}

impl TryFrom<NumberOrText> for MaxOut {
    type Error = super::Error;

    fn try_from(value: NumberOrText) -> Result<Self, super::Error> {
        match value {
            NumberOrText::Number(count) => Ok(Self::Count(count)),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl std::fmt::Display for MaxOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl From<MaxOut> for NumberOrText {
    fn from(value: MaxOut) -> Self {
        match value {
            MaxOut::Count(count) => Self::Number(count),
            MaxOut::Percent(_) => Self::Text(value.to_string()),
        }
    }
}

impl std::str::FromStr for MaxOut {
    type Err = super::Error;

    fn from_str(text: &str) -> Result<Self, super::Error> {
        let parsed = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| *percent <= 100).map(Self::Percent),
            None => text.parse().ok().map(Self::Count),
        };
        parsed.ok_or_else(|| {
            super::Error::Invalid(format!(
                "'{text}' is no number of backends: write a count such as 2, or a share such as 25%"
            ))
        })
    }
}

impl std::str::FromStr for Affinity {
    type Err = super::Error;

    fn from_str(text: &str) -> Result<Self, super::Error> {
        let prefix = match text.strip_prefix("source") {
            Some("") => Some(None),
            Some(rest) => rest.strip_prefix('/').and_then(|bits| bits.parse().ok()).map(Some),
            // What was written before there was a word for it.
            None => text.parse().ok().map(Some),
        };
        prefix.map(|prefix| Self { prefix }).ok_or_else(|| {
            super::Error::Invalid(format!("'{text}' is no affinity: write source, or source/24 for a prefix"))
        })
    }
}

impl TryFrom<NumberOrText> for Affinity {
    type Error = super::Error;

    fn try_from(value: NumberOrText) -> Result<Self, super::Error> {
        match value {
            NumberOrText::Number(bits) => bits.to_string().parse(),
            NumberOrText::Text(text) => text.parse(),
        }
    }
}

impl std::fmt::Display for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.prefix {
            Some(prefix) => write!(f, "source/{prefix}"),
            None => f.write_str("source"),
        }
    }
}

impl From<Affinity> for String {
    fn from(affinity: Affinity) -> Self {
        affinity.to_string()
    }
}

/// Tells a field that is `null` from one that is missing.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn default_drain_timeout() -> Limit {
    DEFAULT_DRAIN_TIMEOUT
}

fn default_fin_quiet() -> Seconds {
    Seconds::new(1)
}

fn default_interval() -> Seconds {
    Seconds::new(5)
}

fn default_timeout() -> Seconds {
    Seconds::new(2)
}

fn default_rise() -> u32 {
    2
}

fn default_fall() -> u32 {
    3
}

fn default_jitter() -> f64 {
    0.1
}

fn default_path() -> String {
    "/".to_owned()
}

fn default_weight() -> u32 {
    1
}
