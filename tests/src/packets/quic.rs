//! Packets of QUIC, as far as their headers are readable: RFC 9000, section 17, and RFC 9369.

/// Version 1.
pub const V1: u32 = 1;
/// Version 2.
pub const V2: u32 = 0x6b33_43cf;

/// Which kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// A short header, as all packets have once the handshake is over.
    Short,
    /// The same with its "fixed bit" cleared (RFC 9287).
    Greased,
    /// A long header: version, and the type as a number of two bits.
    Long(u32, u8),
}

/// What a client may make the id up in.
pub const INITIAL: Header = Header::Long(V1, 0);
/// The same.
pub const ZERO_RTT: Header = Header::Long(V1, 1);
/// What has an id of the server's.
pub const HANDSHAKE: Header = Header::Long(V1, 2);
/// The same in version 2.
pub const HANDSHAKE_2: Header = Header::Long(V2, 3);

/// A datagram's payload: one packet to that connection id.
pub fn packet(header: Header, id: &[u8]) -> Vec<u8> {
    /// Stands for the rest of the header and what is encrypted.
    const REST: [u8; 24] = [0x99; 24];
    let mut bytes = match header {
        Header::Short => vec![0x41],
        Header::Greased => vec![0x01],
        Header::Long(version, kind) => {
            let mut bytes = vec![0xc0 | kind << 4];
            bytes.extend_from_slice(&version.to_be_bytes());
            bytes.push(id.len() as u8);
            bytes
        }
    };
    bytes.extend_from_slice(id);
    bytes.extend_from_slice(&REST);
    bytes
}

/// A connection id as a server makes it: the configuration, its own id, and a nonce of eight bytes, as much as fits.
pub fn id(rotation: u8, server: &[u8]) -> Vec<u8> {
    let mut id = vec![rotation << 5 | 0x13];
    id.extend_from_slice(server);
    id.extend_from_slice(&[0x0e; 8]);
    id.truncate(20);
    id
}
