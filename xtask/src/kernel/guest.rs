//! The virtual machine: what it is told, what it says.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::{
    Accelerator,
    image::{self, Kernel},
};
use crate::{
    command::{self, root},
    programs::Program,
    test::{self, Said},
};

/// For the runner of the tests: one at a time, since two emulated daemons at once keep each other from their promises.
const RUNNER: &str = "--color=never --test-threads=1";

/// What came over the guest's console.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) said: Said,
    /// Test programs that have ended.
    pub(crate) ended: usize,
    /// Those that failed, with their status.
    pub(crate) failed: Vec<String>,
    /// Whether the guest came to the end of what it had to do.
    pub(crate) finished: bool,
}

/// How the guest's own lines begin.
const OWN: &str = "ebb guest: ";

impl Heard {
    fn read(&mut self, line: &str) {
        let Some(own) = line.strip_prefix(OWN) else { return self.said.read(line) };
        if own == "done" {
            self.finished = true;
        } else if let Some((program, status)) = own.split_once(" ended with ") {
            self.ended += 1;
            if status != "0" {
                self.failed.push(format!("{program} (status {status})"));
            }
        }
    }
}

/// Longest that a guest may take, and that one of its programs may, in seconds.
const LIMIT_S: u32 = 7200;
const PROGRAM_LIMIT_S: u32 = 1800;

/// How much longer than on the machine itself things may take before a test gives up on them (`EBB_PATIENCE`), and how
/// many random packets it has the time for before what fragments leave behind is out of date.
const fn pace(accelerator: Accelerator) -> (u32, u32) {
    match accelerator {
        Accelerator::Tcg => (6, 4_000),
        Accelerator::Kvm => (2, 40_000),
    }
}

/// The test program that puts the machine to sleep.
const SLEEPER: &str = "suspend";

/// Where it runs. This machine's files are lost to the guest once it has slept, since virtio-9p does not take up again: what is
/// needed from then on is copied into memory, the modules are loaded before, and the kernel is told to look for no other.
const MEMORY: &str = r#"
modprobe -a veth bridge
mkdir /memory
mount -t tmpfs -o mode=755 memory /memory
copy() {
    for file in "$1" $(ldd "$1" 2>/dev/null | grep -o '/[^ ]*'); do
        mkdir -p "/memory${file%/*}" && cp -L "$file" "/memory$file"
    done
}
for place in proc sys dev run; do
    mkdir "/memory/$place"
    mount --rbind "/$place" "/memory/$place"
done
mkdir /memory/tmp /memory/var
ln -s ../run /memory/var/run
for program in sh ip timeout busybox; do copy "$(command -v "$program")"; done
echo >/proc/sys/kernel/modprobe
export EBB_MAY_SLEEP=1
"#;

/// Boots, runs the programs, passes on what they say.
pub(crate) fn run(kernel: &Kernel, programs: &[Program], accelerator: Accelerator) -> Result<Heard> {
    let initramfs = image::initramfs(kernel)?;
    let job = Job::write(kernel, programs, accelerator)?;
    let mut machine = machine(kernel, &initramfs, &job.0, accelerator);
    let mut child = command::start(machine.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("the guest's console")?;
    let mut heard = Heard::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches('\r');
        println!("{line}");
        heard.read(line);
    }
    child.wait()?;
    Ok(heard)
}

fn machine(kernel: &Kernel, initramfs: &Path, job: &Path, accelerator: Accelerator) -> Command {
    let (accelerator, processor) = match accelerator {
        Accelerator::Tcg => ("tcg,thread=multi", "max"),
        Accelerator::Kvm => ("kvm", "host"),
    };
    let mut machine = Command::new("timeout");
    machine.args(["--kill-after=10", &LIMIT_S.to_string(), "qemu-system-x86_64", "-nodefaults", "-no-reboot"]);
    machine.args(["-accel", accelerator, "-cpu", processor, "-smp", "2", "-m", "3072", "-display", "none"]);
    machine.args(["-serial", "stdio", "-kernel"]).arg(kernel.image()).arg("-initrd").arg(initramfs);
    machine.args(["-append", &format!("console=ttyS0 quiet panic=-1 ebb_job={}", job.display())]);
    let files = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
    machine.args(["-virtfs", files]);
    machine
}

/// The script that the guest runs; gone when this is.
struct Job(PathBuf);

