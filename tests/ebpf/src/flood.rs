//! A flood and the sieve that takes it back: one program makes each frame of a live-frame test-run another one, with right
//! checksums; the other, at the far end of the balancer's cable, counts what comes back of it and takes most of it away.

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    btf_maps::Array,
    helpers::{bpf_get_smp_processor_id, generated::bpf_redirect},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use ebb_tests_ebpf::{
    CPUS,
    flood::{FRAME, Flood, MASK_V4, NET_V4, NET_V6, Seen, Word, sum},
};

use crate::{driver::MMAPABLE, frame::load};

#[btf_map]
static FLOODS: Array<Flood, { CPUS as usize }, MMAPABLE> = Array::new();
#[btf_map]
static SEEN: Array<Seen, { CPUS as usize }, MMAPABLE> = Array::new();

/// Offsets within a frame, as a mask.
const WITHIN: usize = FRAME - 1;

#[xdp]
pub fn flood(ctx: XdpContext) -> u32 {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(row) = FLOODS.get_ptr_mut(cpu) else { return XDP_ABORTED };
    // SAFETY: a row that only this CPU's test-run uses while it runs.
    let row = unsafe { &mut *row };
    match write(&ctx, row) {
        // SAFETY: plain numbers.
        Some(()) => unsafe { bpf_redirect(row.interface, 0).cast_unsigned() as u32 },
        None => XDP_ABORTED,
    }
}

#[inline(always)]
fn write(ctx: &XdpContext, row: &mut Flood) -> Option<()> {
    let start = ctx.data();
    if start + FRAME > ctx.data_end() {
        return None;
    }
    for i in 0..FRAME / 8 {
        // SAFETY: within the frame by the check above.
        unsafe { core::ptr::write_unaligned((start + i * 8) as *mut u64, row.frame[i]) };
    }
    // Marsaglia's xorshift (Journal of Statistical Software 8, 2003), each word by a multiple of its own.
    let mut state = row.state;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    row.state = state;
    let [mut ip, mut transport] = row.sums;
    for (word, factor) in row.words.iter().zip(FACTORS) {
        let value = place(ctx, word, (state.wrapping_mul(factor) >> 32) as u32)?;
        let halves = (value >> 16) + (value & 0xffff);
        ip += if word.sums & sum::IP != 0 { halves } else { 0 };
        transport += if word.sums & sum::TRANSPORT != 0 { halves } else { 0 };
    }
    complete(ctx, row.sums_at[0], ip)?;
    complete(ctx, row.sums_at[1], transport)
}

/// Odd numbers with bits all over.
const FACTORS: [u64; 4] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb, 0xd6e8_feb8_6659_fd93];

/// Writes a random word; what it came to, 0 if there is none.
#[inline(always)]
fn place(ctx: &XdpContext, word: &Word, random: u32) -> Option<u32> {
    if word.at == 0 {
        return Some(0);
    }
    let value = word.base | random & word.mask;
    put(ctx, word.at, value.to_be())?;
    Some(value)
}

/// Folds a sum and writes its complement (RFC 1071).
#[inline(always)]
fn complete(ctx: &XdpContext, at: u32, total: u32) -> Option<()> {
    if at == 0 {
        return Some(());
    }
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    put(ctx, at, (!total as u16).to_be())
}

/// Writes at an offset that the verifier does not know.
#[inline(always)]
fn put<T>(ctx: &XdpContext, at: u32, value: T) -> Option<()> {
    let place = ctx.data() + (at as usize & WITHIN);
    if place + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the frame by the check above.
    unsafe { core::ptr::write_unaligned(place as *mut T, value) };
    Some(())
}

/// What a frame is to a flood.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    None,
    Sent,
    Answer,
}

/// Counts a flood's frames that the balancer sends, and takes them away, all but a few on their way to backends.
#[xdp]
pub fn sieve(ctx: XdpContext) -> u32 {
    let part = part(&ctx);
    if part == Part::None {
        return XDP_PASS;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let Some(row) = SEEN.get_ptr_mut(cpu) else { return XDP_ABORTED };
    // SAFETY: a row that only this CPU writes, and readers in user space take word by word.
    let row = unsafe { &mut *row };
    let bytes = (ctx.data_end() - ctx.data()) as u64;
    if part == Part::Answer {
        row.answered += 1;
        row.answered_bytes += bytes;
        return XDP_DROP;
    }
    row.forwarded += 1;
    row.forwarded_bytes += bytes;
    if row.forwarded & row.let_through_mask == 0 { XDP_PASS } else { XDP_DROP }
}

#[inline(always)]
fn part(ctx: &XdpContext) -> Part {
    const IPV4: u16 = 0x0800u16.to_be();
    const IPV6: u16 = 0x86ddu16.to_be();
    let of = |word: Option<u32>, mask: u32, net: u32| word.is_some_and(|word| u32::from_be(word) & mask == net);
    let (source, destination, mask, net) = match load::<u16>(ctx, 12) {
        Some(IPV4) => (26, 30, MASK_V4, NET_V4),
        Some(IPV6) => (22, 38, u32::MAX, NET_V6),
        _ => return Part::None,
    };
    if of(load(ctx, source), mask, net) {
        Part::Sent
    } else if of(load(ctx, destination), mask, net) {
        Part::Answer
    } else {
        Part::None
    }
}
