//! The configuration file: its types, its mistakes, and what to change to make the running state match it.

pub mod diagnose;
