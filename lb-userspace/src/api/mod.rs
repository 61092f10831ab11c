//! The operations as JSON over HTTP on a Unix socket: the server in the daemon, and the client the CLI uses.

pub mod client;
pub mod error;
pub mod extract;
pub mod serve;
pub mod socket;
