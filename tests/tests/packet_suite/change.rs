//! Changes of the maps, as the daemon or time would make them.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::Result;
use bytemuck::Zeroable as _;
use lb_common::{
    addr::Addr,
    backend::{BackendState, backend_flag},
    flow::{FlowEntry, Life, Meta, flow_flag},
    hash,
    ring::{self, RingSlot},
    service::{VipEntry, service_flag, vip_kind},
};

use ebb_tests::{
    lab::Family,
    rig::{Cell, Protocol, now_ns, now_ticks, seconds, server_id_entry},
};

use crate::{
    fixture::{B, B0, B1, B2, B3, Change},
    judge::{Judge, SERVICE},
};

/// Slots of the service's ring.
const RING: usize = 4099;
/// A client that no frame comes from.
pub const FILLER: Addr = Addr { halves: [u64::MAX; 2] };

fn slot(owner: Option<B>, previous: Option<B>) -> RingSlot {
    let word = |backend: Option<B>| backend.map_or(0, |b| b.slot() + 1);
    RingSlot { owner: word(owner), previous: word(previous) }
}

impl Judge<'_> {
    pub fn change(&mut self, change: Change) -> Result<()> {
        let set = |b: B, change: &dyn Fn(&mut lb_common::backend::Backend)| self.rig.backends.change(b.slot(), change);
        match change {
            Change::Drain(b, to, seconds) => {
                let deadline = now_ns().saturating_add_signed(seconds * 1_000_000_000);
                set(b, &|row| (row.state, row.deadline_ns) = (BackendState::Draining as u8, deadline));
                self.ring(Some(to), Some(b))?;
            }
            Change::DrainForever(b, to) => {
                set(b, &|row| row.state = BackendState::Draining as u8);
                self.ring(Some(to), Some(b))?;
            }
            Change::State(b, state) => set(b, &|row| row.state = state as u8),
            Change::Ring(owner, previous) => self.ring(owner, previous)?,
            Change::NoRing => self.rig.services.change(SERVICE.into(), |row| row.ring = 0),
            Change::Replace(b) => set(b, &|row| {
                row.generation += 1;
                row.state = BackendState::Active as u8;
            }),
            Change::Remove(b) => set(b, &|row| row.state = BackendState::Free as u8),
            Change::Unresolved(b) => set(b, &|row| {
                row.flags &= !backend_flag::RESOLVED;
                row.ifindex = 0;
            }),
            Change::LostNextHop(b) => set(b, &|row| row.flags &= !backend_flag::RESOLVED),
            Change::Silent(b) => set(b, &|row| row.flags |= backend_flag::SILENT),
            Change::ServiceSilent => self.service_flag(service_flag::SILENT),
            Change::PerDatagram => self.service_flag(service_flag::PER_DATAGRAM),
            Change::Pass(s) => self.each_flow(|meta| {
                Meta::new(meta.version(), meta.flags(), Life::Linked, meta.last_seen().wrapping_sub(seconds(s)))
            }),
            Change::Cut => self.each_flow(|meta| meta.with(flow_flag::CUT, 0, meta.last_seen())),
            Change::Forget => {
                self.rig.flows.clear();
                self.replied.clear();
            }
            Change::Address(flags) => self.rig.put_vip(VipEntry {
                addr: self.cell.vip().ip().into(),
                port: 0,
                protocol: 0,
                kind: vip_kind::ADDRESS,
                target: flags,
                pad: [0; 2],
            })?,
            Change::Neighbours => self.neighbours()?,
            Change::OtherFamily(b) => {
                let family = if self.cell.family == Family::V4 { Family::V6 } else { Family::V4 };
                let addr = Cell { family, ..self.cell }.backend(b.0).into();
                set(b, &|row| row.addr = addr);
            }
            Change::Strange(b) => set(b, &|row| row.service += 1),
            Change::Mtu(b, mtu) => set(b, &|row| row.mtu = mtu),
            Change::Fill => self.fill(),
            Change::Affinity(prefix, b) => self.affinity(prefix, b)?,
            Change::OtherHalf(b) => self.rig.put_ring(SERVICE, 1, &vec![slot(Some(b), None); RING])?,
            Change::QuicCid(len, rotation) => self.quic_cid(len, rotation)?,
            Change::Share => self.share()?,
        }
        Ok(())
    }

    fn neighbours(&self) -> Result<()> {
        let sought = VipEntry { port: 81_u16.to_be(), ..self.cell.vip_entry(SERVICE) };
        let [low, high] = sought.addr.halves;
        let other = if self.cell.protocol == Protocol::Tcp { Protocol::Udp } else { Protocol::Tcp };
        for entry in [
            VipEntry { protocol: other.number(), ..sought },
            VipEntry { port: 82_u16.to_be(), ..sought },
            VipEntry { addr: Addr { halves: [!low, high] }, ..sought },
            VipEntry { addr: Addr { halves: [low, !high] }, ..sought },
            VipEntry { kind: vip_kind::SERVER_ID, ..sought },
        ] {
            self.rig.put_vip_for(entry, sought)?;
        }
        Ok(())
    }

    fn quic_cid(&self, len: u8, rotation: u8) -> Result<()> {
        self.rig.services.change(SERVICE.into(), |row| (row.server_id_len, row.cid_rotation) = (len, rotation));
        [B0, B1, B2].into_iter().try_for_each(|b| {
            let id = b.server_id(len);
            self.rig.put_vip(server_id_entry(SERVICE, &id, b.slot()))
        })
    }

    fn service_flag(&self, flag: u8) {
        self.rig.services.change(SERVICE.into(), |row| row.flags |= flag);
    }

    fn each_flow(&self, change: impl Fn(Meta) -> Meta) {
        for row in 0..self.rig.flows.rows() {
            let meta = Meta(self.rig.flows.get(row).meta);
            if meta.life() == Life::Linked {
                self.rig.flows.change(row, |entry| entry.meta = change(meta).0);
            }
        }
    }

    /// Every slot of the ring.
    pub fn ring(&mut self, owner: Option<B>, previous: Option<B>) -> Result<()> {
        self.rig.put_ring(SERVICE, 0, &vec![slot(owner, previous); RING])
    }

    /// Makes every free entry of the flow table an established flow of nobody's.
    fn fill(&self) {
        for row in 0..self.rig.flows.rows() {
            if Meta(self.rig.flows.get(row).meta).life() == Life::Free {
                self.rig.flows.change(row, |entry| {
                    let hop = entry.hop;
                    *entry = FlowEntry {
                        hop,
                        client: FILLER,
                        port_service: u32::from(SERVICE) << 16,
                        ..FlowEntry::zeroed()
                    };
                    entry.meta = Meta::new(0, flow_flag::ESTABLISHED, Life::Linked, now_ticks()).0;
                });
            }
        }
    }

    /// Steers by `prefix` bits of the client's address; the slot of the usual client's neighbourhood is `backend`'s, all
    /// others are the first one's. The steering hash is a contract between nodes, so the suite may ask it.
    fn affinity(&mut self, prefix: u8, backend: B) -> Result<()> {
        self.rig.services.change(SERVICE.into(), |row| {
            row.flags |= service_flag::AFFINITY;
            row.affinity_prefix = prefix;
        });
        let client = u128::from_be_bytes(Addr::from(self.cell.client().ip()).octets());
        let masked = client & (u128::MAX << (128 - u32::from(prefix)));
        let vip = Addr::from(self.cell.vip().ip());
        let hash =
            hash::steering(&Addr::from(IpAddr::from(Ipv6Addr::from(masked))), &vip, 0, self.cell.protocol.number());
        let mut slots = vec![slot(Some(B0), None); RING];
        slots[ring::slot_of(hash, RING as u32) as usize] = slot(Some(backend), None);
        self.rig.put_ring(SERVICE, 0, &slots)
    }

    /// A second service on another port of the VIP, whose backends are reached at the first one's endpoints.
    fn share(&mut self) -> Result<()> {
        let second = SERVICE + 1;
        let port = 81_u16.to_be();
        self.rig.put_vip(VipEntry { port, ..self.cell.vip_entry(second) })?;
        self.rig.services.set(second.into(), lb_common::service::Service { port, ..self.cell.service_row() });
        let row = self.rig.backends.get(B0.slot());
        self.rig.backends.set(B3.slot(), lb_common::backend::Backend { service: second, ..row });
        self.rig.put_vip(VipEntry {
            addr: row.addr,
            port: row.port,
            protocol: self.cell.protocol.number(),
            kind: vip_kind::NAT_SOURCE,
            target: second.into(),
            pad: [0; 2],
        })?;
        self.rig.put_ring(second, 0, &vec![slot(Some(B3), None); RING])
    }
}
