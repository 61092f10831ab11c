//! `cargo xtask mutants`: the XDP program with a mistake put into it on purpose, one at a time. The tests are run on each
//! and must notice; on the program as it is they must not.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    command::{self, root},
    record::Record,
    setup, test,
};

/// A mistake: in that file the one text is replaced by the other.
struct Mutant {
    what: &'static str,
    file: &'static str,
    right: &'static str,
    wrong: &'static str,
    noticed_by: Suite,
}

/// Who is to notice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Suite {
    /// `random_packets`: any frame at all, against the model.
    Random,
    /// `packet_suite`: what only a change of the maps can bring to light.
    Packets,
}

const fn random(what: &'static str, file: &'static str, right: &'static str, wrong: &'static str) -> Mutant {
    Mutant { what, file, right, wrong, noticed_by: Suite::Random }
}

/// The mistakes. The first ones are also tried by `cargo xtask ci`, see [`QUICK`].
const MUTANTS: &[Mutant] = &[
    random(
        "a checksum is not updated for the port",
        "lb-ebpf/src/rewrite.rs",
        "checksum::update(header.get::<u16, 16>(), delta + change)",
        "checksum::update(header.get::<u16, 16>(), delta)",
    ),
    random("draining backends are not skipped", "lb-ebpf/src/steer.rs", "            && row.takes_new()\n", ""),
    random(
        "a checksum is made up for a datagram without one",
        "lb-ebpf/src/rewrite.rs",
        "checksum::update_udp(header.get::<u16, 6>(), delta + change)",
        "checksum::update(header.get::<u16, 6>(), delta + change)",
    ),
    random("the port is not compared", "lb-ebpf/src/services.rs", "        && entry.port == port\n", ""),
    random(
        "a TCP header may end behind the packet",
        "lb-ebpf/src/parse.rs",
        "header > in_packet {",
        "header > in_packet + 4 {",
    ),
    random(
        "IPv4's total length is believed",
        "lb-ebpf/src/family.rs",
        "len < header || offset + len > end {",
        "len < header || offset > end {",
    ),
    random(
        "the previous owner is not asked",
        "lb-ebpf/src/steer.rs",
        "        && row.remembers(now_ns)\n",
        "        && !row.remembers(now_ns)\n",
    ),
    random(
        "tiny fragments are let through",
        "lb-ebpf/src/fragment.rs",
        "at < BEHIND_TCP_HEADER",
        "at < BEHIND_TCP_HEADER - 1",
    ),
    random(
        "IPv6's hop limit stays as it is",
        "lb-ebpf/src/family.rs",
        "header.put::<u8, 7>(to(limit)?);",
        "to(limit)?;",
    ),
    random(
        "DSCP and ECN are not copied",
        "lb-ebpf/src/forward/tunnel.rs",
        "u32::from_ne_bytes([0x45, outer.class, l0, l1])",
        "u32::from_ne_bytes([0x45, 0, l0, l1])",
    ),
    Mutant {
        what: "the generation is not compared",
        file: "lb-common/src/backend.rs",
        right: "        if self.generation != generation {\n            return Keep::Gone;\n        }\n",
        wrong: "        let _ = generation;\n",
        noticed_by: Suite::Packets,
    },
    Mutant {
        what: "cut flows are forwarded",
        file: "lb-ebpf/src/track.rs",
        right: "(kept && !meta.any(flow_flag::CUT)).then_some(entry)",
        wrong: "kept.then_some(entry)",
        noticed_by: Suite::Packets,
    },
    Mutant {
        what: "the protocol is not compared",
        file: "lb-ebpf/src/services.rs",
        right: "        && entry.protocol == protocol\n",
        wrong: "        && protocol != 0xff\n",
        noticed_by: Suite::Packets,
    },
    Mutant {
        what: "a connection id leads to a drained backend",
        file: "lb-ebpf/src/steer.rs",
        right: "row.takes_new() || row.keeps(generation, false, share, now_ns) == Keep::Forward;",
        wrong: "row.takes_new() || row.keeps(generation, true, share, now_ns) == Keep::Forward;",
        noticed_by: Suite::Packets,
    },
    random(
        "an id that a client may have made up names a backend",
        "lb-ebpf/src/quic.rs",
        "if !quic::is_handshake(first, version) || header",
        "if version == 0xbad || header",
    ),
];

/// How many of them `--quick` tries.
const QUICK: usize = 1;

/// What the program's build needs of the workspace.
const NEEDED: [&str; 8] =
    ["Cargo.toml", "Cargo.lock", "fuzz", "lb-common", "lb-ebpf", "lb-userspace", "tests", "xtask"];

