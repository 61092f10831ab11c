//! The tally: thousands of connections of all lengths, while backends are drained, brought back, removed
//! and added again, over and over.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ebb_tests::{
    lab::Plan,
    scene::{SOON, Scene, Setting},
    traffic::{Conversation, End, Group, Lasting},
    verdict::{Drained, Verdict},
    wait_until,
};

const TIMEOUT: Duration = Duration::from_mins(1);
const ROUNDS: usize = 3;

#[test]
fn repeated_drains_scale_ins_and_scale_outs_break_nothing() -> Result<()> {
    let plan = Plan { backends: 4, client_addresses: 4, ..Plan::default() };
    let scene = Scene::with_web(Setting { plan, ..Setting::default() }, &[])?;
    let lasting = Lasting::Between(Duration::from_millis(1), Duration::from_secs(8));
    let talk = Conversation { lasting, patience: Duration::from_secs(20), ..Conversation::with(scene.web()) };
    let kept = scene.client.keep(talk, 300);
    kept.wait_open(200, SOON)?;

    for round in 0..ROUNDS {
        // Scale in by draining and removing, scale out by adding.
        drain_and_judge(&scene, &kept, round % 4).with_context(|| format!("round {round}, drain"))?;
        let name = format!("b{}", round % 4);
        scene.ebb.ok(&["backend", "remove", "web", &name, "--wait"])?;
        scene.add_backend("web", &name, round % 4)?;
        serves_again(&scene, round % 4)?;
        // The same by activating.
        let other = (round + 2) % 4;
        drain_and_judge(&scene, &kept, other).with_context(|| format!("round {round}, second drain"))?;
        scene.ebb.ok(&["activate", &format!("web/b{other}")])?;
        serves_again(&scene, other)?;
    }
    let tally = kept.finish_and_wait(Duration::from_secs(30))?;
    println!("{} connections: {:?}", tally.opened, tally.by_server);
    assert!(tally.opened > 2_000, "thousands were meant: {tally:?}");
    assert_eq!((tally.broken(), tally.could_not_connect()), (0, 0), "{tally:?}");
    let broken_there: usize = scene
        .servers
        .iter()
        .map(|server| server.connections().iter().filter(|c| matches!(c.end, Some((End::Broken(_), _)))).count())
        .sum();
    assert_eq!(broken_there, 0, "the servers' accounts");
    Ok(())
}

fn drain_and_judge(scene: &Scene, kept: &Group, index: usize) -> Result<()> {
    let which = format!("web/b{index}");
    let asked = Instant::now();
    scene.ebb.ok(&["drain", &which, "--timeout", "60s"])?;
    let answered = Instant::now();
    scene.ebb.wait_state(&which, "drained", TIMEOUT)?;
    let drained = Drained { asked, answered, over: Instant::now(), timeout: TIMEOUT };
    let verdict = Verdict::on(drained, &scene.servers[index], &kept.connections(), &scene.servers);
    println!("{which}\n{verdict}");
    assert_eq!(verdict.complaints(), Vec::<String>::new(), "{which}\n{verdict}");
    Ok(())
}

fn serves_again(scene: &Scene, index: usize) -> Result<()> {
    let before = scene.servers[index].accepted();
    wait_until("new connections", SOON, || scene.servers[index].accepted() > before + 20)
}
