//! The lab's own XDP programs, so small that they are written down here rather than built.
//!
//! A veth throws away what XDP_TX or a redirect sends into it unless its peer runs an XDP program
//! too, if only one that passes everything. And to tell the lab's faults from Ebb's, there is one that
//! does the least a balancer does.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use super::sys::{BpfArgument, bpf, interface_index};

/// Holds a program on its device; dropping it takes the program off.
#[derive(Debug)]
pub struct Attached {
    _link: OwnedFd,
}

/// `r0 = XDP_PASS`
const PASS: u64 = instruction(0xb7, 0, 0, 0, 2);
const EXIT: u64 = instruction(0x95, 0, 0, 0, 0);

/// Attaches a program that passes every frame to `device`, in native mode, in the calling thread's namespace.
pub(super) fn attach_pass(device: &str) -> io::Result<Attached> {
    attach(load(&[PASS, EXIT])?.as_fd(), device)
}

/// Attaches a program that sends every packet for `vip` back out of `device`, from the MAC address `from`
/// to the MAC address `to`, and passes all others: the least that a one-armed balancer does.
pub(super) fn attach_bounce(device: &str, vip: IpAddr, from: [u8; 6], to: [u8; 6]) -> io::Result<Attached> {
    // Where the frame holds the destination address's last four bytes, and the EtherType to expect.
    let (ethertype, offset, tail) = match vip {
        IpAddr::V4(vip) => (0x0800_u16, 30, vip.octets()),
        IpAddr::V6(vip) => {
            let [.., a, b, c, d] = vip.octets();
            (0x86dd, 50, [a, b, c, d])
        }
    };
    let word = |bytes: &[u8]| {
        let mut word = [0; 4];
        word[..bytes.len()].copy_from_slice(bytes);
        i32::from_ne_bytes(word)
    };
    let program = [
        instruction(0x61, 2, 1, 0, 0),                            // r2 = data
        instruction(0x61, 3, 1, 4, 0),                            // r3 = data_end
        instruction(0xbf, 4, 2, 0, 0),                            // r4 = r2
        instruction(0x07, 4, 0, 0, 54),                           // r4 += 54
        instruction(0x2d, 4, 3, 10, 0),                           // if r4 > r3 goto pass
        instruction(0x69, 5, 2, 12, 0),                           // r5 = EtherType
        instruction(0x55, 5, 0, 8, i32::from(ethertype.to_be())), // if r5 != ethertype goto pass
        instruction(0x61, 5, 2, offset, 0),                       // r5 = end of the destination
        instruction(0x56, 5, 0, 6, word(&tail)),                  // if w5 != tail goto pass
        instruction(0x62, 2, 0, 0, word(&to[..4])),               // destination MAC
        instruction(0x6a, 2, 0, 4, word(&to[4..])),
        instruction(0x62, 2, 0, 6, word(&from[..4])), // source MAC
        instruction(0x6a, 2, 0, 10, word(&from[4..])),
        instruction(0xb7, 0, 0, 0, 3), // r0 = XDP_TX
        EXIT,
        PASS,
        EXIT,
    ];
    attach(load(&program)?.as_fd(), device)
}

/// One instruction, by the encoding in the kernel's Documentation/bpf/standardization/instruction-set.rst.
const fn instruction(code: u8, target: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    let registers = (source << 4 | target) as u64;
    code as u64 | registers << 8 | (offset.cast_unsigned() as u64) << 16 | (immediate.cast_unsigned() as u64) << 32
}

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: u32 = 5;
    const PROG_TYPE_XDP: u32 = 6;

    let mut load = BpfArgument::new();
    load.put_u32(0, PROG_TYPE_XDP);
    load.put_u32(4, program.len() as u32);
    load.put_pointer(8, program.as_ptr());
    load.put_pointer(16, c"GPL".as_ptr());
    // SAFETY: the instructions are borrowed across the call, with their true length; the licence is a static.
    unsafe { bpf(PROG_LOAD, &mut load) }
}

/// Attaches a loaded program to `device`, in native mode, in the calling thread's namespace.
pub(crate) fn attach(program: BorrowedFd<'_>, device: &str) -> io::Result<Attached> {
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