/// Tries the mistakes, all or a few.
pub(crate) fn mutants(quick: bool) -> Result<()> {
    setup::ensure(setup::Needs::Lab)?;
    let directory = test::target_directory()?.join("mutants");
    let source = directory.join("source");
    if source.exists() {
        fs::remove_dir_all(&source).with_context(|| format!("remove {}", source.display()))?;
    }
    for name in NEEDED {
        copy(&root().join(name), &source.join(name))?;
    }
    let original = build(&source, &directory).context("the program as it is, at another place")?;
    for suite in [Suite::Random, Suite::Packets] {
        ensure!(run(suite, &original)?.passed, "the tests fail on the program as it is");
    }
    let mut missed = Vec::new();
    for mutant in MUTANTS.iter().take(if quick { QUICK } else { MUTANTS.len() }) {
        let noticed = mutant.is_noticed(&source, &directory).with_context(|| format!("mutant: {}", mutant.what))?;
        println!("{}: {}", mutant.what, if noticed { "noticed" } else { "MISSED" });
        missed.extend((!noticed).then_some(mutant.what));
    }
    ensure!(missed.is_empty(), "not noticed: {}", missed.join("; "));
    Ok(())
}

impl Mutant {
    fn is_noticed(&self, source: &Path, directory: &Path) -> Result<bool> {
        let file = source.join(self.file);
        let text = fs::read_to_string(&file)?;
        let places = text.matches(self.right).count();
        ensure!(places == 1, "{} has {places} places like {:?}: bring this list up to date", self.file, self.right);
        fs::write(&file, text.replace(self.right, self.wrong))?;
        let built = build(source, directory);
        fs::write(&file, text)?;
        let said = run(self.noticed_by, &built?)?;
        // A program that does not load is no mistake that a test has noticed.
        ensure!(
            !said.text.contains("load the program") && !said.text.contains("the verifier refuses"),
            "{}",
            said.text
        );
        Ok(!said.passed && said.text.contains(self.noticed_by.complaint()))
    }
}

impl Suite {
    fn test(self) -> &'static [&'static str] {
        match self {
            Self::Random => &["--test", "random_packets", "the_program_does_what_the_model_says"],
            Self::Packets => &["--test", "packet_suite"],
        }
    }

    /// What its output has when it has noticed something.
    fn complaint(self) -> &'static str {
        match self {
            Self::Random => "the model says",
            Self::Packets => "should be",
        }
    }
}

struct Said {
    passed: bool,
    text: String,
}

/// Runs a suite on an object, with always the same packets.
fn run(suite: Suite, object: &Path) -> Result<Said> {
    // All packages: what the tests have built is then taken as it is.
    let mut command = test::all_tests(true)?;
    command.arg("--quiet").args(suite.test());
    command.env("EBB_RIG_OBJECT", object).env("EBB_RANDOM_SEED", "1").env("EBB_RANDOM_PACKETS", "100000");
    let output = command.output().context("cannot start cargo test")?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Said { passed: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() })
}

/// Builds the program in a copy of the workspace; where the object is. The flags are aya-build's.
fn build(source: &Path, directory: &Path) -> Result<PathBuf> {
    let record = Record::read(root())?.context("no record of the eBPF compiler")?;
    let target = directory.join("target");
    let flags = format!("--cfg=bpf_target_arch=\"{}\"\x1f-Cdebuginfo=2\x1f-Clink-arg=--btf", env::consts::ARCH);
    let mut command = Command::new("rustup");
    command
        .current_dir(source)
        .args(["run", &record.toolchain, "cargo", "build", "--quiet", "-p", "lb-ebpf", "--bins", "--release"])
        .args(["-Z", "build-std=core", "--target", "bpfel-unknown-none", "--target-dir"])
        .arg(&target)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &record.linker)
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env_remove("RUSTC_WRAPPER");
    // Cargo that runs us has set variables that would lead the other one astray.
    for variable in ["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "RUSTDOC"] {
        command.env_remove(variable);
    }
    command::run(&mut command)?;
    Ok(target.join("bpfel-unknown-none/release/ebb-xdp"))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let failed = || format!("copy {} to {}", from.display(), to.display());
    if from.is_file() {
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).with_context(failed)?;
        }
        return fs::copy(from, to).map(drop).with_context(failed);
    }
    if !from.is_dir() {
        bail!("{} is neither a file nor a directory", from.display());
    }
    for entry in fs::read_dir(from).with_context(failed)? {
        let name = entry.with_context(failed)?.file_name();
        copy(&from.join(&name), &to.join(&name))?;
    }
    Ok(())
}
