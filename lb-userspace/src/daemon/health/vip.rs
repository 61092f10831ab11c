//! Whether a backend of a `dsr` or `tunnel` service answers for the VIP: a SYN for the VIP is sent the way that clients' packets take, past
//! this host's own routing, which may well keep the VIP for itself, and the answer is read off the wire. The half-open connection is then
//! reset.

use std::{
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lb_common::tcp::flag;
use socket2::{Domain, Protocol as Number, SockFilter, Socket, Type};
use tokio::{io::unix::AsyncFd, net::UdpSocket};

use super::{Fault, probe::fault};
use crate::{
    control::model::Protocol,
    daemon::handle::{CheckTarget, Way},
    datapath::{
        NextHop,
        frame::{self, Envelope, Segment, Sender},
    },
};

/// An unanswered SYN is repeated after so long.
const AGAIN: Duration = Duration::from_millis(500);
/// The longest answer that is looked at: an IPv6 header and a TCP header with all options.
const ANSWER_LIMIT: usize = 128;
const IPV6_HEADER: usize = 40;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Asks; an error says what is wrong. For UDP a refusal by the VIP will do: somebody has it.
pub(super) async fn ask(target: &CheckTarget, way: &Way) -> Result<(), Fault> {
    let vip = target.vip.address;
    let limit = target.health.timeout_s.0.mul_f64(0.9);
    let theirs = |what: &str| Err(Fault::Theirs(format!("{vip}: {what}")));
    match tokio::time::timeout(limit, exchange(target, way)).await {
        Err(_) => theirs("no answer from there: is the VIP on the backend's loopback?"),
        Ok(Err(error)) => Err(fault(&vip, &error)),
        Ok(Ok(flags)) if flags & flag::RST == 0 || target.vip.protocol == Protocol::Udp => Ok(()),
        Ok(Ok(_)) => theirs("connection refused there"),
    }
}

/// Sends SYNs until one is answered, and returns the answer's flags.
async fn exchange(target: &CheckTarget, way: &Way) -> io::Result<u8> {
    let next_hop = way.next_hop.ok_or_else(|| io::Error::other("the way to the backend is not known yet"))?;
    let vip = target.vip.address;
    let from = source(vip, &next_hop).await?;
    // Held so that nobody else here is given the port.
    let held = match from {
        IpAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
        IpAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
    }?;
    held.bind(SocketAddr::new(from, 0))?;
    let from = held.local_addr()?;
    let envelope = envelope(target, way, &next_hop)?;
    let socket = listen(vip, from)?;
    // SAFETY: the socket owns its one descriptor until the AsyncFd, which owns the socket, is dropped.
    let answers = unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)?;
    let seq = RandomState::new().hash_one(from) as u32;
    let mut sender = Sender::default();
    sender.prepare()?;
    let syn = Segment { from, to: vip, seq, ack: None, flags: flag::SYN };
    loop {
        send(&mut sender, &envelope, &syn)?;
        let Ok(flags) = tokio::time::timeout(AGAIN, answer(&answers, vip, from, seq.wrapping_add(1))).await else {
            continue;
        };
        let flags = flags?;
        if flags & flag::RST == 0 {
            send(&mut sender, &envelope, &Segment { seq: seq.wrapping_add(1), flags: flag::RST, ..syn })?;
        }
        return Ok(flags);
    }
}

/// Whom the backend answers: this host, by an address of the VIP's family.
async fn source(vip: SocketAddr, next_hop: &NextHop) -> io::Result<IpAddr> {
    if let Some(own) = next_hop.source.filter(|own| own.is_ipv4() == vip.is_ipv4()) {
        return Ok(own);
    }
    // A tunnel between families: by what address would this host speak to the VIP?
    let any = if vip.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let socket = UdpSocket::bind((any, 0)).await?;
    let found = socket.connect(vip).await.and_then(|()| socket.local_addr()).map(|own| own.ip());
    let found = found.ok().filter(|own| *own != vip.ip());
    found.ok_or_else(|| io::Error::other("this host has no address of the VIP's family to ask from"))
}

