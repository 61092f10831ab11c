//! What is balanced during a run: every mode in both families, for connections of several kinds.

use std::{fmt::Write as _, net::SocketAddr};

use crate::{
    lab::{FAMILIES, Family, Plan},
    scene::Forward,
};

/// Backends that every service may have.
pub(super) const BACKENDS: usize = 5;

/// What a service is there to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Connections that come and go: drains end by themselves.
    Short,
    /// Connections that last until they are told to finish: drains end at their deadlines.
    Long,
    /// Steered by the client's address, so that clients see which slots move. Its backends are drained and come back, no more.
    Still,
    /// Datagram flows.
    Datagrams,
    /// Not there at first: added and removed as a whole.
    Extra,
}

/// A service of the run.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// Its name.
    pub name: String,
    /// How it forwards.
    pub forward: Forward,
    /// The family of its VIP and of its backends' addresses.
    pub family: Family,
    /// What it is there for.
    pub role: Role,
    port: u16,
}

/// All of them; a [`Target`](super::plan::Target) names one by its place in this list.
pub(super) fn roster() -> Vec<Service> {
    let mut all = Vec::new();
    let mut add = |forward: Forward, family: Family, role: Role, port: u16| {
        let number = if family == Family::V4 { 4 } else { 6 };
        let word = match role {
            Role::Short => "short",
            Role::Long => "long",
            Role::Still => "still",
            Role::Datagrams => "udp",
            Role::Extra => "extra",
        };
        all.push(Service { name: format!("{}{number}-{word}", forward.word()), forward, family, role, port });
    };
    for forward in [Forward::Dsr, Forward::Nat, Forward::Tunnel] {
        for family in FAMILIES {
            add(forward, family, Role::Short, 80);
            add(forward, family, Role::Long, 81);
        }
    }
    add(Forward::Dsr, Family::V4, Role::Still, 82);
    add(Forward::Nat, Family::V6, Role::Still, 82);
    add(Forward::Dsr, Family::V4, Role::Datagrams, 53);
    add(Forward::Nat, Family::V6, Role::Datagrams, 53);
    add(Forward::Tunnel, Family::V4, Role::Datagrams, 53);
    add(Forward::Dsr, Family::V6, Role::Extra, 90);
    add(Forward::Nat, Family::V4, Role::Extra, 90);
    all
}

/// The name of backend number `index`, which is its server's too.
pub(super) fn backend_name(index: usize) -> String {
    format!("b{index}")
}

impl Service {
    /// Where clients send to.
    pub(super) fn vip(&self) -> SocketAddr {
        let vip = match self.forward {
            Forward::Dsr => 0,
            Forward::Nat => 1,
            Forward::Tunnel => 2,
        };
        SocketAddr::new(Plan::vip(self.family, vip), self.port)
    }

    /// The same as a service's definition has it.
    pub(super) fn vip_text(&self) -> String {
        format!("{}/{}", self.vip(), if self.role == Role::Datagrams { "udp" } else { "tcp" })
    }

    /// Where the server of backend `index` listens.
    pub(super) fn listen(&self, index: usize) -> SocketAddr {
        match self.forward {
            Forward::Nat => SocketAddr::new(Plan::backend(self.family, index), self.port),
            Forward::Dsr | Forward::Tunnel => self.vip(),
        }
    }

    /// How long a drain may take when the command does not say, in seconds.
    pub(super) fn drain_timeout_s(&self) -> u64 {
        match self.role {
            Role::Short => 45,
            Role::Long | Role::Still | Role::Extra => 5,
            Role::Datagrams => 4,
        }
    }

    /// The service's block of a configuration file, with all its backends.
    pub(super) fn block(&self) -> String {
        let affinity = if self.role == Role::Still { "affinity = \"source\"\n" } else { "" };
        let mut block = format!(
            "[[service]]\nname = \"{}\"\nvip = \"{}\"\nforward = \"{}\"\ndrain_timeout = {}\n{affinity}",
            self.name,
            self.vip_text(),
            self.forward.word(),
            self.drain_timeout_s()
        );
        for index in 0..BACKENDS {
            let (name, address) = (backend_name(index), Plan::backend(self.family, index));
            // Writing to a String cannot fail.
            let _ = writeln!(block, "[[service.backend]]\nname = \"{name}\"\naddress = \"{address}\"");
        }
        block
    }
}
