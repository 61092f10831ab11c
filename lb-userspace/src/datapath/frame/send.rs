//! Sending whole frames past the stack.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use super::Frame;

/// Frames handed to the kernel by one call.
const BATCH: usize = 64;

/// A packet socket, opened when first needed, if not before.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    socket: Option<OwnedFd>,
}

impl Sender {
    /// Opens the socket now; what fails is tried again when there is something to send.
    pub(crate) fn prepare(&mut self) -> io::Result<()> {
        self.socket().map(drop)
    }

    fn socket(&mut self) -> io::Result<&OwnedFd> {
        let socket = self.socket.take().map_or_else(open, Ok)?;
        Ok(self.socket.insert(socket))
    }

    /// Sends the frames; returns how many could not be.
    pub(crate) fn send(&mut self, frames: &[Frame]) -> u64 {
        if frames.is_empty() {
            return 0;
        }
        let socket = match self.socket() {
            Ok(socket) => socket,
            Err(error) => {
                tracing::warn!("cannot open a packet socket: {error}");
                return frames.len() as u64;
            }
        };
        frames.chunks(BATCH).map(|batch| send_batch(socket, batch)).sum()
    }

    /// Sends one frame, or says why it could not be.
    pub(crate) fn send_one(&mut self, frame: &Frame) -> io::Result<()> {
        let socket = self.socket()?;
        loop {
            match send_some(socket, std::slice::from_ref(frame)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                outcome => return outcome.map(drop),
            }
        }
    }
}

/// A packet socket that receives nothing (protocol 0).
fn open() -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn send_batch(socket: &OwnedFd, frames: &[Frame]) -> u64 {
    let mut failed = 0;
    let mut rest = frames;
    while !rest.is_empty() {
        match send_some(socket, rest) {
            Ok(sent) => rest = &rest[sent.max(1).min(rest.len())..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // The first of the rest could not be sent; its interface may be gone or down.
                tracing::debug!("cannot send on interface {}: {error}", rest[0].ifindex);
                failed += 1;
                rest = &rest[1..];
            }
        }
    }
    failed
}

/// Sends as many as the kernel takes at once, at most [`BATCH`]; an error is the first one's.
fn send_some(socket: &OwnedFd, frames: &[Frame]) -> io::Result<usize> {
    let mut addresses: Vec<libc::sockaddr_ll> = frames.iter().map(|frame| address(frame.ifindex)).collect();
    let mut buffers: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec { iov_base: frame.bytes().as_ptr().cast_mut().cast(), iov_len: frame.bytes().len() })
        .collect();
    let mut messages: Vec<libc::mmsghdr> = addresses
        .iter_mut()
        .zip(&mut buffers)
        .map(|(address, buffer)| {
            // SAFETY: all zeros is a message header without anything.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
            message.msg_hdr.msg_iov = std::ptr::from_mut(buffer);
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    // SAFETY: as many messages as the length says; their names and buffers are the vectors above, which outlive the call
    // and which the kernel only reads.
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, 0) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

fn address(ifindex: u32) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: ifindex.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    }
}
