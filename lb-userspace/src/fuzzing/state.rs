//! What an earlier daemon left behind: `state.json`, and rows in the datapath that may not fit it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::{in_no_time, later, soon};
use crate::{
    control::{
        state::{Now, balancer::Balancer},
        validate,
    },
    daemon::{
        fake::{FakeClock, FakeDatapath, Kernel, Rig},
        store::{Restored, Store},
    },
    datapath::{BackendConfig, BackendSlot, BackendState, CutPolicy, ServiceSlot},
};

/// The boot that inputs speak of, if it is the one that they are read in.
const BOOT: &str = "first boot";

/// One byte says how many rows of backends are found in the datapath, three bytes each; the rest is the file. It is refused, with
/// a reason in words, or what it gives is a state as a daemon leaves it: nothing stands twice, all of it is valid, and it is
/// written as it was read. A daemon that starts on it serves.
pub fn state(data: &[u8]) {
    let Some((&count, rest)) = data.split_first() else { return };
    let (rows, file) = rest.split_at((usize::from(count % 16) * 3).min(rest.len()));
    let now = Now { mono_ns: 2_000_000_000_000, wall: jiff::Timestamp::from_second(1_700_000_000).expect("in range") };
    let mut readable = false;
    for boot in [BOOT, "another boot"] {
        match Store::parse(file, boot, now) {
            Err(why) => assert!(!why.trim().is_empty() && !why.contains('\n'), "{why:?}"),
            Ok(Restored { mut balancer, .. }) => {
                readable = true;
                check(&balancer);
                let written = Store::render(&mut balancer, boot);
                let mut again = Store::parse(&written, boot, now).expect("what was written is read").balancer;
                let rewritten = Store::render(&mut again, boot);
                assert_eq!(written, rewritten, "what was read is not what was written");
            }
        }
    }
    // Without a state the rows alone are worth a start only if there are any.
    if readable || file.is_empty() {
        in_no_time(start(rows, file));
    }
}

/// What a daemon takes for granted.
fn check(balancer: &Balancer) {
    let (mut names, mut vips, mut slots, mut backend_slots) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for service in &balancer.services {
        validate::service(&service.spec).expect("a valid service");
        assert!(names.insert(&service.spec.name), "a name twice");
        assert!(vips.insert(service.spec.vip.to_string()), "a VIP twice");
        assert!(slots.insert(service.slot), "a service's row twice");
        let mut names = BTreeSet::new();
        for entry in &service.backends {
            validate::backend(&service.spec, &entry.spec).expect("a valid backend");
            assert!(names.insert(&entry.spec.name), "a name twice");
            assert!(backend_slots.insert(entry.slot), "a backend's row twice");
        }
    }
}

/// Starts a daemon on the file and the rows, has it work for a while, and asks it.
async fn start(rows: &[u8], file: &[u8]) {
    let directory = Arc::new(tempfile::tempdir().expect("a directory"));
    std::fs::write(directory.path().join("state.json"), file).expect("write the state");
    if file.is_empty() {
        std::fs::remove_file(directory.path().join("state.json")).expect("no state");
    }
    let backends: BTreeMap<BackendSlot, BackendConfig> = rows.chunks_exact(3).map(row).collect();
    let kernel = Kernel { backends, ..Kernel::default() };
    let datapath = FakeDatapath(Arc::new(Mutex::new(kernel)));
    let Some(rig) = Rig::try_start(datapath, Arc::new(FakeClock::new()), directory, BTreeSet::new()) else { return };
    later().await;
    let status = soon(rig.handle.status(None)).await.expect("an answer");
    status.expect("the engine serves");
    rig.stop().await;
}

fn row(bytes: &[u8]) -> (BackendSlot, BackendConfig) {
    const STATES: [BackendState; 7] = [
        BackendState::Free,
        BackendState::Initial,
        BackendState::Active,
        BackendState::Draining,
        BackendState::Drained,
        BackendState::Unhealthy,
        BackendState::UnhealthyDraining,
    ];
    let generation = match bytes[1] {
        255 => u32::MAX,
        254 => u32::MAX - 1,
        small => small.into(),
    };
    let config = BackendConfig {
        service: ServiceSlot(0),
        address: Ipv4Addr::UNSPECIFIED.into(),
        port: 0,
        generation,
        state: STATES[usize::from(bytes[2]) % STATES.len()],
        deadline_ns: (bytes[2] > 127).then_some(1),
        on_timeout: CutPolicy::Reset,
        cut_window: Duration::ZERO,
        next_hop: None,
        server_id: None,
    };
    (BackendSlot(bytes[0].into()), config)
}
