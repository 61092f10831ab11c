//! Pinned maps with wrong contents.

/// What an earlier daemon, or somebody else, left in the maps: settings, rows, flows. See [`crate::datapath`]'s part.
pub fn mapped(data: &[u8]) {
    crate::datapath::fuzz::mapped(data);
}
