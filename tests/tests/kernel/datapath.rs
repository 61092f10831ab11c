//! The packet path's owner against the kernel: opening, adoption, refusals, rings, grace, unloading.
//!
//! Needs root and bpffs; each test has a network namespace and a pin directory of its own.
use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::common::{Peer, ip};
use ebb_tests::patient;
use lb_userspace::{
    datapath::{
        BackendConfig, BackendSlot, BackendState, CutPolicy, Datapath as _, EbpfDatapath, FlowFilter, Forward,
        InterfaceChange, InterfaceNews, Mode, Named, NextHop, OpenError, Options, RingSlot, ServiceConfig, ServiceSlot,
        clock, unload,
    },
    net::links,
};

/// Runs `test` in a namespace with the veth pair `ebb0`–`ebb1` and a pin directory of its own.
fn in_namespace(name: &'static str, test: impl FnOnce(PathBuf) + Send + 'static) {
    struct Pins(PathBuf);
    impl Drop for Pins {
        fn drop(&mut self) {
            let _ = unload(&self.0, &[]);
        }
    }
    crate::common::in_namespace(move || {
        let pins = Pins(PathBuf::from(format!("/sys/fs/bpf/ebb-test-{name}-{}", std::process::id())));
        test(pins.0.clone());
    });
}

fn options(pin_path: &std::path::Path) -> Options {
    Options {
        interfaces: vec!["ebb0".into()],
        max_flows: 10_000,
        max_backends: 64,
        max_services: 8,
        pin_path: pin_path.into(),
        ..Options::default()
    }
}

fn service(vip: &str) -> ServiceConfig {
    ServiceConfig::tcp(vip.parse().unwrap(), Forward::Dsr)
}

fn backend(address: &str, generation: u32) -> BackendConfig {
    BackendConfig {
        service: ServiceSlot(0),
        address: address.parse::<IpAddr>().unwrap(),
        port: 80,
        generation,
        state: BackendState::Active,
        deadline_ns: None,
        on_timeout: CutPolicy::Reset,
        cut_window: Duration::ZERO,
        next_hop: Some(NextHop {
            ifindex: 1,
            dst_mac: [2, 0, 0, 0, 0, 1],
            src_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            source: None,
            vlan: None,
        }),
        server_id: None,
    }
}

fn ring(size: usize, owner: u32) -> Vec<RingSlot> {
    vec![RingSlot { owner: Some(BackendSlot(owner)), previous: None }; size]
}

fn xdp_of(name: &str) -> Option<(links::XdpMode, u32)> {
    links::list().unwrap().into_iter().find(|link| link.name == name).unwrap().xdp
}

