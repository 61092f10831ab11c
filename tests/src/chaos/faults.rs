//! How faults are made and healed.

use std::{fmt::Write as _, fs, io::Write as _, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result};

use super::world::World;
use crate::lab::ip;

/// Lines of a storm.
const STORM: usize = 400;

/// A disk that is full until this is dropped.
#[derive(Debug)]
pub(super) struct Full(PathBuf);

impl Drop for Full {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A limit on the daemon's descriptors, to be lifted by [`World::lift`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Limited(u64);

impl World {
    /// Fills the disk that the daemon's state is on.
    pub(super) fn fill_disk(&self) -> Result<Full> {
        let path = self.ebb.state_directory().join("ballast");
        let full = Full(path.clone());
        let mut file = fs::File::create(&path)?;
        // Down to the last byte: a page that is partly used takes a few more.
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![0x5a; size]).is_ok() {}
        }
        Ok(full)
    }

    /// Leaves the daemon so many descriptors more than it has.
    pub(super) fn limit_files(&self, spare: u32) -> Result<Limited> {
        Ok(Limited(self.ebb.spare_files(spare.into())?))
    }

    /// Takes the limit away again.
    pub(super) fn lift(&self, limited: Limited) -> Result<()> {
        self.ebb.limit_files(limited.0).map(drop)
    }

    /// Takes the balancer's interface down or up, at its own end (`near`) or at the switch's.
    pub(super) fn link(&self, near: bool, up: bool) -> Result<()> {
        let (host, device) = if near { (&self.lab.balancer, "eth0") } else { (&self.lab.switch, "lb0") };
        ip(Some(host), &format!("link set {device} {}", if up { "up" } else { "down" }))
    }

    /// Has the balancer forget its neighbours.
    pub(super) fn forget_neighbours(&self) -> Result<()> {
        ip(Some(&self.lab.balancer), "neigh flush dev eth0")
    }

    /// Gives a backend's interface the MAC address number `number`.
    pub(super) fn new_mac(&self, backend: usize, number: usize) -> Result<()> {
        let [high, low] = (number as u16).to_be_bytes();
        let mac = format!("02:eb:b1:{backend:02x}:{high:02x}:{low:02x}");
        ip(Some(&self.lab.backends[backend]), &format!("link set eth0 address {mac}"))
    }

    /// Has the balancer's kernel tell of hundreds of changes that mean nothing.
    pub(super) fn storm(&self) -> Result<()> {
        let mut script = String::new();
        for number in 0..STORM {
            let (host, net) = (100 + number % 100, number % 250);
            // Writing to a String cannot fail.
            let _ = writeln!(script, "neigh replace 10.2.0.{host} lladdr 02:00:00:00:{:02x}:01 dev eth0", number % 256);
            let _ = writeln!(script, "route replace 10.77.{net}.0/24 via 10.2.0.254");
            let _ = writeln!(script, "neigh del 10.2.0.{host} dev eth0");
            let _ = writeln!(script, "route del 10.77.{net}.0/24");
        }
        for _ in 0..5 {
            script += "link add stormy type veth peer name stormier\nlink set stormy up\nlink del stormy\n";
        }
        ip(Some(&self.lab.balancer), &script)
    }

    /// Puts another copy of the program in the daemon's place for its next start.
    pub(super) fn next_program(&mut self, number: usize) -> Result<()> {
        let copy = self.lab.directory().join(format!("ebb-{number}"));
        let before = self.ebb.program().to_owned();
        fs::copy(&before, &copy).context("copy the program")?;
        self.ebb.upgrade_to(copy);
        if before.starts_with(self.lab.directory()) {
            fs::remove_file(before)?;
        }
        Ok(())
    }
}

/// Sleeps for so many milliseconds: how long a fault lasts is what it is about.
pub(super) fn last(ms: u32) {
    thread::sleep(Duration::from_millis(ms.into()));
}
