//! Running other programs, with errors that name them.

use std::{
    env,
    ffi::OsStr,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, Error, Result, bail};

/// The workspace's root directory.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The Cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Prints a command line and runs it; fails unless it ends with status 0.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    run_as(&line(command), command)
}

/// The same under another name, for a command line that is not fit to be read.
pub(crate) fn run_as(name: &str, command: &mut Command) -> Result<()> {
    eprintln!("+ {name}");
    let status = command.status().with_context(|| format!("cannot start {name}"))?;
    if !status.success() {
        bail!("{name} failed: {status}");
    }
    Ok(())
}

/// Lets a program take this one's place, so that Ctrl-C reaches it alone and the shell waits until it has cleaned up.
/// Returns only when that fails.
pub(crate) fn become_it(command: &mut Command) -> Error {
    eprintln!("+ {}", line(command));
    let error = command.exec();
    Error::new(error).context(format!("cannot start {}", line(command)))
}

/// Prints a command line and starts it.
pub(crate) fn start(command: &mut Command) -> Result<Child> {
    eprintln!("+ {}", line(command));
    command.spawn().with_context(|| format!("cannot start {}", line(command)))
}

/// What a command prints on stdout; fails unless it ends with status 0.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {}", line(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed: {}: {}", line(command), output.status, stderr.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("{} did not print UTF-8", line(command)))
}

/// The first file of that name in the directories of `PATH` and where Debian keeps root's programs.
pub(crate) fn which(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

/// A command line as a person would type it, with the variables set for it (but for a few that say little).
fn line(command: &Command) -> String {
    let variables = command
        .get_envs()
        .filter(|(name, _)| *name != "PATH" && *name != "RUST_LIB_BACKTRACE")
        .filter_map(|(name, value)| Some(format!("{}={}", name.display(), value?.display())));
    // The directory of the program says little and is long where rustup keeps it.
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = [program].into_iter().chain(command.get_args());
    variables.chain(words.map(|word| OsStr::display(word).to_string())).collect::<Vec<_>>().join(" ")
}
