//! Programs that know nothing of Ebb, through every mode in both families: nginx and curl, iperf3, a WebSocket echo, a
//! name server.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Arms, Family, Plan, Program, run_program},
    scene::{Forward, SOON, Scene, Setting},
    wait_until,
};

/// One backend, so that programs which open several connections meet themselves.
fn scene(forward: Forward, family: Family, protocols: &[&str], port: u16) -> Result<Scene> {
    let mut setting = Setting::of(forward, Arms::One, family);
    setting.plan.backends = 1;
    let scene = Scene::set(setting)?;
    for service in protocols {
        let vip = format!("{}/{service}", scene.vip(0, port));
        scene.ebb.ok(&["service", "add", service, "--vip", &vip, "--forward", forward.word()])?;
        scene.add_backend(service, "b0", 0)?;
        scene.wait_all_active(service)?;
    }
    Ok(scene)
}

/// Files of all sizes by HTTP, with their length and content as sent.
fn web_pages_arrive(forward: Forward, family: Family) -> Result<()> {
    const SIZES: [u64; 5] = [1, 1_000, 100_000, 10_000_000, 1_000_000_000];
    let scene = scene(forward, family, &["tcp"], 80)?;
    let directory = scene.lab.directory().join("nginx");
    fs::create_dir_all(&directory)?;
    for size in SIZES {
        File::create(directory.join(size.to_string()))?.set_len(size)?;
    }
    let place = directory.display();
    let listen = scene.lab.plan.listen(family, 0, 0, 80);
    let configuration = format!(
        "daemon off; master_process off; user root; pid {place}/pid; error_log {place}/error.log;\n\
         events {{}}\n\
         http {{ access_log off; server {{ listen {listen}; root {place}; }} }}\n"
    );
    let path = directory.join("nginx.conf");
    fs::write(&path, configuration)?;
    let error_log = format!("error_log {place}/error.log;");
    let _nginx = Program::start(
        &scene.lab,
        &scene.lab.backends[0],
        "nginx",
        &["-c", &path.display().to_string(), "-g", &error_log],
    )?;
    wait_until("nginx to listen", Duration::from_secs(10), || directory.join("pid").exists())?;

    for size in SIZES {
        let url = format!("http://{}/{size}", scene.vip(0, 80));
        let format = "%{http_code} %{size_download}";
        let arguments = ["--silent", "--show-error", "--max-time", "120", "--output", "/dev/null", "-w", format, &url];
        let said = run_program(&scene.lab.client, "curl", &arguments)?;
        assert_eq!(said, format!("200 {size}"));
    }
    Ok(())
}

/// A bulk transfer each way, with throughput to show.
fn iperf_runs(forward: Forward, family: Family) -> Result<()> {
    let scene = scene(forward, family, &["tcp"], 5201)?;
    let listen: SocketAddr = scene.lab.plan.listen(family, 0, 0, 5201);
    let bind: IpAddr = listen.ip();
    let _server = Program::start(&scene.lab, &scene.lab.backends[0], "iperf3", &["-s", "-B", &bind.to_string()])?;
    let vip = Plan::vip(family, 0).to_string();
    wait_until("iperf3 to answer", Duration::from_secs(10), || {
        run_program(&scene.lab.client, "iperf3", &["-c", &vip, "-t", "1", "-b", "1M"]).is_ok()
    })?;
    for way in [&[][..], &["-R"]] {
        let arguments = [&["-c", &vip, "-t", "2", "-J"], way].concat();
        let mut report = serde_json::Value::Null;
        // The server takes one client at a time, and is slower than a client to see that it is done with one.
        wait_until("iperf3's server to be free", SOON, || {
            let said = run_program(&scene.lab.client, "iperf3", &arguments);
            report = said.ok().and_then(|said| serde_json::from_str(&said).ok()).unwrap_or_default();
            !report["error"].as_str().is_some_and(|error| error.contains("busy"))
        })?;
        let received = &report["end"]["sum_received"]["bits_per_second"];
        let rate = received.as_f64().with_context(|| format!("a rate in {report}"))?;
        println!("{} {family:?} {way:?}: {:.0} Mbit/s", forward.word(), rate / 1e6);
        // Far below what works, far above what a path with a broken checksum or MTU limps along with.
        ensure!(rate > 50e6, "{rate} bit/s");
    }
    Ok(())
}

