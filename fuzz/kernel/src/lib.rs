//! What Ebb's XDP program uses of aya-ebpf, on ordinary memory: maps, helpers, the context.
//!
//! The program's source is compiled for the host against this crate under aya-ebpf's name. A fuzzer then sees every branch
//! that it takes, and a sanitizer every byte that it reaches for. Whoever runs it that way puts memory behind the maps
//! ([`maps`]) and says what the kernel would ([`world`]).
//!
//! One program at a time: the maps are statics, as they are in the object.

pub mod maps;
pub mod world;

pub use aya_ebpf_macros as macros;

/// A constant that is set when the program is loaded. Here it stays as it was written.
#[derive(Debug)]
pub struct Global<T>(T);

impl<T: Copy> Global<T> {
    /// With this value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value.
    pub fn load(&self) -> T {
        self.0
    }
}

/// Maps under the names that the program uses.
pub mod btf_maps {
    pub use crate::maps::{Array, ArrayOfMaps, HashMap, HashMap as LruHashMap, PerCpuArray};
}

/// The context and the verdicts.
pub mod bindings {
    /// The context of a run. The kernel's own has 32-bit fields, which hold pointers only after it has rewritten the loads.
    #[repr(C)]
    #[derive(Clone, Copy, Debug)]
    pub struct xdp_md {
        /// Address of the frame's first byte.
        pub data: usize,
        /// Address behind its last.
        pub data_end: usize,
        /// Interface that it came in on.
        pub ingress_ifindex: usize,
        /// The frame itself.
        pub frame: *mut crate::world::Frame,
    }

    /// What a program may answer (include/uapi/linux/bpf.h).
    pub mod xdp_action {
        /// Drop it.
        pub const XDP_DROP: u32 = 1;
        /// Leave it to the host.
        pub const XDP_PASS: u32 = 2;
        /// Send it back.
        pub const XDP_TX: u32 = 3;
        /// Send it elsewhere.
        pub const XDP_REDIRECT: u32 = 4;
    }
}

/// The program's view of its context.
pub mod programs {
    use crate::bindings::xdp_md;

    /// As aya-ebpf has it.
    #[derive(Debug)]
    pub struct XdpContext {
        /// The kernel's own.
        pub ctx: *mut xdp_md,
    }

    impl XdpContext {
        /// Wraps a context.
        pub const fn new(ctx: *mut xdp_md) -> Self {
            Self { ctx }
        }
    }
}

/// The helpers, as the program calls them.
pub mod helpers {
    #![expect(clippy::missing_safety_doc, reason = "unsafe because the kernel's are")]

    use crate::world;
    pub use crate::{
        bindings::xdp_action::XDP_REDIRECT,
        helpers::generated::{bpf_get_prandom_u32, bpf_get_smp_processor_id},
    };

    /// Says that the frame is to leave by an interface.
    pub unsafe fn bpf_redirect(ifindex: u32, _flags: u64) -> i64 {
        world::note_redirect(ifindex);
        i64::from(XDP_REDIRECT)
    }

    /// The same helpers, under the name of the module that aya-ebpf has for those without a wrapper.
    pub mod generated {
        use core::ffi::c_void;

        use super::world;
        use crate::bindings::xdp_md;

        /// The only CPU there is.
        pub unsafe fn bpf_get_smp_processor_id() -> u32 {
            0
        }

        /// A number that depends on nothing but how often it was asked for.
        pub unsafe fn bpf_get_prandom_u32() -> u32 {
            world::random()
        }

        /// The time that the world was told.
        pub unsafe fn bpf_ktime_get_coarse_ns() -> u64 {
            world::now_ns()
        }

        /// Not asked: the settings say that a jiffy has no length.
        pub unsafe fn bpf_jiffies64() -> u64 {
            0
        }

        /// Moves the frame's first byte (net/core/filter.c, `bpf_xdp_adjust_head`).
        pub unsafe fn bpf_xdp_adjust_head(ctx: *mut xdp_md, delta: i32) -> i64 {
            // SAFETY: the program's own context.
            world::resize(unsafe { &mut *ctx }, -(delta as isize), 0)
        }

        /// Moves the frame's end (net/core/filter.c, `bpf_xdp_adjust_tail`).
        pub unsafe fn bpf_xdp_adjust_tail(ctx: *mut xdp_md, delta: i32) -> i64 {
            // SAFETY: the program's own context.
            world::resize(unsafe { &mut *ctx }, 0, delta as isize)
        }

        /// No route leads anywhere, and this host does not forward (`BPF_FIB_LKUP_RET_FWD_DISABLED`).
        pub unsafe fn bpf_fib_lookup(_ctx: *mut c_void, _question: *mut c_void, _len: i32, _flags: u32) -> i64 {
            5
        }

        /// Whether a packet fits an interface: there is one, the loopback (net/core/filter.c, `bpf_xdp_check_mtu`).
        pub unsafe fn bpf_check_mtu(_ctx: *mut c_void, ifindex: u32, mtu: *mut u32, _diff: i32, _flags: u64) -> i64 {
            const LOOPBACK_MTU: u32 = 65_536;
            if ifindex != 1 {
                return -19;
            }
            // SAFETY: the program's own word.
            let len = unsafe { mtu.replace(LOOPBACK_MTU) };
            i64::from(len > LOOPBACK_MTU)
        }
    }
}
