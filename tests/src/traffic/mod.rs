//! Programs that make real TCP and UDP traffic inside a lab, and keep accounts of it on both sides.

mod account;
mod apart;
mod client;
mod datagrams;
mod flood;
mod host;
mod receiver;
mod server;
mod wire;

pub use self::{
    account::{Accepted, Connection, DatagramFlow, End, Fault, Tally, given_after, last_end, tenths},
    apart::serve_requests,
    client::{Client, Closer, Conversation, Group, Lasting},
    datagrams::DatagramGroup,
    flood::{forge_resets, syn_flood},
    host::Host,
    receiver::{Post, Reaction, Receiver},
    server::{Server, Transport},
    wire::Name,
};

/// Closes a connection by an RST, as a program does that dies or gives up.
pub fn abort(socket: std::net::TcpStream) -> anyhow::Result<()> {
    crate::lab::abort(socket)
}

/// Takes a connection's end away without a word, as a power cut does.
pub fn vanish(socket: std::net::TcpStream) -> anyhow::Result<()> {
    crate::lab::vanish(socket)
}
