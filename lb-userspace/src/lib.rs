//! The daemon and the CLI as a library.

pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod datapath;
pub mod descriptors;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod net;
pub mod ownership;
pub mod privilege;
pub mod tls;
