//! Faults: everything that happens to a balancer, in an order drawn from a seed, while thousands of connections go on; and after
//! each fault the promises are held against what clients and servers saw.

mod act;
mod check;
mod faults;
mod judge;
mod ledger;
mod orders;
mod plan;
mod report;
mod roster;
mod run;
mod sabotage;
mod steps;
mod world;

pub use self::{
    plan::Step,
    report::Summary,
    run::{Options, run},
    sabotage::Sabotage,
    steps::Steps,
};
