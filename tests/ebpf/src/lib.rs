//! Layouts that the benchmark shares with its programs in the kernel.
#![no_std]

use bytemuck::{Pod, Zeroable};

/// Bytes of the template that are written to the frame each time: the headers of an IPv6 segment, and some.
pub const TEMPLATE: usize = 96;

/// Which flow a packet belongs to, see [`Job::walk`].
pub mod walk {
    /// The one flow `first`.
    pub const CONSTANT: u32 = 0;
    /// One after the other, from `first` on, `flows` of them, over and over.
    pub const SEQUENTIAL: u32 = 1;
    /// At random, by a linear congruential generator (the multiplier and increment are those of Numerical Recipes).
    pub const RANDOM: u32 = 2;
}

/// What the driver does on one CPU.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Job {
    /// First bytes of every frame.
    pub template: [u64; TEMPLATE / 8],
    /// Length of every frame, at least [`TEMPLATE`]; what the target added or took is undone.
    pub length: u32,
    /// One of [`walk`].
    pub walk: u32,
    /// How many flows.
    pub flows: u32,
    /// Number of the first flow.
    pub first: u32,
    /// State of the walk.
    pub state: u32,
    /// 1 for IPv6: where source address and port stand.
    pub v6: u32,
    /// Program to enter, by its place in `TARGETS`.
    pub target: u32,
    /// Where the target `send` sends to.
    pub interface: u32,
}

const _: () = assert!(size_of::<Job>() == 128);

/// What one CPU has taken at the far end of a link.
#[repr(C, align(64))]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct Received {
    /// Packets.
    pub packets: u64,
    /// When the last one came, if `stamp` took it.
    pub last_ns: u64,
    /// The longest time between two.
    pub longest_gap_ns: u64,
    /// Explicit padding.
    pub pad: [u64; 5],
}

/// Rows of `STAMPED`.
pub const STAMPS: usize = 1 << 16;

/// Rows of `JOBS`: CPUs that can drive at once.
pub const CPUS: u32 = 64;

/// Client ports that are in use for each client address.
pub const PORTS: u32 = 1 << 14;

/// Client port of a flow.
#[inline]
pub const fn port_of(flow: u32) -> u16 {
    (1024 + flow % PORTS) as u16
}

/// The last 32 bits of the client's address.
#[inline]
pub const fn address_of(flow: u32) -> u32 {
    0x0a10_0000 + flow / PORTS
}

/// A flood: frames that differ in a few random words.
pub mod flood {
    use super::{Pod, Zeroable};

    /// Bytes of every frame.
    pub const FRAME: usize = 128;
    /// Random words of a frame.
    pub const WORDS: usize = 4;
    /// The senders' addresses: 198.18.0.0/15 (RFC 2544) …
    pub const NET_V4: u32 = 0xc612_0000;
    /// … under this mask, …
    pub const MASK_V4: u32 = 0xfffe_0000;
    /// … and 2001:2::/48 (RFC 5180), of which this is the first word.
    pub const NET_V6: u32 = 0x2001_0002;

    /// Checksums that a random word counts in.
    pub mod sum {
        /// IPv4's own.
        pub const IP: u32 = 1;
        /// The transport's.
        pub const TRANSPORT: u32 = 2;
    }

    /// A word that is another one in each frame: `base`, and random bits under `mask`.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable, Debug, Default)]
    pub struct Word {
        /// Where it stands; 0 for none.
        pub at: u32,
        /// Bits of [`sum`].
        pub sums: u32,
        /// Fixed bits, in host order.
        pub base: u32,
        /// Which bits are random.
        pub mask: u32,
    }

    /// What one CPU sends.
    #[repr(C, align(64))]
    #[derive(Clone, Copy, Pod, Zeroable, Debug)]
    pub struct Flood {
        /// The frame, with zeroes where random words and the checksums that they count in stand.
        pub frame: [u64; FRAME / 8],
        /// The random words.
        pub words: [Word; WORDS],
        /// Sums of 16-bit words, not complemented, without the random words: IPv4's and the transport's.
        pub sums: [u32; 2],
        /// Where these checksums stand; 0 for none.
        pub sums_at: [u32; 2],
        /// State of the generator; not 0.
        pub state: u64,
        /// Interface to send out of.
        pub interface: u32,
        /// Explicit padding.
        pub pad: [u32; 9],
    }

    const _: () = assert!(size_of::<Flood>() == 256);

    /// What the sieve has seen on one CPU of a flood's frames on their way back from the balancer.
    #[repr(C, align(64))]
    #[derive(Clone, Copy, Pod, Zeroable, Debug)]
    pub struct Seen {
        /// Frames from the flood's senders: the balancer has sent them on.
        pub forwarded: u64,
        /// Their bytes.
        pub forwarded_bytes: u64,
        /// Frames for the flood's senders: answers.
        pub answered: u64,
        /// Their bytes.
        pub answered_bytes: u64,
        /// Of the frames sent on, one in so many (a power of two) less one is let through to its backend; the rest is taken.
        pub let_through_mask: u64,
        /// Explicit padding.
        pub pad: [u64; 3],
    }
}

/// Layouts of the yardstick's maps.
pub mod yardstick {
    use super::{Pod, Zeroable};

    /// Slots of its ring.
    pub const RING: u32 = 65_537;

    /// What it finds a service by.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    pub struct VipKey {
        /// Address; IPv4 in the first word.
        pub addr: [u32; 4],
        /// Port, network order.
        pub port: u16,
        /// Protocol.
        pub protocol: u8,
        /// Explicit padding.
        pub pad: u8,
    }

    /// A service.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    pub struct Vip {
        /// Flags; none is in use.
        pub flags: u32,
        /// Its number: which part of the ring map is its own.
        pub number: u32,
    }

    /// What it finds a flow by.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    pub struct FlowKey {
        /// Source.
        pub source: [u32; 4],
        /// Destination.
        pub destination: [u32; 4],
        /// Both ports.
        pub ports: u32,
        /// Protocol.
        pub protocol: u32,
    }

    /// Where a flow goes.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    pub struct Flow {
        /// Backend.
        pub backend: u32,
        /// Explicit padding.
        pub pad: u32,
        /// Time of the last datagram.
        pub seen_ns: u64,
    }

    /// A backend.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    pub struct Backend {
        /// MAC address of its next hop.
        pub destination_mac: [u8; 6],
        /// Our own.
        pub source_mac: [u8; 6],
        /// Flags; none is in use.
        pub flags: u32,
    }

    /// Counters.
    #[repr(C)]
    #[derive(Clone, Copy, Pod, Zeroable)]
    pub struct Stats {
        /// Packets.
        pub packets: u64,
        /// Bytes.
        pub bytes: u64,
    }
}
