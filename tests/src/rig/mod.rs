//! The real XDP program on small maps that the test itself fills, run packet by packet with the kernel's test-run.
//!
//! No interface, no daemon: what a packet meets is exactly what the test has put there.

mod cell;
mod clock;
mod counters;
mod mapped;
mod place;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, HashMap, Map, MapData},
    programs::{TestRun as _, TestRunOptions, Xdp},
    util::nr_cpus,
};
use lb_common::{
    backend::{Backend, BackendStats},
    control::{Control, PeerRow, mac_word},
    flow::FlowEntry,
    hash, map_name,
    ring::{Published, RingSlot},
    service::{Service, VIP_PROBES, VipEntry, vip_kind},
};
use lb_userspace::datapath::{
    clock::{self as kernel_clock, Jiffies},
    kernel::Version,
    object::OBJECT,
};

pub use self::{
    cell::{CLIENT_MAC, Cell, MODES, Mode, OWN_MAC, PROTOCOLS, Protocol, backend_mac, server_id_entry},
    clock::{now_ns, now_ticks, seconds},
    counters::{Counters, OUTCOME_STRIDE},
    mapped::Mapped,
    place::{NEIGHBOUR_MAC, ROUTE_MAC, isolate, leave_the_world},
};

/// What the program did with a frame (include/uapi/linux/bpf.h, `enum xdp_action`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// An error in the program.
    Aborted,
    /// Dropped.
    Drop,
    /// Passed to the kernel.
    Pass,
    /// Sent back out of the interface it came in on.
    Tx,
    /// Sent out of another interface.
    Redirect,
}

impl Action {
    /// The action behind its number.
    pub fn from_u32(n: u32) -> Result<Self> {
        Ok(match n {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            _ => bail!("the program returned {n}, which is no XDP action"),
        })
    }
}

/// Sizes of the maps.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Entries of the flow table, a multiple of 16.
    pub flow_slots: u32,
    /// Backend slots.
    pub backends: u32,
    /// Service slots.
    pub services: u32,
    /// Entries of one half of the VIP table, a power of two.
    pub vips: u32,
}

impl Sizes {
    /// For a handful of flows.
    pub const SMALL: Self = Self { flow_slots: 1024, backends: 16, services: 8, vips: 64 };
}

/// The interface that test-run says packets come in on: the loopback of the process's namespace.
pub const INGRESS: u32 = 1;

/// Seed of the VIP table's hash; any will do.
const VIP_SEED: u64 = 0x5eed;

/// The loaded program and its maps.
pub struct Rig {
    /// See [`Sizes`].
    pub sizes: Sizes,
    /// `SERVICES`.
    pub services: Mapped<Service>,
    /// `BACKENDS`.
    pub backends: Mapped<Backend>,
    /// `FLOWS`.
    pub flows: Mapped<FlowEntry>,
    /// `CONTROL`.
    pub control: Mapped<Control>,
    vips: Mapped<VipEntry>,
    peers: Mapped<PeerRow>,
    stats: Mapped<BackendStats>,
    outcomes: Mapped<u64>,
    rings: BTreeMap<u32, Mapped<u64>>,
    jiffies: Option<Jiffies>,
    ebpf: Ebpf,
}

impl Rig {
    /// Loads the program `ebb_xdp` on maps of those sizes. Needs root.
    pub fn load(sizes: Sizes) -> Result<Self> {
        let cpus = nr_cpus().map_err(|(path, error)| error_at(path, &error))? as u32;
        let mut loader = EbpfLoader::new();
        for (name, rows) in [
            (map_name::FLOWS, sizes.flow_slots),
            (map_name::BACKENDS, sizes.backends),
            (map_name::SERVICES, sizes.services),
            (map_name::RINGS, sizes.services * 2),
            (map_name::VIPS, sizes.vips * 2),
            (map_name::STATS, sizes.backends * cpus),
            (map_name::OUTCOMES, OUTCOME_STRIDE * cpus),
        ] {
            loader.map_max_entries(name, rows);
        }
        let object = object()?;
        let mut ebpf = loader
            .load(object.as_deref().unwrap_or(OBJECT))
            .context("load the eBPF object (needs root and a kernel with BTF)")?;
        let program: &mut Xdp = ebpf.program_mut("ebb_xdp").context("the object has no ebb_xdp")?.try_into()?;
        program.load().context("the verifier refuses ebb_xdp")?;
        let decap: &mut Xdp = ebpf.program_mut("ebb_decap").context("the object has no ebb_decap")?.try_into()?;
        decap.load().context("the verifier refuses ebb_decap")?;
        let jiffies = kernel_clock::jiffies(&mut ebpf);
        let mut rig = Self {
            sizes,
            services: view(&ebpf, map_name::SERVICES)?,
            backends: view(&ebpf, map_name::BACKENDS)?,
            flows: view(&ebpf, map_name::FLOWS)?,
            control: view(&ebpf, map_name::CONTROL)?,
            vips: view(&ebpf, map_name::VIPS)?,
            peers: view(&ebpf, map_name::PEERS)?,
            stats: view(&ebpf, map_name::STATS)?,
            outcomes: view(&ebpf, map_name::OUTCOMES)?,
            rings: BTreeMap::new(),
            jiffies,
            ebpf,
        };
        rig.reset()?;
        Ok(rig)
    }

