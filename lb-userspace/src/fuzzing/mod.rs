//! What is fuzzed here: functions of bytes that panic if something is wrong. `fuzz/` at the workspace's root calls them.

mod api;
mod config;
mod mapped;
mod state;

use std::time::Duration;

pub use self::{api::api, config::config, mapped::mapped, state::state};

/// Runs to its end what is asynchronous, with time that passes as soon as nobody has anything to do.
fn in_no_time(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(future);
}

/// What a future comes to, unless it takes longer than anything here should.
async fn soon<T>(future: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(Duration::from_secs(30), future).await.ok()
}

/// Lets the engine do what is due now, in five minutes, and after that.
async fn later() {
    const A_WHILE: Duration = Duration::from_secs(3);
    tokio::time::sleep(A_WHILE).await;
    // In one step: what comes back every quarter of a second comes back once.
    tokio::time::advance(Duration::from_secs(400)).await;
    tokio::time::sleep(A_WHILE).await;
}
