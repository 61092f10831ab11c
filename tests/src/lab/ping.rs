//! One echo request, by the kernel's own ping sockets (icmp(7)): it fills in and checks the checksums.

use std::{
    io::{ErrorKind, Read as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};

use super::Namespace;

/// Sends one echo request from a namespace; whether it was answered within a third of a second.
pub fn ping(from: &Namespace, to: IpAddr) -> Result<bool> {
    from.sysctl(&[("net/ipv4/ping_group_range", "0 2147483647")])?;
    from.run(|| {
        let (domain, protocol, kind) = match to {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128),
        };
        let mut socket = Socket::new(domain, Type::DGRAM, Some(protocol)).context("open a ping socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(333)))?;
        socket.connect(&SocketAddr::new(to, 0).into())?;
        let mut request = [0x5a; 40];
        request[..8].copy_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 7]);
        socket.send(&request)?;
        let mut answer = [0; 128];
        match socket.read(&mut answer) {
            Ok(length) => Ok(answer[8..length] == request[8..]),
            // What the kernel says when nobody has that address counts as no answer too.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::HostUnreachable) => Ok(false),
            Err(error) => Err(error).context("wait for the answer"),
        }
    })?
}
