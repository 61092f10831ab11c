//! A real `ebb` in a lab's balancer: the daemon to start, stop and kill, and the CLI to drive it.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{
    Lab, Namespace,
    run::{LABEL_VARIABLE, STATE},
    status::{Backend, Status},
    sys,
};
use crate::wait::wait_for;

/// Longer than any command in a test takes, waiting ones included.
const COMMAND_LIMIT: Duration = Duration::from_mins(2);
/// Loading the program and adopting what was there.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The daemon of a lab. Dropping it kills the process; its pins stay until the lab goes.
#[derive(Debug)]
pub struct Ebb {
    program: PathBuf,
    label: String,
    namespace: Namespace,
    directory: PathBuf,
    pin_path: PathBuf,
    run_arguments: Vec<String>,
    daemon: Option<Child>,
    commands: AtomicU32,
    /// Whether the daemon's log goes to this thread's stderr in the end, where the test harness shows it on failure.
    pub show_log: bool,
    /// What the daemon logs when it is started next, if not the usual.
    pub log_filter: Option<&'static str>,
}

/// What a command left.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit code; minus the signal's number when one ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A command that is running.
#[derive(Debug)]
pub struct Background {
    child: Child,
    line: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Ebb {
    /// Starts the daemon on the balancer's interfaces, in native mode unless `more` has another, and waits until it answers.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_with(lab, &[])
    }

    /// [`Ebb::start`] with more arguments for `ebb run`.
    pub fn start_with(lab: &Lab, more: &[&str]) -> Result<Self> {
        let mut ebb = Self::new(lab, more)?;
        ebb.run()?;
        Ok(ebb)
    }

    /// The handle without the daemon.
    pub fn new(lab: &Lab, more: &[&str]) -> Result<Self> {
        let mut run_arguments = vec!["run".to_owned()];
        if !more.contains(&"--mode") {
            run_arguments.extend(["--mode".to_owned(), "native".to_owned()]);
        }
        for interface in lab.plan.interfaces() {
            run_arguments.extend(["-i".to_owned(), (*interface).to_owned()]);
        }
        run_arguments.extend(more.iter().map(|&argument| argument.to_owned()));
        Ok(Self {
            program: program()?,
            label: lab.label().to_owned(),
            namespace: lab.balancer.clone(),
            directory: lab.directory().to_owned(),
            pin_path: lab.pin_path(),
            run_arguments,
            daemon: None,
            commands: AtomicU32::new(0),
            show_log: true,
            log_filter: None,
        })
    }

    /// Starts the daemon (again) and waits until it answers.
    pub fn run(&mut self) -> Result<()> {
        self.spawn_daemon()?;
        let answered = wait_for("the daemon to answer", START_LIMIT, || self.answered_or_died());
        answered.and_then(|result| result).with_context(|| format!("the daemon's log:\n{}", self.log()))
    }

    /// Starts the daemon and kills it after a moment, wherever it has got by then.
    pub(crate) fn run_and_kill(&mut self, after: Duration) -> Result<()> {
        self.spawn_daemon()?;
        std::thread::sleep(after);
        self.kill().map(drop)
    }

    fn spawn_daemon(&mut self) -> Result<()> {
        ensure!(self.daemon.is_none(), "the daemon is running already");
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.command(&self.run_arguments)?;
        command.envs(self.log_filter.map(|filter| ("EBB_LOG", filter)));
        command.args(self.places()).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {}", self.program.display()))?;
        // For the clean-up of a run that died before it could.
        fs::write(self.directory.join("daemon.pid"), child.id().to_string())?;
        self.daemon = Some(child);
        Ok(())
    }

    /// From now on another program is run, as after an upgrade.
    pub fn upgrade_to(&mut self, program: PathBuf) {
        self.program = program;
    }

