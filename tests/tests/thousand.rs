//! The measure of the main job: a thousand connections over three backends, and one is drained.

use std::time::{Duration, Instant};

use anyhow::Result;
use ebb_tests::{
    lab::Plan,
    scene::{SOON, Scene, Setting},
    traffic::{Conversation, Lasting},
    verdict::{Drained, Verdict},
};

#[test]
fn a_thousand_connections_and_none_is_broken() -> Result<()> {
    let plan = Plan { client_addresses: 4, ..Plan::default() };
    let scene = Scene::with_web(Setting { plan, ..Setting::default() }, &[])?;
    let lasting = Lasting::Between(Duration::from_millis(50), Duration::from_secs(10));
    let patience = Duration::from_secs(20);
    let talkative = Conversation { lasting, patience, ..Conversation::with(scene.web()) };
    let short = scene.client.keep(Conversation { pause: Duration::from_millis(500), ..talkative }, 500);
    let quiet = Conversation { patience, ..Conversation::rarely_talking_with(scene.web()) };
    let long = scene.client.open(quiet, 500);
    short.wait_open(450, SOON)?;
    long.wait_open(500, SOON)?;

    let timeout = Duration::from_mins(1);
    let asked = Instant::now();
    scene.ebb.ok(&["drain", "web/b1", "--timeout", "60s"])?;
    let answered = Instant::now();
    // The long connections end one after the other while the drain goes on.
    for rest in [100, 250, 400, 500] {
        std::thread::sleep(Duration::from_secs(1));
        long.finish_some(rest);
    }
    scene.ebb.wait_state("web/b1", "drained", timeout)?;
    let drained = Drained { asked, answered, over: Instant::now(), timeout };

    let accounts = || [short.connections(), long.connections()].concat();
    let mut verdict = Verdict::on(drained, &scene.servers[1], &accounts(), &scene.servers);
    short.finish_and_wait(SOON)?;
    long.finish_and_wait(SOON)?;
    verdict.settle(&accounts(), &scene.servers);
    println!("{verdict}");
    assert_eq!(verdict.complaints(), Vec::<String>::new(), "\n{verdict}");
    Ok(())
}
