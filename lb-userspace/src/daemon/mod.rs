//! The async shells around the control core: the engine that owns the datapath, the clock, what is kept on disk.

pub mod clock;
mod handle;
mod resolver;

pub use handle::{CheckReport, CheckTarget, EventStream, Handle};
pub use resolver::{NextHopUpdate, Resolver};
