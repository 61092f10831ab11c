//! From the daemon's words to rows of the maps.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytemuck::Zeroable as _;
use lb_common::{
    addr::Addr,
    backend::{self, Backend, NO_DEADLINE, backend_flag},
    service::{Service, forward, service_flag},
    time,
    vlan::Tag,
};

use super::{BackendConfig, BackendState, CutPolicy, DatapathError, Forward, NextHop, ServiceConfig, vips};

/// Bits before an IPv4 address in its mapped form.
const MAPPED_PREFIX: u8 = 96;

/// A service's row; `ring` is what its present row says of its ring.
pub(crate) fn service(config: &ServiceConfig, ring: u32) -> Result<Service, DatapathError> {
    let mut flags = 0;
    if config.per_datagram {
        flags |= service_flag::PER_DATAGRAM;
    }
    if config.on_drain_timeout == CutPolicy::Silent {
        flags |= service_flag::SILENT;
    }
    let mut affinity_prefix = 0;
    if let Some(prefix) = config.affinity {
        flags |= service_flag::AFFINITY;
        affinity_prefix = mapped_prefix(config.vip.ip(), prefix)?;
    }
    let cid = config.quic_cid.map_or((0, 0), |cid| (cid.server_id_len, cid.rotation));
    Ok(Service {
        vip: Addr::from(config.vip.ip()),
        port: config.vip.port().to_be(),
        protocol: vips::number(config.protocol),
        forward: match config.forward {
            Forward::Dsr => forward::DSR,
            Forward::Nat => forward::NAT,
            Forward::Tunnel => forward::TUNNEL,
        },
        flags,
        affinity_prefix,
        server_id_len: cid.0,
        cid_rotation: cid.1,
        ring,
        idle_ticks: ticks(config.idle_timeout),
        fin_quiet_ticks: ticks(config.fin_quiet),
        ..Service::zeroed()
    })
}

fn mapped_prefix(vip: IpAddr, prefix: u8) -> Result<u8, DatapathError> {
    let (longest, before) = if vip.is_ipv4() { (32, MAPPED_PREFIX) } else { (128, 0) };
    if prefix > longest {
        return Err(DatapathError::Unsupported(format!(
            "an affinity prefix of {prefix} bits is longer than an address: at most {longest}"
        )));
    }
    Ok(before + prefix)
}

