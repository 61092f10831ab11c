//! What the daemon does to a whole flow table, by its own code: counting, ageing, purging a backend's flows.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ebb_tests_ebpf::walk;
use lb_userspace::datapath::{
    BackendConfig, BackendSlot, BackendState, CutPolicy, Datapath as _, EbpfDatapath, Forward, Named, NextHop, Options,
    RingSlot, ServiceConfig, ServiceSlot, TCP_IDLE, clock,
};

use super::{
    Figure, Packet, Spread,
    case::BASE,
    driven::Driven,
    driver::{self, pin},
};
use crate::lab::{Lab, Plan};

const SERVICE: ServiceSlot = ServiceSlot(0);
const BACKEND: BackendSlot = BackendSlot(1);

/// Looks at, ages and purges `flows` established flows of one backend.
pub fn tables(flows: u32, runs: u32, cpus: [usize; 2]) -> Result<Vec<Figure>> {
    let lab = Lab::build(Plan { backends: 0, ..Plan::default() })?;
    let options =
        Options { interfaces: vec!["eth0".into()], max_flows: flows, pin_path: lab.pin_path(), ..Options::default() };
    let mut datapath = lab.balancer.run(|| EbpfDatapath::open(&options))?.context("open the datapath")?;
    configure(&mut datapath, 1)?;
    let driver = Driven::of_interface(&lab.balancer, "eth0")?;
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;

    establish(&driver, flows)?;
    let mut sweeps = Vec::new();
    for _ in 0..runs {
        let begun = Instant::now();
        let sweep = datapath.sweep(clock::coarse_ns())?;
        sweeps.push(ms(begun));
        ensure!(sweep.totals.live == u64::from(flows), "{:?}, but {flows} flows were opened", sweep.totals);
    }
    let (alone, during) = beside_sweeps(&mut datapath, &driver, flows, cpus)?;

    let (mut ageings, mut retirements, mut purges) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..runs.div_ceil(3) {
        let later = clock::coarse_ns() + (TCP_IDLE + Duration::from_secs(1)).as_nanos() as u64;
        let begun = Instant::now();
        let sweep = datapath.sweep(later)?;
        ageings.push(ms(begun));
        ensure!(sweep.totals.live == 0 && sweep.ended.len() == flows as usize, "all flows have idled out");

        establish(&driver, flows)?;
        let begun = Instant::now();
        datapath.put_backend(BACKEND, &backend(run + 2))?;
        retirements.push(ms(begun));
        let begun = Instant::now();
        let freed = datapath.purge(BACKEND, run + 1)?;
        purges.push(ms(begun));
        ensure!(freed == u64::from(flows), "{freed} of {flows} flows were purged");
        // What was freed can be used: another such number of flows finds places.
        establish(&driver, flows)?;
        let live = datapath.sweep(clock::coarse_ns())?.totals.live;
        ensure!(live == u64::from(flows), "{live} of {flows} flows came back");
    }
    let median = |times: &[f64]| Spread::of(times).median;
    Ok(vec![
        Figure::new("sweep_all_live", median(&sweeps), "ms"),
        Figure::new("sweep_all_ended", median(&ageings), "ms"),
        Figure::new("hit_to_itself_during_sweeps", during / alone, "x"),
        Figure::new("retire_a_backend", median(&retirements), "ms"),
        Figure::new("purge_a_backend", median(&purges), "ms"),
    ])
}

/// A service with one backend of that generation, all slots its own.
fn configure(datapath: &mut EbpfDatapath, generation: u32) -> Result<()> {
    let service = ServiceConfig::tcp(BASE.vip(), Forward::Dsr);
    datapath.put_service(SERVICE, &service)?;
    datapath.put_backend(BACKEND, &backend(generation))?;
    datapath.put_ring(SERVICE, &vec![RingSlot { owner: Some(BACKEND), previous: None }; 4_099])?;
    Ok(datapath.publish_vips(&[(SERVICE, &service)], &BTreeSet::new(), &Named::default())?)
}

fn backend(generation: u32) -> BackendConfig {
    BackendConfig {
        service: SERVICE,
        address: BASE.backend(1),
        port: BASE.vip().port(),
        generation,
        state: BackendState::Active,
        deadline_ns: None,
        on_timeout: CutPolicy::Reset,
        cut_window: Duration::ZERO,
        next_hop: Some(NextHop {
            ifindex: crate::rig::INGRESS,
            dst_mac: crate::rig::backend_mac(1),
            src_mac: crate::rig::OWN_MAC,
            mtu: 1500,
            source: None,
            vlan: None,
        }),
        server_id: None,
    }
}

fn establish(driver: &Driven, flows: u32) -> Result<()> {
    for packet in [Packet::Open, Packet::More, Packet::More] {
        driver.run(&driver::job(BASE, packet, walk::SEQUENTIAL, 0, flows), flows)?;
    }
    Ok(())
}

/// Nanoseconds a packet of known flows on one CPU, without and with the other one sweeping all the time.
fn beside_sweeps(
    datapath: &mut EbpfDatapath,
    driver: &Driven,
    flows: u32,
    [here, there]: [usize; 2],
) -> Result<(f64, f64)> {
    let job = driver::job(BASE, Packet::More, walk::RANDOM, 0, flows);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let runner = scope.spawn(|| -> Result<(f64, f64)> {
            pin(there)?;
            let alone = driver.run(&job, 4 * flows);
            stop.store(true, Ordering::Relaxed);
            let during = driver.run(&job, 4 * flows);
            stop.store(false, Ordering::Relaxed);
            Ok((alone?, during?))
        });
        pin(here)?;
        while !runner.is_finished() {
            if stop.load(Ordering::Relaxed) {
                datapath.sweep(clock::coarse_ns())?;
            } else {
                thread::sleep(Duration::from_millis(1));
            }
        }
        runner.join().unwrap_or_else(|_| anyhow::bail!("the runner panicked"))
    })
}
