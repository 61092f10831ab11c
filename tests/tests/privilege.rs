//! What the daemon may do once it runs, what the programs it runs may do, and what it does not trust.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt as _, chown, symlink},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, Map, MapData};
use ebb_tests::{
    lab::{Ebb, Family, Lab, Plan},
    scene::{SOON, Scene, Setting},
    traffic::{End, Fault},
    wait_until,
};
use lb_userspace::privilege::NEEDS;
use rcgen::{CertificateParams, KeyPair};

/// A user that owns nothing.
const STRANGER: u32 = 65_534;

/// The sets of a thread, as /proc has them.
fn sets(status: &str) -> BTreeMap<&str, u64> {
    let set = |line: &str| -> Option<u64> { u64::from_str_radix(line.trim(), 16).ok() };
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    lines
        .filter(|(name, _)| name.starts_with("Cap") || *name == "NoNewPrivs")
        .filter_map(|(n, v)| Some((n, set(v)?)))
        .collect()
}

fn expected(held: u64, bound: u64) -> BTreeMap<&'static str, u64> {
    let sets = [("CapInh", 0), ("CapPrm", held), ("CapEff", held), ("CapBnd", bound), ("CapAmb", 0), ("NoNewPrivs", 1)];
    BTreeMap::from(sets)
}

/// Every thread of the daemon has exactly what it needs to go on, or is one that starts a program and has or will have nothing.
fn check_threads(scene: &Scene) -> Result<()> {
    let kept = NEEDS.iter().filter(|need| need.kept).map(|need| need.bit.bits()).sum();
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF.
    assert_eq!(kept, 1 << 12 | 1 << 13 | 1 << 39);
    let tasks = format!("/proc/{}/task", scene.ebb.pid().context("it runs")?);
    let mut threads = 0;
    for task in fs::read_dir(tasks)?.flatten() {
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        if status.starts_with("Name:\tcommand\n") && sets(&status) == expected(0, kept) {
            continue;
        }
        assert_eq!(sets(&status), expected(kept, kept), "{status}");
        threads += 1;
    }
    ensure!(threads >= 3, "the engine and two workers at least");
    Ok(())
}

/// A configuration whose hook writes down what it may do.
fn with_hook(scene_directory: &Path, services: &str) -> String {
    let note = note(scene_directory, "hook");
    format!("[[daemon.hook]]\nname = \"note\"\ncommand = [\"sh\", \"-c\", \"cat >/dev/null; {note}\"]\n{services}")
}

/// A shell command that puts the shell's children's rights into a file.
fn note(directory: &Path, name: &str) -> String {
    let file = directory.join(name);
    format!("cat /proc/self/status >{0}.$$ && mv {0}.$$ {0}", file.display())
}

#[test]
fn the_daemon_keeps_what_it_needs_and_no_more_and_programs_get_nothing() -> Result<()> {
    let notes = tempfile::tempdir()?;
    let file = notes.path().join("ebb.toml");
    fs::write(&file, with_hook(notes.path(), ""))?;
    let mut scene = Scene::set_with(Setting::default(), &["-c", &file.to_string_lossy()])?;
    let check = note(notes.path(), "check");
    scene.add_web(&["--check", "command", "--check-command", &check, "--check-interval", "1s", "--check-rise", "1"])?;
    check_threads(&scene)?;
    for name in ["check", "hook"] {
        let file = notes.path().join(name);
        wait_until("it to have run", SOON, || file.exists())?;
        let status = fs::read_to_string(&file)?;
        let bound = sets(&status).get("CapBnd").copied().unwrap_or_default();
        assert_eq!(sets(&status), expected(0, bound), "{name}: {status}");
    }

    // Flows are cut with resets at both ends.
    let held = scene.hold(30)?;
    let at_b1 = held.tally().open_at("b1");
    assert_eq!(scene.ebb.cli(&["drain", "web/b1", "--timeout", "1s", "--wait"])?.code, 3);
    let reset = || {
        let reset = |end: &Option<_>| matches!(end, Some((End::Broken(Fault::Reset), _)));
        held.connections().iter().filter(|connection| reset(&connection.end)).count()
    };
    wait_until("the clients to be told", SOON, || reset() == at_b1)?;
    wait_until("b1 to let go", SOON, || scene.servers[1].open() == 0)?;
    scene.ebb.ok(&["activate", "web/b1"])?;
    held.finish_and_wait(SOON)?;

    // The program goes onto an interface that comes back.
    scene.replug()?;
    scene.visit(30)?;

    // A file read again brings a service: a ring and pins that were not there, and news for the neighbours.
    let backend = Plan::backend(Family::V4, 0);
    let added = format!(
        "[[service]]\nname = \"more\"\nvip = \"{}/tcp\"\nannounce = true\n[[service.backend]]\nname = \"b0\"\naddress = \"{backend}\"\n",
        scene.vip(1, 80)
    );
    fs::write(&file, with_hook(notes.path(), &added))?;
    scene.ebb.reload()?;
    wait_until("the service to be there", SOON, || scene.ebb.backend("more/b0").is_ok_and(|b| b.state == "active"))?;
    check_threads(&scene)?;

    // A daemon that starts again takes all of it over.
    scene.ebb.terminate()?;
    scene.ebb.run()?;
    check_threads(&scene)?;
    scene.ebb.wait_state("more/b0", "active", SOON)?;
    let log = scene.ebb.log();
    let expected = |line: &str| line.contains("INFO") || line.contains("is a veth") || line.contains("eth0: gone");
    let complaints: Vec<_> = log.lines().filter(|line| !expected(line)).collect();
    ensure!(complaints.is_empty(), "{complaints:?}");
    scene.ebb.ok(&["unload"])?;
    assert!(!scene.lab.pin_path().exists());
    Ok(())
}

