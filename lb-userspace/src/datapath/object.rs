//! The compiled XDP program, carried in the binary.

/// The ELF object with the program `ebb_xdp` and its maps, as `build.rs` left it, aligned for an ELF parser.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ebb-xdp"));
