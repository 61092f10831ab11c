//! What a run tells: its steps in words, and at its end what it came to.

use std::{collections::BTreeMap, fmt};

use super::{judge::Sums, plan::Fault};

/// What a run came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, usize>,
    /// Commands by what became of them.
    pub commands: BTreeMap<&'static str, usize>,
    /// Drains by how they ended.
    pub drains: BTreeMap<String, usize>,
    /// Connections and datagrams.
    pub sums: Sums,
    /// Looks at the daemon's counts of a backend's flows that agreed with the clients'.
    pub counts: usize,
    /// Clients' addresses that were where they had to be.
    pub seats: usize,
    /// What was promised and not kept.
    pub complaints: Vec<String>,
}

/// A fault's kind, and the fault in words.
pub(super) fn describe(fault: Fault) -> (&'static str, String) {
    let seconds = |ms: u32| f64::from(ms) / 1000.0;
    match fault {
        Fault::None => ("none", "calm".to_owned()),
        Fault::Kill { lead_us, away_ms } => {
            ("killed", format!("kill -9 after {} ms, away for {} s", lead_us / 1000, seconds(away_ms)))
        }
        Fault::Restart { away_ms, swap: false } => ("restarted", format!("restart, away for {} s", seconds(away_ms))),
        Fault::Restart { swap: true, .. } => ("program swapped", "another program is started in its place".to_owned()),
        Fault::Stop { lasts_ms, storm: false } => ("stopped", format!("SIGSTOP for {} s", seconds(lasts_ms))),
        Fault::Stop { lasts_ms, storm: true } => {
            ("stopped in a netlink storm", format!("SIGSTOP for {} s in a netlink storm", seconds(lasts_ms)))
        }
        Fault::NoFiles { spare, lasts_ms } => {
            ("out of descriptors", format!("only {spare} descriptors more for {} s", seconds(lasts_ms)))
        }
        Fault::DiskFull { lasts_ms, kill: false } => ("disk full", format!("disk full for {} s", seconds(lasts_ms))),
        Fault::DiskFull { lasts_ms, kill: true } => {
            ("disk full and killed", format!("disk full for {} s, then kill -9", seconds(lasts_ms)))
        }
        Fault::SocketGone => ("socket deleted", "the socket's file is deleted".to_owned()),
        Fault::LinkDown { near, lasts_ms, kill } => {
            let end = if near { "its interface" } else { "the switch's port" };
            let killed = if kill { ", and kill -9" } else { "" };
            let kind = if kill { "interface down and killed" } else { "interface down" };
            (kind, format!("{end} is down for {} s{killed}", seconds(lasts_ms)))
        }
        Fault::Unplugged { lasts_ms } => {
            ("interface deleted", format!("its interface is deleted, and made anew after {} s", seconds(lasts_ms)))
        }
        Fault::KilledTwice { up_ms } => {
            ("killed while starting", format!("kill -9, and again {} s after its start", seconds(up_ms)))
        }
        Fault::Forget => ("neighbours forgotten", "neighbours are forgotten".to_owned()),
        Fault::NewMac(backend) => ("MAC address changed", format!("b{backend} gets another MAC address")),
        Fault::Storm => ("netlink storm", "a netlink storm".to_owned()),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &mut dyn Iterator<Item = (String, usize)>| {
            counts.map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
        };
        let faults = self.faults.iter().filter(|(kind, _)| **kind != "none");
        let injected: usize = faults.clone().map(|(_, count)| count).sum();
        let all = list(&mut faults.map(|(kind, count)| ((*kind).to_owned(), *count)));
        writeln!(f, "  faults injected: {injected} ({all})")?;
        writeln!(f, "  commands: {}", list(&mut self.commands.iter().map(|(k, c)| ((*k).to_owned(), *c))))?;
        writeln!(f, "  drains that ended: {}", list(&mut self.drains.iter().map(|(k, c)| (k.clone(), *c))))?;
        let Sums { opened, at_once, broken, cut, answered, unanswered } = self.sums;
        writeln!(f, "  connections watched: {opened}, {at_once} at once; cut at deadlines: {cut}; broken: {broken}")?;
        writeln!(f, "  datagrams answered: {answered}; without an answer, as outages have it: {unanswered}")?;
        write!(f, "  counts of live flows compared: {}; clients' seats compared: {}", self.counts, self.seats)
    }
}
