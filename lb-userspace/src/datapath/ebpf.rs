//! The packet path in the kernel: opened, adopted, owned.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use aya::Ebpf;
use lb_common::{backend::Backend, flow_table, map_name, ring::Published};

use super::{
    Adopted, AdoptedBackend, BackendSlot, BackendState, InterfaceInfo, Limits,
    announce::Announcer,
    attach::{self, Attachment, Mode},
    clock,
    error::{OpenError, While as _},
    flows::{Tally, Tap},
    interfaces::{self, LinkMacs},
    kernel,
    log::ProgramLog,
    maps::{Maps, Sizes},
    pins::{self, Pins},
    program::{self, Loaded},
    reset::Resets,
    ring_store::Rings,
    rows, sys,
};
use crate::net::links;

/// The most flows that may be asked for: slots are numbered by 32 bits.
const MOST_FLOWS: u32 = 3_000_000_000;

/// How the datapath is to be opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names of the interfaces to attach to; empty for those of the last start.
    pub interfaces: Vec<String>,
    /// Which XDP mode.
    pub mode: Mode,
    /// Flows that the table holds.
    pub max_flows: u32,
    /// Backends of all services together.
    pub max_backends: u32,
    /// Services.
    pub max_services: u16,
    /// Where to pin; its own directory.
    pub pin_path: PathBuf,
    /// Whether each flow's packets and bytes are counted.
    pub count_flows: bool,
    /// What the program logs: 0 nothing, 1 errors … 5 everything.
    pub log_level: u8,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interfaces: Vec::new(),
            mode: Mode::Auto,
            max_flows: 1_000_000,
            max_backends: 131_072,
            max_services: 4_096,
            pin_path: pins::default_pin_path(),
            count_flows: false,
            log_level: 2,
        }
    }
}

impl Options {
    fn sizes(&self) -> Result<Sizes, OpenError> {
        if self.max_flows > MOST_FLOWS {
            return Err(OpenError::TooManyFlows { flows: self.max_flows, most: MOST_FLOWS });
        }
        let cpus = aya::util::nr_cpus()
            .map_err(|(_, source)| OpenError::Refused { action: "cannot count the CPUs".into(), source })?;
        Ok(Sizes {
            flow_slots: flow_table::slots_for(self.max_flows.max(1)),
            backends: self.max_backends.max(1),
            services: u32::from(self.max_services.max(1)),
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            tallies: self.count_flows,
        })
    }
}

/// The packet path, as its one owner in user space. Dropping it leaves it forwarding.
pub struct EbpfDatapath {
    /// Holds the lock.
    pub(super) pins: Pins,
    pub(super) maps: Maps,
    pub(super) rings: Rings,
    pub(super) attachments: Vec<Attachment>,
    /// The program, for interfaces that come back.
    pub(super) program: OwnedFd,
    pub(super) mode: Mode,
    pub(super) link_macs: LinkMacs,
    pub(super) announcer: Announcer,
    pub(super) adopted: Adopted,
    pub(super) grace: Grace,
    pub(super) resets: Resets,
    /// Backend rows freed since the last grace period: packets in flight may still use them.
    pub(super) unsettled: BTreeSet<u32>,
    /// Backend rows beyond this one were never used.
    pub(super) highest_backend: u32,
    /// Kept from sweep to sweep, for its memory.
    pub(super) tallies: Vec<Tally>,
    /// Where flows that are over are kept for the log, where there is one.
    pub(super) tap: Option<Tap>,
    /// Flows that the packet path has taken out of the table, as far as the log has been told of them.
    pub(super) untold: u64,
    log: Option<ProgramLog>,
}

impl EbpfDatapath {
    /// Loads the program and attaches it, on new maps or on those of an earlier daemon. On an error nothing is changed.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        check_kernel()?;
        check_clock()?;
        let grace = Grace::new().opening(|| "cannot make a BPF map".into())?;
        let pins = Pins::open(&options.pin_path)?;
        let path = pins.path().to_owned();
        let opened = Self::open_pinned(options, pins, grace);
        if opened.is_err() && pins::pin_paths(&path).is_ok_and(|pins| pins.is_empty()) {
            // An empty directory may or may not have been there before; it says nothing either way.
            let _ = pins::remove_directory(&path);
        }
        opened
    }

    fn open_pinned(options: &Options, pins: Pins, grace: Grace) -> Result<Self, OpenError> {
        let known = links::list().opening(|| "cannot list the interfaces".into())?;
        let plan = attach::plan(&pins, &options.interfaces, &known)?;
        let sizes = options.sizes()?;
        let Loaded { program, id, mut ebpf, fresh, mut undo } = program::load(&pins, &sizes, options.log_level)?;
        let maps = Maps::open(&pins, sizes.cpus, fresh, sizes.tallies)?;
        if let Some(found) = clock::jiffies(&mut ebpf) {
            maps.set_control(|control| {
                control.jiffies_offset_ns = found.offset_ns;
                control.jiffy_ns = found.jiffy_ns;
            });
        }
        let mut link_macs = take_link_macs(&mut ebpf)?;
        for link in plan.targets() {
            interfaces::put_mac(&mut link_macs, link);
            attach::warn_of_vlans(link, &known);
        }
        attach::warn_of_stacked_vlans(&known);
        let mut datapath = Self {
            rings: Rings::new(options.pin_path.clone()),
            attachments: Vec::new(),
            program: program.try_clone().opening(|| "cannot duplicate a descriptor".into())?,
            mode: options.mode,
            link_macs,
            announcer: Announcer::default(),
            adopted: Adopted::default(),
            grace,
            resets: Resets::ready(),
            unsettled: BTreeSet::new(),
            highest_backend: 0,
            tallies: Vec::new(),
            tap: None,
            untold: 0,
            log: take_log(&mut ebpf),
            maps,
            pins,
        };
        if !fresh {
            datapath.adopt_rows();
        }
        let program = program.as_fd();
        datapath.attachments = plan.carry_out(&datapath.pins, program, options.mode, &mut undo)?;
        datapath.pins.replace(pins::PROGRAM, program)?;
        undo.keep();
        tracing::debug!("program {id} attached, maps {}", if fresh { "new" } else { "adopted" });
        Ok(datapath)
    }

    /// Finds the rows and rings of an earlier daemon.
    fn adopt_rows(&mut self) {
        for slot in 0..self.maps.services.rows() {
            let Some(mut row) = self.maps.services.read(slot) else { continue };
            if let (Some(published), Ok(service)) = (Published::unpack(row.ring), u16::try_from(slot))
                && let Err(error) = self.rings.adopt(self.maps.rings.as_fd(), service, published)
            {
                tracing::warn!("the ring of service row {slot} cannot be taken over ({error}): it is built anew");
                row.ring = 0;
                self.maps.services.write(slot, &row);
            }
        }
        self.adopted.backends = adopted_backends(&self.maps);
        self.highest_backend = self.adopted.backends.last().map_or(0, |row| row.slot.0);
        self.adopted.flow_table_kept = true;
        self.adopted.rows_kept = true;
    }

    /// The program's log of rare events, to be read by a task; once.
    pub fn take_log(&mut self) -> Option<ProgramLog> {
        self.log.take()
    }

    /// Where the pins are.
    pub fn pin_path(&self) -> &std::path::Path {
        self.pins.path()
    }

    pub(super) fn row_limits(&self) -> Limits {
        Limits {
            services: u16::try_from(self.maps.services.rows()).unwrap_or(u16::MAX),
            backends: self.maps.backends.rows(),
        }
    }

    pub(super) fn attached(&self) -> Vec<InterfaceInfo> {
        self.attachments.iter().map(|attachment| attachment.info.clone()).collect()
    }
}

