//! The daemon's readers, on maps with any contents.

use std::{
    fs::File,
    io::Write as _,
    num::NonZeroU16,
    os::fd::{FromRawFd as _, OwnedFd},
};

use lb_common::{
    backend::{Backend, BackendStats},
    control::{Control, PeerRow},
    flow::{FlowEntry, flow_flag},
    map_name,
    outcome::Outcome,
    ring::Published,
    service::{Service, VipEntry},
};

use super::{
    ebpf::adopted_backends,
    flows::{Scan, Tally, Tap},
    maps::{Maps, OUTCOME_STRIDE},
    ops,
    reset::Resets,
    rows,
};

/// Rows of the maps, and their length; the flow table has one behind its entries.
const MAPS: [(&str, u32, usize); 8] = [
    (map_name::CONTROL, 1, size_of::<Control>()),
    (map_name::FLOWS, FLOW_SLOTS + 1, size_of::<FlowEntry>()),
    (map_name::BACKENDS, BACKENDS, size_of::<Backend>()),
    (map_name::SERVICES, 4, size_of::<Service>()),
    (map_name::VIPS, 2 * VIPS, size_of::<VipEntry>()),
    (map_name::PEERS, 4, size_of::<PeerRow>()),
    (map_name::STATS, CPUS * BACKENDS, size_of::<BackendStats>()),
    (map_name::OUTCOMES, CPUS * OUTCOME_STRIDE, size_of::<u64>()),
];
const FLOW_SLOTS: u32 = 48;
const BACKENDS: u32 = 4;
const VIPS: u32 = 16;
const CPUS: u32 = 2;
/// Far enough from the beginning that times may lie before it.
const NOW_NS: u64 = 1 << 50;

/// Fills the maps from the input, as far as it goes, and has the daemon read all that it reads of them: nothing panics, nothing
/// is found out of range, and what is said twice is the same. Settings that are not of these maps are refused; to get further
/// the input's first byte mends them.
pub(crate) fn mapped(data: &[u8]) {
    let Some((&mend, mut rest)) = data.split_first() else { return };
    let mut contents: Vec<Vec<u8>> = Vec::new();
    for (_, rows, row) in MAPS {
        let (taken, left) = rest.split_at((rows as usize * row).min(rest.len()));
        let mut bytes = taken.to_vec();
        bytes.resize(rows as usize * row, 0);
        contents.push(bytes);
        rest = left;
    }
    if mend & 1 == 1 {
        let mut control: Control = bytemuck::pod_read_unaligned(&contents[0]);
        (control.flow_slots, control.backend_slots) = (FLOW_SLOTS, BACKENDS);
        let base = if mend & 2 != 0 { VIPS } else { 0 };
        control.vips = u64::from(base) << 32 | u64::from(VIPS - 1);
        contents[0] = bytemuck::bytes_of(&control).to_vec();
    }
    let memory = |name: &str| match MAPS.iter().position(|(map, ..)| *map == name) {
        Some(at) => (file_of(&contents[at]), MAPS[at].1),
        None => (file_of(&[0; 8]), 1),
    };
    match Maps::of_memory(memory, CPUS) {
        Err(why) => assert!(mend & 1 == 0 && !why.is_empty(), "{why}"),
        Ok(maps) => read(&maps, mend),
    }
}

/// A file in memory.
fn file_of(bytes: &[u8]) -> OwnedFd {
    // SAFETY: a name that ends with a zero, and no flags.
    let fd = unsafe { libc::memfd_create(c"map".as_ptr(), 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: just opened, and nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    File::from(fd.try_clone().expect("a descriptor")).write_all(bytes).expect("room");
    fd
}

fn read(maps: &Maps, mend: u8) {
    let adopted = adopted_backends(maps);
    assert!(adopted.iter().all(|row| row.slot.0 < BACKENDS));
    let highest = adopted.last().map_or(0, |row| row.slot.0);
    for slot in 0..maps.services.rows() {
        let row = maps.services.read(slot).expect("a row");
        let _ = (rows::vip(&row), Published::unpack(row.ring).map(|ring| ring.map_index(slot as u16)));
    }
    for slot in 0..=highest {
        let _ = maps.stats_of(slot);
    }
    for outcome in 0..Outcome::ALL.len() as u32 {
        let _ = maps.outcome(outcome);
    }
    let facts = ops::facts(maps, highest);
    let tap = Tap::new(NonZeroU16::MIN);
    let scan = Scan { table: maps.flow_table(), facts: &facts, now_ns: NOW_NS, log: Some(&tap) };
    let listed = scan.list(usize::MAX, |_| true);
    assert!(listed.len() <= FLOW_SLOTS as usize);
    for (meta, flow, phase) in &listed {
        let _ = ops::record(*meta, flow, *phase, NOW_NS);
    }
    scan.open_ages(u16::from(mend >> 6), |_| ());
    if mend & 4 != 0 {
        let backend = u32::from(mend >> 3 & 3);
        let row = maps.backends.read(backend).expect("a row");
        let cut =
            scan.mark_cut(backend, row.generation, flow_flag::CUT, |share, _| row.flow_deadline_ns(share) <= NOW_NS);
        let flows: Vec<_> = cut.marked.iter().filter_map(|&index| scan.flow(index)).collect();
        let (frames, unknown) = Resets::frames(maps, &row, row.generation, &flows);
        assert!(frames.len() <= flows.len() * 3 && unknown as usize <= flows.len());
    }
    let sweep = || {
        let (mut tallies, mut ended) = (vec![Tally::default(); highest as usize + 1], Vec::new());
        scan.sweep(&mut tallies, &mut ended);
        (ops::report(maps, NOW_NS, &tallies), ended)
    };
    let (first, ended) = sweep();
    assert!(first.totals.live <= FLOW_SLOTS.into() && ended.len() <= FLOW_SLOTS as usize);
    // Nothing has changed but what the first sweep took out, which was not counted.
    let (second, _) = sweep();
    assert_eq!((first.totals.live, first.backends), (second.totals.live, second.backends));
    for row in &adopted {
        scan.purge(row.slot.0, row.generation);
    }
    let (last, _) = sweep();
    assert_eq!(last.totals.live, 0, "every backend's flows were purged");
    for kept in tap.empty().0 {
        let _ = ops::logged(&kept, NOW_NS);
    }
}
