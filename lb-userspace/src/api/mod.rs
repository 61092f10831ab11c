//! The operations as JSON over HTTP, on a Unix socket and, where that is wanted, over mutual TLS: the server in the daemon, and the
//! client the CLI uses.

mod calls;
pub mod client;
mod daemon;
pub mod error;
mod events;
mod extract;
#[cfg(test)]
mod fuzz;
mod guard;
pub mod metrics;
mod openapi;
pub mod page;
pub mod remote;
pub mod rights;
mod routes;
pub mod serve;
pub mod socket;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod wire;

pub use daemon::{DaemonInfo, Stopping, daemon_router};
pub use routes::{remote_router, router};
