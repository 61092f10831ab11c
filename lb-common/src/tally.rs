//! What a flow has carried, counted beside the flow table where that is asked for: a row for each of its entries.

use bytemuck::{Pod, Zeroable};

/// A flow's packets and their bytes (of IP, as they come in), each way. The packet path begins it before it links the flow's
/// entry, and adds to it; the daemon reads it once the flow is over.
#[repr(C, align(32))]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Pod, Zeroable)]
pub struct FlowTally {
    /// Packets of the client, and [`BEGUN`].
    pub client_packets: u64,
    /// Their bytes.
    pub client_bytes: u64,
    /// Packets of the server, where they pass through here (`nat`).
    pub server_packets: u64,
    /// Their bytes.
    pub server_bytes: u64,
}

const _: () = assert!(size_of::<FlowTally>() == 32);

/// The row was there when its flow began. A flow that is older than the counting has rows without: what they say is not all.
pub const BEGUN: u64 = 1 << 63;

impl FlowTally {
    /// Packets and bytes of the client and of the server, if all of them were counted.
    pub const fn complete(&self) -> Option<[u64; 4]> {
        if self.client_packets & BEGUN == 0 {
            return None;
        }
        Some([self.client_packets & !BEGUN, self.client_bytes, self.server_packets, self.server_bytes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_counted_from_the_beginning_is_told() {
        let older = FlowTally { client_packets: 3, client_bytes: 180, ..FlowTally::default() };
        assert_eq!(older.complete(), None);
        assert_eq!(FlowTally { client_packets: 3 | BEGUN, ..older }.complete(), Some([3, 180, 0, 0]));
    }
}
