//! Ebb's test bench: labs made of network namespaces, programs that make real traffic in them, and
//! accounts of what happened to it.

pub mod lab;
pub mod traffic;
mod wait;

pub use wait::{wait_for, wait_until};
