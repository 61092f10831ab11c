//! Who may control the balancer: on its host by the socket's mode and group, from other hosts by certificates and the right that
//! each was given.

mod authority;

use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;
use ebb_tests::{
    lab::{Background, Ebb, Lab, Output, Plan},
    scene::{SOON, Scene, Setting},
    wait_until,
};

use tempfile::TempDir;

use crate::authority::{Authority, Identity};

/// Where the balancer listens for its backends.
const SERVER: &str = "https://10.2.0.1:7443";

/// A scene whose daemon takes remote control, and the certificates around it.
struct Remote {
    scene: Scene,
    authority: Authority,
    directory: PathBuf,
    _own: TempDir,
}

/// The clients that the file lists at first.
const CLIENTS: &[(&str, &str)] =
    &[("deployer", "admin"), ("watcher", "read"), ("host-0", "own_address"), ("host-1", "own_address")];

impl Remote {
    fn set() -> Result<Self> {
        let own = tempfile::tempdir()?;
        let directory = own.path().to_owned();
        let authority = Authority::new(&directory, "authority")?;
        authority.server("balancer", &["10.2.0.1"])?;
        let file = directory.join("ebb.toml");
        fs::write(&file, configuration(&directory, CLIENTS))?;
        let scene = Scene::set_with(Setting::default(), &["-c", &file.to_string_lossy()])?;
        scene.ebb.ok(&["check", &file.to_string_lossy()])?;
        scene.add_web(&[])?;
        Ok(Self { scene, authority, directory, _own: own })
    }

    /// Runs the CLI on backend host number `host`, as `who`.
    fn cli(&self, host: usize, who: &Identity, arguments: &[&str]) -> Result<Output> {
        self.cli_trusting(host, who, &self.authority.certificate, arguments)
    }

    fn cli_trusting(&self, host: usize, who: &Identity, ca: &Path, arguments: &[&str]) -> Result<Output> {
        self.background(host, who, ca, arguments)?.wait(Duration::from_mins(1))
    }

    fn background(&self, host: usize, who: &Identity, ca: &Path, arguments: &[&str]) -> Result<Background> {
        let environment =
            [("EBB_SERVER", Path::new(SERVER)), ("EBB_CERT", &who.cert), ("EBB_KEY", &who.key), ("EBB_CA", ca)];
        self.scene.ebb.background_on(&self.scene.lab.backends[host], &environment, arguments)
    }
}

fn configuration(directory: &Path, clients: &[(&str, &str)]) -> String {
    let directory = directory.display();
    let daemon = format!(
        "[daemon.remote]\nlisten = \"10.2.0.1:7443\"\ncert = \"{directory}/balancer.pem\"\n\
         key = \"{directory}/balancer.key\"\nclient_ca = \"{directory}/authority.pem\"\n"
    );
    let client =
        |(name, right): &(&str, &str)| format!("[[daemon.remote.client]]\nname = \"{name}\"\nright = \"{right}\"\n");
    daemon + &clients.iter().map(client).collect::<String>()
}

fn said(output: &Output, code: i32, words: &[&str]) {
    assert_eq!(output.code, code, "{output:?}");
    let text = format!("{}{}", output.stdout, output.stderr);
    for word in words {
        assert!(text.contains(word), "'{word}' is not in: {text}");
    }
}

#[test]
fn a_host_takes_itself_out_and_nobody_else() -> Result<()> {
    let remote = Remote::set()?;
    let me = remote.authority.client("host-0")?;
    let scene = &remote.scene;
    let held = scene.hold(60)?;
    assert!(held.tally().served_by("b0") > 0);

    // Not its neighbour, by whichever way it asks; and not what others may see.
    for refused in [
        &["drain", "web/b1"][..],
        &["drain", "--address", "10.2.0.11"],
        &["activate", "web/b1"],
        &["activate", "--address", "10.2.0.11"],
        &["backend", "remove", "web", "b0"],
        &["backend", "set", "web", "b0", "--weight", "9"],
        &["drain", "web/b1", "--force"],
        &["hook", "continue", "web/b1"],
    ] {
        said(&remote.cli(0, &me, refused)?, 1, &["\"own_address\"", "admin"]);
    }
    said(&remote.cli(0, &me, &["wait", "web/b1"])?, 1, &["10.2.0.10", "\"read\""]);
    said(&remote.cli(0, &me, &["drain", "web/unheard-of"])?, 1, &["is not at your own address"]);
    said(&remote.cli(0, &me, &["status"])?, 1, &["takes the right \"read\""]);
    // Another's certificate makes it nobody else: the address is that of the connection.
    let other = remote.authority.client("host-1")?;
    said(&remote.cli(0, &other, &["drain", "--address", "10.2.0.11"])?, 1, &["is not at your own address (10.2.0.10)"]);
    assert!(scene.ebb.status()?.service("web").is_some_and(|web| web.backends.iter().all(|b| b.state == "active")));

    let begun = std::thread::scope(|threads| {
        let waiting = threads.spawn(|| remote.cli(0, &me, &["drain", "--address", "10.2.0.10", "--wait"]));
        scene.ebb.wait_state("web/b0", "draining", SOON)?;
        held.finish();
        waiting.join().expect("it does not panic")
    })?;
    said(&begun, 0, &["web/b0: drained: completed"]);
    let tally = held.finish_and_wait(SOON)?;
    assert_eq!(tally.broken(), 0, "{tally:?}");
    said(&remote.cli(0, &me, &["wait", "web/b0"])?, 0, &["drained"]);
    said(&remote.cli(0, &me, &["activate", "--address", "10.2.0.10"])?, 0, &["web/b0: "]);
    said(&remote.cli(0, &me, &["wait", "web/b0", "--for", "active", "--timeout", "10s"])?, 0, &["active"]);
    Ok(())
}