/// Starts the daemon, which must refuse in one line with these words.
fn refused(ebb: &Ebb, arguments: &[&str], words: &[&str]) -> Result<()> {
    let output = ebb.cli(&[&["run", "-i", "eth0", "--mode", "native"], arguments].concat())?;
    let said = output.stderr.lines().filter(|line| line.starts_with("error: ")).count();
    assert_eq!((output.code, said, output.stderr.lines().count()), (1, 1, 1), "{output:?}");
    for word in words {
        ensure!(output.stderr.contains(word), "'{word}' is not in: {}", output.stderr);
    }
    Ok(())
}

fn mode(path: &Path, mode: u32) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

#[test]
fn what_others_have_made_or_could_change_is_refused() -> Result<()> {
    let lab = Lab::build(Plan { backends: 1, ..Plan::default() })?;
    let mut ebb = Ebb::new(&lab, &[])?;
    ebb.run()?;
    ebb.terminate()?;
    let state = lab.directory().join("state");
    let pins = lab.pin_path();
    assert_eq!(fs::metadata(&state)?.permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&pins)?.permissions().mode() & 0o777, 0o700);

    for (directory, option) in [(&state, "--state-dir"), (&pins, "--pin-path")] {
        let name = directory.display().to_string();
        chown(directory, Some(STRANGER), None)?;
        refused(&ebb, &[], &[&name, "belongs to user 65534", "chown root", option])?;
        chown(directory, Some(0), None)?;
        for writable in [0o777, 0o1777] {
            mode(directory, writable)?;
            refused(&ebb, &[], &[&name, &format!("(mode {writable:04o})"), "chmod go-w", option])?;
        }
        mode(directory, 0o700)?;
    }
    // Single files: a map that another made, a state that another wrote, a link to somewhere else.
    let map = fs::read_dir(&pins)?.flatten().map(|entry| entry.path()).find(|path| path.is_file()).context("a pin")?;
    chown(&map, Some(STRANGER), None)?;
    refused(&ebb, &[], &[&map.display().to_string(), "belongs to user 65534"])?;
    chown(&map, Some(0), None)?;
    let file = state.join("state.json");
    chown(&file, Some(STRANGER), None)?;
    refused(&ebb, &[], &[&file.display().to_string(), "belongs to user 65534"])?;
    chown(&file, Some(0), None)?;
    let moved = lab.directory().join("elsewhere.json");
    fs::rename(&file, &moved)?;
    symlink(&moved, &file)?;
    refused(&ebb, &[], &[&file.display().to_string(), "it is a symbolic link"])?;
    fs::rename(&moved, &file)?;

    // The place of the socket, and a link that another has laid in a directory like /tmp.
    let open = lab.directory().join("open");
    fs::create_dir(&open)?;
    mode(&open, 0o777)?;
    let socket = open.join("ebb.sock").display().to_string();
    refused(&ebb, &["--socket", &socket], &["(mode 0777)", "--socket"])?;
    mode(&open, 0o1777)?;
    let link = open.join("link");
    symlink(&state, &link)?;
    std::os::unix::fs::lchown(&link, Some(STRANGER), None)?;
    let socket = link.join("ebb.sock").display().to_string();
    refused(&ebb, &["--socket", &socket], &["link belongs to user 65534"])?;

    // None of it has changed anything, and what was put right is taken over.
    ebb.run()?;
    ebb.ok(&["status"]).map(drop)
}

#[test]
fn unloading_removes_pins_and_nothing_else() -> Result<()> {
    let lab = Lab::build(Plan { backends: 1, ..Plan::default() })?;
    let ebb = Ebb::new(&lab, &[])?;
    let precious = tempfile::tempdir()?;
    fs::write(precious.path().join("file"), "precious")?;
    let unload = |path: &Path| {
        let mut command = lab.balancer.command(ebb.program())?;
        command.args(["unload", "--socket", "/nowhere/ebb.sock", "--pin-path"]).arg(path);
        command.output().context("run ebb unload")
    };
    let output = unload(precious.path())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("is not on a BPF filesystem"), "{said}");
    // Another's link in place of the directory.
    fs::create_dir(lab.pin_path())?;
    let link = lab.pin_path().join("link");
    symlink(precious.path(), &link)?;
    std::os::unix::fs::lchown(&link, Some(STRANGER), None)?;
    let output = unload(&link)?;
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(fs::read_to_string(precious.path().join("file"))?, "precious");
    fs::remove_file(&link)?;
    fs::remove_dir(lab.pin_path())?;
    Ok(())
}

