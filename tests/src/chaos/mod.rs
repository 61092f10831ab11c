//! Faults: everything that happens to a balancer, in an order drawn from a seed, while thousands of connections go on; and after
//! each fault the promises are held against what clients and servers saw.

mod faults;
mod judge;
mod ledger;
mod orders;
mod plan;
mod roster;
mod run;
mod world;

pub use self::{
    plan::{Step, Steps},
    run::{Options, Sabotage, Summary, run},
};
