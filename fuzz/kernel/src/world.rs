//! What the kernel knows and the program asks: the time, chance; and the frame with the room around it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::bindings::xdp_md;

/// A frame never becomes shorter than this (`ETH_HLEN`).
pub const ETH_HEADER: usize = 14;
/// Room in front of a frame in the kernel's test-run (`XDP_PACKET_HEADROOM`), of which the kernel keeps `struct xdp_frame`.
const HEADROOM: usize = 256;
const KEPT: usize = 40;
/// Where a frame must end in the kernel's test-run: a page without `struct skb_shared_info`.
const PAGE: usize = 4096;
const SHARED_INFO: usize = 320;
/// The longest frame that fits.
pub const LONGEST: usize = PAGE - HEADROOM - SHARED_INFO;

static NOW_NS: AtomicU64 = AtomicU64::new(0);
static ASKED: AtomicU32 = AtomicU32::new(0);
static REDIRECT: AtomicU32 = AtomicU32::new(0);

/// Sets the coarse clock.
pub fn set_now_ns(now_ns: u64) {
    NOW_NS.store(now_ns, Relaxed);
}

pub(crate) fn now_ns() -> u64 {
    NOW_NS.load(Relaxed)
}

/// Has the same random numbers come again.
pub fn reseed() {
    ASKED.store(0, Relaxed);
}

pub(crate) fn random() -> u32 {
    // Multiplication by 2^32 / φ (Knuth, volume 3, section 6.4).
    ASKED.fetch_add(1, Relaxed).wrapping_add(1).wrapping_mul(0x9e37_79b1)
}

pub(crate) fn note_redirect(ifindex: u32) {
    REDIRECT.store(ifindex, Relaxed);
}

/// The interface named last.
pub fn redirected_to() -> u32 {
    REDIRECT.load(Relaxed)
}

/// A frame in memory of exactly its length, which moves whenever the length changes: a sanitizer then sees whoever reaches
/// beyond, and whoever keeps a pointer that should have been taken anew.
#[derive(Debug)]
pub struct Frame {
    bytes: Box<[u8]>,
    headroom: usize,
}

impl Frame {
    fn pointed_to_by(&mut self, ctx: &mut xdp_md) {
        ctx.data = self.bytes.as_mut_ptr().expose_provenance();
        ctx.data_end = ctx.data + self.bytes.len();
    }

    /// Makes the frame longer by so many bytes in front and behind, or shorter. False, and nothing is changed, where the kernel
    /// would not do it.
    fn resize(&mut self, front: isize, back: isize) -> bool {
        let Some(headroom) = self.headroom.checked_add_signed(-front) else { return false };
        let Some(len) = self.bytes.len().checked_add_signed(front + back) else { return false };
        // Cut at the end alone, a frame keeps what stands before it.
        if len < ETH_HEADER || headroom + len > HEADROOM - KEPT + LONGEST {
            return false;
        }
        let skipped = (-front).max(0).cast_unsigned();
        let mut bytes = vec![0; len].into_boxed_slice();
        let to = front.max(0).cast_unsigned();
        for (to, from) in bytes.iter_mut().skip(to).zip(self.bytes.iter().skip(skipped)) {
            *to = *from;
        }
        (self.bytes, self.headroom) = (bytes, headroom);
        true
    }
}

/// Changes the length of a context's frame.
pub(crate) fn resize(ctx: &mut xdp_md, front: isize, back: isize) -> i64 {
    // SAFETY: set by `run` to a frame that lives as long as the program runs.
    let frame = unsafe { &mut *ctx.frame };
    if !frame.resize(front, back) {
        return -22;
    }
    frame.pointed_to_by(ctx);
    0
}

/// Runs a program on a frame; returns its verdict and what became of the frame. `None` for a frame that the kernel's
/// test-run would not take either. In front of a `crowded` frame there is no room.
pub fn run(
    program: impl FnOnce(*mut xdp_md) -> u32,
    frame: &[u8],
    ingress: u32,
    crowded: bool,
) -> Option<(u32, Vec<u8>)> {
    if !(ETH_HEADER..=LONGEST).contains(&frame.len()) {
        return None;
    }
    let mut frame = Frame { bytes: frame.into(), headroom: if crowded { 0 } else { HEADROOM - KEPT } };
    let mut context = xdp_md { data: 0, data_end: 0, ingress_ifindex: ingress as usize, frame: std::ptr::null_mut() };
    frame.pointed_to_by(&mut context);
    context.frame = &raw mut frame;
    let verdict = program(&raw mut context);
    Some((verdict, frame.bytes.into_vec()))
}
