//! What routers on the way to tunnels' ends say of narrow links.
//!
//! Such an answer comes to the tunnel's source, one of this host's addresses, and quotes the outer packet. The kernel learns a
//! path's MTU from it only on behalf of a socket that speaks the quoted protocol (net/ipv4/raw.c, `raw_err`; net/ipv6/raw.c,
//! `rawv6_err`), and nobody here does: the packets are made by the XDP program. So there are sockets that do nothing else. What
//! was learned stands in the route then, where it is looked for.

use std::io;

use futures_util::future::select_all;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{io::Interest, net::UdpSocket};

/// IPv4 in IP, and IPv6 in IP (IANA's protocol numbers).
const INNER: [i32; 2] = [4, 41];

/// Sockets by which the kernel is told of narrow links.
pub(crate) struct Tunnels {
    /// Raw ones; the type is that of sockets for datagrams, which they are too.
    sockets: Vec<UdpSocket>,
}

impl Tunnels {
    /// Opens the sockets, in the namespace of the calling thread; fewer where the host has no IPv6 or a right is missing.
    pub(crate) fn open() -> Self {
        let mut sockets = Vec::new();
        for (domain, inner) in [Domain::IPV4, Domain::IPV6].into_iter().flat_map(|domain| INNER.map(|n| (domain, n))) {
            match open(domain, inner) {
                Ok(socket) => sockets.push(socket),
                Err(error) => tracing::debug!("narrow links on the way of tunnels are not heard of: {error}"),
            }
        }
        Self { sockets }
    }

    /// Waits until a router has said something.
    pub(crate) async fn told(&self) {
        if self.sockets.is_empty() {
            return std::future::pending().await;
        }
        let waits = self.sockets.iter().map(|socket| Box::pin(told(socket)));
        select_all(waits).await;
    }
}

fn open(domain: Domain, inner: i32) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(inner)))?;
    socket.set_nonblocking(true)?;
    // Where this host is itself a tunnel's end, copies of what arrives come here, and are left.
    socket.set_recv_buffer_size(0)?;
    let (level, option) = match domain {
        Domain::IPV4 => (libc::IPPROTO_IP, libc::IP_RECVERR),
        _ => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    set(&socket, level, option)?;
    UdpSocket::from_std(socket.into())
}

/// Switches an option on.
fn set(socket: &Socket, level: i32, option: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    let on: i32 = 1;
    // SAFETY: the descriptor is open, and the pointer is to as many bytes as told, for the length of the call.
    let failed = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), size_of_val(&on) as libc::socklen_t)
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Waits for an error on the socket, and takes in all there are.
async fn told(socket: &UdpSocket) {
    if socket.ready(Interest::ERROR).await.is_err() {
        return std::future::pending().await;
    }
    // What they say does not matter: the kernel has heard it.
    let mut quoted = [std::mem::MaybeUninit::uninit(); 64];
    let mut take = || SockRef::from(socket).recv_with_flags(&mut quoted, libc::MSG_ERRQUEUE);
    while socket.try_io(Interest::ERROR, &mut take).is_ok() {}
    let _ = socket.take_error();
}