    /// Empties every map and writes the settings anew. The secrets of the flow table's hash are fixed, so that a run
    /// can be repeated.
    pub fn reset(&mut self) -> Result<()> {
        self.services.clear();
        self.backends.clear();
        self.flows.clear();
        self.vips.clear();
        self.peers.clear();
        self.stats.clear();
        self.outcomes.clear();
        self.control.set(0, settings(self.sizes, self.jiffies));
        self.forget_fragments()
    }

    /// Empties `FRAGMENTS`.
    pub fn forget_fragments(&mut self) -> Result<()> {
        /// Sizes of the program's own key and value.
        type Fragments<T> = HashMap<T, [u8; 40], [u8; 24]>;

        let map = self.ebpf.map_mut(map_name::FRAGMENTS).context("the object has no FRAGMENTS")?;
        let mut fragments = Fragments::try_from(map).context("the layout of FRAGMENTS has changed")?;
        let keys: Vec<_> = fragments.keys().collect::<Result<_, _>>()?;
        for key in keys {
            fragments.remove(&key)?;
        }
        Ok(())
    }

    /// The program.
    pub fn program(&self) -> Result<&Xdp> {
        Ok(self.ebpf.program("ebb_xdp").context("the object has no ebb_xdp")?.try_into()?)
    }

    /// Adds an entry to the published half of the VIP table.
    pub fn put_vip(&self, entry: VipEntry) -> Result<()> {
        self.put_vip_for(entry, entry)
    }

    /// The same where a look-up of `sought` comes by, whatever the entry is.
    pub fn put_vip_for(&self, entry: VipEntry, sought: VipEntry) -> Result<()> {
        let free = vip_place(self.sizes, &sought, |row| self.vips.get(row).kind == vip_kind::EMPTY)?;
        self.vips.set(free, entry);
        Ok(())
    }

    /// Empties the VIP table.
    pub fn clear_vips(&self) {
        self.vips.clear();
    }

    /// Forgets the neighbours of clients.
    pub fn clear_peers(&self) {
        self.peers.clear();
    }

    /// Tells the program its MAC address on the interface that test-run says packets come in on.
    pub fn put_own_mac(&mut self, mac: [u8; 6]) -> Result<()> {
        let map = self.ebpf.map_mut(map_name::LINKS).context("the object has no LINKS")?;
        let mut links: HashMap<_, u32, u64> = HashMap::try_from(map)?;
        Ok(links.insert(INGRESS, mac_word(mac), 0)?)
    }

    /// Publishes a service's ring, in the half given.
    pub fn put_ring(&mut self, service: u16, half: u32, ring: &[RingSlot]) -> Result<()> {
        let published = Published { half, size: ring.len() as u32 };
        let index = published.map_index(service);
        if self.rings.get(&index).is_none_or(|map| map.rows() != published.size) {
            let map = self.new_ring(index, published.size)?;
            self.rings.insert(index, map);
        }
        let map = self.rings.get(&index).context("just made")?;
        for (row, slot) in ring.iter().enumerate() {
            map.set(row as u32, slot.pack());
        }
        self.services.change(u32::from(service), |row| row.ring = published.pack());
        Ok(())
    }

    fn new_ring(&mut self, index: u32, size: u32) -> Result<Mapped<u64>> {
        // As the inner map is declared in the program: BPF_F_MMAPABLE | BPF_F_INNER_MAP.
        const FLAGS: u32 = 1 << 10 | 1 << 12;
        let ring: Array<MapData, u64> = Array::create(size, FLAGS).context("make a ring")?;
        let outer = self.ebpf.map_mut(map_name::RINGS).context("the object has no RINGS")?;
        let mut outer: ArrayOfMaps<_, Array<MapData, u64>> = outer.try_into()?;
        outer.set(index, &ring, 0).context("publish a ring")?;
        let outer = self.ebpf.map(map_name::RINGS).context("the object has no RINGS")?;
        let outer: ArrayOfMaps<_, MapData> = outer.try_into()?;
        Mapped::new(&outer.get(&index, 0).context("find the ring again")?)
    }

