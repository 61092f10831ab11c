//! Throwaway network namespaces. Root is needed; without it the tests fail and say so.

use std::{
    io::{self, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    thread,
};

/// Runs `test` on a thread in a network namespace of its own, with the veth pair `ebb0`–`ebb1` up in it; whatever it
/// spawns is in there too. The kernel removes the namespace with the thread.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let outcome = thread::spawn(move || {
        unshare_network().expect("root is needed for a network namespace");
        ip("link add ebb0 type veth peer name ebb1");
        ip("link set lo up");
        ip("link set ebb0 up");
        ip("link set ebb1 up");
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn unshare_network() -> io::Result<()> {
    // SAFETY: no memory is passed; the calling thread (or the child about to run another program) alone moves.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Runs `ip` in the thread's namespace.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip is installed");
    assert!(status.success(), "ip {arguments}");
}

/// Runs many commands of `ip` at once.
pub(crate) fn ip_batch(commands: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip is installed");
    child.stdin.take().expect("piped").write_all(commands.as_bytes()).expect("ip reads");
    assert!(child.wait().expect("ip ends").success(), "ip -batch");
}

/// Another namespace, for the far end of a link; gone with this value.
pub(crate) struct Peer(Child);

impl Peer {
    /// Makes it and moves `interface` of the thread's namespace there, up.
    pub(crate) fn with(interface: &str) -> Self {
        let mut sleeper = Command::new("sleep");
        sleeper.arg("300");
        // SAFETY: between fork and exec only one system call is made.
        unsafe { sleeper.pre_exec(unshare_network) };
        let peer = Self(sleeper.spawn().expect("sleep is there"));
        ip(&format!("link set {interface} netns {}", peer.0.id()));
        peer.ip("link set lo up");
        peer.ip(&format!("link set {interface} up"));
        peer
    }

    /// Runs a program there.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id())).arg(program);
        command
    }

    /// Runs `ip` there.
    pub(crate) fn ip(&self, arguments: &str) {
        let status = self.command("ip").args(arguments.split(' ')).status().expect("nsenter is installed");
        assert!(status.success(), "ip {arguments}");
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
