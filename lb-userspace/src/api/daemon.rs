//! What concerns the daemon itself rather than what it balances.

use std::path::{self, Path, PathBuf};

use axum::{
    Json, Router,
    extract::State,
    routing::{get, post},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// Which daemon this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DaemonInfo {
    /// Its build.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Where its datapath is pinned.
    pub pin_path: PathBuf,
    /// Where its state is kept.
    pub state_dir: PathBuf,
}

impl DaemonInfo {
    /// This process, with these directories. They are told in full: whoever asks may be elsewhere.
    pub fn of_this(pin_path: &Path, state_dir: &Path) -> Self {
        let whole = |path: &Path| path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            pin_path: whole(pin_path),
            state_dir: whole(state_dir),
        }
    }
}

/// The answer to a request to stop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Stopping {
    /// True: it ends as soon as this answer is out. The datapath forwards on.
    pub stopping: bool,
}

/// `GET /v1/daemon` and `POST /v1/daemon/stop`; a stop is a `true` on `stop`.
pub fn daemon_router(info: DaemonInfo, stop: watch::Sender<bool>) -> Router {
    Router::new()
        .route("/v1/daemon", get(|State((info, _)): State<(DaemonInfo, watch::Sender<bool>)>| async { Json(info) }))
        .route("/v1/daemon/stop", post(request_stop))
        .with_state((info, stop))
}

async fn request_stop(State((_, stop)): State<(DaemonInfo, watch::Sender<bool>)>) -> Json<Stopping> {
    tracing::info!("asked to stop");
    stop.send_replace(true);
    Json(Stopping { stopping: true })
}
