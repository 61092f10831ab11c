//! What can happen in a run.

/// A backend of a service, by their places in the roster and in the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The service.
    pub service: usize,
    /// The backend.
    pub backend: usize,
}

/// One command line for `ebb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Takes a backend out, or gives its drain another deadline.
    Drain {
        /// Which.
        target: Target,
        /// How long the drain may take.
        timeout_ms: u32,
        /// What is left is not told that it was cut.
        silent: bool,
    },
    /// Cancels a drain, or brings a drained backend back.
    Activate(Target),
    /// Drains a backend with its service's deadline and deletes it.
    Remove(Target),
    /// Cuts and deletes a backend.
    RemoveNow(Target),
    /// Registers a backend that is not there.
    Add(Target),
    /// Takes a host's backends out of all services.
    DrainHost {
        /// Which.
        backend: usize,
        /// How long the drains may take.
        timeout_ms: u32,
    },
    /// Brings a host's backends back.
    ActivateHost(usize),
    /// Adds a service without backends.
    AddService(usize),
    /// Removes a service, with or without waiting for its connections.
    RemoveService {
        /// Which.
        service: usize,
        /// Without.
        now: bool,
    },
}

impl Command {
    /// The service that it is about, unless it is about a host.
    fn service(self) -> Option<usize> {
        match self {
            Self::Drain { target, .. }
            | Self::Activate(target)
            | Self::Remove(target)
            | Self::RemoveNow(target)
            | Self::Add(target) => Some(target.service),
            Self::AddService(service) | Self::RemoveService { service, .. } => Some(service),
            Self::DrainHost { .. } | Self::ActivateHost(_) => None,
        }
    }

    /// Whether it may make no sense before the other is in force.
    pub(super) fn may_rest_on(self, other: Self) -> bool {
        let services = (self.service(), other.service());
        services.0.is_none() || services.1.is_none() || services.0 == services.1
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The daemon is killed, so long after the step's command was given, and started again after a while.
    Kill {
        /// Between command and signal.
        lead_us: u32,
        /// Without a daemon.
        away_ms: u32,
    },
    /// The daemon is asked to end, and started again; `swap` from another file, as an upgrade does.
    Restart {
        /// Without a daemon.
        away_ms: u32,
        /// Another file.
        swap: bool,
    },
    /// The daemon is stopped and goes on; with a storm of news from the kernel meanwhile, or without.
    Stop {
        /// How long.
        lasts_ms: u32,
        /// With.
        storm: bool,
    },
    /// The daemon can open so many descriptors more, and no others.
    NoFiles {
        /// So many.
        spare: u32,
        /// How long.
        lasts_ms: u32,
    },
    /// The disk that the state is kept on is full; the daemon is killed and started meanwhile, or not.
    DiskFull {
        /// How long.
        lasts_ms: u32,
        /// It is.
        kill: bool,
    },
    /// The file of the control socket is deleted.
    SocketGone,
    /// The balancer's interface goes down, at its own end or at the switch's; the daemon is killed meanwhile, or not.
    LinkDown {
        /// Its own.
        near: bool,
        /// How long.
        lasts_ms: u32,
        /// It is.
        kill: bool,
    },
    /// The balancer's interface is taken away and made anew, as when a driver is loaded again.
    Unplugged {
        /// How long.
        lasts_ms: u32,
    },
    /// The daemon is killed, and again while it starts.
    KilledTwice {
        /// How long after its start.
        up_ms: u32,
    },
    /// The balancer forgets all of its neighbours.
    Forget,
    /// A backend's interface gets another MAC address.
    NewMac(usize),
    /// Routes, neighbours and interfaces come and go by the hundred.
    Storm,
}

/// A fault, and what is asked of the daemon meanwhile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The fault.
    pub fault: Fault,
    /// The commands, one after the other.
    pub commands: Vec<Command>,
    /// How long until the next step.
    pub rest_ms: u32,
}

/// What a backend is meant to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In rotation.
    In,
    /// Draining or drained.
    Out,
    /// Deleted, or about to be.
    Gone,
    /// Not there yet.
    Never,
}