    /// Runs the program once on a frame that comes in on the loopback; returns what it did and what became of the frame.
    pub fn run(&self, frame: &[u8]) -> Result<(Action, Vec<u8>)> {
        self.run_in(frame, false)
    }

    /// [`Rig::run`], with or without room in front of the frame: metadata takes it all up if it is `crowded`.
    pub fn run_in(&self, frame: &[u8], crowded: bool) -> Result<(Action, Vec<u8>)> {
        let metadata = if crowded { MOST_METADATA } else { 0 };
        test_run(self.program()?, frame, metadata)
    }

    /// Runs the program of `ebb decap` once on a frame.
    pub fn run_decap(&self, frame: &[u8]) -> Result<(Action, Vec<u8>)> {
        test_run(self.ebpf.program("ebb_decap").context("the object has no ebb_decap")?.try_into()?, frame, 0)
    }

    /// All counters, added up over the CPUs.
    pub fn counters(&self) -> Counters {
        Counters::read(&self.outcomes, &self.stats, self.sizes.backends)
    }
}

/// Whether this kernel's test-run can leave no room in front of a frame: 6.1 takes 32 bytes of metadata at most, 6.12 takes
/// all there is room for.
pub fn can_crowd() -> Result<bool> {
    Ok(Version::running().context("the kernel's version")? >= Version(6, 12))
}

/// The first settings of a rig, of which the secrets are no secrets.
pub fn settings(sizes: Sizes, jiffies: Option<Jiffies>) -> Control {
    Control {
        vips: u64::from(sizes.vips - 1),
        vip_seeds: [VIP_SEED, VIP_SEED],
        flags: 0,
        jiffy_ns: jiffies.map_or(0, |found| found.jiffy_ns),
        jiffies_offset_ns: jiffies.map_or(0, |found| found.offset_ns),
        flow_slots: sizes.flow_slots,
        backend_slots: sizes.backends,
        pad: bytemuck::Zeroable::zeroed(),
        table_keys: std::array::from_fn(|i| hash::mix(i as u64 + 77)),
    }
}

/// The row of the VIP table's published half that an entry is put into.
pub fn vip_place(sizes: Sizes, entry: &VipEntry, is_free: impl Fn(u32) -> bool) -> Result<u32> {
    let mask = sizes.vips - 1;
    let hash = hash::vip(VIP_SEED, &entry.addr, entry.port, entry.protocol);
    let mut rows = (0..VIP_PROBES).map(|probe| hash.wrapping_add(probe) & mask);
    rows.find(|&row| is_free(row)).context("no room in the VIP table")
}

/// Metadata that leaves no room for a header in the 256 bytes in front of a frame, of which the kernel's own
/// `struct xdp_frame` has 40.
const MOST_METADATA: usize = 208;

fn test_run(program: &Xdp, frame: &[u8], metadata: usize) -> Result<(Action, Vec<u8>)> {
    let length = frame.len() + metadata;
    let data = [&vec![0; metadata], frame].concat();
    // `struct xdp_md`: where the frame begins and ends, counted from the metadata, which begins at 0.
    let context: Vec<u8> =
        [metadata as u32, length as u32, 0, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
    let mut out = vec![0; length + 256];
    let options = TestRunOptions {
        data_in: Some(&data),
        data_out: Some(&mut out),
        ctx_in: (metadata != 0).then_some(&context),
        repeat: 1,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).with_context(|| format!("test-run of {length} bytes"))?;
    let length = result.data_size_out as usize;
    ensure!(length <= out.len(), "the frame grew to {length} bytes");
    out.truncate(length);
    Ok((Action::from_u32(result.return_value)?, out.split_off(metadata.min(length))))
}

/// Names an object to load instead of the one built in: `cargo xtask mutants` has others to try.
const OBJECT_VARIABLE: &str = "EBB_RIG_OBJECT";

fn object() -> Result<Option<Vec<u8>>> {
    let Some(path) = std::env::var_os(OBJECT_VARIABLE) else { return Ok(None) };
    let read = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(Some(read))
}

/// The map called `name`, in memory.
pub fn view<T: bytemuck::Pod>(ebpf: &Ebpf, name: &str) -> Result<Mapped<T>> {
    let map: &Map = ebpf.map(name).with_context(|| format!("the object has no {name}"))?;
    Mapped::of(map, name)
}

fn error_at(path: &str, error: &std::io::Error) -> anyhow::Error {
    anyhow::anyhow!("{path}: {error}")
}
