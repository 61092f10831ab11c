//! Runs a program of the operator's, who is told in a sentence how it ended.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus, process::Stdio, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, Command},
    runtime::Handle,
    sync::oneshot,
    task::JoinSet,
};

use super::fault::Fault;
use crate::{descriptors, privilege};

/// So much of what a program says is kept.
const SAID_LIMIT: usize = 4_096;
/// How long a finished program's last words are waited for: a process that it left behind may hold them open.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// Runs `argv`, without any of the daemon's capabilities, with this in its environment and on its standard input until it exits; an error says how it failed. Whoever drops
/// the future kills the program and what it has started.
pub(super) async fn run(argv: &[String], environment: &[(&str, String)], input: Vec<u8>) -> Result<(), Fault> {
    let Some((program, arguments)) = argv.split_first() else {
        return Err(Fault::Theirs("no program is named".to_owned()));
    };
    let mut command = Command::new(program);
    command.args(arguments).envs(environment.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    if descriptors::are_raised() {
        // SAFETY: between fork and exec it makes system calls, and allocates nothing.
        unsafe { command.pre_exec(descriptors::lower) };
    }
    let mut child =
        start(command).await.map_err(|error| Fault::of(&error, format!("cannot run {program}: {error}")))?;
    let mut group = Group(child.id());
    // Dropped, and thereby ended, with this future.
    let mut pipes = JoinSet::new();
    if let Some(stdin) = child.stdin.take() {
        pipes.spawn(feed(stdin, input));
    }
    let stderr = child.stderr.take();
    let (status, said) = wait(&mut child, stderr)
        .await
        .map_err(|error| Fault::of(&error, format!("cannot wait for {program}: {error}")))?;
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().map(str::trim).rfind(|line| !line.is_empty());
    let last = last.map(|line| format!(": {line}")).unwrap_or_default();
    Err(Fault::Theirs(format!("{program} {}{last}", how(status))))
}

/// Starts it from a thread that has given up what the daemon may do: a program has what its thread had.
async fn start(mut command: Command) -> io::Result<Child> {
    let runtime = Handle::current();
    let (sender, started) = oneshot::channel();
    let thread = move || {
        let _within = runtime.enter();
        // Nobody waiting any more drops it, and thereby kills it.
        let _ = sender.send(privilege::renounce().and_then(|()| command.spawn()));
    };
    std::thread::Builder::new().name("command".to_owned()).spawn(thread)?;
    started.await.map_err(io::Error::other)?
}

async fn feed(mut stdin: ChildStdin, input: Vec<u8>) {
    // A program that does not want its input closes it, which is its business.
    let _ = stdin.write_all(&input).await;
}

/// Reads what the program says while it runs, so that it never waits for us.
async fn wait(child: &mut Child, stderr: Option<ChildStderr>) -> io::Result<(ExitStatus, Vec<u8>)> {
    let mut said = Vec::new();
    let Some(mut stderr) = stderr else {
        return Ok((child.wait().await?, said));
    };
    let reading = async {
        let mut chunk = [0; 1_024];
        while let Ok(length @ 1..) = stderr.read(&mut chunk).await {
            said.extend_from_slice(&chunk[..length]);
            let surplus = said.len().saturating_sub(SAID_LIMIT);
            said.drain(..surplus);
        }
    };
    tokio::pin!(reading);
    let mut silent = false;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            () = &mut reading, if !silent => silent = true,
        }
    };
    if !silent {
        // What has not come by then is not waited for.
        let _ = tokio::time::timeout(LAST_WORDS, reading).await;
    }
    Ok((status, said))
}

fn how(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The processes of a program that has not been waited for: its id cannot be another's yet.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let Some(id) = self.0.and_then(|id| libc::pid_t::try_from(id).ok()) else { return };
        // SAFETY: kill takes no pointer; the group is ours, as its leader has not been reaped.
        unsafe { libc::kill(-id, libc::SIGKILL) };
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, getrlimit, setrlimit};

    use super::*;

    fn shell(script: &str) -> Vec<String> {
        ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
    }

    #[tokio::test]
    async fn it_has_its_environment_and_input() {
        let script = shell("read line && test \"$line $WHO\" = 'hello backend'");
        let environment = [("WHO", "backend".to_owned())];
        assert_eq!(run(&script, &environment, b"hello\n".to_vec()).await, Ok(()));
        assert!(run(&script, &[], b"hello\n".to_vec()).await.is_err());
    }

    /// Those that use `select` may rely on it.
    #[tokio::test]
    async fn it_has_the_limit_on_open_files_that_the_daemon_was_started_with() {
        let mut limit = getrlimit(Resource::Nofile);
        let hard = limit.maximum.expect("the kernel has a limit");
        limit.current = Some(hard - 1);
        setrlimit(Resource::Nofile, limit).expect("less is always allowed");
        descriptors::raise().expect("up to the hard limit is always allowed");
        assert_eq!(descriptors::limit() as u64, hard);
        let script = shell(&format!("test \"$(ulimit -Sn) $(ulimit -Hn)\" = '{} {hard}'", hard - 1));
        assert_eq!(run(&script, &[], Vec::new()).await, Ok(()));
    }

    #[tokio::test]
    async fn a_failure_is_told_with_its_last_words() {
        let failed = run(&shell("cat >/dev/null; echo one >&2; echo two >&2; exit 7"), &[], vec![b'x'; 100_000]).await;
        assert_eq!(failed, Err(Fault::Theirs("/bin/sh exited with 7: two".to_owned())));
        let failed = run(&shell("kill -9 $$"), &[], Vec::new()).await;
        assert_eq!(failed, Err(Fault::Theirs("/bin/sh was ended by signal 9".to_owned())));
        let missing =
            run(&["/no/such/program".to_owned()], &[], Vec::new()).await.expect_err("it is not there").to_string();
        assert!(missing.starts_with("cannot run /no/such/program: No such file"), "{missing}");
    }

    #[tokio::test]
    async fn one_that_says_much_is_not_held_up() {
        let noisy = shell("head -c 1000000 /dev/zero | tr '\\0' x >&2; exit 0");
        assert_eq!(run(&noisy, &[], Vec::new()).await, Ok(()));
    }

    #[tokio::test]
    async fn dropping_it_kills_the_group() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("pid");
        let script = shell(&format!("sleep 1000 & echo $! > {}.new; mv {0}.new {0}; wait", file.display()));
        let limited = tokio::time::timeout(Duration::from_secs(1), run(&script, &[], Vec::new())).await;
        assert!(limited.is_err(), "it hangs");
        let pid = std::fs::read_to_string(&file).expect("it had started").trim().to_owned();
        for _ in 0..200 {
            if !alive(&pid) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("process {pid} is still there");
    }

    /// Whether it runs; an orphan that nobody has waited for yet does not.
    fn alive(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
    }
}
