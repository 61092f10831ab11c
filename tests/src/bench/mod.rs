//! What `ebb-bench` measures with.
//!
//! Figures are nanoseconds a packet through the real program, net of the driver that makes every packet another one
//! (tests/ebpf/src/driver.rs). The conventional balancer beside it (tests/ebpf/src/yardstick.rs) is measured in the same
//! run, alternating with it, since a shared machine is never twice the same: ratios are worth more than times.

#![expect(clippy::cast_precision_loss, reason = "counts and nanoseconds here are far below 2^52")]

mod case;
mod commands;
mod connections;
mod driven;
mod driver;
mod ends;
mod extra;
mod fleet;
mod floods;
mod plot;
mod rates;
mod report;
mod rings;
mod scale;
mod tables;
mod wire;

pub(crate) use self::driver::{OBJECT, program};
pub use self::{
    case::{Case, Effort, Kind, cases},
    commands::drain_latency,
    connections::connections,
    driver::{Bench, Packet, Target, all_cpus, pin},
    ends::drained_after_last_end,
    extra::{capacity, two_cpus},
    fleet::Size,
    floods::floods,
    plot::svg,
    rates::rates,
    report::{Figure, Report, Row, Spread},
    rings::rings,
    scale::scale,
    tables::tables,
};
