//! Every input that is kept, the corpora and what once went wrong, and a number of random changes of them, the same ones on
//! each run. `EBB_FUZZ_RUNS` says how many, `EBB_FUZZ_SEED` where to start; libFuzzer, which sees what an input reaches, is
//! `cargo xtask fuzz`.

use std::{cell::RefCell, env, fs, panic, path::Path, sync::Once};

use ebb_fuzz::{TARGETS, mutate::mutated, packet};
use ebb_tests::model::{Random, frame};

/// The longest input.
const LONGEST: usize = 8_192;

thread_local! {
    /// The input under way: its target, what it is, its bytes.
    static UNDER_WAY: RefCell<Option<(String, String, Vec<u8>)>> = const { RefCell::new(None) };
}

/// Keeps the input that a target does not survive. By a hook, since the program cannot be unwound through.
fn keep_what_fails() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if let Some((target, what, input)) = UNDER_WAY.take() {
                let path = env::temp_dir().join(format!("ebb-fuzz-{target}"));
                let kept = fs::write(&path, input);
                eprintln!("{target}: {what}, kept as {} ({kept:?})", path.display());
            }
            before(info);
        }));
    });
}

/// Runs a target on an input.
fn run(target: &str, what: String, input: &[u8]) {
    let run = TARGETS.iter().find(|(name, _)| *name == target).expect("a target").1;
    UNDER_WAY.set(Some((target.to_owned(), what, input.to_vec())));
    run(input);
    UNDER_WAY.set(None);
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// The files of a directory, by name.
fn files(kind: &str, target: &str) -> Vec<(String, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(kind).join(target);
    let Ok(entries) = fs::read_dir(&directory) else { return Vec::new() };
    let paths = entries.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file());
    let mut files: Vec<_> =
        paths.map(|path| (path.display().to_string(), fs::read(&path).expect("a file that can be read"))).collect();
    files.sort();
    files
}

/// Frames as a library builds them, damaged here and there: inputs that packets begin with.
fn frames() -> Vec<Vec<u8>> {
    let mut random = Random::new(2);
    let sequence = |random: &mut Random| -> Vec<Vec<u8>> { (0..24).map(|_| frame(random)).collect() };
    (0..64).map(|_| packet::input_of(sequence(&mut random).iter().map(Vec::as_slice))).collect()
}

fn replay(target: &str, runs: u64) {
    keep_what_fails();
    let kept = [files("regressions", target), files("corpus", target)].concat();
    assert!(!kept.is_empty(), "there is nothing to replay");
    for (name, input) in &kept {
        run(target, format!("the kept input {name}"), input);
    }
    let mut inputs: Vec<Vec<u8>> = kept.into_iter().map(|(_, input)| input).collect();
    if target == "packet" {
        inputs.extend(frames());
    }
    let (seed, runs) = (number("EBB_FUZZ_SEED", 1), number("EBB_FUZZ_RUNS", runs));
    let mut random = Random::new(seed);
    for number in 0..runs {
        let input = mutated(&mut random, &inputs, LONGEST);
        run(target, format!("random input {number} of EBB_FUZZ_SEED={seed}"), &input);
    }
    println!("{target}: {} inputs kept, {runs} made", inputs.len());
}

#[test]
fn packets() {
    replay("packet", 3_000);
}

#[test]
fn configurations() {
    replay("config", 3_000);
}

#[test]
fn requests() {
    replay("api", 200);
}

#[test]
fn states() {
    replay("state", 500);
}

#[test]
fn pinned_maps() {
    replay("maps", 5_000);
}
