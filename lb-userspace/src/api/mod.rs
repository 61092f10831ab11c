//! The operations as JSON over HTTP on a Unix socket: the server in the daemon, and the client the CLI uses.

mod calls;
pub mod client;
pub mod error;
mod events;
mod extract;
pub mod metrics;
mod routes;
pub mod serve;
pub mod socket;
pub mod wire;

pub use routes::router;
