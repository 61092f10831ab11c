//! From routes, interfaces and neighbours to next hops: pure, told of events, answering with what to do.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use super::links::Link;
use crate::{daemon::NextHopUpdate, datapath::NextHop};

/// How the kernel would route to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// The interface.
    pub(crate) ifindex: u32,
    /// The gateway, or the address itself on the link.
    pub(crate) via: IpAddr,
    /// The source address it would choose.
    pub(crate) source: Option<IpAddr>,
    /// The route's own MTU, if it has one.
    pub(crate) mtu: Option<u32>,
}

/// What the kernel knows of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Neighbour {
    /// Its MAC address, perhaps to be confirmed.
    Known([u8; 6]),
    /// As known, by an administrator's word: never to be asked.
    Fixed([u8; 6]),
    /// Being asked for.
    Asked,
    /// It did not answer.
    Silent,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask the kernel for the route, and tell [`Table::route`].
    FindRoute(IpAddr),
    /// Have the kernel resolve or confirm a neighbour.
    Probe {
        /// On this interface.
        ifindex: u32,
        /// Its address.
        address: IpAddr,
    },
    /// Tell the engine.
    Tell(NextHopUpdate),
}

/// Where a watched address stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Reached(NextHop),
    /// Not known yet, or just forgotten by the kernel: what was told stands.
    Pending,
    Unreachable,
}

/// Something that may not have happened yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Answer<T> {
    #[default]
    NotYet,
    Given(T),
}

#[derive(Clone, Copy, Debug, Default)]
struct Target {
    /// What the kernel said about the route.
    route: Answer<Option<Route>>,
    /// What the engine was told last.
    told: Answer<Option<NextHop>>,
}

impl Target {
    fn route(&self) -> Option<Route> {
        match self.route {
            Answer::Given(route) => route,
            Answer::NotYet => None,
        }
    }
}

/// All that is watched and known.
#[derive(Debug, Default)]
pub(crate) struct Table {
    targets: HashMap<IpAddr, Target>,
    /// Which targets a neighbour leads to.
    by_neighbour: HashMap<(u32, IpAddr), BTreeSet<IpAddr>>,
    links: HashMap<u32, Link>,
    neighbours: HashMap<(u32, IpAddr), Neighbour>,
}

impl Table {
    /// Watches an address.
    pub(crate) fn watch(&mut self, address: IpAddr) -> Vec<Action> {
        self.targets.entry(address).or_default();
        vec![Action::FindRoute(address)]
    }

    /// Watches it no more.
    pub(crate) fn unwatch(&mut self, address: IpAddr) {
        if let Some(route) = self.targets.remove(&address).and_then(|target| target.route()) {
            self.forget_route(address, route);
        }
    }

    /// Routes may have changed: all are to be asked for.
    pub(crate) fn routes_changed(&self) -> Vec<Action> {
        self.targets.keys().copied().map(Action::FindRoute).collect()
    }

    /// The kernel's answer about a route; `None` when there is none.
    pub(crate) fn route(&mut self, address: IpAddr, route: Option<Route>) -> Vec<Action> {
        let Some(target) = self.targets.get_mut(&address) else { return Vec::new() };
        let before = target.route();
        target.route = Answer::Given(route);
        if before != route {
            if let Some(before) = before {
                self.forget_route(address, before);
            }
            if let Some(route) = route {
                self.by_neighbour.entry((route.ifindex, route.via)).or_default().insert(address);
            }
        }
        self.look_at(address)
    }

    /// An interface as it is now.
    pub(crate) fn link(&mut self, link: Link) -> Vec<Action> {
        let index = link.index;
        if self.links.insert(index, link.clone()) == Some(link) { Vec::new() } else { self.look_at_link(index) }
    }

    /// An interface is gone.
    pub(crate) fn link_gone(&mut self, index: u32) -> Vec<Action> {
        self.links.remove(&index);
        self.neighbours.retain(|(ifindex, _), _| *ifindex != index);
        self.look_at_link(index)
    }

    /// A neighbour as it is now; `None` when the kernel has forgotten it.
    pub(crate) fn neighbour(&mut self, ifindex: u32, address: IpAddr, now: Option<Neighbour>) -> Vec<Action> {
        let key = (ifindex, address);
        let before = match now {
            Some(neighbour) => self.neighbours.insert(key, neighbour),
            None => self.neighbours.remove(&key),
        };
        if before == now {
            return Vec::new();
        }
        let targets: Vec<IpAddr> = self.by_neighbour.get(&key).into_iter().flatten().copied().collect();
        targets.into_iter().flat_map(|target| self.look_at(target)).collect()
    }

