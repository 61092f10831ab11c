//! Host-side half of the eBPF crate.
#![no_std]