impl std::fmt::Debug for EbpfDatapath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not all of it: the flow table's secrets belong in no log.
        f.debug_struct("EbpfDatapath")
            .field("pins", &self.pins.path())
            .field("interfaces", &self.attached())
            .finish_non_exhaustive()
    }
}

/// The rows of backends that there are, or have been.
pub(super) fn adopted_backends(maps: &Maps) -> Vec<AdoptedBackend> {
    let rows = (0..maps.backends.rows()).filter_map(|slot| Some((slot, maps.backends.read(slot)?)));
    let with_states = rows.map(|(slot, row)| (slot, row, rows::state_of(&row)));
    let used = with_states.filter(|(_, row, state)| *state != BackendState::Free || row.generation > 0);
    used.map(|(slot, row, state)| adopted_backend(slot, &row, state)).collect()
}

fn adopted_backend(slot: u32, row: &Backend, state: BackendState) -> AdoptedBackend {
    let has_deadline = row.deadline_ns != lb_common::backend::NO_DEADLINE && state != BackendState::Free;
    AdoptedBackend {
        slot: BackendSlot(slot),
        generation: row.generation,
        state,
        deadline_ns: has_deadline.then_some(row.deadline_ns),
    }
}

fn take_link_macs(ebpf: &mut Ebpf) -> Result<LinkMacs, OpenError> {
    let missing = || OpenError::Program(format!("the object has no map {}", map_name::LINKS));
    let map = ebpf.take_map(map_name::LINKS).ok_or_else(missing)?;
    map.try_into().map_err(|error: aya::maps::MapError| OpenError::Program(error.to_string()))
}

fn take_log(ebpf: &mut Ebpf) -> Option<ProgramLog> {
    match ProgramLog::take(ebpf) {
        Ok(log) => Some(log),
        Err(error) => {
            // A program built without a log call has none.
            tracing::warn!("the XDP program's log cannot be read ({error}): its rare events are counted, not told");
            None
        }
    }
}

/// Refuses kernels that lack something, before they do so less clearly.
fn check_kernel() -> Result<(), OpenError> {
    let found = kernel::release().opening(|| "cannot tell the kernel's version".into())?;
    if kernel::is_too_old(&found) { Err(OpenError::Kernel { found, needed: kernel::OLDEST }) } else { Ok(()) }
}

/// Refuses a clock that differs from the one that the packet path reads.
fn check_clock() -> Result<(), OpenError> {
    // A kernel without time namespaces has no such file.
    let found = std::fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    match clock::namespace_offset(&found) {
        Some((0, 0)) | None => Ok(()),
        Some((offset_s, _)) => Err(OpenError::TimeNamespace { offset_s }),
    }
}

/// Waits for packets in flight.
#[derive(Debug)]
pub(super) struct Grace {
    outer: OwnedFd,
    inner: OwnedFd,
}

impl Grace {
    fn new() -> io::Result<Self> {
        let array = sys::MapSpec {
            name: "ebb_grace",
            map_type: sys::ARRAY,
            value_size: 8,
            max_entries: 1,
            flags: 0,
            inner: None,
        };
        let inner = sys::create_map(array)?;
        let outer = sys::create_map(sys::MapSpec {
            map_type: sys::ARRAY_OF_MAPS,
            value_size: 4,
            inner: Some(inner.as_fd()),
            ..array
        })?;
        Ok(Self { outer, inner })
    }

    /// Returns when every program run that was under way at the call has ended.
    ///
    /// A change of an array of maps makes the kernel wait for that (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c
    /// calls `synchronize_rcu`, and XDP programs run in an RCU read-side section); the map is this process's own.
    pub(super) fn wait(&self) -> io::Result<()> {
        sys::set_inner_map(self.outer.as_fd(), 0, self.inner.as_fd())
    }
}
