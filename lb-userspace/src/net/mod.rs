//! The network as the kernel tells it over netlink. Never by `/sys/class/net`, which may show another namespace.

pub mod host;
pub mod links;
mod request;
mod resolver;
mod table;
mod tunnels;

pub use resolver::NetlinkResolver;
