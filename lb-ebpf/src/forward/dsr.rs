//! Direct server return: the packet goes to the backend's next hop as it is; the backend holds the VIP and answers the
//! client itself.

use lb_common::{backend::Backend, outcome::Outcome};

use super::address_frame;
use crate::packet::Packet;

/// Readies the frame; gives the interface to leave by.
#[inline(always)]
pub fn send(packet: &Packet, backend: &Backend) -> Result<u32, Outcome> {
    address_frame(packet, backend)
}
