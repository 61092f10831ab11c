//! A do-nothing XDP program for the far ends of the balancer's veth pairs.
//!
//! A veth throws away what XDP_TX or a redirect sends into it unless its peer runs an XDP program
//! too. Two instructions are enough, so they are written down here rather than built.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use super::sys::{BpfArgument, bpf, interface_index};

/// Holds the program on its device; dropping it takes the program off.
#[derive(Debug)]
pub(super) struct Attached {
    _link: OwnedFd,
}

/// Attaches a program that passes every frame to `device`, in native mode, in the calling thread's namespace.
pub(super) fn attach_pass(device: &str) -> io::Result<Attached> {
    // `r0 = XDP_PASS; exit`, by the encoding in the kernel's Documentation/bpf/standardization/instruction-set.rst.
    const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
    const PROG_LOAD: u32 = 5;
    const PROG_TYPE_XDP: u32 = 6;

    let mut load = BpfArgument::new();
    load.put_u32(0, PROG_TYPE_XDP);
    load.put_u32(4, PASS.len() as u32);
    load.put_pointer(8, PASS.as_ptr());
    load.put_pointer(16, c"GPL".as_ptr());
    // SAFETY: the instructions and the licence are statics, with their true length.
    let program = unsafe { bpf(PROG_LOAD, &mut load) }?;
    attach(&program, device)
}

fn attach(program: &OwnedFd, device: &str) -> io::Result<Attached> {
    const LINK_CREATE: u32 = 28;
    const ATTACH_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

    let mut link = BpfArgument::new();
    link.put_u32(0, program.as_raw_fd().cast_unsigned());
    link.put_u32(4, interface_index(device)?);
    link.put_u32(8, ATTACH_XDP);
    link.put_u32(12, XDP_FLAGS_DRV_MODE);
    // SAFETY: the argument holds integers only.
    let link = unsafe { bpf(LINK_CREATE, &mut link) }?;
    Ok(Attached { _link: link })
}