    /// Everything anew, after events were lost.
    pub(crate) fn resync(
        &mut self,
        links: Vec<Link>,
        neighbours: impl IntoIterator<Item = ((u32, IpAddr), Neighbour)>,
    ) -> Vec<Action> {
        self.links = links.into_iter().map(|link| (link.index, link)).collect();
        self.neighbours = neighbours.into_iter().collect();
        self.routes_changed()
    }

    /// Once in a while: what is watched is confirmed, and what did not answer is asked again.
    pub(crate) fn refresh(&self) -> Vec<Action> {
        let probe = |&(ifindex, address): &(u32, IpAddr)| self.probe(ifindex, address);
        self.by_neighbour.keys().filter_map(probe).collect()
    }

    /// Neighbours that lead to something watched and are not known: to be asked sooner than the rest.
    pub(crate) fn retry(&self) -> Vec<Action> {
        let unknown = |key: &&(u32, IpAddr)| {
            !matches!(self.neighbours.get(key), Some(Neighbour::Known(_) | Neighbour::Fixed(_) | Neighbour::Asked))
        };
        self.by_neighbour.keys().filter(unknown).filter_map(|&(ifindex, a)| self.probe(ifindex, a)).collect()
    }

    fn probe(&self, ifindex: u32, address: IpAddr) -> Option<Action> {
        let fixed = matches!(self.neighbours.get(&(ifindex, address)), Some(Neighbour::Fixed(_)));
        let usable = self.links.get(&ifindex).is_some_and(|link| link.up && link.mac.is_some());
        // Asking for a fixed one would make the kernel drop the administrator's word (`__neigh_update`).
        (usable && !fixed).then_some(Action::Probe { ifindex, address })
    }

    fn forget_route(&mut self, address: IpAddr, route: Route) {
        let key = (route.ifindex, route.via);
        if let Some(targets) = self.by_neighbour.get_mut(&key) {
            targets.remove(&address);
            if targets.is_empty() {
                self.by_neighbour.remove(&key);
            }
        }
    }

    fn look_at_link(&mut self, index: u32) -> Vec<Action> {
        let of_link = self.by_neighbour.iter().filter(|((ifindex, _), _)| *ifindex == index);
        let targets: Vec<IpAddr> = of_link.flat_map(|(_, targets)| targets).copied().collect();
        targets.into_iter().flat_map(|target| self.look_at(target)).collect()
    }

    /// Tells the engine what changed about a target, and has the kernel ask for a neighbour that is not known.
    fn look_at(&mut self, address: IpAddr) -> Vec<Action> {
        let mut actions = Vec::new();
        let standing = self.standing(address);
        let Some(target) = self.targets.get_mut(&address) else { return actions };
        let news = match standing {
            Standing::Reached(next_hop) => Answer::Given(Some(next_hop)),
            Standing::Pending => Answer::NotYet,
            Standing::Unreachable => Answer::Given(None),
        };
        if let Answer::Given(next_hop) = news
            && target.told != news
        {
            target.told = news;
            actions.push(Action::Tell(NextHopUpdate { address, next_hop }));
        }
        if standing == Standing::Pending
            && let Some(route) = target.route()
            && !self.neighbours.contains_key(&(route.ifindex, route.via))
        {
            actions.extend(self.probe(route.ifindex, route.via));
        }
        actions
    }

