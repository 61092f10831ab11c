//! Frames to send, relative to the combination under test.

use std::net::SocketAddr;

use ebb_tests::{
    packets::{
        Extension, Frame, Mac, Piece, Transport,
        tcp_flag::{ACK, FIN, PSH, RST, SYN},
    },
    rig::{CLIENT_MAC, Cell, OWN_MAC, Protocol},
};

type Edit = Box<dyn Fn(&mut Frame) + Send + Sync>;
type Patch = Box<dyn Fn(&Frame, &mut Vec<u8>) + Send + Sync>;

/// A frame to send, relative to the combination under test.
pub struct Input {
    transport: Option<Transport>,
    payload: usize,
    edits: Vec<Edit>,
    patches: Vec<Patch>,
    /// There is no room left in front of the frame.
    pub crowded: bool,
}

/// The client's sequence number in the examples' SYN.
pub const ISN: u32 = 1000;
/// What the server has said in the examples, as the client acknowledges it.
pub const ACKED: u32 = 0x8000_1000;

fn tcp(flags: u8, seq: u32, ack: u32, payload: usize) -> Input {
    Input {
        transport: Some(Transport::tcp(flags, seq, ack)),
        payload,
        edits: Vec::new(),
        patches: Vec::new(),
        crowded: false,
    }
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
    Input { transport: Some(transport), payload, edits: Vec::new(), patches: Vec::new(), crowded: false }
}

/// What opens a flow: a SYN with [`ISN`], or a datagram.
pub fn open() -> Input {
    Input { transport: None, payload: 0, edits: Vec::new(), patches: Vec::new(), crowded: false }
}

/// What follows: ten bytes of data, or a datagram of ten bytes.
pub fn more() -> Input {
    Input { transport: None, payload: 10, edits: Vec::new(), patches: Vec::new(), crowded: false }
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

    /// With no room left in front of the frame for it to grow into.
    pub fn crowded(mut self) -> Self {
        self.crowded = true;
        self
    }

    /// With that many bytes behind the headers.
    pub fn long(self, bytes: usize) -> Self {
        self.with(move |frame| frame.payload = vec![7; bytes])
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
        self.finish(frame)
    }

    /// The same from a backend to the client.
    pub fn realise_from(&self, cell: Cell, source: SocketAddr, source_mac: Mac) -> (Frame, Vec<u8>) {
        let transport = match (cell.protocol, &self.transport) {
            (Protocol::Tcp, Some(transport)) => transport.clone(),
            (Protocol::Tcp, None) => Transport::tcp(ACK | PSH, ACKED, ISN + 1),
            (Protocol::Udp, _) => Transport::Udp { checksum: true },
        };
        let mut frame = Frame::new(source, cell.client(), transport);
        frame.source_mac = source_mac;
        self.finish(frame)
    }

    fn finish(&self, mut frame: Frame) -> (Frame, Vec<u8>) {
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