fn envelope(target: &CheckTarget, way: &Way, next_hop: &NextHop) -> io::Result<Envelope> {
    let tunnel = match (way.tunnel, next_hop.source) {
        (true, Some(own)) => Some((own, target.address.ip)),
        (true, None) => return Err(io::Error::other("the tunnel has no source address yet")),
        (false, _) => None,
    };
    Ok(Envelope {
        ifindex: next_hop.ifindex,
        dst: next_hop.dst_mac,
        src: next_hop.src_mac,
        tunnel,
        vlan: next_hop.vlan,
    })
}

fn send(sender: &mut Sender, envelope: &Envelope, segment: &Segment) -> io::Result<()> {
    let frame = frame::build(envelope, segment).ok_or_else(|| io::Error::other("addresses of two families"))?;
    sender.send_one(&frame)
}

/// A packet socket that sees what comes for this check, on whatever interface, and hardly anything else.
fn listen(vip: SocketAddr, own: SocketAddr) -> io::Result<Socket> {
    let ethertype: u16 = if vip.is_ipv4() { ETHERTYPE_IPV4 } else { ETHERTYPE_IPV6 };
    // Cooked: what is read begins with the IP header.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(Number::from(i32::from(ethertype.to_be()))))?;
    socket.attach_filter(&filter(vip, own))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A classic BPF program: TCP, from the VIP, to this address and port.
fn filter(vip: SocketAddr, own: SocketAddr) -> Vec<SockFilter> {
    let mut wants: Vec<(u32, u32, u32)> = Vec::new();
    let mut words_at = |at: u32, ip: IpAddr| {
        let octets = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        for (number, word) in (0..).zip(octets.chunks_exact(4)) {
            let word = word.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
            wants.push((libc::BPF_W, at + 4 * number, word));
        }
    };
    let (first, protocol_at) = if vip.is_ipv4() { (12, 9) } else { (8, 6) };
    words_at(first, vip.ip());
    words_at(if vip.is_ipv4() { 16 } else { 24 }, own.ip());
    wants.push((libc::BPF_B, protocol_at, libc::IPPROTO_TCP as u32));
    let statement = |code: u32, k: u32| SockFilter::new(code as u16, 0, 0, k);
    let load = |size: u32, at: u32| statement(libc::BPF_LD | size | libc::BPF_ABS, at);
    let mut program: Vec<SockFilter> = Vec::new();
    // A test that holds skips the no that follows it.
    let test = |program: &mut Vec<SockFilter>, value: u32| {
        program.push(SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 1, 0, value));
        program.push(statement(libc::BPF_RET | libc::BPF_K, 0));
    };
    for (size, at, value) in wants {
        program.push(load(size, at));
        test(&mut program, value);
    }
    if vip.is_ipv4() {
        // The header's own length, which may have options.
        program.push(statement(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, 0));
        program.push(statement(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, 2));
    } else {
        program.push(load(libc::BPF_H, IPV6_HEADER as u32 + 2));
    }
    test(&mut program, u32::from(own.port()));
    program.push(statement(libc::BPF_RET | libc::BPF_K, ANSWER_LIMIT as u32));
    program
}

/// The flags of the segment that acknowledges the SYN.
async fn answer(socket: &AsyncFd<Socket>, vip: SocketAddr, own: SocketAddr, acked: u32) -> io::Result<u8> {
    let mut packet = [0; ANSWER_LIMIT];
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| socket.get_ref().read(&mut packet)) {
            Ok(Ok(length)) => {
                if let Some(flags) = judge(&packet[..length], vip, own, acked) {
                    return Ok(flags);
                }
            }
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
}

/// The flags, if this packet is the answer. What came before the filter was in force is told apart here.
fn judge(packet: &[u8], vip: SocketAddr, own: SocketAddr, acked: u32) -> Option<u8> {
    let header = if vip.is_ipv4() { usize::from(packet.first()? & 0xf) * 4 } else { IPV6_HEADER };
    let tcp = packet.get(header..header + 20)?;
    let word = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let ports = u32::from(vip.port()) << 16 | u32::from(own.port());
    let flags = tcp[13];
    let answers = flags & flag::ACK != 0 && flags & (flag::SYN | flag::RST) != 0;
    (word(0) == ports && word(8) == acked && answers).then_some(flags)
}