#[test]
fn a_restart_adopts_rows_and_rings_and_replaces_the_program() {
    in_namespace("adopt", |pins| {
        let mut first = EbpfDatapath::open(&options(&pins)).unwrap();
        assert!(!first.adopted().unwrap().rows_kept);
        assert_eq!(first.interfaces()[0].mode, "native");
        first.put_service(ServiceSlot(0), &service("10.0.0.100:80")).unwrap();
        first.put_backend(BackendSlot(3), &backend("10.0.0.11", 5)).unwrap();
        first.put_ring(ServiceSlot(0), &ring(4_099, 3)).unwrap();
        first
            .publish_vips(&[(ServiceSlot(0), &service("10.0.0.100:80"))], &BTreeSet::new(), &Named::default())
            .unwrap();
        let deadline = clock::coarse_ns() + 60_000_000_000;
        first.set_backend_state(BackendSlot(3), BackendState::Draining, Some(deadline), CutPolicy::Reset).unwrap();
        let (_, old_program) = xdp_of("ebb0").unwrap();
        drop(first);
        assert_eq!(xdp_of("ebb0").map(|(_, id)| id), Some(old_program), "it forwards without a daemon");

        let mut second = EbpfDatapath::open(&Options { interfaces: Vec::new(), ..options(&pins) }).unwrap();
        let adopted = second.adopted().unwrap();
        assert!(adopted.rows_kept && adopted.flow_table_kept);
        assert_eq!(adopted.backends.len(), 1);
        let kept = adopted.backends[0];
        assert_eq!((kept.slot, kept.generation, kept.state), (BackendSlot(3), 5, BackendState::Draining));
        assert_eq!(kept.deadline_ns, Some(deadline));
        assert_ne!(xdp_of("ebb0").map(|(_, id)| id), Some(old_program), "the program is this start's");
        second.set_ring_slots(ServiceSlot(0), &[(4_098, ring(1, 2)[0])]).expect("the ring was found again");
        assert!(second.set_ring_slots(ServiceSlot(0), &[(4_099, ring(1, 2)[0])]).is_err());
        // Another size, and another: both maps of the service are used.
        second.put_ring(ServiceSlot(0), &ring(16_411, 1)).unwrap();
        second.put_ring(ServiceSlot(0), &ring(4_099, 1)).unwrap();
        second.put_ring(ServiceSlot(0), &[]).unwrap();
        second.clear_service(ServiceSlot(0)).unwrap();
        assert!(second.flows(FlowFilter::default(), 10).unwrap().is_empty());
        let sweep = second.sweep(clock::coarse_ns()).unwrap();
        assert_eq!(sweep.totals.live, 0);
        assert!(sweep.totals.capacity >= 10_000);
        let names: Vec<&str> = second.counters().unwrap().outcomes.iter().map(|(name, _)| *name).collect();
        assert!(names.contains(&"new_flow"));

        // A daemon that still runs does not keep the program attached.
        let unloaded = unload(&pins, &[]).unwrap();
        assert_eq!(unloaded.interfaces, ["ebb0"]);
        assert!(unloaded.maps && xdp_of("ebb0").is_none() && !pins.exists());
    });
}

#[test]
fn an_interface_that_a_list_leaves_out_keeps_the_program_and_one_that_is_gone_does_not() {
    in_namespace("follow", |pins| {
        let mut datapath = EbpfDatapath::open(&options(&pins)).unwrap();
        let program = xdp_of("ebb0");
        assert!(program.is_some());
        assert_eq!(datapath.follow_links(&[]), []);
        assert_eq!(xdp_of("ebb0"), program, "it is there");
        assert_eq!(datapath.follow_links(&links::list().unwrap()), []);

        ip("link del ebb0");
        let gone = datapath.follow_links(&links::list().unwrap());
        assert_eq!(gone, [InterfaceChange { interface: "ebb0".into(), news: InterfaceNews::Gone }]);
    });
}

#[test]
fn one_that_went_to_another_namespace_is_gone() {
    in_namespace("moved", |pins| {
        let mut datapath = EbpfDatapath::open(&options(&pins)).unwrap();
        let _peer = Peer::with("ebb0");
        let gone = datapath.follow_links(&links::list().unwrap());
        assert_eq!(gone, [InterfaceChange { interface: "ebb0".into(), news: InterfaceNews::Gone }]);
    });
}

#[test]
fn a_second_daemon_on_the_same_pins_is_refused() {
    in_namespace("second", |pins| {
        let _first = EbpfDatapath::open(&options(&pins)).unwrap();
        let error = EbpfDatapath::open(&options(&pins)).unwrap_err();
        assert!(matches!(error, OpenError::Locked { .. }), "{error}");
    });
}

