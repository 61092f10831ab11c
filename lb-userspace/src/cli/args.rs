//! The command line as a definition: what can be typed, and nothing about what it does.
//!
//! Values are parsed here into their types, so that a malformed one is a usage error (exit code 2) before any daemon is asked.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::{
    check::CheckArgs,
    values::{
        FlowScope, OrNone, Target, backend_name, host, listen_address, or_none, revision, service_name, weight, words,
    },
};
use crate::{
    api::socket::SocketMode,
    config::file::{MaxFlows, Mode},
    control::{
        duration::{Limit, Seconds},
        hold::{HoldAnswer, HoldResult},
        model::{Affinity, MaxOut, ServicePatch, WaitFor, WhenUnhealthy},
        quic::{QuicCid, ServerId},
        vip::{BackendAddress, Vip},
    },
    datapath::{self, CutPolicy, Echo, Forward},
};

/// Where the daemon listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/ebb/ebb.sock";
/// Where the daemon keeps what must survive a reboot unless told otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/ebb";

const FORWARDS: [(&str, Forward); 3] = [("dsr", Forward::Dsr), ("nat", Forward::Nat), ("tunnel", Forward::Tunnel)];
const POLICIES: [(&str, CutPolicy); 2] = [("reset", CutPolicy::Reset), ("silent", CutPolicy::Silent)];
const WHEN_UNHEALTHY: [(&str, WhenUnhealthy); 2] =
    [("fail_open", WhenUnhealthy::FailOpen), ("refuse", WhenUnhealthy::Refuse)];
const ECHOES: [(&str, Echo); 3] = [("auto", Echo::Auto), ("answer", Echo::Answer), ("pass", Echo::Pass)];
const MODES: [(&str, Mode); 3] = [("auto", Mode::Auto), ("native", Mode::Native), ("generic", Mode::Generic)];
const HOLD_RESULTS: [(&str, HoldResult); 2] = [("continue", HoldResult::Continue), ("abandon", HoldResult::Abandon)];
const HOLD_ANSWERS: [(&str, HoldAnswer); 3] =
    [("continue", HoldAnswer::Continue), ("abandon", HoldAnswer::Abandon), ("heartbeat", HoldAnswer::Heartbeat)];
const GOALS: [(&str, WaitFor); 2] = [("drained", WaitFor::Drained), ("active", WaitFor::Active)];

/// A layer-4 load balancer that takes backends out of service without breaking their connections.
#[derive(Debug, Parser)]
#[command(name = "ebb", version, max_term_width = 100, propagate_version = true)]
pub struct Cli {
    /// Options that every command takes.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options that every command takes.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Socket of the daemon
    #[arg(long, global = true, env = "EBB_SOCKET", value_name = "PATH", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Control the daemon on another host over mutual TLS: https://HOST:PORT
    #[arg(long, global = true, env = "EBB_SERVER", value_name = "URL", help_heading = "Remote control")]
    pub server: Option<String>,
    /// Certificate to show the server
    #[arg(long, global = true, env = "EBB_CERT", value_name = "FILE", help_heading = "Remote control")]
    pub cert: Option<PathBuf>,
    /// Its private key
    #[arg(long, global = true, env = "EBB_KEY", value_name = "FILE", help_heading = "Remote control")]
    pub key: Option<PathBuf>,
    /// Authority that the server's certificate must be from
    #[arg(long, global = true, env = "EBB_CA", value_name = "FILE", help_heading = "Remote control")]
    pub ca: Option<PathBuf>,
    /// How to print: a table for people, JSON for scripts
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
}