/// A WebSocket that says everything twice, line by line.
fn websocket_echoes(forward: Forward, family: Family) -> Result<()> {
    let scene = scene(forward, family, &["tcp"], 80)?;
    let address = scene.lab.plan.listen(family, 0, 0, 80).ip();
    // The server puts address and port together by a colon.
    let address = if address.is_ipv6() { format!("[{address}]") } else { address.to_string() };
    let arguments = ["--port=80", &format!("--address={address}"), "cat"];
    let server = Program::start(&scene.lab, &scene.lab.backends[0], "websocketd", &arguments)?;
    let lines = "500";
    // The pipe is slow at first, so that the connection is seen to stay.
    let script = "(for i in 1 2 3; do echo $i; sleep 0.3; done; seq 4 $1) | wsdump -r --eof-wait 4 $0";
    let url = format!("ws://{}/", scene.vip(0, 80));
    let mut said = Ok(String::new());
    wait_until("the echo to answer", SOON, || {
        said = run_program(&scene.lab.client, "sh", &["-c", script, &url, lines]);
        said.as_ref().is_ok_and(|said| !said.is_empty())
    })
    .with_context(|| format!("{said:?}; {}", server.log()))?;
    let wanted: Vec<String> = (1..=500).map(|line| line.to_string()).collect();
    ensure!(said?.lines().eq(&wanted), "not what was said; {}", server.log());
    Ok(())
}

/// Names are resolved over UDP and TCP, short answers and ones that travel in fragments.
fn names_resolve(forward: Forward, family: Family) -> Result<()> {
    let scene = scene(forward, family, &["udp", "tcp"], 53)?;
    let listen = scene.lab.plan.listen(family, 0, 0, 53).ip();
    let long: Vec<String> = (0..10).map(|n| format!("{n}").repeat(250)).collect();
    let arguments = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--user=root",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--edns-packet-max=4096",
        &format!("--listen-address={listen}"),
        "--address=/short.test/192.0.2.7",
        &format!("--txt-record=long.test,{}", long.join(",")),
    ];
    let server = Program::start(&scene.lab, &scene.lab.backends[0], "dnsmasq", &arguments)?;
    let at = format!("@{}", scene.vip(0, 53).ip());
    let ask = |more: &[&str]| {
        let usual = [&at, "+short", "+tries=1", "+time=5", "+bufsize=4096", "+ignore"];
        run_program(&scene.lab.client, "dig", &[&usual, more].concat())
    };
    wait_until("the name server to answer", SOON, || ask(&["short.test", "A"]).is_ok_and(|said| !said.is_empty()))
        .with_context(|| server.log())?;
    let text = long.iter().map(|part| format!("\"{part}\"")).collect::<Vec<_>>().join(" ");
    for way in ["+notcp", "+tcp"] {
        for _ in 0..10 {
            assert_eq!(ask(&[way, "short.test", "A"])?.trim(), "192.0.2.7");
        }
        assert_eq!(ask(&[way, "long.test", "TXT"])?.trim(), text, "{way}");
    }
    Ok(())
}

macro_rules! each_mode {
    ($($curl:ident $iperf:ident $websocket:ident $names:ident: $forward:ident $family:ident;)*) => {
        $(
            #[test]
            fn $curl() -> Result<()> {
                web_pages_arrive(Forward::$forward, Family::$family)
            }

            #[test]
            fn $iperf() -> Result<()> {
                iperf_runs(Forward::$forward, Family::$family)
            }

            #[test]
            fn $websocket() -> Result<()> {
                websocket_echoes(Forward::$forward, Family::$family)
            }

            #[test]
            fn $names() -> Result<()> {
                names_resolve(Forward::$forward, Family::$family)
            }
        )*
    };
}

each_mode! {
    curl_dsr_v4 iperf_dsr_v4 websocket_dsr_v4 dns_dsr_v4: Dsr V4;
    curl_dsr_v6 iperf_dsr_v6 websocket_dsr_v6 dns_dsr_v6: Dsr V6;
    curl_nat_v4 iperf_nat_v4 websocket_nat_v4 dns_nat_v4: Nat V4;
    curl_nat_v6 iperf_nat_v6 websocket_nat_v6 dns_nat_v6: Nat V6;
    curl_tunnel_v4 iperf_tunnel_v4 websocket_tunnel_v4 dns_tunnel_v4: Tunnel V4;
    curl_tunnel_v6 iperf_tunnel_v6 websocket_tunnel_v6 dns_tunnel_v6: Tunnel V6;
}