fn ticks(duration: Duration) -> u32 {
    time::duration_ticks(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

/// The VIP in a service's row.
pub(crate) fn vip(service: &Service) -> SocketAddr {
    SocketAddr::new(service.vip.into(), u16::from_be(service.port))
}

/// A backend's row.
pub(crate) fn backend(config: &BackendConfig) -> Backend {
    let mut row = Backend {
        generation: config.generation,
        state: state(config.state) as u8,
        flags: policy_flag(config.on_timeout),
        service: config.service.0,
        deadline_ns: config.deadline_ns.unwrap_or(NO_DEADLINE),
        addr: Addr::from(config.address),
        port: config.port.to_be(),
        cut_window_ms: u32::try_from(config.cut_window.as_millis()).unwrap_or(u32::MAX),
        ..Backend::zeroed()
    };
    if let Some(next_hop) = &config.next_hop {
        set_next_hop(&mut row, next_hop);
    }
    row
}

/// Puts a next hop into a backend's row.
pub(crate) fn set_next_hop(row: &mut Backend, next_hop: &NextHop) {
    row.ifindex = next_hop.ifindex;
    row.dst_mac = next_hop.dst_mac;
    row.src_mac = next_hop.src_mac;
    row.mtu = next_hop.mtu;
    row.tag = Tag::of(next_hop.vlan).0;
    row.tunnel_source = next_hop.source.map_or(Addr::zeroed(), Addr::from);
    row.flags |= backend_flag::RESOLVED;
}

/// Puts a state into a backend's row.
pub(crate) fn set_state(row: &mut Backend, to: BackendState, deadline_ns: Option<u64>, on_timeout: CutPolicy) {
    row.state = state(to) as u8;
    row.flags = (row.flags & !backend_flag::SILENT) | policy_flag(on_timeout);
    row.deadline_ns = deadline_ns.unwrap_or(NO_DEADLINE);
}

fn policy_flag(policy: CutPolicy) -> u8 {
    match policy {
        CutPolicy::Reset => 0,
        CutPolicy::Silent => backend_flag::SILENT,
    }
}

/// The state's word in the maps.
pub(crate) fn state(state: BackendState) -> backend::BackendState {
    match state {
        BackendState::Free => backend::BackendState::Free,
        BackendState::Initial => backend::BackendState::Initial,
        BackendState::Active => backend::BackendState::Active,
        BackendState::Draining => backend::BackendState::Draining,
        BackendState::Drained => backend::BackendState::Drained,
        BackendState::Unhealthy => backend::BackendState::Unhealthy,
        BackendState::UnhealthyDraining => backend::BackendState::UnhealthyDraining,
    }
}

/// The state in a row; a number that no build writes counts as free.
pub(crate) fn state_of(row: &Backend) -> BackendState {
    match backend::BackendState::from_u8(row.state) {
        None | Some(backend::BackendState::Free) => BackendState::Free,
        Some(backend::BackendState::Initial) => BackendState::Initial,
        Some(backend::BackendState::Active) => BackendState::Active,
        Some(backend::BackendState::Draining) => BackendState::Draining,
        Some(backend::BackendState::Drained) => BackendState::Drained,
        Some(backend::BackendState::Unhealthy) => BackendState::Unhealthy,
        Some(backend::BackendState::UnhealthyDraining) => BackendState::UnhealthyDraining,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::ServiceSlot;

    fn config() -> ServiceConfig {
        ServiceConfig {
            on_drain_timeout: CutPolicy::Silent,
            affinity: Some(24),
            quic_cid: Some(crate::datapath::CidFormat { server_id_len: 4, rotation: 3 }),
            ..ServiceConfig::tcp("10.0.0.100:80".parse().unwrap(), Forward::Nat)
        }
    }

    #[test]
    fn a_service_keeps_its_ring_and_its_prefix_counts_from_the_mapped_form() {
        let row = service(&config(), 77).unwrap();
        assert_eq!((row.ring, row.affinity_prefix, row.forward), (77, 120, forward::NAT));
        assert_eq!((row.server_id_len, row.cid_rotation), (4, 3));
        assert_eq!(row.flags, service_flag::AFFINITY | service_flag::SILENT);
        assert_eq!(vip(&row), config().vip);
        assert_eq!(row.idle_ticks, 333_787);
        let too_long = ServiceConfig { affinity: Some(33), ..config() };
        assert!(matches!(service(&too_long, 0), Err(DatapathError::Unsupported(_))));
    }

    #[test]
    fn a_backend_is_resolved_by_its_next_hop_and_keeps_it() {
        let config = BackendConfig {
            service: ServiceSlot(4),
            address: "10.0.0.11".parse().unwrap(),
            port: 8080,
            generation: 9,
            state: BackendState::Initial,
            deadline_ns: None,
            on_timeout: CutPolicy::Reset,
            cut_window: Duration::from_secs(2),
            next_hop: None,
            server_id: None,
        };
        let mut row = backend(&config);
        assert_eq!((row.flags, row.deadline_ns, row.cut_window_ms), (0, NO_DEADLINE, 2_000));
        assert_eq!(row.port.to_ne_bytes(), 8080u16.to_be_bytes());
        let hop = NextHop {
            ifindex: 3,
            dst_mac: [2, 0, 0, 0, 0, 1],
            src_mac: [2, 0, 0, 0, 0, 2],
            mtu: 1500,
            source: None,
            vlan: None,
        };
        set_next_hop(&mut row, &hop);
        set_state(&mut row, BackendState::Draining, Some(5), CutPolicy::Silent);
        assert_eq!(row.flags, backend_flag::RESOLVED | backend_flag::SILENT);
        assert_eq!((state_of(&row), row.deadline_ns, row.dst_mac), (BackendState::Draining, 5, hop.dst_mac));
        set_state(&mut row, BackendState::Active, None, CutPolicy::Reset);
        assert_eq!((row.flags, row.deadline_ns), (backend_flag::RESOLVED, NO_DEADLINE));
    }
}