/// How a command prints what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Aligned columns.
    Table,
    /// One stable JSON object, or one per line when following.
    Json,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Load the datapath and serve it until stopped; stopping leaves traffic flowing
    Run(RunArgs),
    /// Remove the datapath and its flows; a running daemon is stopped, services are kept for its next start
    Unload(UnloadArgs),
    /// Check a configuration file; needs no daemon
    Check {
        /// The file
        file: PathBuf,
    },
    /// Make services and backends what a file says; what it lacks is drained, then removed
    Apply {
        /// The file
        file: PathBuf,
        /// Only show what would change
        #[arg(long)]
        dry_run: bool,
        /// Only if this is still the revision that "ebb apply --dry-run" told
        #[arg(long, value_name = "REVISION", value_parser = revision)]
        if_revision: Option<String>,
    },
    /// Services: a virtual address, port and protocol, and how it is forwarded
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Backends of a service
    #[command(subcommand)]
    Backend(BackendCommand),
    /// Take a backend out of service: no new flows, existing ones may finish
    Drain(DrainArgs),
    /// Cancel a drain, or bring a drained backend back
    Activate(ActivateArgs),
    /// Answer a drain whose end the service holds (--drain-hold): let it end, or have it wait on
    Hook {
        /// It may end; it may end though what it waited for has failed; it waits on
        #[arg(value_name = "continue|abandon|heartbeat", value_parser = words(&HOLD_ANSWERS))]
        answer: HoldAnswer,
        /// The backend
        #[arg(value_name = "SERVICE/BACKEND")]
        target: Target,
    },
    /// Wait until a backend's latest drain has ended, or until the backend is active
    Wait(WaitArgs),
    /// What the services, their backends and the datapath are doing
    Status {
        /// Only this service
        #[arg(value_parser = service_name)]
        service: Option<String>,
    },
    /// Recommend a drain timeout from how long a service's flows have lasted
    Advise {
        /// Name of the service
        #[arg(value_parser = service_name)]
        service: String,
    },
    /// The flows being tracked
    Flows(FlowsArgs),
    /// What happened: backends and drains changing state, services coming and going
    Events {
        /// Stay, and print what happens as it happens
        #[arg(short, long)]
        follow: bool,
    },
    /// On a backend of a tunnelled service: take packets out of their tunnel, until stopped
    Decap(DecapArgs),
    /// Watch services, backends and drains, with keys to drain and activate
    Top,
    /// Look for what stands in the way here, and say what mends it
    Doctor {
        /// Interface to look at (repeat for several) [default: those in use, or all that are up]
        #[arg(short, long = "interface", value_name = "IFACE")]
        interfaces: Vec<String>,
    },
    /// Print a completion script, e.g. ebb completions bash > /etc/bash_completion.d/ebb
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Write the manual pages, for packages
    #[command(hide = true)]
    Man {
        /// Where to
        directory: PathBuf,
    },
}

/// `ebb run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file; it wins over what was kept from the last run
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Interface to balance on (repeat for several)
    #[arg(short, long = "interface", value_name = "IFACE")]
    pub interfaces: Vec<String>,
    /// Where the program runs: in the driver, in the stack, or the best that works [default: auto]
    #[arg(long, value_name = "auto|native|generic", value_parser = words(&MODES))]
    pub mode: Option<Mode>,
    /// Flows that can be tracked at once
    #[arg(long, value_name = "N")]
    pub max_flows: Option<MaxFlows>,
    /// Serve metrics for Prometheus here, e.g. 127.0.0.1:9090
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address)]
    pub metrics: Option<SocketAddr>,
    /// Mode of the socket; who may write to it may do everything [default: 0660]
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<SocketMode>,
    /// Group of the socket [default: the daemon's]
    #[arg(long, value_name = "GROUP")]
    pub socket_group: Option<String>,
    /// Serve a page to look at here, to whoever can connect; best 127.0.0.1:8080
    #[arg(long, value_name = "ADDR:PORT", value_parser = listen_address)]
    pub status: Option<SocketAddr>,
    /// Directories of the datapath and of the state
    #[command(flatten)]
    pub places: Places,
}

