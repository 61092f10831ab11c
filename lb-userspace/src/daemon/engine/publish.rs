//! Brings the datapath to where the control core is.

use std::collections::BTreeSet;

use super::Engine;
use crate::{
    control::{
        ring::Changes,
        slots::REST_NS,
        state::{balancer::Work, service::Service},
    },
    datapath::{BackendConfig, BackendSlot, BackendState, Datapath, DatapathError, Named, ServiceConfig, ServiceSlot},
};

/// So many freed rows' flows are cleared between two looks: each walks the whole table.
const PURGES_AT_ONCE: usize = 4;

/// Which deadlines rows are written with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Deadlines {
    /// Those of the drains.
    Wanted,
    /// Those that are there.
    Kept,
}

impl Engine {
    /// Writes what has changed: rows, then rings, then VIPs; then waits packets in flight out if somebody has left the
    /// rotation. After a failure everything that was to be written is to be written again.
    pub(super) fn publish(&mut self) -> Result<(), DatapathError> {
        let dirty = self.balancer.take_dirty();
        self.publish_services(dirty, Deadlines::Wanted)
    }

    /// The same with the deadlines that the rows have had; the others are left for the next [`Engine::publish`].
    pub(super) fn publish_without_deadlines(&mut self) -> Result<(), DatapathError> {
        let dirty = self.balancer.take_dirty();
        for slot in &dirty {
            self.balancer.touch(*slot);
        }
        self.publish_services(dirty, Deadlines::Kept)
    }

    fn publish_services(
        &mut self,
        mut services: BTreeSet<ServiceSlot>,
        deadlines: Deadlines,
    ) -> Result<(), DatapathError> {
        while let Some(slot) = services.pop_first() {
            if let Err(error) = self.publish_service(slot, deadlines) {
                for slot in services.into_iter().chain([slot]) {
                    self.balancer.touch(slot);
                }
                if let Some(service) = self.balancer.by_slot(slot) {
                    service.ring.mark_all_changed();
                }
                return Err(error);
            }
        }
        if self.written.vips_stale || self.own_vips() != self.written.own {
            self.publish_vips()?;
        }
        self.seal()
    }

    fn publish_service(&mut self, slot: ServiceSlot, deadlines: Deadlines) -> Result<(), DatapathError> {
        let Some(service) = self.balancer.services.iter_mut().find(|service| service.slot == slot) else {
            return Ok(());
        };
        let config = service.config();
        if self.written.services.get(&slot) != Some(&config) {
            self.datapath.put_service(slot, &config)?;
            self.written.services.insert(slot, config);
            self.written.vips_stale = true;
        }
        for entry in &service.backends {
            let mut wanted = service.backend_config(entry);
            let written = self.written.backends.get(&entry.slot);
            if deadlines == Deadlines::Kept {
                let draining =
                    written.filter(|row| matches!(row.state, BackendState::Draining | BackendState::UnhealthyDraining));
                wanted.deadline_ns = draining.and_then(|written| written.deadline_ns);
            }
            if written == Some(&wanted) {
                continue;
            }
            write_row(self.datapath.as_mut(), entry.slot, written, &wanted)?;
            let newcomer = written.is_none_or(|written| written.generation != wanted.generation);
            self.written.vips_stale |= newcomer && service.nat_endpoints().next().is_some();
            self.written.vips_stale |= written.and_then(|written| written.server_id) != wanted.server_id;
            self.written.backends.insert(entry.slot, wanted);
        }
        publish_ring(self.datapath.as_mut(), service)
    }

    fn publish_vips(&mut self) -> Result<(), DatapathError> {
        let configs: Vec<(ServiceSlot, ServiceConfig)> =
            self.balancer.services.iter().map(|service| (service.slot, service.config())).collect();
        let services: Vec<(ServiceSlot, &ServiceConfig)> =
            configs.iter().map(|(slot, config)| (*slot, config)).collect();
        let named = Named {
            nat: self.balancer.services.iter().flat_map(Service::nat_endpoints).collect(),
            ids: self.balancer.services.iter().flat_map(Service::server_ids).collect(),
        };
        let own = self.own_vips();
        self.datapath.publish_vips(&services, &own, &named)?;
        self.written.own = own;
        self.written.vips_stale = false;
        self.announce_new();
        Ok(())
    }

