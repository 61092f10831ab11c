//! What needs a kernel: BPF maps and programs, netlink, network namespaces. Run as root.
#![expect(clippy::unwrap_used, reason = "a test ends where its helpers fail")]

mod common;
mod datapath;
mod resolver;