/// The secrets of the flow table's hash.
fn table_keys(lab: &Lab) -> Result<[u64; lb_common::hash::TABLE_KEYS]> {
    let map = Map::Array(MapData::from_pin(lab.pin_path().join(lb_common::map_name::CONTROL))?);
    let rows: Array<_, [u8; size_of::<lb_common::control::Control>()]> = Array::try_from(map)?;
    let control: lb_common::control::Control = bytemuck::pod_read_unaligned(&rows.get(&0, 0)?);
    Ok(control.table_keys)
}

/// How a number may be written: in digits, in hexadecimal either way round, as a list of bytes.
fn spellings(secret: u64) -> Vec<String> {
    let hex = |bytes: [u8; 8]| bytes.map(|byte| format!("{byte:02x}")).concat();
    let bytes = |bytes: [u8; 8]| bytes.map(|byte| byte.to_string()).join(", ");
    let (big, little) = (secret.to_be_bytes(), secret.to_le_bytes());
    vec![secret.to_string(), secret.cast_signed().to_string(), hex(big), hex(little), bytes(big), bytes(little)]
}

#[test]
fn secrets_are_in_no_output() -> Result<()> {
    let own = tempfile::tempdir()?;
    let path = |name: &str| own.path().join(name);
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["10.2.0.1".to_owned()])?.self_signed(&key)?;
    fs::write(path("cert.pem"), certificate.pem())?;
    fs::write(path("key.pem"), key.serialize_pem())?;
    let pem = |name: &str| path(name).display().to_string();
    let file = path("ebb.toml");
    let remote = format!(
        "[daemon.remote]\nlisten = \"10.2.0.1:7443\"\ncert = \"{0}\"\nkey = \"{1}\"\nclient_ca = \"{0}\"\n",
        pem("cert.pem"),
        pem("key.pem")
    );
    fs::write(&file, remote)?;
    let mut scene =
        Scene::set_with(Setting::default(), &["-c", &file.to_string_lossy(), "--metrics", "127.0.0.1:9100"])?;
    scene.ebb.terminate()?;
    scene.ebb.log_filter = Some("trace");
    scene.ebb.run()?;
    scene.add_web(&["--announce"])?;
    scene.visit(20)?;
    scene.ebb.ok(&["drain", "web/b1", "--wait"])?;
    // A caller with no certificate, and a key that does not fit, for the sake of what is said of them.
    let curl = |arguments: &[&str]| -> Result<String> {
        let output = scene.lab.balancer.command("curl")?.args(["-sSk", "-m", "10"]).args(arguments).output()?;
        Ok(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
    };
    let mut outputs = vec![("metrics", curl(&["http://127.0.0.1:9100/metrics"])?)];
    ensure!(outputs[0].1.contains("ebb_"), "{}", outputs[0].1);
    outputs.push(("remote", curl(&["https://10.2.0.1:7443/v1/status"])?));
    fs::write(path("key.pem"), KeyPair::generate()?.serialize_pem())?;
    scene.ebb.reload()?;
    wait_until("the wrong key to be told", SOON, || scene.ebb.log().contains("is not the key of the certificate"))?;
    for arguments in [&["status"][..], &["flows"], &["events"], &["service", "show", "web"], &["doctor", "-i", "eth0"]]
    {
        for format in ["table", "json"] {
            let output = scene.ebb.cli(&[arguments, &["-o", format]].concat())?;
            outputs.push((arguments[0], output.stdout + &output.stderr));
        }
    }
    outputs.push(("log", scene.ebb.log()));
    ensure!(scene.ebb.log().contains("TRACE"), "it says all it can");
    outputs.push(("state", fs::read_to_string(scene.lab.directory().join("state/state.json"))?));

    let mut secrets: Vec<String> = table_keys(&scene.lab)?.into_iter().flat_map(spellings).collect();
    // Each line of the key as text, and its secret number (the last 32 bytes of the 67 before the public one) as bytes.
    secrets.extend(key.serialize_pem().lines().filter(|line| !line.starts_with("-----")).map(str::to_owned));
    let der = key.serialize_der();
    let number =
        der.windows(2).position(|pair| pair == [0x04, 0x20]).map(|at| &der[at + 2..at + 34]).context("a P-256 key")?;
    for chunk in number.chunks_exact(8) {
        secrets.extend(spellings(u64::from_be_bytes(chunk.try_into()?)).split_off(2));
    }
    ensure!(secrets.len() > 50, "there are secrets to look for");
    for (what, text) in &outputs {
        let found: Vec<_> =
            secrets.iter().filter(|secret| text.to_lowercase().contains(&secret.to_lowercase())).collect();
        ensure!(found.is_empty(), "{what} has {} of the secrets: {found:?}", found.len());
    }
    // The search finds what is there.
    let planted = format!("{:?}", table_keys(&scene.lab)?);
    ensure!(secrets.iter().any(|secret| planted.contains(secret)));
    Ok(())
}
