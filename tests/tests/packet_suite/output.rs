//! What must leave the balancer, made from what came in by means that share nothing with the program: etherparse builds
//! whole packets with their checksums where the program patches bytes.

use anyhow::{Result, bail};
use ebb_tests::{
    packets::{Frame, Transport},
    rig::Mode,
};
use lb_common::backend::Backend;

use crate::judge::turned_round;

/// Length of the IP packet by its own header.
pub fn ip_length(frame: &Frame, bytes: &[u8]) -> usize {
    let ip = &bytes[frame.ip_offset()..];
    match frame.source {
        std::net::SocketAddr::V4(_) => u16::from_be_bytes([ip[2], ip[3]]).into(),
        std::net::SocketAddr::V6(_) => 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])),
    }
}

/// The frame that a backend gets.
pub fn forwarded(mode: Mode, _frame: &Frame, bytes: &[u8], backend: &Backend) -> Result<Vec<u8>> {
    match mode {
        Mode::Dsr => {
            let mut out = bytes.to_vec();
            out[..6].copy_from_slice(&backend.dst_mac);
            out[6..12].copy_from_slice(&backend.src_mac);
            Ok(out)
        }
        Mode::Nat | Mode::Tunnel => bail!("what {mode} sends is not modelled yet"),
    }
}

/// The segment that answers the frame: addresses and ports swapped, tags kept, no options.
pub fn answer(frame: &Frame, transport: Transport) -> Vec<u8> {
    let mut answer = Frame::new(frame.destination, frame.source, transport);
    (answer.source_mac, answer.destination_mac) = turned_round(frame);
    answer.tags.clone_from(&frame.tags);
    answer.hop_limit = 64;
    answer.bytes()
}