/// `ebb unload`.
#[derive(Debug, Args)]
pub struct UnloadArgs {
    /// Only detach from this interface (repeat for several); all of them by default
    #[arg(short, long = "interface", value_name = "IFACE")]
    pub interfaces: Vec<String>,
    /// Directory of the pinned datapath [default: the running daemon's, or the default of "ebb run"]
    #[arg(long, value_name = "DIR")]
    pub pin_path: Option<PathBuf>,
    /// Taken so that the options of "ebb run" can be repeated; a running daemon tells where its state is
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Where the datapath and the daemon's state live.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// Directory on bpffs for the pinned datapath
    #[arg(long, value_name = "DIR", help = pin_path_help())]
    pub pin_path: Option<PathBuf>,
    /// Directory for what must survive a reboot [default: /var/lib/ebb]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// `ebb service …`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Add a service
    Add {
        /// Name of the service
        #[arg(value_parser = service_name)]
        name: String,
        /// Virtual address, e.g. 10.0.0.100:80/tcp; IPv6 in square brackets
        #[arg(long, value_name = "ADDR:PORT/PROTO")]
        vip: Vip,
        /// How packets reach the backends [default: dsr]
        #[arg(long, value_name = "dsr|nat|tunnel", value_parser = words(&FORWARDS))]
        forward: Option<Forward>,
        /// The rest of its settings
        #[command(flatten)]
        settings: ServiceSettings,
    },
    /// List the services
    List,
    /// Show one service, its settings and its backends
    Show {
        /// Name of the service
        #[arg(value_parser = service_name)]
        name: String,
    },
    /// Change settings of a service
    Set {
        /// Name of the service
        #[arg(value_parser = service_name)]
        name: String,
        /// What to change
        #[command(flatten)]
        settings: ServiceSettings,
        /// Only if this is still the revision that "ebb service show" told
        #[arg(long, value_name = "REVISION", value_parser = revision)]
        if_revision: Option<String>,
    },
    /// Drain every backend of a service, then remove it
    Remove {
        /// Name of the service
        #[arg(value_parser = service_name)]
        name: String,
        /// Cut what is still open instead of draining
        #[arg(long)]
        now: bool,
        /// Only if this is still the revision that "ebb service show" told
        #[arg(long, value_name = "REVISION", value_parser = revision)]
        if_revision: Option<String>,
    },
}

/// Settings of a service that `add` takes and `set` changes.
#[derive(Debug, Clone, Default, Args)]
pub struct ServiceSettings {
    /// How long a drain may take: 90s, 5m, 1h30m, seconds, 0 (at once) or none (no deadline) [default: 300s]
    #[arg(long, value_name = "DUR|none")]
    pub drain_timeout: Option<Limit>,
    /// What happens to flows still open at the deadline [default: reset]
    #[arg(long, value_name = "reset|silent", value_parser = words(&POLICIES))]
    pub on_drain_timeout: Option<CutPolicy>,
    /// How long a silent flow is kept [default: 350s for TCP, 120s for UDP]
    #[arg(long, value_name = "DUR")]
    pub idle_timeout: Option<Seconds>,
    /// Silence after the client's FIN that ends a half-seen flow [default: 1s]
    #[arg(long, value_name = "DUR")]
    pub fin_quiet: Option<Seconds>,
    /// Spread the cuts at a deadline over this time, which ends at the deadline [default: 0]
    #[arg(long, value_name = "DUR")]
    pub cut_window: Option<Seconds>,
    /// While a drain runs, end flows that are silent for this long [default: none]
    #[arg(long, value_name = "DUR|none")]
    pub drain_idle: Option<Limit>,
    /// Hold a drain whose flows are over this long for "ebb hook", which can put it off [default: none]
    #[arg(long, value_name = "DUR|none")]
    pub drain_hold: Option<Limit>,
    /// What a held drain ends with when nobody answers [default: continue]
    #[arg(long, value_name = "continue|abandon", value_parser = words(&HOLD_RESULTS))]
    pub on_hold_timeout: Option<HoldResult>,
    /// Ramp the share of a new or returning backend up over this time [default: 0]
    #[arg(long, value_name = "DUR")]
    pub slow_start: Option<Seconds>,
    /// How many backends may be out of rotation at once: 2, 25% or none [default: none]
    #[arg(long, value_name = "N|P%|none", value_parser = or_none::<MaxOut>)]
    pub max_out: Option<OrNone<MaxOut>>,
    /// Steer by the client's address alone, or by its first PREFIX bits [default: none; PREFIX: 32, IPv6 128]
    #[arg(long, value_name = "source[/PREFIX]|none", value_parser = or_none::<Affinity>)]
    pub affinity: Option<OrNone<Affinity>>,
    /// UDP: steer each datagram by itself and track no flow [default: false]
    #[arg(long, value_name = "true|false")]
    pub per_datagram: Option<bool>,
    /// UDP: keep a migrating QUIC connection with the backend whose id of LEN bytes its connection id has (QUIC-LB) [default: none]
    #[arg(long, value_name = "LEN|sid=LEN,cr=N|none", value_parser = or_none::<QuicCid>)]
    pub quic_cid: Option<OrNone<QuicCid>>,
    /// Who answers echo requests (ping) to the VIP: Ebb, the host, or Ebb unless the host has the address [default: auto]
    #[arg(long, value_name = "auto|answer|pass", value_parser = words(&ECHOES))]
    pub echo: Option<Echo>,
    /// Answer ARP requests and neighbour solicitations for the VIP, and announce it [default: false]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    pub announce: Option<bool>,
    /// How long the flows of a backend that fails its checks are kept; 0 cuts them at once [default: none]
    #[arg(long, value_name = "DUR|none")]
    pub unhealthy_drain: Option<Limit>,
    /// With no backend healthy, let the unhealthy ones serve or refuse new flows [default: fail_open]
    #[arg(long, value_name = "fail_open|refuse", value_parser = words(&WHEN_UNHEALTHY))]
    pub when_unhealthy: Option<WhenUnhealthy>,
    /// How the backends are checked
    #[command(flatten)]
    pub check: Box<CheckArgs>,
}