#[test]
fn what_cannot_be_attached_changes_nothing() {
    in_namespace("refuse", |pins| {
        let nowhere = Options { interfaces: vec!["ebb0".into(), "nowhere0".into()], ..options(&pins) };
        let error = EbpfDatapath::open(&nowhere).unwrap_err();
        assert_eq!(error.to_string(), "there is no interface named \"nowhere0\" here; there are: ebb0, ebb1, lo");
        assert!(!pins.exists() && xdp_of("ebb0").is_none());

        let none = Options { interfaces: Vec::new(), ..options(&pins) };
        assert!(matches!(EbpfDatapath::open(&none).unwrap_err(), OpenError::NoInterfaces));
        assert!(!pins.exists());

        // Another program: one of our own under other pins serves as such.
        let other = pins.with_file_name(format!("ebb-test-refuse-other-{}", std::process::id()));
        let _other = EbpfDatapath::open(&Options { interfaces: vec!["ebb1".into()], ..options(&other) }).unwrap();
        let both = Options { interfaces: vec!["ebb0".into(), "ebb1".into()], ..options(&pins) };
        let error = EbpfDatapath::open(&both).unwrap_err();
        assert!(matches!(&error, OpenError::Occupied { interface, .. } if interface == "ebb1"), "{error}");
        assert!(!pins.exists() && xdp_of("ebb0").is_none());
        unload(&other, &[]).unwrap();

        let dotted = Options { pin_path: "/sys/fs/bpf/ebb.test".into(), ..options(&pins) };
        assert!(matches!(EbpfDatapath::open(&dotted).unwrap_err(), OpenError::Dotted { .. }));
        let endless = Options { max_flows: u32::MAX, ..options(&pins) };
        assert!(matches!(EbpfDatapath::open(&endless).unwrap_err(), OpenError::TooManyFlows { .. }));
        assert!(!pins.exists() && xdp_of("ebb0").is_none());
        let elsewhere = Options { pin_path: "/tmp/ebb-test-pins".into(), ..options(&pins) };
        assert!(matches!(EbpfDatapath::open(&elsewhere).unwrap_err(), OpenError::NotBpffs { .. }));
    });
}

#[test]
fn pins_of_another_layout_are_refused() {
    in_namespace("layout", |pins| {
        drop(EbpfDatapath::open(&options(&pins)).unwrap());
        let before = xdp_of("ebb0");
        // Rows of another size under a name of ours.
        fs::rename(pins.join("VIPS"), pins.join("aside")).unwrap();
        fs::rename(pins.join("OUTCOMES"), pins.join("VIPS")).unwrap();
        fs::rename(pins.join("aside"), pins.join("OUTCOMES")).unwrap();
        let error = EbpfDatapath::open(&options(&pins)).unwrap_err();
        assert!(matches!(error, OpenError::Layout { .. }), "{error}");
        // The mark of another build.
        fs::create_dir(pins.join("layout-99")).unwrap();
        let error = EbpfDatapath::open(&options(&pins)).unwrap_err();
        assert!(error.to_string().contains("layout-99"), "{error}");
        assert_eq!(xdp_of("ebb0"), before, "what ran goes on");
    });
}

#[test]
fn incomplete_pins_are_not_adopted() {
    in_namespace("incomplete", |pins| {
        drop(EbpfDatapath::open(&options(&pins)).unwrap());
        fs::remove_file(pins.join("CONTROL")).unwrap();
        let mut datapath = EbpfDatapath::open(&options(&pins)).unwrap();
        assert!(!datapath.adopted().unwrap().flow_table_kept, "without the secrets its entries cannot be found");
        assert!(pins.join("CONTROL").exists() && xdp_of("ebb0").is_some());
    });
}

#[test]
fn the_mode_is_chosen_and_changed() {
    in_namespace("mode", |pins| {
        let with = |mode| EbpfDatapath::open(&Options { mode, ..options(&pins) });
        assert_eq!(with(Mode::Generic).unwrap().interfaces()[0].mode, "generic");
        assert_eq!(with(Mode::Auto).unwrap().interfaces()[0].mode, "generic", "what works is kept");
        assert_eq!(with(Mode::Native).unwrap().interfaces()[0].mode, "native");
        // A veth whose peer has a large MTU takes no native program.
        unload(&pins, &["ebb0".into()]).unwrap();
        ip("link set ebb1 mtu 9000");
        let error = with(Mode::Native).unwrap_err();
        assert!(matches!(error, OpenError::Attach { .. }), "{error}");
        assert!(!pins.exists());
        assert_eq!(with(Mode::Auto).unwrap().interfaces()[0].mode, "generic");
    });
}

