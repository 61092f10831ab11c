//! The XDP program compiled for the host, on maps of its own.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use bytemuck::Zeroable as _;
use ebb_host_kernel::{
    bindings::xdp_md,
    maps::{Entries, Nest, Rows},
    world,
};
use ebb_tests::{
    model::Maps,
    rig::{Action, INGRESS, OUTCOME_STRIDE, Sizes, settings, vip_place},
};
use lb_common::{
    backend::{Backend, BackendStats},
    control::{Control, PEERS, PeerRow},
    flow::FlowEntry,
    outcome::Outcome,
    ring::{Published, RingSlot},
    service::{Service, VipEntry, vip_kind},
};

// The maps of the program, by the names that they have in the object.
#[expect(
    improper_ctypes,
    reason = "declared as the very types that the program's maps are made of, by the same compiler"
)]
mod map {
    use super::{Entries, Nest, Rows};

    unsafe extern "C" {
        pub(super) safe static CONTROL: Rows;
        pub(super) safe static VIPS: Rows;
        pub(super) safe static SERVICES: Rows;
        pub(super) safe static BACKENDS: Rows;
        pub(super) safe static FLOWS: Rows;
        pub(super) safe static PEERS: Rows;
        pub(super) safe static STATS: Rows;
        pub(super) safe static OUTCOMES: Rows;
        pub(super) safe static RINGS: Nest;
        pub(super) safe static FRAGMENTS: Entries;
        pub(super) safe static LINKS: Entries;
    }
}

/// One of the object's programs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// `ebb_xdp`.
    Balance,
    /// `ebb_decap`.
    Decap,
}

/// The program and its maps.
#[derive(Debug)]
pub struct Twin {
    sizes: Sizes,
    control: Vec<Control>,
    vips: Vec<VipEntry>,
    services: Vec<Service>,
    backends: Vec<Backend>,
    /// `FLOWS`.
    pub flows: Vec<FlowEntry>,
    peers: Vec<PeerRow>,
    stats: Vec<BackendStats>,
    outcomes: Vec<u64>,
    rings: BTreeMap<u32, Vec<u64>>,
    /// The maps are statics: one twin at a time.
    _only: MutexGuard<'static, ()>,
}

impl Twin {
    /// The program on empty maps.
    pub fn new(sizes: Sizes) -> Self {
        static ONLY: Mutex<()> = Mutex::new(());
        let only = ONLY.lock().unwrap_or_else(PoisonError::into_inner);
        map::FRAGMENTS.clear();
        map::LINKS.clear();
        Self {
            sizes,
            control: vec![settings(sizes, None)],
            vips: vec![VipEntry::zeroed(); 2 * sizes.vips as usize],
            services: vec![Service::zeroed(); sizes.services as usize],
            backends: vec![Backend::zeroed(); sizes.backends as usize],
            flows: vec![FlowEntry::zeroed(); sizes.flow_slots as usize],
            peers: vec![PeerRow::zeroed(); PEERS as usize],
            stats: vec![BackendStats::zeroed(); sizes.backends as usize],
            outcomes: vec![0; OUTCOME_STRIDE as usize],
            rings: BTreeMap::new(),
            _only: only,
        }
    }

    /// Tells the program its MAC address on the interface that frames come in by.
    pub fn put_own_mac(&mut self, mac: [u8; 6]) {
        map::LINKS.put(&INGRESS.to_ne_bytes(), &[lb_common::control::mac_word(mac)]);
    }

    /// Empties the VIP table.
    pub fn clear_vips(&mut self) {
        self.vips.fill(VipEntry::zeroed());
    }

    /// Forgets flows, fragments and what was counted for backends.
    pub fn forget(&mut self) {
        self.flows.fill(FlowEntry::zeroed());
        self.stats.fill(BackendStats::zeroed());
        map::FRAGMENTS.clear();
    }

    /// Forgets the neighbours of clients.
    pub fn clear_peers(&mut self) {
        self.peers.fill(PeerRow::zeroed());
    }

    /// What was counted for the backends.
    pub fn stats(&self) -> &[BackendStats] {
        &self.stats
    }

    /// Runs one of the programs on a frame at a time; returns what it did, as what it was counted, and what became of the frame.
    /// `None` for a frame that the kernel's test-run would not take either.
    pub fn run(
        &mut self,
        program: Program,
        frame: &[u8],
        crowded: bool,
        now_ns: u64,
    ) -> Option<(Action, Outcome, Vec<u8>)> {
        self.bind();
        world::set_now_ns(now_ns);
        let before = self.outcomes.clone();
        let entry: fn(*mut xdp_md) -> u32 = match program {
            Program::Balance => |ctx| ebb_twin::ebb_xdp(ctx),
            Program::Decap => |ctx| ebb_twin::ebb_decap(ctx),
        };
        let (verdict, out) = world::run(entry, frame, INGRESS, crowded)?;
        let mut counted =
            Outcome::ALL.iter().zip(self.outcomes.iter().zip(&before)).filter(|(_, (now, was))| now != was);
        let outcome = *counted.next().expect("every packet is counted").0;
        assert!(counted.next().is_none(), "and once");
        Some((Action::from_u32(verdict).expect("an action"), outcome, out))
    }

    /// Puts the memory behind the maps, anew before each run: it was ours in between.
    fn bind(&mut self) {
        /// The memory of a vector.
        fn bind<T>(map: &Rows, rows: &mut [T]) {
            // SAFETY: the map's own type, and memory that stays where it is, and untouched, while the program runs.
            unsafe { map.bind(rows.as_mut_ptr().cast(), rows.len() as u32) };
        }
        bind(&map::CONTROL, &mut self.control);
        bind(&map::VIPS, &mut self.vips);
        bind(&map::SERVICES, &mut self.services);
        bind(&map::BACKENDS, &mut self.backends);
        bind(&map::FLOWS, &mut self.flows);
        bind(&map::PEERS, &mut self.peers);
        bind(&map::STATS, &mut self.stats);
        bind(&map::OUTCOMES, &mut self.outcomes);
        for (index, ring) in &mut self.rings {
            // SAFETY: as above.
            unsafe { map::RINGS.bind(*index, ring.as_mut_ptr().cast(), ring.len() as u32) };
        }
    }
}

impl Maps for Twin {
    fn change_control(&mut self, change: impl FnOnce(&mut Control)) {
        change(&mut self.control[0]);
    }

    fn put_vip(&mut self, entry: VipEntry) -> Result<()> {
        let place = vip_place(self.sizes, &entry, |row| self.vips[row as usize].kind == vip_kind::EMPTY)?;
        self.vips[place as usize] = entry;
        Ok(())
    }

    fn put_service(&mut self, slot: u32, row: Service) {
        self.services[slot as usize] = row;
    }

    fn put_backend(&mut self, slot: u32, row: Backend) {
        self.backends[slot as usize] = row;
    }

    fn put_ring(&mut self, service: u16, ring: &[RingSlot]) -> Result<()> {
        let published = Published { half: 0, size: ring.len() as u32 };
        self.rings.insert(published.map_index(service), ring.iter().map(|slot| slot.pack()).collect());
        self.services[usize::from(service)].ring = published.pack();
        Ok(())
    }
}
