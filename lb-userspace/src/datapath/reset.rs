//! Telling both ends of a cut connection.
//!
//! What each end accepts is told by RFC 5961, section 3.2, and by `tcp_validate_incoming` and `tcp_check_req` in the
//! kernel's net/ipv4/tcp_input.c and tcp_minisocks.c:
//!
//! - The **client** in the middle of a connection wants exactly its next sequence number. That is the highest it has
//!   acknowledged, unless an acknowledgement is delayed; under `nat` the server's own next number is known too and sent
//!   besides. A client that is still connecting wants its SYN acknowledged. So: RST and ACK.
//! - The **backend** wants exactly its next sequence number, the end of what the client has sent; a half-open connection
//!   does not look at an RST that acknowledges the wrong thing. So: RST without ACK.
//!
//! An end that has another idea of what comes next answers with a challenge ACK. That comes by here (from the client) or
//! goes to a client that is gone by then; either way it is answered by an RST with the very number it asked for.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    backend::{Backend, backend_flag},
    control::{Peer, mac_bytes},
    flow::{FlowEntry, Meta, flow_flag},
    service::{Service, forward},
    tcp::flag,
    vlan::Tag,
};

use super::{
    frame::{self, Envelope, Frame, Segment, Sender},
    maps::Maps,
    rows,
};

/// Sends resets.
#[derive(Debug, Default)]
pub(crate) struct Resets {
    sender: Sender,
}

impl Resets {
    /// Ready for a time when the process is out of descriptors.
    pub(crate) fn ready() -> Self {
        let mut resets = Self::default();
        // While there are descriptors to be had.
        let _ = resets.sender.prepare();
        resets
    }

    /// Sends RSTs for these flows of a backend: to each client from where its packets came, and to the backend unless
    /// `row` is another generation's by now. What cannot be sent is said in the log; the packet path answers what either
    /// end says later.
    pub(crate) fn send(&mut self, maps: &Maps, row: &Backend, generation: u32, flows: &[(Meta, FlowEntry)]) {
        let (frames, unknown) = Self::frames(maps, row, generation, flows);
        let failed = self.sender.send(&frames);
        if failed > 0 || unknown > 0 {
            tracing::warn!(
                "{failed} resets could not be sent, and {unknown} clients are reset at their next packet only"
            );
        }
    }

    /// What is to be sent, and for how many clients nothing is, since where they are is not known.
    pub(crate) fn frames(
        maps: &Maps,
        row: &Backend,
        generation: u32,
        flows: &[(Meta, FlowEntry)],
    ) -> (Vec<Frame>, u64) {
        let mut frames = Vec::with_capacity(flows.len() * 2);
        let mut unknown = 0u64;
        for (meta, flow) in flows {
            let Some(service) = maps.services.read(flow.port_service >> 16) else { continue };
            let peer = maps.peers.read(u32::from(flow.peer)).filter(|_| flow.peer != 0);
            match peer.and_then(|peer| Peer::unpack(peer.peer).map(|found| (found, peer.own_mac))) {
                Some((peer, own_mac)) => to_client(&mut frames, *meta, flow, &service, peer, own_mac),
                None => unknown += 1,
            }
            if row.generation == generation && row.flags & backend_flag::RESOLVED != 0 {
                frames.extend(to_backend(flow, &service, row));
            }
        }
        (frames, unknown)
    }
}

fn client(flow: &FlowEntry, port: u16) -> SocketAddr {
    SocketAddr::new(flow.client.into(), u16::from_be(port))
}

fn to_client(frames: &mut Vec<Frame>, meta: Meta, flow: &FlowEntry, service: &Service, peer: Peer, own_mac: u64) {
    let vlan = Tag((own_mac >> 48) as u16).vlan();
    let envelope =
        Envelope { ifindex: peer.ifindex, dst: mac_bytes(peer.mac), src: mac_bytes(own_mac), tunnel: None, vlan };
    let rst = |seq| Segment {
        from: rows::vip(service),
        to: client(flow, flow.port_service as u16),
        seq,
        ack: Some(flow.client_seq),
        flags: flag::RST,
    };
    frames.extend(frame::build(&envelope, &rst(flow.client_ack)));
    if meta.any(flow_flag::REPLY_SEEN) && flow.server_seq != flow.client_ack {
        frames.extend(frame::build(&envelope, &rst(flow.server_seq)));
    }
}

fn to_backend(flow: &FlowEntry, service: &Service, row: &Backend) -> Option<Frame> {
    let tunnel =
        (service.forward == forward::TUNNEL).then(|| (IpAddr::from(row.tunnel_source), IpAddr::from(row.addr)));
    let envelope =
        Envelope { ifindex: row.ifindex, dst: row.dst_mac, src: row.src_mac, tunnel, vlan: Tag(row.tag).vlan() };
    let port = if flow.nat_port == 0 { flow.port_service as u16 } else { flow.nat_port };
    let to = if service.forward == forward::NAT {
        SocketAddr::new(row.addr.into(), u16::from_be(row.port))
    } else {
        rows::vip(service)
    };
    let rst = Segment { from: client(flow, port), to, seq: flow.client_seq, ack: None, flags: flag::RST };
    frame::build(&envelope, &rst)
}
