//! The targets as libFuzzer runs them; which one `EBB_FUZZ_TARGET` says. `cargo xtask fuzz` builds and starts it.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("EBB_FUZZ_TARGET").expect("EBB_FUZZ_TARGET names the target");
    ebb_fuzz::TARGETS.iter().find(|(known, _)| *known == name).expect("a known target").1
});

fuzz_target!(|data: &[u8]| TARGET(data));
