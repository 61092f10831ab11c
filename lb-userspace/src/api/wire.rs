//! What travels besides the shapes of [`crate::control::model`]: lists in an object each, so that they can grow, and queries.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::control::duration::Seconds;
use crate::control::model::{BackendStatus, DrainStarted, Event, FlowView, ServiceSpec, WaitFor, WantedService};

/// A service with all its settings and its backends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceView {
    /// Names its settings and its backends as they are configured, for `If-Match` and `--if-revision`. Lists do without.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Its settings, the defaults filled in.
    #[serde(flatten)]
    pub settings: ServiceSpec,
    /// Its backends, in the order in which they were added.
    pub backends: Vec<BackendStatus>,
}

/// A backend with the service it belongs to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct BackendView {
    /// The service.
    pub service: String,
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendStatus,
}

/// Services.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Services {
    /// Names what is configured; what `If-Match` and `--if-revision` compare with.
    #[serde(default)]
    pub revision: String,
    /// In the order in which they were added.
    pub services: Vec<ServiceView>,
}

/// Backends of one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Backends {
    /// In the order in which they were added.
    pub backends: Vec<BackendStatus>,
}

/// Backends of one host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HostBackends {
    /// In every service.
    pub backends: Vec<BackendView>,
}

/// Drains that one request started or changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Drains {
    /// One for each backend.
    pub drains: Vec<DrainStarted>,
}

/// Flows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Flows {
    /// In no order.
    pub flows: Vec<FlowView>,
    /// True when there were as many as were asked for: there may be more.
    pub truncated: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Events {
    /// The oldest first.
    pub events: Vec<Event>,
}

/// What a request to remove something came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Removal {
    /// The service, or the backend's service.
    pub service: String,
    /// The backend, unless a whole service goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// True when it is gone, false when it drains first.
    pub removed: bool,
}

/// What to look at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StatusQuery {
    /// Only this service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// How to remove.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RemoveQuery {
    /// Cut what is open instead of draining.
    pub now: bool,
}

/// What to wait for, and for how long.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WaitQuery {
    /// What to wait for.
    #[serde(rename = "for")]
    pub goal: WaitFor,
    /// Answer with an error after so many seconds; never unless given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<Seconds>,
}

/// Whether to look or to follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventsQuery {
    /// Stay, and send what happens as server-sent events.
    pub follow: bool,
    /// Only what came after this event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
}

/// The services a file wants: exactly these.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// In the file's order.
    pub services: Vec<WantedService>,
}

/// Whether to apply or to tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ApplyQuery {
    /// Change nothing.
    pub dry_run: bool,
}
