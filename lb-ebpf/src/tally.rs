//! Counting what each flow carries, where the flow log wants it.
//!
//! Off, this is a branch on a constant, which the verifier takes out of the program.

#[cfg(target_arch = "bpf")]
use core::arch::asm;
use core::ptr::write_volatile;

use aya_ebpf::Global;
use lb_common::tally::BEGUN;

use crate::maps::TALLIES;

/// Whether flows are counted: set at load.
#[unsafe(no_mangle)]
static EBB_TALLY: Global<u8> = Global::new(0);

/// Whose packet it is, for [`ebb_tally`].
pub const CLIENT: u32 = 0;
/// See [`CLIENT`].
pub const SERVER: u32 = 1;

/// Begins the row of an entry that this CPU has claimed and not linked yet.
#[inline(always)]
pub fn begin(entry: u32) {
    if EBB_TALLY.load() != 0
        && let Some(row) = TALLIES.get_ptr_mut(entry)
    {
        // SAFETY: words of a row of the map, written by the CPU that holds the entry claimed. One that was slow with a packet of the
        // entry's last owner may count that to the new one.
        unsafe {
            write_volatile(&raw mut (*row).client_packets, BEGUN);
            write_volatile(&raw mut (*row).client_bytes, 0);
            write_volatile(&raw mut (*row).server_packets, 0);
            write_volatile(&raw mut (*row).server_bytes, 0);
        }
    }
}

/// Counts a packet of a flow.
#[inline(always)]
pub fn count(entry: u32, bytes: usize, side: u32) {
    if EBB_TALLY.load() != 0 {
        ebb_tally(entry, bytes as u32, side);
    }
}

/// Adds to an entry's row; always 0. A flow's packets may be on several CPUs at once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ebb_tally(entry: u32, bytes: u32, side: u32) -> u32 {
    let Some(row) = TALLIES.get_ptr_mut(entry) else { return 0 };
    // SAFETY: words of a map's value, aligned by its layout, which all write by atomic additions once it is begun.
    unsafe {
        if side == CLIENT {
            add(&raw mut (*row).client_packets, 1);
            add(&raw mut (*row).client_bytes, bytes as u64);
        } else {
            add(&raw mut (*row).server_packets, 1);
            add(&raw mut (*row).server_bytes, bytes as u64);
        }
    }
    0
}

/// Adds to a word of a map's value.
///
/// # Safety
///
/// `word` points at an aligned word of a map's value.
#[inline(always)]
unsafe fn add(word: *mut u64, n: u64) {
    #[cfg(target_arch = "bpf")]
    {
        // SAFETY: the caller's.
        unsafe { asm!("lock *(u64 *)({word} + 0) += {n}", word = in(reg) word, n = in(reg) n) };
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
        // SAFETY: the caller's.
        unsafe { AtomicU64::from_ptr(word) }.fetch_add(n, Relaxed);
    }
}
