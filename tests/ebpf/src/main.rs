//! The benchmark's programs: a driver that makes each test-run iteration another packet, targets that do nothing, and a
//! balancer built the conventional way.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(unreachable_pub, reason = "modules of one program; what is public in them is public to the program")]
#![expect(clippy::inline_always, reason = "a call costs what is to be measured")]
#![expect(clippy::needless_pass_by_value, reason = "the signature that the xdp attribute asks for")]

mod driver;
mod flood;
mod floor;
mod frame;
mod wire;
mod yardstick;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
