//! What follows from the host's interfaces and addresses: where the program is, and what neighbours are told.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::time::Instant;

use super::Engine;
use crate::{
    control::model::EventKind,
    datapath::{InterfaceChange, InterfaceNews},
};

/// Announcements are made so often, since nobody confirms them; RFC 4861 has three neighbour advertisements at most,
/// RFC 5227 two gratuitous ARPs.
const ANNOUNCEMENTS: u8 = 3;
/// Between two of them.
const BETWEEN: Duration = Duration::from_secs(1);
/// An interface that did not take the program when it came back is tried again after so long.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// What neighbours have still to be told.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    /// Addresses, when they are announced next, and how often from then on.
    due: Vec<(IpAddr, Instant, u8)>,
    /// When an interface is to be tried again.
    returning: Option<Instant>,
}

impl Announcements {
    /// When something is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.iter().map(|(_, at, _)| *at).chain(self.returning).min()
    }
}

impl Engine {
    /// VIPs that are addresses of the host's own.
    pub(super) fn own_vips(&self) -> BTreeSet<IpAddr> {
        let host = self.host.borrow();
        let vips = self.balancer.services.iter().map(|service| service.spec.vip.address.ip());
        vips.filter(|vip| host.addresses.contains(vip)).collect()
    }

    /// The host has changed.
    pub(super) fn follow_host(&mut self) {
        self.follow_interfaces();
        self.cycle_and_log(false);
        self.announce_due();
        self.follow_up_lazily();
    }

    /// Tries interfaces again that did not take the program.
    pub(super) fn follow_returning(&mut self) {
        if self.announcements.returning.is_some_and(|at| at <= Instant::now()) {
            self.announcements.returning = None;
            self.follow_interfaces();
        }
    }

    fn follow_interfaces(&mut self) {
        let host = self.host.borrow_and_update().clone();
        let changes = self.datapath.follow_links(&host.links);
        let mut announce = false;
        for InterfaceChange { interface, news } in changes {
            announce |= matches!(news, InterfaceNews::Up | InterfaceNews::Attached(_));
            self.tell_of_interface(&interface, news);
        }
        if announce {
            self.announce(self.written.announced.clone());
        }
        let missing = self.datapath.interfaces().into_iter().filter(|interface| interface.ifindex == 0);
        if missing.into_iter().any(|missing| host.links.iter().any(|link| link.name == missing.name)) {
            self.announcements.returning = Some(Instant::now() + TRY_AGAIN);
        }
    }

    fn tell_of_interface(&mut self, name: &str, news: InterfaceNews) {
        let (kind, reason) = match news {
            InterfaceNews::Gone => (EventKind::InterfaceGone, "waiting for it to come back".to_owned()),
            InterfaceNews::Attached(mode) => (EventKind::InterfaceBack, format!("attached again in {mode} mode")),
            InterfaceNews::Refused(why) => (EventKind::InterfaceState, format!("back, but not attached: {why}")),
            InterfaceNews::Up => (EventKind::InterfaceState, "up".to_owned()),
            InterfaceNews::Down => (EventKind::InterfaceState, "down".to_owned()),
        };
        if matches!(kind, EventKind::InterfaceBack) || reason == "up" {
            tracing::info!("interface {name}: {reason}");
        } else {
            tracing::warn!(
                "interface {name}: {}{reason}",
                if kind == EventKind::InterfaceGone { "gone; " } else { "" }
            );
        }
        let now = self.now();
        self.balancer.interface(kind, name, reason, now);
    }

    /// Announces what has been published since the last time.
    pub(super) fn announce_new(&mut self) {
        let announced = self.balancer.services.iter().filter(|service| service.spec.announce);
        let announced: BTreeSet<IpAddr> = announced.map(|service| service.spec.vip.address.ip()).collect();
        let new = announced.difference(&self.written.announced).copied().collect();
        self.written.announced = announced;
        self.announce(new);
        self.announce_due();
    }

    fn announce(&mut self, addresses: BTreeSet<IpAddr>) {
        self.announcements.due.retain(|(address, ..)| !addresses.contains(address));
        let now = Instant::now();
        self.announcements.due.extend(addresses.into_iter().map(|address| (address, now, ANNOUNCEMENTS)));
    }

    /// Makes the announcements that are due.
    pub(super) fn announce_due(&mut self) {
        let now = Instant::now();
        let announced = &self.written.announced;
        self.announcements.due.retain(|(address, _, left)| *left > 0 && announced.contains(address));
        let mut addresses = Vec::new();
        for (address, at, left) in self.announcements.due.iter_mut().filter(|(_, at, _)| *at <= now) {
            addresses.push(*address);
            *at = now + BETWEEN;
            *left -= 1;
        }
        self.announcements.due.retain(|(_, _, left)| *left > 0);
        if !addresses.is_empty() {
            self.datapath.announce(&addresses);
        }
    }
}
