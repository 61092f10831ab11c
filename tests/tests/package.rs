//! The Debian package on a machine of its own: installed, configured, upgraded under traffic, removed, purged.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Family, Lab, Plan},
    place::Place,
    scene::SOON,
    traffic::{Client, Conversation, Server, Transport},
};

const CONFIGURATION: &str = r#"[daemon]
interfaces = ["eth0"]
mode = "native"
[[service]]
name = "web"
vip = "10.9.0.1:80/tcp"
  [[service.backend]]
  name = "b0"
  address = "10.2.0.10"
  [[service.backend]]
  name = "b1"
  address = "10.2.0.11"
"#;

/// Gives the package another version, as a later release would have.
const NEXT_VERSION: &str = "dpkg-deb -R /tmp/ebb.deb /tmp/next && sed -i 's/^Version: .*/&+next/' /tmp/next/DEBIAN/control \
    && dpkg-deb --root-owner-group -b /tmp/next /tmp/next.deb";

const INSTALL: &str = "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o Dpkg::Use-Pty=0";

#[test]
#[ignore = "needs a package: cargo xtask dist --test makes one and runs this"]
fn the_package_installs_upgrades_under_traffic_and_goes() -> Result<()> {
    let package = PathBuf::from(std::env::var_os("EBB_DEB").context("EBB_DEB names the package")?);
    let lab = Lab::build(Plan { backends: 2, ..Plan::default() })?;
    let vip = (Plan::vip(Family::V4, 0), 80).into();
    let servers = lab.backends.iter().enumerate().map(|(index, host)| Server::start(host, &format!("b{index}")));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    for server in &servers {
        server.listen(vip, Transport::Tcp)?;
    }
    let client = Client::start(&lab)?;
    let place = Place::make(&lab, &lab.balancer)?;
    // What the package's scripts ask to learn whether systemd is in charge.
    place.ok("mkdir -p /run/systemd/system")?;
    place.lend(&package, "/tmp/ebb.deb")?;

    place.ok(&format!("{INSTALL} /tmp/ebb.deb"))?;
    place.ok("ebb --version && man -w ebb-drain >/dev/null 2>&1 || test -e /usr/share/man/man1/ebb-drain.1.gz")?;
    place.ok("! systemctl is-active ebb && test ! -e /sys/fs/bpf/ebb")?;
    place.put("/etc/ebb/ebb.toml", CONFIGURATION)?;
    place.ok("ebb check /etc/ebb/ebb.toml && systemctl enable --now ebb")?;
    place.ok("for b in b0 b1; do ebb wait web/$b --for active --timeout 10s; done")?;
    let first = place.ok("cat /run/ebb-unit.pid")?.stdout;

    let held = client.open(Conversation::with(vip), 100);
    held.wait_open(100, SOON)?;
    place.ok(NEXT_VERSION)?;
    place.ok(&format!("{INSTALL} /tmp/next.deb"))?;
    let second = place.ok("cat /run/ebb-unit.pid")?.stdout;
    ensure!(first != second, "the upgrade did not restart the daemon");
    let during = client.open(Conversation::with(vip), 50);
    during.wait_open(50, SOON)?;
    ensure!(place.ok("cat /etc/ebb/ebb.toml")?.stdout == CONFIGURATION, "the upgrade changed the configuration");
    for group in [held, during] {
        let tally = group.finish_and_wait(SOON)?;
        ensure!(tally.broken() == 0 && tally.could_not_connect() == 0, "{tally:?}");
    }

    place.ok("DEBIAN_FRONTEND=noninteractive apt-get remove -y ebb")?;
    place.ok("test ! -e /usr/bin/ebb && test ! -e /sys/fs/bpf/ebb && test -e /etc/ebb/ebb.toml")?;
    ensure!(!place.ok("ip link show eth0")?.stdout.contains("xdp"), "the program is still attached");
    place.ok("DEBIAN_FRONTEND=noninteractive apt-get purge -y ebb")?;
    place.ok("test ! -e /etc/ebb/ebb.toml && test ! -e /var/lib/ebb && test ! -e /etc/default/ebb").map(drop)
}
