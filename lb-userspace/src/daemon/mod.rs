//! The async shells around the control core: the engine that owns the datapath, the clock, what is kept on disk.

pub mod clock;
mod command;
mod engine;
#[cfg(any(test, feature = "fuzzing"))]
#[cfg_attr(not(test), expect(dead_code, reason = "tests look at more of it than fuzzing does"))]
pub(crate) mod fake;
mod fault;
pub mod flow_log;
mod handle;
pub mod health;
pub mod hooks;
mod reserved_file;
mod resolver;
pub mod store;

pub use engine::{Engine, EngineOptions, StartError};
pub use handle::{CheckReport, CheckTarget, EventStream, Handle};
pub use resolver::{NextHopUpdate, Resolver};
