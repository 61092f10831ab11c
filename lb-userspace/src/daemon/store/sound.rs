//! Whether a state that was read is one that a daemon leaves behind. A file that was cut, mended by hand or put together from two
//! is refused as a whole: on half of it a daemon would give one row to two backends.

use std::collections::HashSet;

use super::{Saved, SavedService};
use crate::control::validate;

/// What is wrong with it, if something is.
pub(super) fn check(saved: &Saved) -> Result<(), String> {
    let (mut names, mut vips) = (HashSet::new(), HashSet::new());
    // Each is taken once.
    let (mut rows, mut backend_rows) = (saved.service_slots.held(), saved.backend_slots.held());
    for service in &saved.services {
        let name = &service.spec.name;
        validate::service(&service.spec).map_err(|error| error.to_string())?;
        if !names.insert(name) {
            return Err(format!("service {name} stands in it twice"));
        }
        if !vips.insert(service.spec.vip) {
            return Err(format!("service {name} has the VIP of another one"));
        }
        let row = u32::from(service.slot.0);
        if !rows.remove(&row) {
            return Err(format!("service {name} has row {row}, which is free or another's"));
        }
        backends(service, &mut backend_rows)?;
    }
    Ok(())
}

fn backends(service: &SavedService, rows: &mut HashSet<u32>) -> Result<(), String> {
    let (mut names, mut addresses) = (HashSet::new(), HashSet::new());
    for entry in &service.backends {
        validate::backend(&service.spec, &entry.spec).map_err(|error| error.to_string())?;
        let name = format!("{}/{}", service.spec.name, entry.spec.name);
        if !names.insert(&entry.spec.name) {
            return Err(format!("backend {name} stands in it twice"));
        }
        if !addresses.insert(entry.spec.address.endpoint(service.spec.vip)) {
            return Err(format!("backend {name} has the address of another one"));
        }
        if !rows.remove(&entry.slot.0) {
            return Err(format!("backend {name} has row {}, which is free or another's", entry.slot.0));
        }
    }
    Ok(())
}