    fn standing(&self, address: IpAddr) -> Standing {
        let route = match self.targets.get(&address).map(|target| target.route) {
            None | Some(Answer::NotYet) => return Standing::Pending,
            Some(Answer::Given(None)) => return Standing::Unreachable,
            Some(Answer::Given(Some(route))) => route,
        };
        let Some(link) = self.links.get(&route.ifindex).filter(|link| link.up) else { return Standing::Unreachable };
        let Some(src_mac) = link.mac else { return Standing::Unreachable };
        // A VLAN's driver takes no frames from an XDP program: its parent gets them, with the tag. There is room for one tag
        // in a backend's row: what lies behind two would get frames that nobody there understands.
        let within_another = |parent| self.links.get(&parent).is_some_and(|link| link.vlan.is_some());
        let (ifindex, vlan) = match link.vlan {
            Some((parent, _)) if within_another(parent) => return Standing::Unreachable,
            Some((parent, vlan)) if self.links.contains_key(&parent) => (parent, Some(vlan)),
            _ => (route.ifindex, None),
        };
        match self.neighbours.get(&(route.ifindex, route.via)) {
            Some(&(Neighbour::Known(dst_mac) | Neighbour::Fixed(dst_mac))) => {
                let mtu = route.mtu.map_or(link.mtu, |mtu| mtu.min(link.mtu));
                Standing::Reached(NextHop {
                    ifindex,
                    dst_mac,
                    src_mac,
                    mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
                    source: route.source,
                    vlan,
                })
            }
            Some(Neighbour::Silent) => Standing::Unreachable,
            Some(Neighbour::Asked) | None => Standing::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH: u32 = 3;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn link(mtu: u32, up: bool) -> Link {
        Link {
            index: ETH,
            name: "eth0".into(),
            mac: Some([2, 0, 0, 0, 0, 9]),
            mtu,
            up,
            vlan: None,
            is_veth: false,
            xdp: None,
        }
    }

    fn route(via: &str) -> Route {
        Route { ifindex: ETH, via: ip(via), source: Some(ip("10.0.0.1")), mtu: None }
    }

    fn mac(last: u8) -> Neighbour {
        Neighbour::Known([2, 0, 0, 0, 0, last])
    }

    fn hop(last: u8, mtu: u16) -> NextHop {
        NextHop {
            ifindex: ETH,
            dst_mac: [2, 0, 0, 0, 0, last],
            src_mac: [2, 0, 0, 0, 0, 9],
            mtu,
            source: Some(ip("10.0.0.1")),
            vlan: None,
        }
    }

    fn tell(address: &str, next_hop: Option<NextHop>) -> Action {
        Action::Tell(NextHopUpdate { address: ip(address), next_hop })
    }

    fn probe(address: &str) -> Action {
        Action::Probe { ifindex: ETH, address: ip(address) }
    }

    /// Watches an address that is routed via `via`, on a link that is up.
    fn watching(address: &str, via: &str) -> Table {
        let mut table = Table::default();
        table.link(link(1500, true));
        assert_eq!(table.watch(ip(address)), [Action::FindRoute(ip(address))]);
        assert_eq!(table.route(ip(address), Some(route(via))), [probe(via)]);
        table
    }

    #[test]
    fn an_address_on_the_link_is_asked_for_and_told_once_per_change() {
        let mut table = watching("10.0.0.11", "10.0.0.11");
        assert!(table.neighbour(ETH, ip("10.0.0.11"), Some(Neighbour::Asked)).is_empty());
        let first = tell("10.0.0.11", Some(hop(1, 1500)));
        assert_eq!(table.neighbour(ETH, ip("10.0.0.11"), Some(mac(1))), [first]);
        assert!(table.neighbour(ETH, ip("10.0.0.11"), Some(mac(1))).is_empty());
        assert!(table.route(ip("10.0.0.11"), Some(route("10.0.0.11"))).is_empty());
        assert_eq!(table.neighbour(ETH, ip("10.0.0.11"), Some(mac(2))), [tell("10.0.0.11", Some(hop(2, 1500)))]);
        assert!(table.neighbour(ETH, ip("10.0.0.77"), Some(mac(7))).is_empty(), "not watched");
    }

    #[test]
    fn what_the_kernel_forgets_is_asked_for_again_and_stands_meanwhile() {
        let mut table = watching("10.0.0.11", "10.0.0.11");
        table.neighbour(ETH, ip("10.0.0.11"), Some(mac(1)));
        assert_eq!(table.neighbour(ETH, ip("10.0.0.11"), None), [probe("10.0.0.11")]);
        assert_eq!(table.neighbour(ETH, ip("10.0.0.11"), Some(Neighbour::Silent)), [tell("10.0.0.11", None)]);
        assert_eq!(table.retry(), [probe("10.0.0.11")]);
        assert!(table.neighbour(ETH, ip("10.0.0.11"), Some(Neighbour::Asked)).is_empty(), "asking is no news");
        assert!(table.retry().is_empty(), "it is being asked");
        assert_eq!(table.neighbour(ETH, ip("10.0.0.11"), Some(mac(1))), [tell("10.0.0.11", Some(hop(1, 1500)))]);
    }

    #[test]
    fn backends_behind_one_gateway_share_its_fate() {
        let mut table = watching("192.0.2.1", "10.0.0.254");
        table.watch(ip("192.0.2.2"));
        assert_eq!(table.route(ip("192.0.2.2"), Some(route("10.0.0.254"))), [probe("10.0.0.254")]);
        let told = table.neighbour(ETH, ip("10.0.0.254"), Some(mac(4)));
        assert_eq!(told, [tell("192.0.2.1", Some(hop(4, 1500))), tell("192.0.2.2", Some(hop(4, 1500)))]);
        table.unwatch(ip("192.0.2.1"));
        assert_eq!(table.neighbour(ETH, ip("10.0.0.254"), Some(mac(5))).len(), 1);
        assert_eq!(table.refresh(), [probe("10.0.0.254")]);
        table.unwatch(ip("192.0.2.2"));
        assert!(table.refresh().is_empty() && table.routes_changed().is_empty());
    }

    #[test]
    fn no_route_no_link_and_a_link_down_are_told() {
        let mut table = watching("10.0.0.11", "10.0.0.11");
        table.neighbour(ETH, ip("10.0.0.11"), Some(mac(1)));
        assert_eq!(table.link(link(1500, false)), [tell("10.0.0.11", None)]);
        assert!(table.refresh().is_empty(), "nothing to ask on a link that is down");
        assert_eq!(table.link(link(1400, true)), [tell("10.0.0.11", Some(hop(1, 1400)))]);
        assert_eq!(table.route(ip("10.0.0.11"), None), [tell("10.0.0.11", None)]);
        assert_eq!(table.route(ip("10.0.0.11"), Some(route("10.0.0.11"))).len(), 1);
        assert_eq!(table.link_gone(ETH), [tell("10.0.0.11", None)]);
    }

    #[test]
    fn a_fixed_neighbour_is_never_asked_and_the_smaller_mtu_counts() {
        let mut table = watching("10.0.0.11", "10.0.0.11");
        let fixed = Neighbour::Fixed([2, 0, 0, 0, 0, 1]);
        assert_eq!(table.neighbour(ETH, ip("10.0.0.11"), Some(fixed)).len(), 1);
        assert!(table.refresh().is_empty() && table.retry().is_empty());
        let narrow = Route { mtu: Some(1280), ..route("10.0.0.11") };
        assert_eq!(table.route(ip("10.0.0.11"), Some(narrow)), [tell("10.0.0.11", Some(hop(1, 1280)))]);
    }

    #[test]
    fn after_lost_events_everything_is_looked_at_anew() {
        let mut table = watching("10.0.0.11", "10.0.0.11");
        table.neighbour(ETH, ip("10.0.0.11"), Some(mac(1)));
        let again = table.resync(vec![link(1500, true)], [((ETH, ip("10.0.0.11")), mac(3))]);
        assert_eq!(again, [Action::FindRoute(ip("10.0.0.11"))]);
        let told = table.route(ip("10.0.0.11"), Some(route("10.0.0.11")));
        assert_eq!(told, [tell("10.0.0.11", Some(hop(3, 1500)))]);
    }

    #[test]
    fn a_vlan_is_reached_by_its_parent_with_the_tag() {
        let mut table = watching("10.0.0.11", "10.0.0.11");
        let child = Link { vlan: Some((2, 100)), ..link(1500, true) };
        table.link(Link { index: 2, ..link(1500, true) });
        table.link(child);
        let told = table.neighbour(ETH, ip("10.0.0.11"), Some(mac(1)));
        assert_eq!(told, [tell("10.0.0.11", Some(NextHop { ifindex: 2, vlan: Some(100), ..hop(1, 1500) }))]);
    }

    #[test]
    fn behind_two_vlans_nothing_is_reached() {
        let mut table = watching("10.0.0.11", "10.0.0.11");
        table.link(Link { index: 1, ..link(1500, true) });
        table.link(Link { index: 2, vlan: Some((1, 200)), ..link(1500, true) });
        let told = table.link(Link { vlan: Some((2, 100)), ..link(1500, true) });
        assert_eq!(told, [tell("10.0.0.11", None)]);
        assert_eq!(table.neighbour(ETH, ip("10.0.0.11"), Some(mac(1))), [], "known or not");
    }
}
