//! The daemon under the service unit's own terms: its capabilities and no others, over a restart.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Ebb, Lab, Plan},
    place::Place,
};
use lb_userspace::privilege::NEEDS;

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
    let mask = |set: &str| -> Result<u64> {
        let line = place.ok(&format!("grep {set} /proc/$(cat /run/ebb-unit.pid)/status"))?.stdout;
        Ok(u64::from_str_radix(line.split_whitespace().last().context("a mask")?, 16)?)
    };
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF: nothing of CAP_SYS_ADMIN and the rest.
    assert_eq!(mask("CapBnd")?, 1 << 12 | 1 << 13 | 1 << 38 | 1 << 39);
    assert_eq!(mask("CapBnd")?, NEEDS.iter().map(|need| need.bit.bits()).sum::<u64>());
    // Of these it keeps what it goes on needing; the bounds it cannot lower itself.
    let kept = NEEDS.iter().filter(|need| need.kept).map(|need| need.bit.bits()).sum::<u64>();
    assert_eq!((mask("CapEff")?, mask("CapPrm")?), (kept, kept));

    // A drain is adopted with its ring: rings are found by their pins, since opening them by number is not allowed here.
    place.ok("ebb backend add web b1 10.2.0.11 && ebb wait web/b1 --for active && ebb drain web/b1")?;
    place.ok("systemctl restart ebb && ebb activate web/b1 && ebb wait web/b1 --for active --timeout 10s")?;
    place.ok("ebb service remove dns && systemctl restart ebb && ebb status web")?;
    let log = place.ok("cat /var/log/ebb.log")?.stdout;
    let warnings: Vec<_> = log.lines().filter(|line| line.contains("WARN") && !line.contains("is a veth")).collect();
    ensure!(warnings.is_empty() && !log.contains("ERROR"), "{log}");

    // The group of a drop-in is let in, to the directory and to the socket; others are not.
    place.put("/etc/systemd/system/ebb.service.d/group.conf", "[Service]\nGroup=operator\n")?;
    place.ok("systemctl restart ebb")?;
    let status = |groups: &str| {
        let user = format!("setpriv --reuid nobody --regid nogroup --groups {groups} ebb status");
        place.run(&lab.balancer, &user, &[])
    };
    assert_eq!(status("operator")?.code, 0, "{:?}", status("operator")?);
    let other = status("daemon")?;
    assert_eq!((other.code, other.stderr.lines().count()), (1, 1), "{other:?}");
    ensure!(other.stderr.contains("no permission to use /run/ebb/ebb.sock"), "{other:?}");
    // It may not give it to another group, and says what to do.
    place.put("/etc/default/ebb", "EBB_ARGS='-i eth0 --mode native --socket-group daemon'\n")?;
    let refused = place.run(&lab.balancer, "systemctl restart ebb", &[])?;
    ensure!(refused.stderr.contains("put Group=daemon into the unit"), "{refused:?}");
    place.ok("ebb unload && test ! -e /sys/fs/bpf/ebb").map(drop)
}
