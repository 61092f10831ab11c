//! What `ebb-bench` measures with.
//!
//! Figures are nanoseconds a packet through the real program, net of the driver that makes every packet another one
//! (tests/ebpf/src/driver.rs). The conventional balancer beside it (tests/ebpf/src/yardstick.rs) is measured in the same
//! run, alternating with it, since a shared machine is never twice the same: ratios are worth more than times.

mod case;
mod driver;
mod extra;
mod plot;
mod report;

pub use self::{
    case::{Case, Effort, Kind, cases},
    driver::{Bench, Packet, Target, pin},
    extra::{capacity, two_cpus},
    plot::svg,
    report::{Report, Row, Spread},
};