impl ServiceSettings {
    /// What was typed, as the daemon takes it, apart from the health check.
    pub fn patch(&self) -> ServicePatch {
        ServicePatch {
            drain_timeout_s: self.drain_timeout,
            on_drain_timeout: self.on_drain_timeout,
            idle_timeout_s: self.idle_timeout.map(Some),
            fin_quiet_s: self.fin_quiet,
            cut_window_s: self.cut_window,
            drain_idle_s: self.drain_idle,
            drain_hold_s: self.drain_hold,
            on_hold_timeout: self.on_hold_timeout,
            slow_start_s: self.slow_start,
            max_out: self.max_out.map(|max| max.0),
            affinity: self.affinity.map(|affinity| affinity.0),
            per_datagram: self.per_datagram,
            quic_cid: self.quic_cid.map(|cid| cid.0),
            echo: self.echo,
            announce: self.announce,
            unhealthy_drain_s: self.unhealthy_drain,
            when_unhealthy: self.when_unhealthy,
            ..ServicePatch::default()
        }
    }
}

/// `ebb backend …`.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Add a backend to a service
    Add {
        /// Name of the service
        #[arg(value_parser = service_name)]
        service: String,
        /// Name of the backend, unique in its service
        #[arg(value_parser = backend_name)]
        name: String,
        /// Its address; a port only under `nat`
        #[arg(value_name = "ADDR[:PORT]")]
        address: BackendAddress,
        /// Its share of new flows relative to the others; 0 means none [default: 1]
        #[arg(long, value_name = "N", value_parser = weight)]
        weight: Option<u32>,
        /// Its id in QUIC connection ids, where the service has --quic-cid [default: assigned]
        #[arg(long, value_name = "HEX")]
        server_id: Option<ServerId>,
        /// Only if this is still the revision that "ebb service show" told
        #[arg(long, value_name = "REVISION", value_parser = revision)]
        if_revision: Option<String>,
    },
    /// List the backends of a service
    List {
        /// Name of the service
        #[arg(value_parser = service_name)]
        service: String,
    },
    /// Change settings of a backend
    Set {
        /// Name of the service
        #[arg(value_parser = service_name)]
        service: String,
        /// Name of the backend
        #[arg(value_parser = backend_name)]
        name: String,
        /// Its share of new flows relative to the others; 0 means none
        #[arg(long, value_name = "N", value_parser = weight, required_unless_present = "server_id")]
        weight: Option<u32>,
        /// Its id in QUIC connection ids, where the service has --quic-cid; none for the assigned one
        #[arg(long, value_name = "HEX|none", value_parser = or_none::<ServerId>)]
        server_id: Option<OrNone<ServerId>>,
        /// Only if this is still the revision that "ebb service show" told
        #[arg(long, value_name = "REVISION", value_parser = revision)]
        if_revision: Option<String>,
    },
    /// Drain a backend, then remove it
    Remove {
        /// Name of the service
        #[arg(value_parser = service_name)]
        service: String,
        /// Name of the backend
        #[arg(value_parser = backend_name)]
        name: String,
        /// Cut what is still open instead of draining
        #[arg(long)]
        now: bool,
        /// Return only once it is gone
        #[arg(long)]
        wait: bool,
        /// Only if this is still the revision that "ebb service show" told
        #[arg(long, value_name = "REVISION", value_parser = revision)]
        if_revision: Option<String>,
    },
}

