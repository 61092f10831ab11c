//! The control core: what services, backends and drains are and how they change.
//!
//! **Invariant:** nothing here does I/O or reads a clock. The time is passed in, what is to be done is handed out, and the
//! shells in `daemon` carry it out.

pub mod advisor;
pub mod duration;
mod error;
pub mod hold;
pub mod model;
pub mod quic;
pub mod reconcile;
pub mod revision;
pub mod ring;
pub mod sharers;
pub mod slots;
pub mod state;
pub mod validate;
pub mod view;
pub mod vip;

pub use error::{Error, ErrorKind};
