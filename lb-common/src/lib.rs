//! Layouts shared by the eBPF program and the daemon.
#![no_std]