/// `ebb drain`.
#[derive(Debug, Args)]
pub struct DrainArgs {
    /// Backend to drain
    #[arg(value_name = "SERVICE/BACKEND", required_unless_present = "address", conflicts_with = "address")]
    pub target: Option<Target>,
    /// Drain this host's backends in every service
    #[arg(long, value_name = "ADDR", value_parser = host)]
    pub address: Option<IpAddr>,
    /// How long it may take: 90s, 5m, seconds, 0 (cut now) or none [default: the service's]
    #[arg(long, value_name = "DUR|none")]
    pub timeout: Option<Limit>,
    /// What happens to flows still open at the deadline [default: the service's]
    #[arg(long, value_name = "reset|silent", value_parser = words(&POLICIES))]
    pub on_timeout: Option<CutPolicy>,
    /// Stay until the drain has ended, showing how far it has got
    #[arg(long)]
    pub wait: bool,
    /// Override a guard, such as the one that keeps the last active backend
    #[arg(long)]
    pub force: bool,
}

/// `ebb activate`.
#[derive(Debug, Args)]
pub struct ActivateArgs {
    /// Backend to bring back
    #[arg(value_name = "SERVICE/BACKEND", required_unless_present = "address", conflicts_with = "address")]
    pub target: Option<Target>,
    /// Bring this host's backends in every service back
    #[arg(long, value_name = "ADDR", value_parser = host)]
    pub address: Option<IpAddr>,
}

/// `ebb wait`.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// Backend to wait for
    #[arg(value_name = "SERVICE/BACKEND")]
    pub target: Target,
    /// What to wait for
    #[arg(long = "for", value_name = "drained|active", default_value = "drained", value_parser = words(&GOALS))]
    pub goal: WaitFor,
    /// Give up after this long
    #[arg(long, value_name = "DUR")]
    pub timeout: Option<Seconds>,
}

/// `ebb decap`.
#[derive(Debug, Args)]
pub struct DecapArgs {
    /// Interface that the tunnelled packets come in by
    #[arg(short, long, value_name = "IFACE")]
    pub interface: String,
    /// Where the program runs: in the driver, in the stack, or the best that works [default: auto]
    #[arg(long, value_name = "auto|native|generic", value_parser = words(&MODES))]
    pub mode: Option<Mode>,
}

/// `ebb flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Only the flows of this service or backend
    #[arg(value_name = "SERVICE[/BACKEND]")]
    pub scope: Option<FlowScope>,
    /// At most this many
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
}

/// The default has the layout's number in it.
fn pin_path_help() -> String {
    format!("Directory on bpffs for the pinned datapath [default: {}]", datapath::default_pin_path().display())
}
