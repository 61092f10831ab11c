//! Builds an eBPF package of this workspace for the package whose build script includes this file, and leaves the object
//! in `OUT_DIR`.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

#[path = "../../xtask/src/record.rs"]
mod record;

use record::{RECORD_PATH, Record};

/// Builds the package `name`, which lies in `directory` below the workspace's root.
pub(crate) fn embed(name: &str, directory: &str) {
    if let Err(error) = build(name, directory) {
        // One paragraph; with `cargo::error` Cargo prints it as its own error instead of a dump of this script.
        println!("cargo::error={}", format!("{error:#}").replace('\n', " "));
    }
}

fn build(name: &str, directory: &str) -> Result<()> {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("run by Cargo")?);
    let root = manifest_dir.parent().context("the package lies in the workspace")?;
    // aya-build adds the eBPF package itself. The lock file decides which aya-ebpf goes into the object.
    for path in [RECORD_PATH, "lb-common", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={}", root.join(path).display());
    }

    let record = Record::read(root).with_context(|| format!("cannot read {RECORD_PATH}; run: cargo xtask setup"))?;
    let Some(record) = record else {
        bail!(
            "Ebb's XDP program is compiled with a Rust toolchain that has its own sources (rust-src) and with \
             bpf-linker, and this checkout has not looked for them yet; run: cargo xtask setup"
        );
    };
    if !record.linker.is_file() {
        bail!(
            "bpf-linker, needed for Ebb's XDP program, is no longer at {}; run: cargo xtask setup",
            record.linker.display()
        );
    }
    prepare_environment(&record);
    let _held_while_building = share_inner_builds(name)?;

    let ebpf = root.join(directory);
    aya_build::build_ebpf(
        [Package { name, root_dir: utf8(&ebpf)?, ..Package::default() }],
        Toolchain::Custom(&record.toolchain),
    )
    .context(
        "Ebb's XDP program did not build (the compiler's messages are above; if they are about the toolchain or \
         bpf-linker, run: cargo xtask setup)",
    )
}

/// Sets what the inner Cargo reads; aya-build has no argument for it.
fn prepare_environment(record: &Record) {
    for (name, value) in [
        // `-Z build-std=core` and the BPF target need it on every compiler but a nightly.
        ("RUSTC_BOOTSTRAP", "1".as_ref()),
        // By path: `rustup run` puts ~/.cargo/bin before PATH, and another bpf-linker may live there.
        ("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", record.linker.as_os_str()),
        ("CARGO_TARGET_BPFEB_UNKNOWN_NONE_LINKER", record.linker.as_os_str()),
        // aya-build turns each line of the inner Cargo's progress into a warning.
        ("CARGO_TERM_QUIET", "true".as_ref()),
    ] {
        // SAFETY: this build script has started no thread yet, so nothing reads the environment meanwhile.
        unsafe { env::set_var(name, value) };
    }
    // Wrappers and flags meant for the outer build do not apply to another compiler and target.
    for name in ["RUSTC_WRAPPER", "CARGO_BUILD_TARGET", "CARGO_BUILD_RUSTFLAGS"] {
        // SAFETY: as above.
        unsafe { env::remove_var(name) };
    }
}

/// Has every inner build (of each package, for each profile, after each change of the scripts' dependencies) use one
/// directory, where each would else compile `core` and aya's own build dependencies anew, a minute each time.
///
/// The lock keeps another build from replacing the object between its link and aya-build's copy.
fn share_inner_builds(name: &str) -> Result<File> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("run by Cargo")?);
    // target/PROFILE/build/PACKAGE-HASH/out
    let target = out.ancestors().nth(4).context("OUT_DIR lies in a target directory")?;
    let shared = target.join("ebpf-object");
    let failed = || format!("cannot prepare {}", shared.display());
    fs::create_dir_all(&shared).with_context(failed)?;
    let lock = File::create(shared.join("ebb.lock")).with_context(failed)?;
    lock.lock().with_context(failed)?;

    // Where aya-build puts it; it has no argument for that.
    let fixed = out.join("aya-build/target");
    fs::create_dir_all(&fixed).with_context(failed)?;
    if !fixed.join(name).exists() {
        std::os::unix::fs::symlink(&shared, fixed.join(name)).with_context(failed)?;
    }
    Ok(lock)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("the path {} is not UTF-8", path.display()))
}
