//! A target that does nothing.

use aya_ebpf::{bindings::xdp_action::XDP_TX, macros::xdp, programs::XdpContext};

/// The least a target can do: what the driver costs by itself.
#[xdp]
pub fn floor(_ctx: XdpContext) -> u32 {
    XDP_TX
}
