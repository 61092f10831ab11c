//! Starting: what was kept on disk meets what is found in the datapath.

use super::{Engine, StartError};
use crate::{
    control::state::{balancer::Work, service::Entry},
    datapath::{Adopted, BackendConfig, BackendSlot, BackendState, CutPolicy, ServiceSlot},
};

impl Engine {
    /// Restores the state and brings the datapath to it; whether there was one.
    pub(super) fn adopt(&mut self) -> Result<bool, StartError> {
        let now = self.now();
        let restored = self.store.read(&self.clock.boot_id(), now)?;
        let found = restored.is_some();
        let adopted = self.datapath.adopted()?;
        if let Some(restored) = restored {
            self.balancer = restored.balancer;
            if !adopted.flow_table_kept {
                self.balancer.lose_flow_state("the flow table did not survive: counts of none prove nothing yet", now);
            }
            for entry in self.balancer.services.iter_mut().flat_map(|service| &mut service.backends) {
                if !adopted.rows_kept {
                    entry.carry_over();
                }
                if let Some(next_hop) = entry.next_hop {
                    self.known_hops.insert(entry.spec.address.ip, Some(next_hop));
                }
            }
        }
        self.reconcile_rows(&adopted);
        self.keep_activations(&adopted);
        self.count();
        for service in &mut self.balancer.services {
            service.settle(now);
            service.ring.mark_all_changed();
        }
        self.balancer.touch_all();
        self.balancer.announce_start(now);
        self.cycle(true)?;
        Ok(found)
    }

    /// Rows found must be ours, or are freed; generations found are never used again for somebody else.
    fn reconcile_rows(&mut self, adopted: &Adopted) {
        for row in &adopted.backends {
            let newer = self.balancer.backend_slots.observe(row.slot.0, row.generation);
            let entries = self.balancer.services.iter_mut().flat_map(|service| &mut service.backends);
            let holder = entries.into_iter().find(|entry| entry.slot == row.slot);
            match holder {
                // The row has had another holder since the state was written: this one must not inherit its flows.
                Some(entry) if newer => {
                    entry.generation = self.balancer.backend_slots.renew(row.slot.0);
                }
                None if row.state != BackendState::Free => self.strike(row.slot, row.generation),
                _ => {}
            }
        }
        if !self.retiring.is_empty() {
            self.clear_unknown_services();
        }
    }

    /// A row that takes new flows, of a backend that is out by the state on disk: it was activated, and the daemon killed before that
    /// was written. Taken back, the activation would cut what has come since.
    fn keep_activations(&mut self, adopted: &Adopted) {
        let now = self.now();
        for row in adopted.backends.iter().filter(|row| row.state == BackendState::Active) {
            let found = self.balancer.services.iter().find_map(|service| {
                let held = |entry: &&Entry| entry.slot == row.slot && entry.generation == row.generation;
                let entry = service.backends.iter().find(held).filter(|entry| entry.is_out())?;
                Some((service.spec.name.clone(), entry.spec.name.clone()))
            });
            let Some((service, backend)) = found else { continue };
            // One that leaves with its service cannot be kept.
            if self.balancer.activate(&service, &backend, now).is_ok() {
                tracing::warn!("{service}/{backend} was activated when the daemon was killed: it is active");
            }
        }
    }

    /// Backends that nobody knows had services that nobody knows.
    fn clear_unknown_services(&mut self) {
        for slot in (0..self.datapath.limits().services).map(ServiceSlot) {
            if self.balancer.by_slot(slot).is_none() {
                self.retiring.push(Work::Clear(slot));
            }
        }
    }

    /// Has a row freed that nobody here knows.
    fn strike(&mut self, slot: BackendSlot, generation: u32) {
        tracing::warn!(
            "a backend found in the datapath is not in the state on disk: it is taken out, and its connections end at their next packet"
        );
        let unknown = BackendConfig {
            service: ServiceSlot(0),
            address: std::net::Ipv4Addr::UNSPECIFIED.into(),
            port: 0,
            generation,
            state: BackendState::Free,
            deadline_ns: None,
            on_timeout: CutPolicy::Reset,
            cut_window: std::time::Duration::ZERO,
            next_hop: None,
            server_id: None,
        };
        self.written.backends.insert(slot, unknown);
        self.retiring.push(Work::Retire(slot, generation));
    }
}
