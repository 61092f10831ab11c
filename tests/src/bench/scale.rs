//! Thousands of services and backends in a real daemon: what they take, and what a change of one backend costs then.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::{
    Figure,
    commands::{quantiles, under_new_flows},
    fleet::{self, Fleet, NEWCOMERS, Size},
    wire::{Taker, Wire},
};

/// Loads so much, drains and adds `changes` backends one after the other under a stream of new flows from `cpu`.
pub fn scale(size: Size, changes: u32, cpu: usize) -> Result<Vec<Figure>> {
    ensure!(changes <= NEWCOMERS, "only {NEWCOMERS} backends can be added");
    let wire = Wire::lay(Taker::Stamp)?;
    let fleet = Fleet::start(&wire, size)?;
    let (resident, maps) = fleet.memory_mib()?;
    let state = wire.lab.directory().join("state/state.json");
    let state_bytes = fs::metadata(&state).with_context(|| format!("look at {}", state.display()))?.len();

    let (mut drains, mut additions) = (Vec::new(), Vec::new());
    let (mut quiet_ns, mut busy_ns) = (0, 0);
    under_new_flows(&wire, cpu, || {
        wire.forget_gaps();
        std::thread::sleep(std::time::Duration::from_millis(500));
        quiet_ns = wire.longest_gap_ns();
        for n in 0..changes {
            let service = n * 7 % size.services;
            drains.push(fleet.about(service, n, "POST", "/drain")?.as_secs_f64() * 1e3);
            let path = format!("/v1/services/{}/backends", fleet::service(service));
            let newcomer = serde_json::json!({
                "name": format!("new{n}"), "address": fleet::host(size.hosts() + n).to_string(),
            });
            additions.push(fleet.call("POST", &path, &newcomer)?.0.as_secs_f64() * 1e3);
        }
        busy_ns = wire.longest_gap_ns();
        Ok(())
    })?;
    let prefix = format!("scale_{}x{}", size.services, size.backends);
    let mut figures = vec![
        Figure::new(format!("{prefix}_apply"), fleet.applied_s, "s"),
        Figure::new(format!("{prefix}_all_active_after"), fleet.active_s, "s"),
        Figure::new(format!("{prefix}_daemon_resident"), resident, "MiB"),
        Figure::new(format!("{prefix}_maps"), maps, "MiB"),
        Figure::new(format!("{prefix}_state_file"), state_bytes as f64 / f64::from(1 << 20), "MiB"),
        Figure::new(format!("{prefix}_longest_gap_undisturbed"), quiet_ns as f64 / 1e6, "ms"),
        Figure::new(format!("{prefix}_longest_gap_under_changes"), busy_ns as f64 / 1e6, "ms"),
    ];
    figures.extend(quantiles(&format!("{prefix}_drain_to_answer"), &drains));
    figures.extend(quantiles(&format!("{prefix}_add_to_answer"), &additions));
    Ok(figures)
}
