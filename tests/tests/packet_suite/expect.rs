//! What must become of a frame.

use ebb_tests::packets::tcp_flag::{ACK, RST};
use lb_common::outcome::Outcome;

use crate::fixture::B;

/// What must become of a frame, and how it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    pub outcome: Outcome,
    pub result: Outcomes,
    /// The packet ends its flow by an RST, which is counted for its backend.
    pub counts_reset: bool,
    /// It counts as one of the backend's packets.
    pub counts: bool,
    /// The port by which the backend knows the client, where it is not the client's own (`nat`).
    pub nat_port: Option<u16>,
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
    /// The same with what the outer header leaves of an MTU of 1,500.
    TooBigForTunnel,
    /// An echo request answered.
    EchoReply,
}

fn expect(outcome: Outcome, result: Outcomes) -> Expect {
    Expect { outcome, result, counts_reset: false, counts: true, nat_port: None }
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

/// Answered for its size in the tunnel.
pub fn too_big_for_tunnel() -> Expect {
    expect(Outcome::TooBigSent, Outcomes::TooBigForTunnel)
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

    /// And the backend sees it come from that port.
    pub fn known_by(mut self, port: u16) -> Self {
        self.nat_port = Some(port);
        self
    }

    /// And the flow counts as ended by an RST.
    pub fn ends_flow(mut self) -> Self {
        self.counts_reset = true;
        self
    }
}
