//! A machine of its own for what is installed and typed as a user would: the lab's network, and this machine's files
//! under a layer that takes all changes and is gone afterwards.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    lab::{Lab, Namespace, Output},
    wait::wait_for,
};

/// Makes the layer and stays in it as the first process of a PID namespace: when its standard input closes, because the
/// test has ended in whatever way, the kernel ends everything that was started there, and with it the mounts.
const SETUP: &str = include_str!("setup.sh");

/// What stands in for the parts of a machine that namespaces do not give: a service manager, other hosts' shells.
const STAND_INS: [(&str, &str); 2] = [
    // Where apt's own idea of a path finds it, too.
    ("/usr/bin/systemctl", include_str!("systemctl.sh")),
    ("/usr/local/bin/ssh", include_str!("ssh.sh")),
];

/// Longer than any command in a test takes.
const COMMAND_LIMIT: Duration = Duration::from_mins(2);

/// The place. Dropping it ends what runs in it.
#[derive(Debug)]
pub struct Place {
    holder: Child,
    /// The first process inside, by its number outside.
    inside: u32,
    host: Namespace,
    directory: PathBuf,
    commands: AtomicU32,
}

impl Place {
    /// Makes one whose own network is `host`'s, a host of `lab`.
    pub fn make(lab: &Lab, host: &Namespace) -> Result<Self> {
        let directory = lab.directory().join("place");
        fs::create_dir_all(&directory)?;
        let mut command = host.command("unshare")?;
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-euc", SETUP, "setup"]).arg(&directory);
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start unshare")?;
        let mut ready = [0; 6];
        let said = holder.stdout.as_mut().context("its output")?.read_exact(&mut ready);
        said.context("a layer over this machine's files could not be made (does the kernel have overlayfs?)")?;
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", holder.id()))?;
        let inside = children.trim().parse().context("the first process inside")?;
        let place = Self { holder, inside, host: host.clone(), directory, commands: AtomicU32::new(0) };
        for (path, script) in STAND_INS {
            // What is there may be a link to something else.
            place.ok(&format!("rm -f {path}"))?;
            place.put(path, script)?;
            place.ok(&format!("chmod 755 {path}"))?;
        }
        Ok(place)
    }

    /// Makes a file of this machine, outside the layer, appear as `target` inside.
    pub fn lend(&self, file: &Path, target: &str) -> Result<()> {
        let file = file.canonicalize()?;
        self.ok(&format!("touch {target}; mount --bind {} {target}", file.display())).map(drop)
    }

    /// Writes a file inside.
    pub fn put(&self, path: &str, text: &str) -> Result<()> {
        let mut child = self.shell(&self.host, &format!("mkdir -p $(dirname {path}); cat >{path}"))?;
        let mut child = child.stdin(Stdio::piped()).spawn()?;
        child.stdin.take().context("its input")?.write_all(text.as_bytes())?;
        ensure!(child.wait()?.success(), "cannot write {path}");
        Ok(())
    }

    /// Runs a script here, which must succeed.
    pub fn ok(&self, script: &str) -> Result<Output> {
        let output = self.run(&self.host, script, &[])?;
        ensure!(output.code == 0, "{script}: code {}: {}{}", output.code, output.stdout, output.stderr);
        Ok(output)
    }

    /// Runs a script with the files of this place and the network of `host`, with these variables set. It is over when
    /// its shell is: what it leaves in the background goes on.
    pub fn run(&self, host: &Namespace, script: &str, variables: &[(String, String)]) -> Result<Output> {
        // Files of their own, since what the script leaves in the background goes on writing to them.
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let log = |name: &str| self.directory.join(format!("{number}.{name}"));
        let (stdout, stderr) = (fs::File::create(log("out"))?, fs::File::create(log("err"))?);
        let mut command = self.shell(host, script)?;
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let mut child = command.stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn()?;
        let read = |name| fs::read_to_string(log(name)).unwrap_or_default();
        let Ok(status) = wait_for("a command", COMMAND_LIMIT, || child.try_wait().ok().flatten()) else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("still running after {COMMAND_LIMIT:?}: {script}\n{}{}", read("out"), read("err"));
        };
        Ok(Output { code: status.code().unwrap_or(-1), stdout: read("out"), stderr: read("err") })
    }

    /// A shell that ends at the first command that fails.
    fn shell(&self, host: &Namespace, script: &str) -> Result<Command> {
        let mut command = host.command("nsenter")?;
        command.args(["--target", &self.inside.to_string(), "--mount", "--pid", "--root", "--wd"]);
        command.args(["sh", "-ec", &format!("cd\n{script}")]).env_remove("EBB_SOCKET");
        command.env("PATH", "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/bin:/sbin").env("HOME", "/root");
        Ok(command)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}
