//! `cargo xtask fuzz`: the targets of fuzz/ under libFuzzer, with AddressSanitizer.
//!
//! The flags are those of cargo-fuzz, which is not needed: what it does beyond them is to find a nightly compiler, and the stable one
//! takes them too when told to (`RUSTC_BOOTSTRAP`).

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    command::{self, cargo, root},
    setup, test,
};

/// Coverage counters at every edge, and comparisons told to libFuzzer.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// The one that they are built for; named, so that the flags go to what is fuzzed and not to build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// A file system in memory.
const MEMORY: &str = "/dev/shm";

/// The longest input, bytes.
const LONGEST: u32 = 8_192;

/// What `cargo xtask fuzz` takes.
#[derive(Args)]
pub(crate) struct FuzzOptions {
    /// The target (packet, config, api, state, maps); all of them one after the other when none is named
    target: Option<String>,

    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,

    /// Add to the inputs kept in fuzz/corpus those that reach something new
    #[arg(long)]
    keep: bool,
}

/// Builds the targets, runs them; fails if one of them does not survive an input, which is then kept.
pub(crate) fn fuzz(options: &FuzzOptions) -> Result<()> {
    let targets = targets(options.target.as_deref())?;
    // Packets go through the real program as well.
    let packets = targets.iter().any(|target| target == "packet");
    setup::ensure(if packets { setup::Needs::Lab } else { setup::Needs::Build })?;
    let directory = directory()?;
    let program = build(&directory)?;
    let failed: Vec<&String> = targets
        .iter()
        .filter(|target| {
            let outcome = run(&program, &directory, target, options);
            if let Err(error) = &outcome {
                eprintln!("error: {target}: {error:#}");
            }
            outcome.is_err()
        })
        .collect();
    if failed.is_empty() { Ok(()) } else { bail!("did not survive: {failed:?}") }
}

/// The targets are the directories of the corpora.
fn targets(named: Option<&str>) -> Result<Vec<String>> {
    let corpora = root().join("fuzz/corpus");
    let entries = fs::read_dir(&corpora).with_context(|| format!("read {}", corpora.display()))?;
    let mut all: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    all.sort();
    match named {
        None => Ok(all),
        Some(name) if all.iter().any(|target| target == name) => Ok(vec![name.to_owned()]),
        Some(name) => bail!("there is no target {name:?}; there are: {}", all.join(", ")),
    }
}

/// Where what is built so lies.
pub(crate) fn directory() -> Result<PathBuf> {
    Ok(test::target_directory()?.join("fuzz"))
}

/// A Cargo that builds with the counters and the sanitizer.
pub(crate) fn instrumented(subcommand: &str, directory: &Path) -> Command {
    let mut command = cargo();
    command
        .args([subcommand, "--target", PLATFORM, "--target-dir"])
        .arg(directory)
        .args(["--config", "profile.dev.opt-level=1", "--config", "profile.dev.incremental=false"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", format!("{COVERAGE} -Zsanitizer=address --cfg fuzzing"))
        // What the program's statics hold on to is not lost.
        .env("ASAN_OPTIONS", "detect_leaks=0");
    command
}

fn build(directory: &Path) -> Result<PathBuf> {
    let mut build = instrumented("build", directory);
    command::run_as(
        "cargo build (the fuzz targets, with coverage counters and AddressSanitizer)",
        build.args(["-p", "ebb-fuzz", "--bin", "ebb-fuzz", "--features", "libfuzzer"]),
    )?;
    Ok(directory.join(PLATFORM).join("debug/ebb-fuzz"))
}

fn run(program: &Path, directory: &Path, target: &str, options: &FuzzOptions) -> Result<()> {
    let work = directory.join("inputs").join(target);
    fs::create_dir_all(&work).with_context(|| format!("make {}", work.display()))?;
    let kept = root().join("fuzz/corpus").join(target);
    let regressions = root().join("fuzz/regressions").join(target);
    let libfuzzer = || {
        let mut command = Command::new(program);
        command
            .current_dir(root())
            .env("EBB_FUZZ_TARGET", target)
            // States are written for each input: to memory, where there is some to write to.
            .env("TMPDIR", if Path::new(MEMORY).is_dir() { MEMORY } else { "/tmp" })
            // What the program's statics hold on to is not lost.
            .env("ASAN_OPTIONS", "detect_leaks=0")
            .args([format!("-max_len={LONGEST}"), "-timeout=60".to_owned(), "-rss_limit_mb=4096".to_owned()]);
        command
    };
    let mut fuzz = libfuzzer();
    fuzz.arg(format!("-max_total_time={}", options.seconds))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/{target}-", directory.display()));
    let dictionary = root().join("fuzz/dictionaries").join(target);
    if dictionary.is_file() {
        fuzz.arg(format!("-dict={}", dictionary.display()));
    }
    fuzz.arg(&work).args([&kept, &regressions].into_iter().filter(|directory| directory.is_dir()));
    command::run_as(&format!("fuzz {target} for {} s", options.seconds), &mut fuzz)?;
    if options.keep {
        // A branch once is enough; how often, and with what values, would keep a thousand inputs.
        let mut merge = libfuzzer();
        merge.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&kept).arg(&work);
        command::run_as(&format!("keep of {target} what is new"), &mut merge)?;
    }
    Ok(())
}