    /// Drains that began are sealed: their backends get no new flow any more, and what was on its way has arrived.
    fn seal(&mut self) -> Result<(), DatapathError> {
        let entries = self.balancer.services.iter().flat_map(|service| &service.backends);
        let unsealed: BTreeSet<BackendSlot> = entries
            .filter(|entry| entry.machine.drain.as_ref().is_some_and(|drain| drain.sealed_ns.is_none()))
            .map(|entry| entry.slot)
            .collect();
        if unsealed.is_empty() {
            return Ok(());
        }
        self.datapath.grace()?;
        let now = self.now();
        self.balancer.sealed(&unsealed, now);
        Ok(())
    }

    /// Frees what nothing published names any more.
    pub(super) fn retire(&mut self) -> Result<(), DatapathError> {
        if self.retiring.is_empty() {
            return Ok(());
        }
        // The slot's next holder starts counting where this one has stopped.
        self.count();
        self.publish_vips()?;
        self.datapath.grace()?;
        // Rings go before the rows that they name.
        self.retiring.sort_by_key(|work| !matches!(work, Work::Clear(_)));
        while let Some(work) = self.retiring.first().cloned() {
            match work {
                Work::Retire(slot, generation) => {
                    self.free_row(slot, generation)?;
                    self.purges.push_back((self.clock.mono_ns() + REST_NS, slot, generation));
                }
                Work::Clear(slot) => {
                    self.datapath.clear_service(slot)?;
                    self.written.services.remove(&slot);
                }
                Work::Cut(..) | Work::CutIdle(..) => {}
            }
            self.retiring.remove(0);
        }
        Ok(())
    }

    fn free_row(&mut self, slot: BackendSlot, generation: u32) -> Result<(), DatapathError> {
        let Some(written) = self.written.backends.get(&slot).filter(|written| written.generation == generation) else {
            return Ok(());
        };
        let free = BackendConfig { state: BackendState::Free, deadline_ns: None, next_hop: None, ..written.clone() };
        self.datapath.put_backend(slot, &free)?;
        self.written.backends.remove(&slot);
        Ok(())
    }

    /// Clears the entries of freed rows that have rested. Until then they answer late segments of cut flows.
    pub(super) fn purge_rested(&mut self) {
        let now_ns = self.clock.mono_ns();
        let due = self.purges.iter().take_while(|(at_ns, _, _)| *at_ns <= now_ns).count();
        for (_, slot, generation) in self.purges.drain(..due.min(PURGES_AT_ONCE)).collect::<Vec<_>>() {
            if let Err(error) = self.datapath.purge(slot, generation) {
                // A generation that is retired is not forwarded anyhow, and looks reclaim its entries as they age.
                tracing::warn!("cannot clear the flows of a deleted backend: {error}");
            }
        }
    }
}

/// Writes what differs of a row, in place where that will do.
fn write_row(
    datapath: &mut dyn Datapath,
    slot: BackendSlot,
    written: Option<&BackendConfig>,
    wanted: &BackendConfig,
) -> Result<(), DatapathError> {
    let Some(written) = written else {
        return datapath.put_backend(slot, wanted);
    };
    let in_place = BackendConfig {
        state: wanted.state,
        deadline_ns: wanted.deadline_ns,
        on_timeout: wanted.on_timeout,
        next_hop: wanted.next_hop,
        // It is no part of the row.
        server_id: wanted.server_id,
        ..written.clone()
    };
    if in_place != *wanted {
        return datapath.put_backend(slot, wanted);
    }
    if written.next_hop != wanted.next_hop {
        match &wanted.next_hop {
            Some(next_hop) => datapath.set_next_hop(slot, next_hop)?,
            None => return datapath.put_backend(slot, wanted),
        }
    }
    let state = |config: &BackendConfig| (config.state, config.deadline_ns, config.on_timeout);
    if state(written) == state(wanted) {
        return Ok(());
    }
    datapath.set_backend_state(slot, wanted.state, wanted.deadline_ns, wanted.on_timeout)
}

fn publish_ring(datapath: &mut dyn Datapath, service: &mut Service) -> Result<(), DatapathError> {
    match service.ring.take_changes() {
        Changes::None => Ok(()),
        Changes::Slots(changes) => datapath.set_ring_slots(service.slot, &changes),
        Changes::All(ring) => datapath.put_ring(service.slot, &ring),
    }
}
