//! What `ebb status -o json` says, as its contract has it. Written down here once more, apart from
//! the daemon's own types, so that a field renamed there fails a test.

use serde::Deserialize;

/// The whole answer.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Status {
    pub services: Vec<Service>,
    pub datapath: Datapath,
}

/// A service.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Service {
    pub name: String,
    pub vip: String,
    pub forward: String,
    pub drain_timeout_s: Option<f64>,
    pub on_drain_timeout: String,
    pub backends: Vec<Backend>,
}

/// A backend.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Backend {
    pub name: String,
    pub address: String,
    pub weight: u32,
    pub state: String,
    pub reason: String,
    pub active_flows: u64,
    pub new_flows_total: u64,
    pub packets_total: u64,
    pub bytes_total: u64,
    pub drain: Option<Drain>,
    pub last_drain: Option<LastDrain>,
}

/// A drain under way.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Drain {
    pub started_at: String,
    pub deadline: Option<String>,
    pub remaining_s: Option<f64>,
    pub initial_flows: u64,
    pub remaining_flows: u64,
    pub on_timeout: String,
    pub oldest_flow_s: Option<f64>,
    pub rate_per_s: Option<f64>,
    pub estimate_s: Option<f64>,
    pub hold: Option<Hold>,
}

/// The wait for a hook at the end of a drain.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Hold {
    pub since: String,
    pub until: String,
    pub remaining_s: f64,
    pub outcome: String,
}

/// The latest drain that is over.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct LastDrain {
    pub started_at: String,
    pub ended_at: String,
    pub outcome: String,
    pub initial_flows: u64,
    pub cut_flows: u64,
    pub idle_flows: u64,
    pub held: Option<Held>,
}

/// How the wait at the end of a drain ended.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Held {
    pub since: String,
    pub result: String,
    pub timed_out: bool,
}

/// The packet path.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Datapath {
    pub interfaces: Vec<Interface>,
    pub flows: Flows,
}

/// An interface that the program is attached to.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Interface {
    pub name: String,
    pub mode: String,
}

/// The flow table.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the fields are the contract's, and described there")]
pub struct Flows {
    pub live: u64,
    pub opening: u64,
    pub closing: u64,
    pub untracked: u64,
    pub capacity: u64,
}

impl Status {
    /// The service called `name`.
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The backend `backend` of `service`.
    pub fn backend(&self, service: &str, backend: &str) -> Option<&Backend> {
        self.service(service)?.backends.iter().find(|b| b.name == backend)
    }
}
