//! Reading a frame.

use aya_ebpf::programs::XdpContext;

/// The integers at an offset, if all of them lie in the frame.
#[inline(always)]
pub fn load<T: Copy>(ctx: &XdpContext, offset: usize) -> Option<T> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the frame by the check above; only plain integers are loaded.
    Some(unsafe { core::ptr::read_unaligned(at as *const T) })
}
