//! The language that fixtures are written in: a description, the combinations it holds for, and steps, each a packet
//! with what must become of it, a change of the maps, or a look at the flow table.

use ebb_tests::{
    lab::{FAMILIES, Family},
    packets::{
        Extension, Frame, Piece, Transport,
        tcp_flag::{ACK, FIN, PSH, RST, SYN},
    },
    rig::{CLIENT_MAC, Cell, MODES, Mode, OWN_MAC, PROTOCOLS, Protocol},
};
use lb_common::{backend::BackendState, outcome::Outcome};

/// A backend of the service under test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct B(pub u8);

/// The backend that owns every slot of the ring, to begin with. It is on another link than the clients.
pub const B0: B = B(0);
/// Another, on the clients' link.
pub const B1: B = B(1);

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
    /// The maps are changed.
    Set(Change),
    /// The flow table holds exactly these flows.
    Flows(Vec<Flow>),
}

/// A backend's packet to the client, which must reach it as the VIP's.
#[derive(Clone, Copy, Debug)]
pub struct Reply {
    pub from: B,
    pub flags: u8,
    pub seq: u32,
    pub ack: u32,
    pub bytes: usize,
}

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
    /// The backend is reached by the other family (`tunnel`).
    OtherFamily(B),
}

type Edit = Box<dyn Fn(&mut Frame) + Send + Sync>;
type Patch = Box<dyn Fn(&Frame, &mut Vec<u8>) + Send + Sync>;

/// A frame to send, relative to the combination under test.
pub struct Input {
    transport: Option<Transport>,
    payload: usize,
    edits: Vec<Edit>,
    patches: Vec<Patch>,
}

/// What must become of it.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    pub outcome: Outcome,
    pub result: Outcomes,
    /// The packet ends its flow by an RST, which is counted for its backend.
    pub counts_reset: bool,
    /// It counts as one of the backend's packets.
    pub counts: bool,
}