#[test]
fn everyone_has_the_right_in_the_file() -> Result<()> {
    let mut remote = Remote::set()?;
    let (admin, reader) = (remote.authority.client("deployer")?, remote.authority.client("watcher")?);
    said(&remote.cli(0, &reader, &["status"])?, 0, &["web", "b1"]);
    said(&remote.cli(0, &reader, &["events"])?, 0, &[]);
    said(&remote.cli(0, &reader, &["drain", "web/b1"])?, 1, &["takes the right \"admin\"", "'watcher'", "\"read\""]);
    said(&remote.cli(0, &admin, &["drain", "web/b1", "--wait"])?, 0, &["web/b1: drained"]);
    said(&remote.cli(0, &admin, &["backend", "set", "web", "b2", "--weight", "3"])?, 0, &[]);
    let stranger = remote.authority.client("stranger")?;
    said(&remote.cli(0, &stranger, &["status"])?, 1, &["'stranger' has none", "[[daemon.remote.client]]"]);

    // Who may do what, and the certificates, are read again; whoever was connected has to connect again.
    let mut watch = remote.background(1, &reader, &remote.authority.certificate, &["events", "--follow"])?;
    wait_until("the reader to read", SOON, || watch.output_so_far().0.contains("web/b1"))?;
    fs::write(remote.directory.join("ebb.toml"), configuration(&remote.directory, &[("stranger", "admin")]))?;
    remote.authority.server("balancer", &["10.2.0.1", "lb.example.net"])?;
    remote.scene.ebb.reload()?;
    wait_until("the reader to be let go", SOON, || !watch.is_running())?;
    said(&watch.wait(SOON)?, 1, &["'watcher' has none"]);
    said(&remote.cli(0, &stranger, &["status"])?, 0, &[]);
    said(&remote.cli(0, &admin, &["status"])?, 1, &["'deployer' has none"]);
    // A file that is wrong changes nothing.
    fs::write(remote.directory.join("balancer.pem"), "no certificate")?;
    remote.scene.ebb.reload()?;
    wait_until("the daemon to say so", SOON, || remote.scene.ebb.log().contains("balancer.pem has no certificate"))?;
    said(&remote.cli(0, &stranger, &["status"])?, 0, &[]);
    remote.scene.ebb.terminate()?;
    said(&remote.cli(0, &stranger, &["status"])?, 5, &["no daemon answers at https://10.2.0.1:7443"]);
    Ok(())
}

#[test]
fn who_cannot_show_who_they_are_is_turned_away() -> Result<()> {
    let remote = Remote::set()?;
    let good = remote.authority.client("deployer")?;
    let elsewhere = Authority::new(&remote.directory, "elsewhere")?;

    let expired = remote.authority.expired_client("deployer")?;
    said(&remote.cli(0, &expired, &["status"])?, 1, &["deployer-expired.pem: it has expired"]);
    let foreign = elsewhere.client("impostor")?;
    said(&remote.cli(0, &foreign, &["status"])?, 1, &["is not from the server's client_ca"]);
    // A server's certificate is no caller's.
    let server = remote.authority.server("other-server", &["10.2.0.10"])?;
    said(&remote.cli(0, &server, &["status"])?, 1, &["does not take the certificate"]);
    // Nor does the client talk to a server that it has no reason to trust.
    let mistaken = remote.cli_trusting(0, &good, &elsewhere.certificate, &["status"])?;
    said(&mistaken, 1, &["is not one to trust by", "elsewhere.pem"]);

    // Without a certificate, and without TLS, there is no answer at all.
    let host = &remote.scene.lab.backends[0];
    let ca = remote.authority.certificate.to_string_lossy().into_owned();
    let curl = |arguments: &[&str]| -> Result<(bool, String)> {
        let output = host.command("curl")?.args(["-sS", "-m", "10"]).args(arguments).output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
    };
    let status = format!("{SERVER}/v1/status");
    let (answered, text) = curl(&["--cacert", &ca, &status])?;
    assert!(!answered && text.contains("alert certificate required"), "{text}");
    let (answered, text) = curl(&["http://10.2.0.1:7443/v1/status"])?;
    assert!(!answered, "{text}");
    let (cert, key) = (good.cert.to_string_lossy(), good.key.to_string_lossy());
    let (answered, text) = curl(&["--cacert", &ca, "--cert", &cert, "--key", &key, &status])?;
    assert!(answered && text.contains("\"services\""), "{text}");
    let (answered, text) = curl(&["--tls-max", "1.2", "--cacert", &ca, "--cert", &cert, "--key", &key, &status])?;
    assert!(!answered, "{text}");
    assert!(remote.scene.ebb.log().contains("was turned away"));
    Ok(())
}

