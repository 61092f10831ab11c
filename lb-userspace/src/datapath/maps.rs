//! The pinned maps as memory.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use bytemuck::{Pod, Zeroable};
use lb_common::{
    backend::{Backend, BackendStats},
    control::{Control, PeerRow},
    flow::FlowEntry,
    flow_table::SET,
    hash::TABLE_KEYS,
    map_name,
    service::{Service, VipEntry},
    tally::FlowTally,
};

use super::{
    error::{OpenError, While as _},
    flows,
    mmap::Mapped,
    pins::Pins,
    ring_store, sys, vips,
};

/// Room in the counters for each CPU, in outcomes.
pub(crate) const OUTCOME_STRIDE: u32 = 64;

const _: () = assert!(lb_common::outcome::UNTOLD < OUTCOME_STRIDE);

/// Rows of the flow table's map behind those of its entries: one, see [`Maps::flows_were_wiped`].
const WATCH_ROWS: u32 = 1;
/// What the watch row says as long as nobody has wiped the map ("ebb flow" in ASCII).
const WATCH: u64 = 0x6562_6220_666c_6f77;

/// How large the maps are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) flow_slots: u32,
    pub(crate) backends: u32,
    pub(crate) services: u32,
    pub(crate) cpus: u32,
    /// Whether each flow's packets are counted.
    pub(crate) tallies: bool,
}

impl Sizes {
    /// Entries of a map; `None` for those whose size the program fixes.
    pub(crate) fn of(&self, name: &str) -> Option<u32> {
        Some(match name {
            map_name::VIPS => 2 * vips::half_size(self.services, self.backends),
            map_name::SERVICES => self.services,
            map_name::BACKENDS => self.backends,
            map_name::RINGS => ring_store::MAPS_PER_SERVICE * self.services,
            map_name::FLOWS => self.flow_slots.checked_add(WATCH_ROWS)?,
            map_name::STATS => self.cpus.checked_mul(self.backends)?,
            map_name::OUTCOMES => self.cpus.checked_mul(OUTCOME_STRIDE)?,
            _ => return None,
        })
    }
}

/// All maps that the daemon reads and writes.
pub(crate) struct Maps {
    pub(crate) control: Mapped<Control>,
    pub(crate) vips: Mapped<VipEntry>,
    pub(crate) services: Mapped<Service>,
    pub(crate) backends: Mapped<Backend>,
    pub(crate) rings: OwnedFd,
    pub(crate) flows: Mapped<FlowEntry>,
    pub(crate) peers: Mapped<PeerRow>,
    pub(crate) stats: Mapped<BackendStats>,
    pub(crate) outcomes: Mapped<u64>,
    /// What each entry's flow has carried, if that is counted.
    tallies: Option<Mapped<FlowTally>>,
    pub(crate) cpus: u32,
    /// What never changes while the table lives.
    settings: Control,
}

impl Maps {
    /// Opens the pinned maps. Those of a `fresh` datapath are given their settings.
    pub(crate) fn open(pins: &Pins, cpus: u32, fresh: bool, counting: bool) -> Result<Self, OpenError> {
        let control = mapped::<Control>(pins, map_name::CONTROL)?;
        let flows = mapped::<FlowEntry>(pins, map_name::FLOWS)?;
        let backends = mapped::<Backend>(pins, map_name::BACKENDS)?;
        if fresh {
            let flow_slots = flows.rows().saturating_sub(WATCH_ROWS);
            let settings = first_settings(flow_slots, backends.rows()).opening(|| "cannot draw secrets".into())?;
            control.write(0, &settings);
        }
        let maps = Self {
            settings: control.read(0).unwrap_or(Control::zeroed()),
            control,
            vips: mapped(pins, map_name::VIPS)?,
            services: mapped(pins, map_name::SERVICES)?,
            backends,
            rings: pins.map(map_name::RINGS)?,
            flows,
            peers: mapped(pins, map_name::PEERS)?,
            stats: mapped(pins, map_name::STATS)?,
            outcomes: mapped(pins, map_name::OUTCOMES)?,
            tallies: if counting { Some(mapped(pins, map_name::TALLIES)?) } else { None },
            cpus,
        };
        maps.check().map_err(|what| OpenError::Layout { path: pins.path().into(), what })?;
        if fresh {
            maps.flows_were_wiped();
        }
        Ok(maps)
    }

    /// Whether the settings are of these maps: whoever reads by others finds flows in the wrong places, and counters of other
    /// rows. What is wrong, if they are not.
    fn check(&self) -> Result<(), String> {
        let Control { flow_slots, backend_slots, vips, .. } = self.settings;
        let (base, size) = ((vips >> 32) as u32, u64::from(vips as u32) + 1);
        let half_rows = self.vips.rows() / 2;
        // A table made by an earlier build has no row for the watch.
        let fits_flows = [WATCH_ROWS, 0].iter().any(|watch| flow_slots.checked_add(*watch) == Some(self.flows.rows()));
        let wrong = if !fits_flows || flow_slots == 0 || !flow_slots.is_multiple_of(SET) {
            format!("{flow_slots} flow slots in a map of {}", self.flows.rows())
        } else if backend_slots != self.backends.rows() {
            format!("{backend_slots} backend slots in a map of {}", self.backends.rows())
        } else if !size.is_power_of_two() || size > u64::from(half_rows) || (base != 0 && base != half_rows) {
            format!("{size} VIP entries from row {base} on, in halves of {half_rows}")
        } else {
            return Ok(());
        };
        Err(format!("{} says {wrong}", map_name::CONTROL))
    }

