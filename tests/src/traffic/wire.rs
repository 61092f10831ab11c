//! What the test programs say to each other.
//!
//! A TCP server greets with its name; then the client sends frames, which the server sends back as
//! they are. Every frame is different from every other on any connection, so a byte that was lost,
//! doubled, or came from another connection shows. A datagram is a frame, and its answer is the name
//! and the frame.

use std::fmt;

/// Length of a name on the wire, padded with zeroes.
pub(super) const NAME_LEN: usize = 16;
/// Length of a frame's header: payload length, sequence number.
pub(super) const HEADER_LEN: usize = 8;
/// Upper limit for payloads, to tell a frame from garbage.
pub(super) const PAYLOAD_MAX: usize = 1 << 20;
/// In place of the payload length: "close first, please".
pub(super) const PLEASE_CLOSE: u32 = u32::MAX;

/// A server's name, at most 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name([u8; NAME_LEN]);

impl Name {
    /// Takes the first 16 bytes of `name`.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; NAME_LEN];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self(bytes)
    }

    pub(super) const fn from_wire(bytes: [u8; NAME_LEN]) -> Self {
        Self(bytes)
    }

    pub(super) const fn on_wire(&self) -> &[u8; NAME_LEN] {
        &self.0
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(NAME_LEN);
        std::str::from_utf8(&self.0[..end]).unwrap_or("?")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Frame number `sequence` of the connection `connection`.
pub(super) fn frame(connection: u64, sequence: u32, payload_len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload_len);
    bytes.extend_from_slice(&(payload_len as u32).to_be_bytes());
    bytes.extend_from_slice(&sequence.to_be_bytes());
    let mut state = connection << 32 | u64::from(sequence) | 1;
    while bytes.len() < HEADER_LEN + payload_len {
        state = step(state);
        let word = state.to_be_bytes();
        let take = word.len().min(HEADER_LEN + payload_len - bytes.len());
        bytes.extend_from_slice(&word[..take]);
    }
    bytes
}

/// The header that asks the server to close first.
pub(super) fn please_close() -> [u8; HEADER_LEN] {
    (u64::from(PLEASE_CLOSE) << 32).to_be_bytes()
}

/// Splits a header into payload length and sequence number.
pub(super) fn header(bytes: [u8; HEADER_LEN]) -> (u32, u32) {
    let word = u64::from_be_bytes(bytes);
    ((word >> 32) as u32, word as u32)
}

/// One step of Marsaglia's xorshift64 ("Xorshift RNGs", 2003): all the randomness the lab needs, and repeatable.
pub(super) fn step(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}