#[test]
fn one_host_cannot_keep_the_others_out() -> Result<()> {
    /// More than there are places.
    const MANY: usize = 300;
    let remote = Remote::set()?;
    let connect = || (0..MANY).map(|_| TcpStream::connect("10.2.0.1:7443")).collect::<std::io::Result<Vec<_>>>();
    let silent = remote.scene.lab.backends[0].run(connect)??;
    let deployer = remote.authority.client("deployer")?;
    said(&remote.cli(1, &deployer, &["status"])?, 0, &["web"]);
    assert!(remote.scene.ebb.log().contains("connections of that address are open"), "{}", remote.scene.ebb.log());
    drop(silent);
    wait_until("its places to be free again", SOON, || {
        remote.cli(0, &deployer, &["status"]).is_ok_and(|output| output.code == 0)
    })
}

/// Asks on the socket as another user; whether there was an answer.
fn answers(ebb: &Ebb, user: &str, group: &str) -> Result<bool> {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", user, "--regid", group, "--clear-groups", "curl", "-sS", "-m", "10", "--unix-socket"]);
    let output = command.arg(ebb.socket()).arg("http://ebb/v1/services").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.success(), text.contains("\"services\""), "{output:?}");
    Ok(output.status.success())
}

#[test]
fn the_socket_is_its_group_s() -> Result<()> {
    let lab = Lab::build(Plan { backends: 1, ..Plan::default() })?;
    for (arguments, member, other) in [
        (&[][..], false, false),
        (&["--socket-group", "nogroup"], true, false),
        (&["--socket-group", "nogroup", "--socket-mode", "0600"], false, false),
        (&["--socket-mode", "0666"], true, true),
    ] {
        let mut ebb = Ebb::start_with(&lab, arguments)?;
        assert_eq!(answers(&ebb, "nobody", "nogroup")?, member, "{arguments:?}: the group");
        assert_eq!(answers(&ebb, "nobody", "daemon")?, other, "{arguments:?}: others");
        assert!(answers(&ebb, "root", "root")?);
        ebb.terminate()?;
        ebb.show_log = false;
    }
    let mut ebb = Ebb::new(&lab, &["--socket-group", "no-such-group"])?;
    let refused = format!("{:#}", ebb.run().expect_err("there is no such group"));
    assert!(refused.contains("cannot give the socket to the group 'no-such-group'"), "{refused}");
    Ok(())
}

#[test]
fn what_changed_meanwhile_is_not_overwritten() -> Result<()> {
    let scene = Scene::with_web(Setting::with_backends(2), &[])?;
    let revision = |output: &Output| -> String {
        output.stdout.split("revision").nth(1).unwrap_or_default().trim_start().chars().take(16).collect()
    };
    let seen = revision(&scene.ebb.ok(&["service", "show", "web"])?);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("empty.toml");
    fs::write(&file, "")?;
    let file = file.to_string_lossy();
    let planned = revision(&scene.ebb.ok(&["apply", &file, "--dry-run"])?);
    scene.ebb.ok(&["backend", "set", "web", "b1", "--weight", "3", "--if-revision", &seen])?;
    for stale in [
        &["backend", "set", "web", "b1", "--weight", "5", "--if-revision", &seen][..],
        &["backend", "remove", "web", "b1", "--if-revision", &seen],
        &["service", "set", "web", "--drain-timeout", "5s", "--if-revision", &seen],
        &["service", "remove", "web", "--if-revision", &seen],
        &["apply", &file, "--if-revision", &planned],
    ] {
        said(&scene.ebb.cli(stale)?, 1, &["has changed: its revision is"]);
    }
    said(&scene.ebb.cli(&["apply", &file, "--if-revision", "latest"])?, 2, &["is not a revision"]);
    let web = scene.ebb.status()?;
    let web = web.service("web").expect("it is there");
    assert!(web.backends.len() == 2 && web.backends.iter().all(|backend| backend.state == "active"), "{web:?}");
    let planned = revision(&scene.ebb.ok(&["apply", &file, "--dry-run"])?);
    scene.ebb.ok(&["apply", &file, "--if-revision", &planned])?;
    Ok(())
}
