//! The language that fixtures are written in: a description, the combinations it holds for, and steps, each a packet
//! with what must become of it, a change of the maps, or a look at the flow table.

use ebb_tests::{
    lab::{FAMILIES, Family},
    packets::{
        Mac,
        tcp_flag::{ACK, SYN},
    },
    rig::{Cell, MODES, Mode, PROTOCOLS, Protocol},
};
use lb_common::{backend::BackendState, outcome::Outcome};

pub use crate::{
    decap::Tunnelled,
    expect::{
        Expect, Outcomes, drop, echo_reply, goes_with, opens_to, pass, reset, reset_acking, to, too_big,
        too_big_for_tunnel,
    },
    input::{ACKED, ISN, Input, ack, data, datagram, fin, more, open, rst, segment, syn},
};

/// A backend of the service under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct B(pub u8);

/// The backend that owns every slot of the ring, to begin with. It is on another link than the clients.
pub const B0: B = B(0);
/// Another, on the clients' link.
pub const B1: B = B(1);
/// A third.
pub const B2: B = B(2);
/// What [`B0`] is to the second service, see [`Change::Share`].
pub const B3: B = B(3);

/// One fixture, for every combination that it names.
pub struct Fixture {
    pub name: &'static str,
    pub about: &'static str,
    pub modes: Vec<Mode>,
    pub families: Vec<Family>,
    pub protocols: Vec<Protocol>,
    pub steps: Vec<Step>,
}

/// What is done, or looked at.
pub enum Step {
    /// A frame is run; it must have this result, these counters and no others.
    Send(Input, Expect),
    /// A backend's packet to the client is run, under `nat`; in the other modes it does not come this way.
    Reply(Reply),
    /// A packet arrives at a backend in its tunnel, where `ebb decap` runs.
    Decap(Tunnelled),
    /// The maps are changed.
    Set(Change),
    /// The flow table holds exactly these flows.
    Flows(Vec<Flow>),
}

/// A backend's packet to the client, and what must become of it.
pub struct Reply {
    pub from: B,
    pub input: Input,
    pub heard: Heard,
}

/// What must become of a backend's packet.
#[derive(Clone, Copy, Debug)]
pub enum Heard {
    /// It reaches the client's port, as from that port of the VIP.
    Client { vip_port: u16, port: u16 },
    /// The same by way of that neighbour.
    By(Mac),
    /// The same by the kernel's routes, since the flow is not known.
    ByRoute,
    /// It is an ICMP error and reaches the client; the backend's own come from the VIP then, a router's do not.
    Error { from_backend: bool },
    /// It is a later fragment, and follows its first.
    Fragment,
    /// The backend is answered by an RST with these numbers.
    Reset { seq: u32, ack: u32, flags: u8 },
    /// The backend is answered for the packet's size.
    TooBig { mtu: u16 },
    /// It is dropped.
    Dropped(Outcome),
    /// It is passed.
    Passed(Outcome),
}

/// What reaches the client as usual.
pub const HEARD: Heard = Heard::Client { vip_port: 80, port: 40_000 };

/// A change of the maps, as the daemon or time would make it.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// The backend begins to drain; its slots go to the second one. The deadline is that many seconds off.
    Drain(B, B, i64),
    /// The same without a deadline.
    DrainForever(B, B),
    /// The backend's state.
    State(B, BackendState),
    /// What stands in every slot of the ring: its owner, and its owner before a drain.
    Ring(Option<B>, Option<B>),
    /// The service has no ring at all.
    NoRing,
    /// The backend's slot goes to another, in its next generation and active.
    Replace(B),
    /// The backend is gone and its slot is nobody's.
    Remove(B),
    /// Its next hop is not known (and never was).
    Unresolved(B),
    /// Its next hop is not known any more.
    LostNextHop(B),
    /// Flows cut at the backend's deadline get no answer.
    Silent(B),
    /// Flows of a backend that is gone get no answer.
    ServiceSilent,
    /// Time passes, in seconds: entries of the flow table grow older.
    Pass(u32),
    /// All flows in the table are marked as cut.
    Cut,
    /// The flow table is lost.
    Forget,
    /// The service steers each datagram by itself.
    PerDatagram,
    /// The VIP is known whatever the port, with these flags of `address_flag`.
    Address(u32),
    /// Where the VIP's port 81 would stand in the VIP table there are the service's entries for what differs from it in one
    /// thing each: the protocol, the port, the address in either half, the kind.
    Neighbours,
    /// The backend's address is of the other family.
    OtherFamily(B),
    /// The backend's slot is another service's.
    Strange(B),
    /// The largest packet that the backend's next hop takes.
    Mtu(B, u16),
    /// The flow table is full of established flows.
    Fill,
    /// Clients are steered by that many bits of their address; the slot of these clients is that backend's.
    Affinity(u8, B),
    /// The other half of the service's ring is published; every slot in it is that backend's.
    OtherHalf(B),
    /// The service looks at QUIC connection ids: so many bytes of them are a server's id, in that configuration. A backend's
    /// is [`B::server_id`].
    QuicCid(u8, u8),
    /// A second service, on the VIP's port 81, has the first one's endpoints for its backends too; [`B3`] is [`B0`]'s.
    Share,
}
/// A flow as it stands in the table.
#[derive(Clone, Debug)]
pub struct Flow {
    pub backend: B,
    pub generation: u32,
    pub flags: u16,
    pub seq: Option<u32>,
    pub ack: Option<u32>,
    /// The client's port, if not the usual one.
    pub port: Option<u16>,
    /// Whether its backend's answers were another flow's (`nat`).
    pub unanswered: bool,
}

