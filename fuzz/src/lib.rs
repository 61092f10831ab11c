//! What is fuzzed in Ebb. Each target is a function of bytes, which panics if something is wrong: libFuzzer calls it
//! (`cargo xtask fuzz`), and `tests/replay.rs` does with every input that is kept and with random changes of them.

pub mod mutate;
pub mod packet;
pub mod twin;

/// A target: its name, as its directories and its program are called, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("packet", packet::run),
    ("config", lb_userspace::fuzzing::config),
    ("api", lb_userspace::fuzzing::api),
    ("state", lb_userspace::fuzzing::state),
    ("maps", lb_userspace::fuzzing::mapped),
];
