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
