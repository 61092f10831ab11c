//! What became of a packet: the one list from which actions, counters and metric labels come.

/// Declares the outcomes with their name in metrics and a sentence for people.
macro_rules! outcomes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)+) => {
        /// What became of a packet. Each has a counter of its own, per CPU.
        #[repr(u8)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Outcome {
            $($(#[$doc])* $variant,)+
        }

        impl Outcome {
            /// All of them, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The outcome with that number.
            #[inline(always)]
            pub const fn from_u8(n: u8) -> Option<Self> {
                $(if n == Self::$variant as u8 {
                    return Some(Self::$variant);
                })+
                None
            }

            /// Name in JSON and metrics.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

outcomes! {
    // Passed to the host, untouched.
    /// Not an IP packet, or one for no service.
    NotForService = "not_for_service",
    /// Headers cut short or lying, and not known to be for a service.
    PassedMalformed = "passed_malformed",
    /// For a VIP that the host uses too, and no service's.
    PassedHost = "passed_host",
    // Forwarded.
    /// A packet of a known flow.
    Forwarded = "forwarded",
    /// The first packet of a new flow.
    NewFlow = "new_flow",
    /// A segment of a flow not known here, adopted.
    Adopted = "adopted",
    /// Steered by the hash alone for want of a place in the table: the table does not know every flow.
    Untracked = "untracked",
    /// Steered by the hash alone since no entry is wanted: a datagram of a service that keeps no flows, or a segment that
    /// makes none.
    Stateless = "stateless",
    /// A segment of an unknown flow sent to the backend that owned its slot before a drain.
    RemembersOwner = "remembered_owner",
    /// A datagram of no known flow sent to the backend that its QUIC connection id names: a connection that has migrated.
    NamedById = "named_by_id",
    /// A reply rewritten on its way back (`nat`).
    Reply = "reply",
    /// An ICMP error about a flow.
    IcmpError = "icmp_error",
    /// A later fragment sent after its first.
    Fragment = "fragment",
    /// Taken out of its tunnel (`ebb decap`).
    Decapsulated = "decapsulated",
    // Answered.
    /// A segment of a cut flow answered with an RST.
    ResetSent = "reset_sent",
    /// "Fragmentation needed" or "packet too big" sent.
    TooBigSent = "too_big_sent",
    /// An echo request to a VIP answered.
    EchoAnswered = "echo_answered",
    /// An ARP request or neighbour solicitation for a VIP answered.
    NeighbourAnswered = "neighbour_answered",
    // Dropped; all of it for a service.
    /// No backend takes new flows.
    DroppedNoBackend = "dropped_no_backend",
    /// A packet of a cut flow under `silent`, or one that must not be answered.
    DroppedCut = "dropped_cut",
    /// The flow's backend has no known next hop.
    DroppedUnresolved = "dropped_unresolved",
    /// Headers that contradict the packet's length.
    DroppedMalformed = "dropped_malformed",
    /// A fragment whose first fragment is not known.
    DroppedFragment = "dropped_fragment",
    /// Too big for the next hop and not to be fragmented or answered.
    DroppedTooBig = "dropped_too_big",
    /// Hop limit used up.
    DroppedHopLimit = "dropped_hop_limit",
    /// Under `nat`, a flow that could not be told from another service's.
    DroppedNatConflict = "dropped_nat_conflict",
    /// A packet that the driver would not let grow or shrink.
    DroppedResize = "dropped_resize",
}

/// How many outcomes there are.
pub const OUTCOMES: u32 = Outcome::ALL.len() as u32;

/// A counter beside those of outcomes: flows that the packet path took out of the table by itself, so that nobody can log them.
pub const UNTOLD: u32 = 63;

const _: () = assert!(OUTCOMES <= UNTOLD);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_follow_the_order_and_names_differ() {
        let mut names = HashSet::new();
        for (i, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, i);
            assert!(names.insert(outcome.name()));
        }
    }
}
