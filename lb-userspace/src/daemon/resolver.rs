//! What the engine asks of whoever resolves next hops.

use std::net::IpAddr;

use crate::datapath::NextHop;

/// Follows next hops. What it finds is sent to the engine as [`NextHopUpdate`]s.
pub trait Resolver: Send {
    /// Follow this address. An update comes as soon as anything is known, and at each change. Asked once per address.
    fn watch(&mut self, address: IpAddr);
    /// No longer follow it.
    fn unwatch(&mut self, address: IpAddr);
}

/// News about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHopUpdate {
    /// The backend's address.
    pub address: IpAddr,
    /// How to reach it; `None` when there is no route or nobody answers.
    pub next_hop: Option<NextHop>,
}
