//! The program of `ebb decap`: on one interface, for as long as this process lives.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::Ebpf;

use super::{
    InterfaceInfo,
    attach::{self, Mode},
    error::{OpenError, While as _},
    maps::Sizes,
    program,
};
use crate::net::links;

/// Takes packets out of their tunnel on a backend. Nothing is pinned: the program goes with this, however the process ends.
#[derive(Debug)]
pub struct Decap {
    info: InterfaceInfo,
    _link: OwnedFd,
    _program: Ebpf,
}

impl Decap {
    /// Loads the program and attaches it.
    pub fn start(interface: &str, mode: Mode) -> Result<Self, OpenError> {
        let known = links::list().opening(|| "cannot list the interfaces".into())?;
        let link = attach::find(&known, interface)?;
        if let Some((_, program)) = link.xdp {
            return Err(OpenError::Occupied { interface: interface.to_owned(), program });
        }
        let cpus = aya::util::nr_cpus()
            .map_err(|(_, source)| OpenError::Refused { action: "cannot count the CPUs".into(), source })?;
        // The balancer's maps are in the same object. Here they are never looked into, but for the counters.
        let sizes = Sizes {
            flow_slots: 1,
            backends: 1,
            services: 1,
            tallies: false,
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        };
        let (program, ebpf) = program::load_alone(program::DECAPSULATOR, &sizes)?;
        let (xdp, fd) = attach::attach(program.as_fd(), link, mode)?;
        let info = InterfaceInfo { name: link.name.clone(), ifindex: link.index, mode: xdp.name().to_owned() };
        Ok(Self { info, _link: fd, _program: ebpf })
    }

    /// Where it is attached.
    pub fn interface(&self) -> &InterfaceInfo {
        &self.info
    }
}
