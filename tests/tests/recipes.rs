//! The recipes of packaging/recipes, each run as whoever it is for runs it, on a backend's host while clients talk to it: the server
//! is stopped, and no connection breaks. They reach the balancer by remote control, with a certificate that may do no more than that.

#[expect(dead_code, reason = "one kind of certificate is enough here")]
#[path = "remote/authority.rs"]
mod authority;

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use ebb_tests::{
    lab::{Family, Plan, Program},
    scene::{SOON, Scene, Setting, WEB_PORT},
    traffic::{Group, Transport},
    wait_until,
};

use crate::authority::Authority;

/// Where the balancer listens for its backends.
const BALANCER: &str = "10.2.0.1:7443";
const RECIPES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/recipes");
/// Where packages install the programs among them.
const INSTALLED: &str = "/usr/lib/ebb";

/// The service `web`, b1's server in a process of its own, and the recipes as installed there.
struct Stage {
    scene: Scene,
    server: Program,
    installed: TempDir,
}

impl Stage {
    /// `run` says what is run on b1's host, given the server's command line.
    fn set(run: impl FnOnce(&Bare, &[&str]) -> Result<Program>) -> Result<Self> {
        let installed = tempfile::tempdir()?;
        let scene = Scene::set_with(Setting::default(), &["-c", &configuration(installed.path())?])?;
        for program in ["drain-self", "container/entrypoint", "autoscaler/terminate-hook"] {
            let name = Path::new(program).file_name().context("a name")?;
            fs::copy(Path::new(RECIPES).join(program), installed.path().join(name))?;
        }
        let vip = format!("{}/tcp", scene.web());
        scene.ebb.ok(&["service", "add", "web", "--vip", &vip])?;
        let address = |index| scene.lab.plan.listen(Family::V4, index, 0, WEB_PORT);
        for index in [0, 2] {
            scene.servers[index].listen(address(index), Transport::Tcp)?;
        }
        let stage = Bare { scene, installed };
        let listen = stage.scene.lab.plan.listen(Family::V4, 1, 0, WEB_PORT).to_string();
        let program = env!("CARGO_BIN_EXE_ebb-test-server");
        let server = run(&stage, &[program, stage.scene.lab.backends[1].name(), "b1", &listen])?;
        let Bare { scene, installed } = stage;
        for index in 0..3 {
            scene.add_backend("web", &format!("b{index}"), index)?;
        }
        scene.wait_all_active("web")?;
        let stage = Self { scene, server, installed };
        wait_until("b1's server to listen", SOON, || {
            stage.scene.visit(30).is_ok_and(|tally| tally.served_by("b1") > 0)
        })?;
        Ok(stage)
    }

    /// With the server run as it is.
    fn plain() -> Result<Self> {
        Self::set(|stage, server| stage.run("server", server, "60s"))
    }

    /// Stops the server by what `begin` does first (and what it started, which has to end well) and `end` then, with connections open
    /// that end meanwhile.
    fn stop_gently(
        mut self,
        begin: impl FnOnce(&mut Self) -> Result<Option<Program>>,
        end: impl FnOnce(&Self) -> Result<()>,
    ) -> Result<Self> {
        let (held, at_b1) = self.hold()?;
        let mut recipe = begin(&mut self)?;
        self.scene.ebb.wait_state("web/b1", "draining", SOON)?;
        let tally = self.scene.visit(60)?;
        assert_eq!(tally.served_by("b1"), 0, "new connections go elsewhere: {tally:?}");
        assert_eq!(held.tally().open_at("b1"), at_b1, "{:?}", held.tally());
        assert!(self.server.is_running(), "it has connections still");
        assert!(recipe.as_mut().is_none_or(Program::is_running), "and is waited for");

        let tally = held.finish_and_wait(SOON)?;
        assert_eq!((tally.broken(), tally.clean), (0, 45), "{tally:?}");
        if let Some(mut recipe) = recipe {
            let status = recipe.wait(SOON)?;
            ensure!(status.success(), "{status}: {}", recipe.log());
        }
        end(&self)?;
        self.server.wait(SOON)?;
        let last = self.scene.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
        assert_eq!((last.outcome.as_str(), last.cut_flows), ("completed", 0));
        Ok(self)
    }