#[derive(Clone, Copy, Debug)]
pub enum Outcomes {
    /// Forwarded to that backend in the service's mode.
    To(B),
    /// Passed to the kernel, untouched.
    Pass,
    /// Dropped.
    Drop,
    /// Answered by an RST with these numbers.
    Reset { seq: u32, ack: u32, flags: u8 },
    /// Answered by "fragmentation needed" or "packet too big".
    TooBig { mtu: u16 },
    /// An echo request answered.
    EchoReply,
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
        self.modes = vec![Mode::Dsr, Mode::Tunnel];
        self
    }

    /// Only for that mode.
    pub fn only(mut self, mode: Mode) -> Self {
        self.modes = vec![mode];
        self
    }

    /// The backend answers what [`open`] sent: a SYN with ACK, or a datagram.
    pub fn answered(self, from: B) -> Self {
        self.reply(from, SYN | ACK, ACKED.wrapping_sub(1), ISN + 1, 0)
    }

    /// The backend says something.
    pub fn reply(mut self, from: B, flags: u8, seq: u32, ack: u32, bytes: usize) -> Self {
        self.steps.push(Step::Reply(Reply { from, flags, seq, ack, bytes }));
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

/// The client's sequence number in the examples' SYN.
pub const ISN: u32 = 1000;
/// What the server has said in the examples, as the client acknowledges it.
pub const ACKED: u32 = 0x8000_1000;

fn tcp(flags: u8, seq: u32, ack: u32, payload: usize) -> Input {
    Input { transport: Some(Transport::tcp(flags, seq, ack)), payload, edits: Vec::new(), patches: Vec::new() }
}

/// A SYN.
pub fn syn(seq: u32) -> Input {
    tcp(SYN, seq, 0, 0)
}

/// An acknowledgement without data.
pub fn ack(seq: u32, ack: u32) -> Input {
    tcp(ACK, seq, ack, 0)
}

/// Data.
pub fn data(seq: u32, ack: u32, bytes: usize) -> Input {
    tcp(ACK | PSH, seq, ack, bytes)
}

/// The client's last segment.
pub fn fin(seq: u32, ack: u32) -> Input {
    tcp(FIN | ACK, seq, ack, 0)
}

/// A segment with any flags.
pub fn segment(flags: u8, seq: u32, ack: u32, bytes: usize) -> Input {
    tcp(flags, seq, ack, bytes)
}

/// A reset by the client.
pub fn rst(seq: u32) -> Input {
    tcp(RST, seq, 0, 0)
}

/// A datagram with that many bytes.
pub fn datagram(payload: usize) -> Input {
    let transport = Transport::Udp { checksum: true };
    Input { transport: Some(transport), payload, edits: Vec::new(), patches: Vec::new() }
}

/// What opens a flow: a SYN with [`ISN`], or a datagram.
pub fn open() -> Input {
    Input { transport: None, payload: 0, edits: Vec::new(), patches: Vec::new() }
}

/// What follows: ten bytes of data, or a datagram of ten bytes.
pub fn more() -> Input {
    Input { transport: None, payload: 10, edits: Vec::new(), patches: Vec::new() }
}

impl Input {
    /// Changes headers before the frame is built.
    pub fn with(mut self, edit: impl Fn(&mut Frame) + Send + Sync + 'static) -> Self {
        self.edits.push(Box::new(edit));
        self
    }

    /// Changes bytes after it is built: what no library would write.
    pub fn patched(mut self, patch: impl Fn(&Frame, &mut Vec<u8>) + Send + Sync + 'static) -> Self {
        self.patches.push(Box::new(patch));
        self
    }

    /// With VLAN tags, the outer one first.
    pub fn tags(self, tags: &'static [u16]) -> Self {
        self.with(move |frame| frame.tags = tags.to_vec())
    }

    /// To another port of the VIP.
    pub fn port(self, port: u16) -> Self {
        self.with(move |frame| frame.destination.set_port(port))
    }

    /// From another port of the client.
    pub fn client_port(self, port: u16) -> Self {
        self.with(move |frame| frame.source.set_port(port))
    }

    /// With IPv6 extension headers.
    pub fn extensions(self, extensions: &'static [Extension]) -> Self {
        self.with(move |frame| frame.extensions = extensions.to_vec())
    }

    /// As a fragment.
    pub fn piece(self, piece: Piece) -> Self {
        self.with(move |frame| frame.piece = Some(piece))
    }

    /// One byte of the IP header set.
    pub fn ip_byte(self, at: usize, value: u8) -> Self {
        self.patched(move |frame, bytes| bytes[frame.ip_offset() + at] = value)
    }

    /// One byte of what follows the IP header set.
    pub fn transport_byte(self, at: usize, value: u8) -> Self {
        self.patched(move |frame, bytes| bytes[frame.payload_offset() + at] = value)
    }

    /// The frame for a combination, and its bytes.
    pub fn realise(&self, cell: Cell) -> (Frame, Vec<u8>) {
        let transport = self.transport.clone().unwrap_or(match (cell.protocol, self.payload) {
            (Protocol::Tcp, 0) => Transport::tcp(SYN, ISN, 0),
            (Protocol::Tcp, _) => Transport::tcp(ACK | PSH, ISN + 1, ACKED),
            (Protocol::Udp, _) => Transport::Udp { checksum: true },
        });
        let mut frame = Frame::new(cell.client(), cell.vip(), transport);
        frame.source_mac = CLIENT_MAC;
        frame.destination_mac = OWN_MAC;
        frame.payload = (0..self.payload).map(|i| i as u8).collect();
        for edit in &self.edits {
            edit(&mut frame);
        }
        let mut bytes = frame.bytes();
        for patch in &self.patches {
            patch(&frame, &mut bytes);
        }
        (frame, bytes)
    }
}

fn expect(outcome: Outcome, result: Outcomes) -> Expect {
    Expect { outcome, result, counts_reset: false, counts: true }
}

/// Forwarded as a packet of a known flow.
pub fn to(backend: B) -> Expect {
    expect(Outcome::Forwarded, Outcomes::To(backend))
}

/// Forwarded as the first packet of a new flow.
pub fn opens_to(backend: B) -> Expect {
    expect(Outcome::NewFlow, Outcomes::To(backend))
}

/// Passed, untouched.
pub fn pass(outcome: Outcome) -> Expect {
    expect(outcome, Outcomes::Pass)
}

/// Dropped.
pub fn drop(outcome: Outcome) -> Expect {
    expect(outcome, Outcomes::Drop)
}

/// Answered by an RST with that sequence number and no acknowledgement.
pub fn reset(seq: u32) -> Expect {
    expect(Outcome::ResetSent, Outcomes::Reset { seq, ack: 0, flags: RST })
}

/// Answered by an RST that acknowledges, to a segment that acknowledges nothing.
pub fn reset_acking(ack: u32) -> Expect {
    expect(Outcome::ResetSent, Outcomes::Reset { seq: 0, ack, flags: RST | ACK })
}

/// Sent on as what belongs to a flow, but is no packet of it.
pub fn goes_with(backend: B, outcome: Outcome) -> Expect {
    Expect { counts: false, ..expect(outcome, Outcomes::To(backend)) }
}

/// Answered for its size.
pub fn too_big(mtu: u16) -> Expect {
    expect(Outcome::TooBigSent, Outcomes::TooBig { mtu })
}

/// An echo request answered.
pub fn echo_reply() -> Expect {
    expect(Outcome::EchoAnswered, Outcomes::EchoReply)
}

impl Expect {
    /// Counted as that instead.
    pub fn as_(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// And the flow counts as ended by an RST.
    pub fn ends_flow(mut self) -> Self {
        self.counts_reset = true;
        self
    }
}

/// A flow of that backend in its first life, with these flags and no others; those that follow from mode and protocol
/// are added.
pub fn flow(backend: B, flags: u16) -> Flow {
    Flow { backend, generation: 7, flags, seq: None, ack: None, port: None }
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

    /// Of the backend's next generation.
    pub fn next_generation(mut self) -> Self {
        self.generation += 1;
        self
    }
}
