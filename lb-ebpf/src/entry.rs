//! The flow table's entries as the packet path sees them: raw pointers into the map's memory, shared with other CPUs
//! and with the daemon.

#[cfg(target_arch = "bpf")]
use core::arch::asm;
use core::ptr::{read_volatile, write_volatile};

use lb_common::{
    addr::Addr,
    flow::{FlowEntry, FlowInit, FlowKey, Meta},
    flow_table::{Entries, Entry},
    tcp::Track,
};

use crate::maps::FLOWS;

/// The whole table.
#[derive(Clone, Copy)]
pub struct FlowMap;

/// One entry.
#[derive(Clone, Copy)]
pub struct FlowRef(*mut FlowEntry);

/// Compare-and-swap of an aligned word; returns what was there. Fully ordered (kernel: Documentation/bpf/standardization).
///
/// # Safety
///
/// `word` points at an aligned word of a map's value.
#[inline(always)]
pub unsafe fn compare_and_swap(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let was;
        // SAFETY: the caller's. The instruction exists since Linux 5.12.
        unsafe {
            asm!("r0 = cmpxchg_64({word} + 0, r0, {new})",
                word = in(reg) word, new = in(reg) new, inout("r0") old => was);
        }
        was
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
        // SAFETY: the caller's.
        unsafe { AtomicU64::from_ptr(word) }.compare_exchange(old, new, SeqCst, SeqCst).unwrap_or_else(|was| was)
    }
}

/// Reads a field of the entry once, at this point.
macro_rules! load {
    ($entry:expr, $field:ident) => {
        // SAFETY: the pointer came from a successful map look-up; other CPUs may write the field meanwhile, and a
        // volatile read of an aligned word sees one value or the other.
        unsafe { read_volatile(&raw const (*$entry.0).$field) }
    };
}

/// Writes a field of the entry once, at this point.
macro_rules! store {
    ($entry:expr, $field:ident, $value:expr) => {
        // SAFETY: as for `load!`.
        unsafe { write_volatile(&raw mut (*$entry.0).$field, $value) }
    };
}

impl Entries for FlowMap {
    type Entry = FlowRef;

    #[inline(always)]
    fn at(self, index: u32) -> Option<FlowRef> {
        FLOWS.get_ptr_mut(index).map(FlowRef)
    }
}

impl Entry for FlowRef {
    #[inline(always)]
    fn hop(self) -> u64 {
        load!(self, hop)
    }

    #[inline(always)]
    fn swap_hop(self, old: u64, new: u64) -> u64 {
        // SAFETY: a field of a map's value, aligned by its layout.
        unsafe { compare_and_swap(&raw mut (*self.0).hop, old, new) }
    }

    #[inline(always)]
    fn meta(self) -> Meta {
        Meta(load!(self, meta))
    }

    #[inline(always)]
    fn swap_meta(self, old: Meta, new: Meta) -> Meta {
        // SAFETY: a field of a map's value, aligned by its layout.
        Meta(unsafe { compare_and_swap(&raw mut (*self.0).meta, old.0, new.0) })
    }

    #[inline(always)]
    fn put_meta(self, meta: Meta) {
        store!(self, meta, meta.0);
    }

    #[inline(always)]
    fn tally(self, lives: u64) -> u64 {
        let mut lives = lives;
        #[cfg(target_arch = "bpf")]
        // SAFETY: one addition.
        unsafe {
            asm!("{lives} += {lane}", lives = inout(reg) lives, lane = in(reg) self.meta().life_lane());
        }
        #[cfg(not(target_arch = "bpf"))]
        {
            lives += self.meta().life_lane();
        }
        lives
    }

    #[inline(always)]
    fn has_key(self, key: &FlowKey) -> bool {
        // SAFETY: as for `load!`, on the two words of the address.
        let client: [u64; 2] = unsafe {
            let halves = &raw const (*self.0).client.halves;
            [read_volatile(halves.cast()), read_volatile(halves.cast::<u64>().add(1))]
        };
        client[1] == key.client.halves[1]
            && load!(self, port_service) == key.port_service
            && client[0] == key.client.halves[0]
    }

    #[inline(always)]
    fn key(self) -> FlowKey {
        FlowKey { client: load!(self, client), port_service: load!(self, port_service) }
    }

    #[inline(always)]
    fn fill(self, key: &FlowKey, init: &FlowInit) {
        store!(self, client, Addr { halves: key.client.halves });
        store!(self, port_service, key.port_service);
        store!(self, backend, init.backend);
        store!(self, generation, init.generation);
        store!(self, started, init.now);
        store!(self, client_seq, init.client_seq);
        store!(self, client_ack, init.client_ack);
        store!(self, server_seq, 0);
        store!(self, peer, init.peer);
        store!(self, nat_port, init.nat_port);
    }
}

impl FlowRef {
    /// Backend slot.
    #[inline(always)]
    pub fn backend(self) -> u32 {
        load!(self, backend)
    }

    /// Generation of the slot.
    #[inline(always)]
    pub fn generation(self) -> u32 {
        load!(self, generation)
    }

    /// Row of the peer table.
    #[inline(always)]
    pub fn peer(self) -> u16 {
        load!(self, peer)
    }

    /// Stores another row of the peer table.
    #[inline(always)]
    pub fn put_peer(self, row: u16) {
        store!(self, peer, row);
    }

    /// Rewritten client port, or 0.
    #[inline(always)]
    pub fn nat_port(self) -> u16 {
        load!(self, nat_port)
    }

    /// Client's next sequence number.
    #[inline(always)]
    pub fn client_seq(self) -> u32 {
        load!(self, client_seq)
    }

    /// What is tracked, with the flags of `meta`.
    #[inline(always)]
    pub fn track(self, meta: Meta) -> Track {
        Track {
            flags: meta.flags(),
            client_seq: load!(self, client_seq),
            client_ack: load!(self, client_ack),
            server_seq: load!(self, server_seq),
        }
    }

    /// Stores what changed in the sequence numbers.
    ///
    /// Plain stores: two CPUs that handle segments of one flow at once may lose the smaller step of the two, which the
    /// next segment makes good.
    #[inline(always)]
    pub fn put_track(self, old: Track, new: Track) {
        if new.client_seq != old.client_seq {
            store!(self, client_seq, new.client_seq);
        }
        if new.client_ack != old.client_ack {
            store!(self, client_ack, new.client_ack);
        }
        if new.server_seq != old.server_seq {
            store!(self, server_seq, new.server_seq);
        }
    }

    /// Notes a packet at `now`, and flags if they changed.
    ///
    /// Flags are changed by compare-and-swap, so that none is lost; the time alone is a plain store of half the word.
    #[inline(always)]
    pub fn touch(self, meta: Meta, flags: u16, now: u32) {
        if flags == meta.flags() {
            if meta.last_seen() != now {
                // SAFETY: as for `store!`; the low half of the word on a little-endian machine, the only kind that the
                // object is built for (bpfel).
                unsafe { write_volatile((&raw mut (*self.0).meta).cast::<u32>(), now) };
            }
            return;
        }
        let set = flags & !meta.flags();
        let clear = meta.flags() & !flags;
        let mut seen = meta;
        for _ in 0..4 {
            let was = self.swap_meta(seen, seen.with(set, clear, now));
            if was == seen || was.version() != meta.version() {
                return;
            }
            seen = was;
        }
    }
}