    fn hold(&self) -> Result<(Group, usize)> {
        let held = self.scene.hold(45)?;
        let at_b1 = held.tally().open_at("b1");
        ensure!(at_b1 > 0, "b1 has no connection: {:?}", held.tally());
        Ok((held, at_b1))
    }

    /// Runs a recipe on b1's host.
    fn recipe(&self, line: &str, timeout: &str, more: &[(&str, String)]) -> Result<Program> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (program, arguments) = words.split_first().context("a program")?;
        let program = self.installed.path().join(Path::new(program).strip_prefix(INSTALLED)?);
        let environment = [environment(&self.scene, self.installed.path(), timeout), more.to_vec()].concat();
        let host = &self.scene.lab.backends[1];
        Program::start_as("recipe", &self.scene.lab, host, program, arguments, &environment)
    }
}

/// A stage before its server runs.
struct Bare {
    scene: Scene,
    installed: TempDir,
}

impl Bare {
    fn run(&self, name: &str, words: &[&str], timeout: &str) -> Result<Program> {
        let (program, arguments) = words.split_first().context("a program")?;
        let lab = &self.scene.lab;
        let environment = environment(&self.scene, self.installed.path(), timeout);
        Program::start_as(name, lab, &lab.backends[1], program, arguments, &environment)
    }
}

/// The daemon's file: b1's host may take itself out. Returns its path; the certificates are beside it.
fn configuration(directory: &Path) -> Result<String> {
    let authority = Authority::new(directory, "authority")?;
    authority.server("balancer", &["10.2.0.1"])?;
    authority.client("host-1")?;
    let file = directory.join("ebb.toml");
    let at = directory.display();
    let remote = format!(
        "[daemon.remote]\nlisten = \"{BALANCER}\"\ncert = \"{at}/balancer.pem\"\nkey = \"{at}/balancer.key\"\n\
         client_ca = \"{at}/authority.pem\"\n[[daemon.remote.client]]\nname = \"host-1\"\nright = \"own_address\"\n"
    );
    fs::write(&file, remote)?;
    Ok(file.display().to_string())
}

/// What the recipes ask for.
fn environment(scene: &Scene, directory: &Path, timeout: &str) -> Vec<(&'static str, String)> {
    let at = directory.display();
    vec![
        ("EBB", scene.ebb.program().display().to_string()),
        ("EBB_ADDRESS", Plan::backend(Family::V4, 1).to_string()),
        ("EBB_BALANCERS", format!("https://{BALANCER}")),
        ("EBB_OPTIONS", format!("--cert {at}/host-1.pem --key {at}/host-1.key --ca {at}/authority.pem")),
        ("EBB_TIMEOUT", timeout.to_owned()),
    ]
}

/// The value of the last `key=` line of a unit's drop-in.
fn setting<'a>(unit: &'a str, key: &str) -> Result<&'a str> {
    let mut lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.next_back().with_context(|| format!("no {key} in {unit}"))
}

/// What systemd does to stop a service: ExecStop=, then SIGTERM, within TimeoutStopSec=.
fn systemd_stops(stage: &Stage, timeout: &str) -> Result<Program> {
    let unit = fs::read_to_string(format!("{RECIPES}/systemd/50-ebb-drain.conf"))?;
    let limit: u64 = setting(&unit, "TimeoutStopSec")?.parse()?;
    ensure!(limit > 120, "there is room for a drain");
    stage.recipe(setting(&unit, "ExecStop")?.trim_start_matches('-'), timeout, &[])
}

#[test]
fn systemd_s_exec_stop() -> Result<()> {
    let stage = Stage::plain()?;
    let stopped = stage.stop_gently(|stage| systemd_stops(stage, "60s").map(Some), |stage| stage.server.terminate())?;
    let unit = fs::read_to_string(format!("{RECIPES}/systemd/50-ebb-drain.conf"))?;
    let mut starting = stopped.recipe(setting(&unit, "ExecStartPost")?.trim_start_matches('-'), "60s", &[])?;
    ensure!(starting.wait(SOON)?.success(), "{}", starting.log());
    stopped.scene.ebb.wait_state("web/b1", "active", SOON).map(drop)
}

#[test]
fn a_container_s_entrypoint() -> Result<()> {
    let stage = Stage::set(|stage, server| {
        let entrypoint = stage.installed.path().join("entrypoint").display().to_string();
        // The first process of a namespace, as in a container: only signals that it asked for reach it.
        stage.run("container", &[&["unshare", "--fork", "--pid", "--kill-child", &entrypoint], server].concat(), "60s")
    })?;
    let stopped = stage.stop_gently(
        |stage| {
            stage.server.terminate_child()?;
            Ok(None)
        },
        |_| Ok(()),
    );
    stopped.map(drop)
}