impl Drop for Job {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What a machine has that has booted.
const PREPARE: &str = r"
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_LIB_BACKTRACE=0
mount -t tmpfs -o mode=755 run /run
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/shm /dev/pts
mount -t tmpfs shm /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
ip link set lo up
";

impl Job {
    fn write(kernel: &Kernel, programs: &[Program], accelerator: Accelerator) -> Result<Self> {
        let path = kernel.directory.join(format!("job-{}.sh", std::process::id()));
        fs::write(&path, script(kernel, programs, accelerator)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self(path))
    }
}

fn script(kernel: &Kernel, programs: &[Program], accelerator: Accelerator) -> Result<String> {
    let (patience, packets) = pace(accelerator);
    let mut script = PREPARE.to_owned();
    let modules = quoted(&kernel.directory.join("lib/modules").display().to_string());
    writeln!(script, "mkdir -p /lib/modules\nmount --bind {modules} /lib/modules")?;
    writeln!(script, "export EBB_PATIENCE={patience} EBB_RANDOM_PACKETS={packets}")?;
    let ebb = test::debug_binary()?.display().to_string();
    writeln!(script, "export {}={}", test::BINARY_VARIABLE, quoted(&ebb))?;
    writeln!(script, "cd {}", quoted(&root().join("tests").display().to_string()))?;
    writeln!(script, "echo \"{OWN}Linux $(uname -r), up for $(cut -d. -f1 /proc/uptime) s\"")?;
    let (sleepers, others): (Vec<_>, Vec<_>) = programs.iter().partition(|program| program.name == SLEEPER);
    for program in others {
        script.push_str(&run_program(program, ""));
    }
    let mut end = format!("echo '{OWN}done'\nexec busybox poweroff -f\n");
    if let [sleeper, ..] = sleepers.as_slice() {
        script.push_str(MEMORY);
        writeln!(script, "copy {}\ncopy {}", quoted(&ebb), quoted(&sleeper.path.display().to_string()))?;
        end = format!("chroot /memory sh -c {}\n", quoted(&(run_program(sleeper, "--ignored") + &end)));
    }
    Ok(script + &end)
}

/// The lines that run a program, with more for its runner, and say how it ended.
fn run_program(Program { name, path, filters }: &Program, more: &str) -> String {
    let words: Vec<String> = filters.iter().map(|filter| quoted(filter)).collect();
    let (path, words) = (quoted(&path.display().to_string()), words.join(" "));
    format!(
        "echo '{OWN}{name}'\ntimeout {PROGRAM_LIMIT_S} {path} {RUNNER} {more} {words}\necho '{OWN}{name} ended with '$?\n"
    )
}

/// A word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_is_understood() {
        let mut heard = Heard::default();
        for line in [
            "[    1.9] something of the kernel's",
            "ebb guest: Linux 6.1.0-56-amd64, up for 2 s",
            "ebb guest: drain",
            "test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 3 filtered out; finished in 0.00s",
            "verifier: Linux 6.1 looked at 457661 instructions",
            "ebb guest: drain ended with 0",
            "ebb guest: modes",
            "ebb guest: modes ended with 124",
        ] {
            heard.read(line);
        }
        assert_eq!((heard.ended, heard.failed.as_slice()), (2, ["modes (status 124)".to_owned()].as_slice()));
        assert!(!heard.finished);
        assert_eq!(heard.said.listings, ["verifier: Linux 6.1 looked at 457661 instructions"]);
        heard.read("ebb guest: done");
        assert!(heard.finished);
    }

    #[test]
    fn what_puts_the_machine_to_sleep_comes_last() -> Result<()> {
        let program =
            |name: &str| Program { name: name.to_owned(), path: format!("/t/{name}").into(), filters: vec![] };
        let kernel = Kernel { release: "6.1".to_owned(), directory: "/k".into() };
        let written = |names: &[&str]| {
            let programs: Vec<Program> = names.iter().map(|name| program(name)).collect();
            script(&kernel, &programs, Accelerator::Tcg)
        };
        let with = written(&["suspend", "drain"])?;
        let place = |word: &str| with.find(word).with_context(|| format!("{word} is missing in {with}"));
        assert!(place("/t/drain")? < place("EBB_MAY_SLEEP")? && place("EBB_MAY_SLEEP")? < place("/t/suspend")?);
        command::run(Command::new("sh").args(["-n", "-c", &with]))?;
        assert!(!written(&["drain"])?.contains("EBB_MAY_SLEEP"), "whoever is not asked to sleeps not");
        Ok(())
    }

    #[test]
    fn words_reach_the_shell_as_they_are() {
        let word = "a'b $c";
        let said = command::output(Command::new("sh").args(["-c", &format!("printf %s {}", quoted(word))]));
        assert_eq!(said.unwrap_or_default(), word);
    }
}