    /// Asks the daemon to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.end(libc::SIGTERM)
    }

    /// Has the daemon read its file again (SIGHUP).
    pub fn reload(&self) -> Result<()> {
        self.signal(libc::SIGHUP)
    }

    /// Kills the daemon (SIGKILL).
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.end(libc::SIGKILL)
    }

    /// Runs the CLI and waits for it.
    pub fn cli(&self, arguments: &[&str]) -> Result<Output> {
        self.background(arguments)?.wait(COMMAND_LIMIT)
    }

    /// Starts the CLI on another host of the lab, in a fresh environment but for `environment`.
    pub fn background_on(
        &self,
        host: &Namespace,
        environment: &[(&str, &Path)],
        arguments: &[&str],
    ) -> Result<Background> {
        let mut command = host.command(&self.program)?;
        command.args(arguments).env_clear().env(LABEL_VARIABLE, &self.label).envs(environment.iter().copied());
        self.spawn(command, arguments)
    }

    /// Runs the CLI, which must succeed.
    pub fn ok(&self, arguments: &[&str]) -> Result<Output> {
        let output = self.cli(arguments)?;
        ensure!(output.code == 0, "ebb {}: code {}: {}", arguments.join(" "), output.code, output.stderr.trim());
        Ok(output)
    }

    /// Runs the CLI with `-o json`; it must succeed, and print one JSON value.
    pub fn json<T: serde::de::DeserializeOwned>(&self, arguments: &[&str]) -> Result<T> {
        let output = self.ok(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("ebb {} -o json printed {}", arguments.join(" "), output.stdout))
    }

    /// Starts the CLI and does not wait for it.
    pub fn background(&self, arguments: &[&str]) -> Result<Background> {
        let mut command = self.command(arguments)?;
        if matches!(arguments.first(), Some(&("run" | "unload"))) {
            command.args(self.places());
        }
        self.spawn(command, arguments)
    }

    fn spawn(&self, mut command: Command, arguments: &[&str]) -> Result<Background> {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let stdout = self.directory.join(format!("command-{number}.out"));
        let stderr = self.directory.join(format!("command-{number}.err"));
        command.stdin(Stdio::null()).stdout(File::create(&stdout)?).stderr(File::create(&stderr)?);
        let child = command.spawn().with_context(|| format!("start {}", self.program.display()))?;
        Ok(Background { child, line: format!("ebb {}", arguments.join(" ")), stdout, stderr })
    }

    /// `ebb status -o json`.
    pub fn status(&self) -> Result<Status> {
        self.json(&["status"])
    }

    /// One backend, given as SERVICE/BACKEND, as `ebb status` has it.
    pub fn backend(&self, which: &str) -> Result<Backend> {
        let (service, backend) = which.split_once('/').context("SERVICE/BACKEND")?;
        let status = self.status()?;
        status.backend(service, backend).cloned().with_context(|| format!("no {which} in {status:?}"))
    }

    /// Waits until `ebb status` shows a backend in `state`.
    pub fn wait_state(&self, which: &str, state: &str, within: Duration) -> Result<Backend> {
        let mut last = None;
        let found = wait_for(&format!("{which} to be {state}"), within, || {
            last = Some(self.backend(which));
            last.as_ref().and_then(|seen| seen.as_ref().ok()).filter(|seen| seen.state == state).cloned()
        });
        found.with_context(|| format!("last seen: {last:?}"))
    }

    /// The daemon's process number.
    pub fn pid(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// The daemon's resident memory in KiB.
    pub fn resident_kib(&self) -> Result<u64> {
        let pid = self.pid().context("no daemon is running")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("ebb.sock")
    }

    /// Where the daemon keeps its state.
    pub fn state_directory(&self) -> PathBuf {
        self.directory.join(STATE)
    }

    /// Sends the daemon a signal that it is not expected to end of.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        Ok(sys::signal(self.pid().context("no daemon is running")?, signal)?)
    }

    /// Leaves the daemon so many descriptors more than it has; returns what the limit was.
    pub fn spare_files(&self, spare: u64) -> Result<u64> {
        let pid = self.pid().context("no daemon is running")?;
        let open = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        self.limit_files(open + spare)
    }

    /// Limits the number of the daemon's next descriptor; returns what the limit was.
    pub(crate) fn limit_files(&self, limit: u64) -> Result<u64> {
        let pid = self.pid().context("no daemon is running")?;
        sys::limit_files(pid, limit).context("limit the daemon's descriptors")
    }

    /// The program under test.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn command(&self, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Result<Command> {
        let mut command = self.namespace.command(&self.program)?;
        command.args(arguments).env("EBB_SOCKET", self.socket()).env(LABEL_VARIABLE, &self.label);
        Ok(command)
    }

    /// The arguments that keep this daemon's things apart from others'.
    fn places(&self) -> Vec<OsString> {
        vec!["--pin-path".into(), self.pin_path.clone().into(), "--state-dir".into(), self.state_directory().into()]
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("daemon.log")
    }

    /// `Some` once the matter is decided.
    fn answered_or_died(&mut self) -> Option<Result<()>> {
        if let Some(Ok(Some(status))) = self.daemon.as_mut().map(Child::try_wait) {
            self.daemon = None;
            return Some(Err(anyhow!("the daemon ended at once: {status}")));
        }
        match self.cli(&["status"]) {
            Ok(output) if output.code == 0 => Some(Ok(())),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }

    fn end(&mut self, signal: i32) -> Result<ExitStatus> {
        let mut child = self.daemon.take().context("no daemon is running")?;
        sys::signal(child.id(), signal)?;
        wait_for("the daemon to end", START_LIMIT, || child.try_wait().ok().flatten())
    }
}

impl Drop for Ebb {
    fn drop(&mut self) {
        if self.daemon.is_some() {
            let _ = self.kill();
        }
        if self.show_log {
            eprintln!("--- the daemon's log ---\n{}--- end ---", self.log());
        }
    }
}

impl Background {
    /// Waits for the command; kills it and fails after `limit`.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let ended = wait_for(&format!("`{}` to end", self.line), limit, || self.child.try_wait().ok().flatten());
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                let _ = self.child.kill();
                let _ = self.child.wait();
                bail!("{error}; it had said {:?}", self.output_so_far());
            }
        };
        let (stdout, stderr) = self.output_so_far();
        let code = status.code().or_else(|| status.signal().map(|signal| -signal)).unwrap_or(-1);
        Ok(Output { code, stdout, stderr })
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends it SIGINT, as Ctrl-C does.
    pub fn interrupt(&self) -> Result<()> {
        Ok(sys::signal(self.child.id(), libc::SIGINT)?)
    }

    /// What it has printed: standard output and standard error.
    pub fn output_so_far(&self) -> (String, String) {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        (read(&self.stdout), read(&self.stderr))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Finds the program to test: `EBB_BIN`, or the one built beside the running test or demo.
pub(super) fn program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("EBB_BIN") {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "EBB_BIN names {}, which is not there", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe()?;
    let beside = own.ancestors().skip(1).take(2).map(|directory| directory.join("ebb")).find(|path| path.is_file());
    let release = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/ebb");
    beside.or_else(|| release.is_file().then_some(release)).context(
        "no `ebb` to test: build it with `cargo build -p lb-userspace`, or name it in the environment as EBB_BIN",
    )
}