impl Fixture {
    /// A fixture for every combination there is.
    pub fn new(name: &'static str, about: &'static str) -> Self {
        Self {
            name,
            about,
            modes: MODES.to_vec(),
            families: FAMILIES.to_vec(),
            protocols: PROTOCOLS.to_vec(),
            steps: Vec::new(),
        }
    }

    /// Whether it has a frame with no room in front.
    pub fn is_crowded(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Send(input, _) if input.crowded))
    }

    pub fn tcp(mut self) -> Self {
        self.protocols = vec![Protocol::Tcp];
        self
    }

    pub fn udp(mut self) -> Self {
        self.protocols = vec![Protocol::Udp];
        self
    }

    pub fn v4(mut self) -> Self {
        self.families = vec![Family::V4];
        self
    }

    pub fn v6(mut self) -> Self {
        self.families = vec![Family::V6];
        self
    }

    pub fn send(mut self, input: Input, expect: Expect) -> Self {
        self.steps.push(Step::Send(input, expect));
        self
    }

    /// Only for modes in which replies do not come this way.
    pub fn one_way(mut self) -> Self {
        self.modes = vec![Mode::Dsr, Mode::Tunnel, Mode::Across];
        self
    }

    /// Only for that mode.
    pub fn only(mut self, mode: Mode) -> Self {
        self.modes = vec![mode];
        self
    }

    /// Only for `nat`.
    pub fn nat(self) -> Self {
        self.only(Mode::Nat)
    }

    /// Only for tunnels.
    pub fn tunnels(mut self) -> Self {
        self.modes = vec![Mode::Tunnel, Mode::Across];
        self
    }

    /// The backend answers what [`open`] sent: a SYN with ACK, or a datagram.
    pub fn answered(self, from: B) -> Self {
        self.reply(from, SYN | ACK, ACKED.wrapping_sub(1), ISN + 1, 0)
    }

    /// The backend says something.
    pub fn reply(self, from: B, flags: u8, seq: u32, ack: u32, bytes: usize) -> Self {
        self.says(from, segment(flags, seq, ack, bytes), HEARD)
    }

    /// The backend sends this to the client.
    pub fn says(mut self, from: B, input: Input, heard: Heard) -> Self {
        self.steps.push(Step::Reply(Reply { from, input, heard }));
        self
    }

    /// A packet arrives at the backend in its tunnel.
    pub fn arrives(mut self, tunnelled: Tunnelled) -> Self {
        self.steps.push(Step::Decap(tunnelled));
        self
    }

    pub fn set(mut self, change: Change) -> Self {
        self.steps.push(Step::Set(change));
        self
    }

    pub fn flows(mut self, flows: &[Flow]) -> Self {
        self.steps.push(Step::Flows(flows.to_vec()));
        self
    }

    /// The combinations it holds for.
    pub fn cells(&self) -> impl Iterator<Item = Cell> {
        self.modes.iter().flat_map(move |&mode| {
            self.families
                .iter()
                .flat_map(move |&family| self.protocols.iter().map(move |&protocol| Cell { mode, family, protocol }))
        })
    }
}
/// A flow of that backend in its first life, with these flags and no others; those that follow from mode and protocol
/// are added.
pub fn flow(backend: B, flags: u16) -> Flow {
    Flow { backend, generation: 7, flags, seq: None, ack: None, port: None, unanswered: false }
}

impl Flow {
    /// With the client's next sequence number (TCP).
    pub fn seq(mut self, seq: u32) -> Self {
        self.seq = Some(seq);
        self
    }

    /// With its acknowledgement (TCP).
    pub fn ack(mut self, ack: u32) -> Self {
        self.ack = Some(ack);
        self
    }

    /// Of another port of the client.
    pub fn of_port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Its backend has answered, but not on this flow.
    pub fn without_reply(mut self) -> Self {
        self.unanswered = true;
        self
    }

    /// Of the backend's next generation.
    pub fn next_generation(mut self) -> Self {
        self.generation += 1;
        self
    }
}