#[test]
fn kubernetes_pre_stop() -> Result<()> {
    let pod = fs::read_to_string(format!("{RECIPES}/kubernetes/pod.yaml"))?;
    let hook = pod.split("preStop:").nth(1).and_then(|rest| rest.split("command: [\"").nth(1)).context("a preStop")?;
    let command = hook.split('"').next().context("a command")?.to_owned();
    let value = |key: &str| pod.split(key).nth(1).and_then(|rest| rest.split_whitespace().next());
    let grace: u64 = value("terminationGracePeriodSeconds:").context("a grace period")?.parse()?;
    let timeout = pod.split("EBB_TIMEOUT\n").nth(1).and_then(|rest| rest.split('"').nth(1)).context("a timeout")?;
    ensure!(timeout.trim_end_matches('s').parse::<u64>()? < grace, "the drain fits into the grace period");
    // What a kubelet does: preStop, then SIGTERM.
    Stage::plain()?
        .stop_gently(|stage| stage.recipe(&command, timeout, &[]).map(Some), |stage| stage.server.terminate())
        .map(drop)
}

#[test]
fn an_autoscaler_s_terminate_hook() -> Result<()> {
    let stage = Stage::plain()?;
    let told = stage.scene.lab.directory().join("autoscaler");
    let tell = |word: &str| format!("echo {word} $0 >> {}", told.display());
    let more = [
        ("EBB_HEARTBEAT", tell("alive")),
        ("EBB_HEARTBEAT_EVERY", "1".to_owned()),
        ("EBB_COMPLETE", format!("sh -c '{}'", tell("complete"))),
    ];
    let line = format!("{INSTALLED}/terminate-hook {}", Plan::backend(Family::V4, 1));
    let heard = || fs::read_to_string(&told).unwrap_or_default();
    let stopped = stage.stop_gently(
        |stage| {
            let hook = stage.recipe(&line, "60s", &more)?;
            wait_until("two heartbeats", SOON, || heard().lines().count() >= 2)?;
            assert!(!heard().contains("complete"), "{}", heard());
            Ok(Some(hook))
        },
        |stage| {
            assert!(heard().ends_with("complete CONTINUE\n"), "{}", heard());
            stage.server.terminate()
        },
    );
    stopped.map(drop)
}

#[test]
fn without_a_recipe_connections_break() -> Result<()> {
    let mut stage = Stage::plain()?;
    let (held, at_b1) = stage.hold()?;
    stage.server.terminate()?;
    stage.server.wait(SOON)?;
    wait_until("the clients to notice", SOON, || held.tally().broken() == at_b1)
}

#[test]
fn connections_that_do_not_end_hold_up_a_host_no_longer_than_was_said() -> Result<()> {
    let stage = Stage::plain()?;
    let (held, at_b1) = stage.hold()?;
    let mut stopping = systemd_stops(&stage, "2s")?;
    let status = stopping.wait(SOON)?;
    ensure!(status.success(), "it goes on stopping: {status}: {}", stopping.log());
    assert!(stopping.log().contains("were cut"), "{}", stopping.log());
    wait_until("the clients to notice", SOON, || held.tally().broken() == at_b1)
}

#[test]
fn a_balancer_that_cannot_be_asked_holds_nobody_up() -> Result<()> {
    let stage = Stage::plain()?;
    let nowhere = [("EBB_BALANCERS", "https://10.2.0.1:7444 https://10.2.0.1:7445".to_owned())];
    let mut alone = stage.recipe(&format!("{INSTALLED}/drain-self"), "60s", &nowhere)?;
    assert_eq!(alone.wait(Duration::from_secs(5))?.code(), Some(1), "{}", alone.log());
    assert!(alone.log().contains("could not be drained"), "{}", alone.log());
    let mut hook = stage.recipe(&format!("{INSTALLED}/terminate-hook 10.2.0.11"), "60s", &nowhere)?;
    assert!(hook.wait(Duration::from_secs(5))?.success());
    assert!(hook.log().ends_with("ABANDON\n"), "the autoscaler is told: {}", hook.log());
    Ok(())
}