    /// Maps in memory of any kind, as pinned ones would be opened.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn of_memory(memory: impl Fn(&str) -> (OwnedFd, u32), cpus: u32) -> Result<Self, String> {
        fn view<T: Pod>((fd, rows): (OwnedFd, u32)) -> Mapped<T> {
            Mapped::new(fd.as_fd(), rows).expect("memory that can be mapped")
        }
        let control: Mapped<Control> = view(memory(map_name::CONTROL));
        let maps = Self {
            settings: control.read(0).unwrap_or(Control::zeroed()),
            control,
            vips: view(memory(map_name::VIPS)),
            services: view(memory(map_name::SERVICES)),
            backends: view(memory(map_name::BACKENDS)),
            rings: memory(map_name::RINGS).0,
            flows: view(memory(map_name::FLOWS)),
            peers: view(memory(map_name::PEERS)),
            stats: view(memory(map_name::STATS)),
            outcomes: view(memory(map_name::OUTCOMES)),
            tallies: None,
            cpus,
        };
        maps.check().map(|()| maps)
    }

    /// Whether the flow table lost its entries, by another hand than the daemon's or the packet path's, since this was
    /// asked last. Told by a row behind the last entry, where no packet comes; a table made without one cannot tell.
    pub(crate) fn flows_were_wiped(&self) -> bool {
        let watch = self.flows.row(self.settings.flow_slots).and_then(|row| row.last());
        watch.is_some_and(|watch| watch.swap(WATCH, Ordering::Relaxed) != WATCH)
    }

    /// Entries of the flow table.
    pub(crate) fn flow_slots(&self) -> u32 {
        self.settings.flow_slots
    }

    /// The flow table.
    pub(crate) fn flow_table(&self) -> flows::Table<'_> {
        flows::Table {
            view: flows::View::new(self.flows.words(), self.settings.flow_slots),
            geometry: self.settings.geometry(),
            keys: &self.settings.table_keys,
            tallies: self.tallies.as_ref(),
        }
    }

    /// The word that tells which half of the VIP table is in force.
    pub(crate) fn published_vips(&self) -> Option<&AtomicU64> {
        self.control.row(0)?.get(std::mem::offset_of!(Control, vips) / 8)
    }

    /// Changes settings other than the published half; the daemon is their only writer.
    pub(crate) fn set_control(&self, change: impl FnOnce(&mut Control)) {
        if let Some(mut control) = self.control.read(0) {
            change(&mut control);
            self.control.write(0, &control);
        }
    }

    /// A backend's counters, all CPUs together.
    pub(crate) fn stats_of(&self, backend: u32) -> BackendStats {
        let mut total = BackendStats::default();
        for cpu in 0..self.cpus {
            let Some(one) = self.stats.read(cpu * self.settings.backend_slots + backend) else { continue };
            total.packets = total.packets.wrapping_add(one.packets);
            total.bytes = total.bytes.wrapping_add(one.bytes);
            total.new_flows = total.new_flows.wrapping_add(one.new_flows);
            total.resets = total.resets.wrapping_add(one.resets);
        }
        total
    }

    /// An outcome's counter, all CPUs together.
    pub(crate) fn outcome(&self, number: u32) -> u64 {
        let one = |cpu| self.outcomes.row(cpu * OUTCOME_STRIDE + number);
        (0..self.cpus).filter_map(one).map(|row| row[0].load(Ordering::Relaxed)).fold(0, u64::wrapping_add)
    }
}

fn mapped<T: Pod>(pins: &Pins, name: &str) -> Result<Mapped<T>, OpenError> {
    let map = pins.map(name)?;
    let info = sys::map_info(map.as_fd()).opening(|| format!("cannot look at {}", pins.of(name).display()))?;
    if info.value_size as usize != size_of::<T>() || info.map_flags & sys::MMAPABLE == 0 {
        let what = format!("{name}: rows of {} bytes in place of {}", info.value_size, size_of::<T>());
        return Err(OpenError::Layout { path: pins.path().into(), what });
    }
    let bytes = info.max_entries as usize * size_of::<T>();
    let context = || format!("cannot map {} into memory, {} MiB", pins.of(name).display(), bytes.div_ceil(1 << 20));
    Mapped::new(map.as_fd(), info.max_entries).opening(context)
}

/// Settings of an empty datapath, with secrets of its own.
fn first_settings(flow_slots: u32, backend_slots: u32) -> io::Result<Control> {
    Ok(Control {
        vips: u64::from(vips::MIN_SIZE - 1),
        flow_slots,
        backend_slots,
        table_keys: random_words::<TABLE_KEYS>()?,
        ..Zeroable::zeroed()
    })
}

fn random_words<const N: usize>() -> io::Result<[u64; N]> {
    let mut words = [0u64; N];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    // SAFETY: the kernel writes at most the bytes of the array, which outlives the call.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Up to 256 bytes come whole or not at all (getrandom(2)).
    if usize::try_from(read) == Ok(bytes.len()) { Ok(words) } else { Err(io::Error::last_os_error()) }
}