#[test]
fn interfaces_come_and_go_with_restarts() {
    in_namespace("several", |pins| {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<String>>();
        let with = |list: &[&str]| EbpfDatapath::open(&Options { interfaces: names(list), ..options(&pins) }).unwrap();
        assert_eq!(with(&["ebb0", "ebb1"]).interfaces().len(), 2);
        assert_eq!(with(&["ebb1"]).interfaces().len(), 1);
        assert!(xdp_of("ebb0").is_none() && xdp_of("ebb1").is_some());
        assert_eq!(with(&["ebb0", "ebb1", "ebb0"]).interfaces().len(), 2);
        let unloaded = unload(&pins, &names(&["ebb1"])).unwrap();
        assert!(!unloaded.maps && xdp_of("ebb1").is_none() && xdp_of("ebb0").is_some());
        // An interface that vanished leaves a pin that is cleared away.
        ip("link del ebb0");
        ip("link add ebb0 type veth peer name ebb1");
        assert!(with(&["ebb0"]).adopted().unwrap().flow_table_kept, "the maps outlive the interface");
    });
}

/// Prints how long a grace period takes here.
#[test]
fn a_grace_period_is_short() {
    in_namespace("grace", |pins| {
        let mut datapath = EbpfDatapath::open(&options(&pins)).unwrap();
        let mut times: Vec<Duration> = (0..20)
            .map(|_| {
                let start = Instant::now();
                datapath.grace().unwrap();
                start.elapsed()
            })
            .collect();
        times.sort();
        println!("grace: min {:?} median {:?} max {:?}", times[0], times[10], times[19]);
        assert!(times[10] < Duration::from_secs(1));
    });
}

/// A thousand services in seconds, though each ring's map is put in place behind a grace period.
#[test]
fn many_services_share_grace_periods() {
    in_namespace("many", |pins| {
        let mut datapath = EbpfDatapath::open(&Options { max_services: 1_100, ..options(&pins) }).unwrap();
        let start = Instant::now();
        for slot in 0..1_000 {
            datapath.put_service(ServiceSlot(slot), &service("10.0.0.100:80")).unwrap();
            datapath.put_ring(ServiceSlot(slot), &ring(4_099, u32::from(slot) % 64)).unwrap();
        }
        println!("1,000 rings: {:?}", start.elapsed());
        assert!(start.elapsed() < patient(Duration::from_secs(5)));
        // Spares, rings put back and rings of other sizes all end up where their rows say.
        datapath.clear_service(ServiceSlot(7)).unwrap();
        datapath.put_service(ServiceSlot(7), &service("10.0.0.100:80")).unwrap();
        datapath.put_ring(ServiceSlot(7), &ring(4_099, 9)).unwrap();
        datapath.put_ring(ServiceSlot(8), &ring(65_537, 9)).unwrap();
        datapath.clear_service(ServiceSlot(9)).unwrap();
        datapath.put_service(ServiceSlot(9), &service("10.0.0.100:80")).unwrap();
        datapath.put_ring(ServiceSlot(9), &ring(16_411, 9)).unwrap();
        drop(datapath);
        let mut datapath = EbpfDatapath::open(&Options { max_services: 1_100, ..options(&pins) }).unwrap();
        for (slot, size) in [(0, 4_099), (7, 4_099), (8, 65_537), (9, 16_411), (999, 4_099)] {
            datapath.set_ring_slots(ServiceSlot(slot), &[(size - 1, ring(1, 2)[0])]).unwrap();
            assert!(datapath.set_ring_slots(ServiceSlot(slot), &[(size, ring(1, 2)[0])]).is_err(), "{slot}");
        }
    });
}
