//! The daemon under the service unit's own terms: its capabilities and no others, over a restart.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Ebb, Lab, Plan},
    place::Place,
};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/ebb.service");

#[test]
fn the_units_capabilities_are_enough() -> Result<()> {
    let lab = Lab::build(Plan::default())?;
    let place = Place::make(&lab, &lab.balancer)?;
    let mut ebb = Ebb::new(&lab, &[])?;
    ebb.show_log = false;
    place.lend(ebb.program(), "/usr/bin/ebb")?;
    place.put("/lib/systemd/system/ebb.service", &std::fs::read_to_string(Path::new(UNIT))?)?;
    place.put("/etc/default/ebb", "EBB_ARGS='-i eth0 --mode native'\n")?;

    place.ok("systemctl start ebb")?;
    place.ok("ebb service add web --vip 10.9.0.1:80/tcp && ebb service add dns --vip 10.9.0.1:53/udp")?;
    place.ok("ebb backend add web b0 10.2.0.10 && ebb wait web/b0 --for active --timeout 10s")?;
    let bounds = place.ok("grep CapBnd /proc/$(cat /run/ebb-unit.pid)/status")?.stdout;
    let held = u64::from_str_radix(bounds.split_whitespace().last().context("a mask")?, 16)?;
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF: nothing of CAP_SYS_ADMIN and the rest.
    ensure!(held == 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39, "{bounds}");

    // A drain is adopted with its ring: rings are found by their pins, since opening them by number is not allowed here.
    place.ok("ebb backend add web b1 10.2.0.11 && ebb wait web/b1 --for active && ebb drain web/b1")?;
    place.ok("systemctl restart ebb && ebb activate web/b1 && ebb wait web/b1 --for active --timeout 10s")?;
    place.ok("ebb service remove dns && systemctl restart ebb && ebb status web")?;
    let log = place.ok("cat /var/log/ebb.log")?.stdout;
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN") && !line.contains("is a veth")).collect();
    ensure!(warnings.is_empty() && !log.contains("ERROR"), "{log}");
    place.ok("ebb unload && test ! -e /sys/fs/bpf/ebb").map(drop)
}
