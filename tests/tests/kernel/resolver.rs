//! Next hops followed over netlink, between real network namespaces.
use std::{
    fmt::Write as _,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::common::{Peer, in_namespace, ip, ip_batch};
use lb_userspace::{
    daemon::{NextHopUpdate, Resolver as _},
    datapath::NextHop,
    net::{NetlinkResolver, links},
};
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::timeout,
};

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs `test` in a namespace that is linked to another by `ebb0` (10.9.0.1, fd00:9::1) and `ebb1` (10.9.0.2, fd00:9::2).
fn linked(test: impl AsyncFnOnce(Peer) + Send + 'static) {
    in_namespace(|| {
        let peer = Peer::with("ebb1");
        ip("addr add 10.9.0.1/24 dev ebb0");
        ip("addr add fd00:9::1/64 dev ebb0 nodad");
        peer.ip("link set ebb1 address 02:00:00:00:09:02");
        peer.ip("addr add 10.9.0.2/24 dev ebb1");
        peer.ip("addr add fd00:9::2/64 dev ebb1 nodad");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(peer));
    });
}

/// The next update about an address, within a time that covers the kernel's attempts.
async fn update(updates: &mut UnboundedReceiver<NextHopUpdate>, of: &str) -> Option<NextHop> {
    loop {
        let update = timeout(Duration::from_secs(15), updates.recv()).await.expect("an update in time").unwrap();
        if update.address == address(of) {
            return update.next_hop;
        }
    }
}

#[test]
fn neighbours_of_both_families_are_resolved_and_followed() {
    linked(async |peer| {
        let (sender, mut updates) = mpsc::unbounded_channel();
        let mut resolver = NetlinkResolver::start(sender).unwrap();
        let link = links::list().unwrap().into_iter().find(|link| link.name == "ebb0").unwrap();
        for (of, source) in [("10.9.0.2", "10.9.0.1"), ("fd00:9::2", "fd00:9::1")] {
            resolver.watch(address(of));
            let hop = update(&mut updates, of).await.expect("resolved");
            assert_eq!((hop.ifindex, hop.dst_mac, hop.mtu), (link.index, [2, 0, 0, 0, 9, 2], 1500));
            assert_eq!((Some(hop.src_mac), hop.source), (link.mac, Some(address(source))));
        }
        // The backend's host is replaced: its announcement is enough.
        peer.ip("link set ebb1 address 02:00:00:00:09:77");
        ip("neigh flush dev ebb0");
        for of in ["10.9.0.2", "fd00:9::2"] {
            let hop = loop {
                if let Some(hop) = update(&mut updates, of).await
                    && hop.dst_mac[5] == 0x77
                {
                    break hop;
                }
            };
            assert_eq!(hop.dst_mac, [2, 0, 0, 0, 9, 0x77]);
        }
        ip("link set ebb0 mtu 1400");
        assert_eq!(update(&mut updates, "10.9.0.2").await.map(|hop| hop.mtu), Some(1400));
        ip("link set ebb0 down");
        assert_eq!(update(&mut updates, "10.9.0.2").await, None);
        ip("link set ebb0 up");
        assert!(update(&mut updates, "10.9.0.2").await.is_some(), "routes come back with the link");
    });
}

#[test]
fn an_address_behind_a_gateway_goes_by_it_and_follows_the_route() {
    linked(async |peer| {
        peer.ip("addr add 10.9.0.3/24 dev ebb1");
        let (sender, mut updates) = mpsc::unbounded_channel();
        let mut resolver = NetlinkResolver::start(sender).unwrap();
        resolver.watch(address("192.0.2.5"));
        assert_eq!(update(&mut updates, "192.0.2.5").await, None, "no route yet");
        ip("route add 192.0.2.0/24 via 10.9.0.2 dev ebb0 mtu 1300");
        let hop = update(&mut updates, "192.0.2.5").await.expect("by the gateway");
        assert_eq!((hop.dst_mac, hop.mtu), ([2, 0, 0, 0, 9, 2], 1300));
        ip("route replace 192.0.2.0/24 via inet6 fd00:9::2 dev ebb0");
        let hop = update(&mut updates, "192.0.2.5").await.expect("by a gateway of the other family");
        assert_eq!(hop.mtu, 1500);
        ip("route del 192.0.2.0/24");
        assert_eq!(update(&mut updates, "192.0.2.5").await, None);
    });
}

