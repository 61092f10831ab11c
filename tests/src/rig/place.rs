//! A network namespace for the rig, so that what the program asks the kernel (routes, MTUs) has answers that do not hang
//! on the machine.

use std::fs;

use anyhow::{Context as _, Result};

use crate::{
    lab::{enter_new_netns, ip},
    packets::Mac,
};

/// Our MAC address on the link by which the kernel's routes lead to clients.
pub const ROUTE_MAC: Mac = [2, 0, 0, 0, 0x0d, 1];
/// MAC address of the clients on that link.
pub const NEIGHBOUR_MAC: Mac = [2, 0, 0, 0, 0x0d, 2];

/// The loopback, which test-run's packets come in by, as narrow as an Ethernet; and a link to the clients, where they are
/// neighbours. The ends of [`super::Cell::client`] are on it.
const SCRIPT: &str = "\
link set lo mtu 1500 up
link add route address 02:00:00:00:0d:01 type veth peer name far
link set far up
link set route up
addr add 10.1.0.1/24 dev route
addr add fd00:1::1/64 dev route nodad
neigh add 10.1.0.10 lladdr 02:00:00:00:0d:02 dev route nud permanent
neigh add fd00:1::a lladdr 02:00:00:00:0d:02 dev route nud permanent
";

/// Moves the calling thread into a namespace of its own, which ends with it, and from which no route leads anywhere. Needs
/// root.
pub fn leave_the_world() -> Result<()> {
    enter_new_netns().context("make a network namespace (needs root)")
}

/// The same, but for routes to the clients.
pub fn isolate() -> Result<()> {
    leave_the_world()?;
    ip(None, SCRIPT)?;
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        // The files are those of the thread's own namespace.
        fs::write(format!("/proc/sys/{setting}"), "1").with_context(|| format!("set {setting}"))?;
    }
    Ok(())
}
