//! The packet in its buffer: the one bounds check, and reads and writes through it.
//!
//! **Invariant:** no other module does arithmetic on packet pointers.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use bytemuck::Pod;

/// The frame's first and last byte, as the verifier tracks them.
#[derive(Clone, Copy)]
pub struct Packet {
    ctx: *mut xdp_md,
    start: usize,
    end: usize,
}

/// Bytes of the packet that were found to be there.
#[derive(Clone, Copy)]
pub struct Window<const N: usize>(usize);

/// Keeps the compiler from merging bounds checks of different windows: the verifier tracks each pointer by itself, and
/// a check that was proven on one does not count for another.
#[inline(always)]
fn opaque(at: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    let at = {
        let mut at = at;
        // SAFETY: a move of a register to itself (without an instruction the line information would not load).
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) at, options(nomem, nostack, preserves_flags));
        }
        at
    };
    at
}

/// Reads the 32-bit field of the context at `AT`.
///
/// By an instruction of its own: where several paths read fields, the compiler may merge them into one read through a
/// pointer to the field, and the kernel takes no pointer into its context but to its beginning
/// (kernel/bpf/verifier.c, "dereference of modified ctx ptr"). Whether it does so changes with the names of symbols,
/// and so with the directory that the program is built in.
#[inline(always)]
fn field<const AT: usize>(ctx: *mut xdp_md) -> usize {
    let value: usize;
    #[cfg(target_arch = "bpf")]
    // SAFETY: one load from the kernel's own context.
    unsafe {
        core::arch::asm!("{0} = *(u32 *)({1} + {2})", out(reg) value, in(reg) ctx, const AT, options(nostack));
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: a field of the context that the twin was called with (see fuzz/), there as wide as a pointer.
    unsafe {
        value = ctx.byte_add(AT).cast::<usize>().read();
    }
    value
}

impl<const N: usize> Window<N> {
    /// Reads a `T` at `AT`, at any alignment.
    ///
    /// The kernel refuses programs with misaligned packet access on machines that cannot do it
    /// (kernel/bpf/verifier.c, `check_ptr_alignment`), so a plain load is right wherever this program loads.
    #[inline(always)]
    pub fn get<T: Pod, const AT: usize>(&self) -> T {
        const { assert!(AT + size_of::<T>() <= N) };
        let at = (self.0 + AT) as *const T;
        // SAFETY: `window` checked the bounds; any bytes are a `T`.
        #[cfg(target_arch = "bpf")]
        return unsafe { core::ptr::read_volatile(at) };
        // SAFETY: as above.
        #[cfg(not(target_arch = "bpf"))]
        return unsafe { core::ptr::read_unaligned(at) };
    }

    /// Writes a `T` at `AT`, at any alignment.
    #[inline(always)]
    pub fn put<T: Pod, const AT: usize>(&self, value: T) {
        const { assert!(AT + size_of::<T>() <= N) };
        let at = (self.0 + AT) as *mut T;
        // SAFETY: `window` checked the bounds.
        #[cfg(target_arch = "bpf")]
        return unsafe { core::ptr::write_volatile(at, value) };
        // SAFETY: as above.
        #[cfg(not(target_arch = "bpf"))]
        return unsafe { core::ptr::write_unaligned(at, value) };
    }
}

impl Packet {
    /// The packet of this run. Taken anew after every change of its length.
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        let ctx = ctx.ctx;
        Self {
            ctx,
            start: field::<{ offset_of!(xdp_md, data) }>(ctx),
            end: field::<{ offset_of!(xdp_md, data_end) }>(ctx),
        }
    }

    /// `N` bytes at `offset`, if all of them lie in the packet.
    ///
    /// `offset` must be bounded for the verifier: a constant, or masked.
    #[inline(always)]
    pub fn window<const N: usize>(&self, offset: usize) -> Option<Window<N>> {
        let at = opaque(self.start + offset);
        if at + N > self.end {
            return None;
        }
        Some(Window(at))
    }

    /// Length of the linear part of the frame, in bytes.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// The kernel's context, for functions that take the packet anew.
    #[inline(always)]
    pub fn context(&self) -> *mut xdp_md {
        self.ctx
    }

    /// MAC addresses of source and destination, each in the low 48 bits of a word, in memory order.
    #[inline(always)]
    pub fn macs(&self) -> Option<(u64, u64)> {
        let frame = self.window::<12>(0)?;
        let destination = frame.get::<u32, 0>() as u64 | (frame.get::<u16, 4>() as u64) << 32;
        let source = frame.get::<u32, 6>() as u64 | (frame.get::<u16, 10>() as u64) << 32;
        Some((source, destination))
    }

    /// Interface that the packet came in on.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        field::<{ offset_of!(xdp_md, ingress_ifindex) }>(self.ctx) as u32
    }

    /// Makes room for `bytes` in front of the frame, and takes the pointers anew.
    #[inline(always)]
    pub fn grow_front(&self, bytes: usize) -> Option<Self> {
        self.adjusted(|ctx| {
            // SAFETY: see `adjusted`.
            unsafe { bpf_xdp_adjust_head(ctx, -signed(bytes)) }
        })
    }

    /// Takes `bytes` off the frame's front, and takes the pointers anew.
    #[inline(always)]
    pub fn cut_front(&self, bytes: usize) -> Option<Self> {
        self.adjusted(|ctx| {
            // SAFETY: see `adjusted`.
            unsafe { bpf_xdp_adjust_head(ctx, signed(bytes)) }
        })
    }

    /// Takes `bytes` off the frame's end, and takes the pointers anew.
    #[inline(always)]
    pub fn cut_back(&self, bytes: usize) -> Option<Self> {
        self.adjusted(|ctx| {
            // SAFETY: see `adjusted`.
            unsafe { bpf_xdp_adjust_tail(ctx, -signed(bytes)) }
        })
    }

    /// Makes the frame `len` bytes long by its end, and takes the pointers anew.
    #[inline(always)]
    pub fn resized(&self, len: usize) -> Option<Self> {
        let more = signed(len) - signed(self.len());
        self.adjusted(|ctx| {
            // SAFETY: see `adjusted`.
            unsafe { bpf_xdp_adjust_tail(ctx, more) }
        })
    }

    /// Calls a helper that changes the frame's length on the kernel's own context, the only one it may be called on.
    #[inline(always)]
    fn adjusted(&self, helper: impl FnOnce(*mut xdp_md) -> i64) -> Option<Self> {
        if helper(self.ctx) != 0 {
            return None;
        }
        Some(Self::new(&XdpContext::new(self.ctx)))
    }
}

/// A length as the helpers take it.
#[inline(always)]
fn signed(bytes: usize) -> i32 {
    #[expect(clippy::cast_possible_wrap, reason = "a frame is shorter than 64 KiB")]
    let signed = bytes as i32;
    signed
}
