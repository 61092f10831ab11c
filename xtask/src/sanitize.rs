//! `cargo xtask sanitize`: the tests that need no root, and every input that fuzzing has kept, under AddressSanitizer.

use anyhow::Result;

use crate::{command, fuzz, setup};

/// Builds and runs them; fails if a test does, or if memory is used that should not be.
pub(crate) fn sanitize() -> Result<()> {
    setup::ensure(setup::Needs::Build)?;
    // As the fuzz targets are built, so that most of it is built once.
    let mut tests = fuzz::instrumented("test", &fuzz::directory()?);
    tests.args(["-p", "lb-common", "-p", "lb-userspace", "-p", "ebb-fuzz", "--lib", "--test", "replay"]);
    // The real program needs root, and has no sanitizer.
    command::run_as("cargo test (under AddressSanitizer)", tests.env("EBB_FUZZ_KERNEL", "0"))
}
