//! Holds UNSAFE.md to what the source says.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::command::root;

/// Whether a line of code has the keyword, other than in an attribute, a comment or a text.
fn has_unsafe(line: &str) -> bool {
    let code: String = line.replace("\\\"", "").split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    let code = code.split("//").next().unwrap_or_default();
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices("unsafe").any(|(at, word)| {
        let (before, after) = (&code[..at], &code[at + word.len()..]);
        !before.ends_with(in_word) && !after.starts_with(|c: char| in_word(c) || c == '(')
    })
}

/// Rust files of a directory and those in it.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        // What Cargo and the set-up make.
        if name == "target" || name.to_string_lossy().starts_with('.') {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Files with unsafe code, as paths from the root.
fn with_unsafe() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(root(), &mut files);
    let has = |path: &PathBuf| fs::read_to_string(path).expect("a source file").lines().any(has_unsafe);
    let name = |path: PathBuf| path.strip_prefix(root()).expect("below the root").display().to_string();
    files.into_iter().filter(has).map(name).collect()
}

/// Files named in the first column of the list's tables.
fn listed() -> BTreeSet<String> {
    let list = fs::read_to_string(root().join("UNSAFE.md")).expect("the list");
    let firsts = list.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    firsts.flat_map(|cell| cell.split(", ")).map(|name| name.trim_matches('`').to_owned()).collect()
}

#[test]
fn the_list_of_unsafe_code_is_whole_and_true() {
    let (there, listed) = (with_unsafe(), listed());
    let unlisted: Vec<_> = there.difference(&listed).collect();
    assert!(unlisted.is_empty(), "say in UNSAFE.md why there is unsafe code in {unlisted:?}");
    let gone: Vec<_> = listed.difference(&there).collect();
    assert!(gone.is_empty(), "UNSAFE.md lists files without unsafe code: {gone:?}");
}

#[test]
fn the_keyword_is_told_from_other_words() {
    for code in ["    unsafe { f() }", "pub unsafe fn f()", "check(unsafe { g() })", "unsafe impl<T> Send for A {}"] {
        assert!(has_unsafe(code), "{code}");
    }
    for other in ["#[unsafe(no_mangle)]", "// unsafe", "x.contains(\"unsafe\")", "unsafe_op_in_unsafe_fn"] {
        assert!(!has_unsafe(other), "{other}");
    }
}
