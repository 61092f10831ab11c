//! Programs that know nothing of Ebb, through every mode in both families: nginx and curl, iperf3.

use std::{
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Arms, Family, Plan, Program, run_program},
    scene::{Forward, Scene, Setting},
    wait_until,
};

/// One backend, so that programs which open several connections meet themselves.
fn scene(forward: Forward, family: Family, service: &str, port: u16) -> Result<Scene> {
    let mut setting = Setting::of(forward, Arms::One, family);
    setting.plan.backends = 1;
    let scene = Scene::set(setting)?;
    let vip = format!("{}/tcp", scene.vip(0, port));
    scene.ebb.ok(&["service", "add", service, "--vip", &vip, "--forward", forward.word()])?;
    scene.add_backend(service, "b0", 0)?;
    scene.wait_all_active(service)?;
    Ok(scene)
}

/// Files of all sizes by HTTP, with their length and content as sent.
fn web_pages_arrive(forward: Forward, family: Family) -> Result<()> {
    const SIZES: [u64; 5] = [1, 1_000, 100_000, 10_000_000, 1_000_000_000];
    let scene = scene(forward, family, "web", 80)?;
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
    let scene = scene(forward, family, "iperf", 5201)?;
    let listen: SocketAddr = scene.lab.plan.listen(family, 0, 0, 5201);
    let bind: IpAddr = listen.ip();
    let _server = Program::start(&scene.lab, &scene.lab.backends[0], "iperf3", &["-s", "-B", &bind.to_string()])?;
    let vip = Plan::vip(family, 0).to_string();
    wait_until("iperf3 to answer", Duration::from_secs(10), || {
        run_program(&scene.lab.client, "iperf3", &["-c", &vip, "-t", "1", "-b", "1M"]).is_ok()
    })?;
    for way in [&[][..], &["-R"]] {
        let report = run_program(&scene.lab.client, "iperf3", &[&["-c", &vip, "-t", "2", "-J"], way].concat())?;
        let report: serde_json::Value = serde_json::from_str(&report)?;
        let received = &report["end"]["sum_received"]["bits_per_second"];
        let rate = received.as_f64().with_context(|| format!("a rate in {received}"))?;
        println!("{} {family:?} {way:?}: {:.0} Mbit/s", forward.word(), rate / 1e6);
        // Far below what works, far above what a path with a broken checksum or MTU limps along with.
        ensure!(rate > 50e6, "{rate} bit/s");
    }
    Ok(())
}

macro_rules! each_mode {
    ($($curl:ident $iperf:ident: $forward:ident $family:ident;)*) => {
        $(
            #[test]
            fn $curl() -> Result<()> {
                web_pages_arrive(Forward::$forward, Family::$family)
            }

            #[test]
            fn $iperf() -> Result<()> {
                iperf_runs(Forward::$forward, Family::$family)
            }
        )*
    };
}

each_mode! {
    curl_dsr_v4 iperf_dsr_v4: Dsr V4;
    curl_dsr_v6 iperf_dsr_v6: Dsr V6;
    curl_nat_v4 iperf_nat_v4: Nat V4;
    curl_nat_v6 iperf_nat_v6: Nat V6;
    curl_tunnel_v4 iperf_tunnel_v4: Tunnel V4;
    curl_tunnel_v6 iperf_tunnel_v6: Tunnel V6;
}