#[test]
fn an_address_that_a_route_forbids_is_told_so() {
    linked(async |_peer| {
        let (sender, mut updates) = mpsc::unbounded_channel();
        let mut resolver = NetlinkResolver::start(sender).unwrap();
        for (number, kind) in ["unreachable", "prohibit", "blackhole", "throw"].into_iter().enumerate() {
            for forbidden in [format!("192.0.2.{number}"), format!("2001:db8::{number}")] {
                ip(&format!("route add {kind} {forbidden}"));
                resolver.watch(address(&forbidden));
                assert_eq!(update(&mut updates, &forbidden).await, None, "{kind} {forbidden}");
            }
        }
    });
}

#[test]
fn one_that_does_not_answer_is_told_and_found_when_it_appears() {
    linked(async |peer| {
        let (sender, mut updates) = mpsc::unbounded_channel();
        let mut resolver = NetlinkResolver::start(sender).unwrap();
        resolver.watch(address("10.9.0.44"));
        assert_eq!(update(&mut updates, "10.9.0.44").await, None, "three solicitations, no answer");
        peer.ip("addr add 10.9.0.44/24 dev ebb1");
        let hop = update(&mut updates, "10.9.0.44").await.expect("asked again all the time");
        assert_eq!(hop.dst_mac, [2, 0, 0, 0, 9, 2]);
    });
}

#[test]
fn an_administrators_entry_is_used_and_left_alone() {
    linked(async |_peer| {
        ip("neigh add 10.9.0.66 dev ebb0 lladdr 02:00:00:00:00:66 nud permanent");
        let (sender, mut updates) = mpsc::unbounded_channel();
        let mut resolver = NetlinkResolver::start(sender).unwrap();
        resolver.watch(address("10.9.0.66"));
        let hop = update(&mut updates, "10.9.0.66").await.expect("fixed");
        assert_eq!(hop.dst_mac, [2, 0, 0, 0, 0, 0x66]);
        // Past a refresh.
        tokio::time::sleep(Duration::from_secs(11)).await;
        let table = std::process::Command::new("ip").args(["neigh", "show", "10.9.0.66"]).output().unwrap();
        assert!(String::from_utf8_lossy(&table.stdout).contains("PERMANENT"));
        assert!(updates.try_recv().is_err(), "no news");
    });
}

/// More events than the socket holds, while nobody reads them: the one that matters is among those lost.
#[test]
fn lost_events_are_made_good() {
    linked(async |_peer| {
        ip("neigh add 10.9.0.66 dev ebb0 lladdr 02:00:00:00:00:66 nud permanent");
        let (sender, mut updates) = mpsc::unbounded_channel();
        let mut resolver = NetlinkResolver::start(sender).unwrap();
        resolver.watch(address("10.9.0.66"));
        assert!(update(&mut updates, "10.9.0.66").await.is_some());
        // This thread runs the resolver too, and does not come back to it before all is done.
        let mut batch = String::new();
        for n in 0..4_000 {
            writeln!(batch, "neigh replace fd00:9::{n:x} dev ebb0 lladdr 02:00:00:00:00:01 nud permanent").unwrap();
        }
        batch.push_str("neigh replace 10.9.0.66 dev ebb0 lladdr 02:00:00:00:00:67 nud permanent\n");
        ip_batch(&batch);
        let start = Instant::now();
        let hop = update(&mut updates, "10.9.0.66").await.expect("still there");
        assert_eq!(hop.dst_mac[5], 0x67);
        assert!(start.elapsed() < Duration::from_secs(5), "before the next look at everything");
    });
}
