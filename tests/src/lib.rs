//! Ebb's test bench: labs made of network namespaces, programs that make real traffic in them, and
//! accounts of what happened to it.

pub mod bench;
pub mod chaos;
pub mod flood;
pub mod lab;
pub mod model;
pub mod packets;
pub mod place;
pub mod rig;
pub mod scene;
pub mod traffic;
pub mod verdict;
mod wait;

pub use wait::{patient, wait_for, wait_until};
