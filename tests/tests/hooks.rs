//! Hooks: who is told by a real HTTP server in a namespace of its own, and drains that wait for an answer.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use ebb_tests::{
    lab::{Ebb, Family, Lab, Plan},
    scene::SOON,
    traffic::{Client, Conversation, Group, Reaction, Receiver, Server},
    wait_until,
};
use serde_json::Value;

/// A lab whose daemon was started with a file: a hook, and the service `web` with three backends.
struct Stage {
    client: Client,
    _servers: Vec<Server>,
    ebb: Ebb,
    lab: Lab,
}

impl Stage {
    fn set(hook: &str, service: &str) -> Result<Self> {
        let lab = Lab::build(Plan::default())?;
        let backends = 0..lab.plan.backends;
        let listed = backends.clone().map(|index| {
            let address = Plan::backend(Family::V4, index);
            format!("[[service.backend]]\nname = \"b{index}\"\naddress = \"{address}\"\n")
        });
        let listed: String = listed.collect();
        let file = lab.directory().join("ebb.toml");
        let web = format!("[[service]]\nname = \"web\"\nvip = \"10.9.0.1:80/tcp\"\n{service}\n");
        fs::write(&file, format!("[[daemon.hook]]\n{hook}\n{web}{listed}"))?;
        let servers = backends.map(|index| {
            let server = Server::start(&lab.backends[index], &format!("b{index}"))?;
            server.serve(lab.plan.listen(Family::V4, index, 0, 80))?;
            Ok(server)
        });
        let servers = servers.collect::<Result<_>>()?;
        let client = Client::start(&lab)?;
        let ebb = Ebb::start_with(&lab, &["-c", &file.display().to_string()])?;
        for backend in ["web/b0", "web/b1", "web/b2"] {
            ebb.wait_state(backend, "active", SOON)?;
        }
        Ok(Self { client, _servers: servers, ebb, lab })
    }

    fn hold(&self, count: usize) -> Result<Group> {
        let group = self.client.open(Conversation::with((Plan::vip(Family::V4, 0), 80).into()), count);
        group.wait_open(count, SOON)?;
        Ok(group)
    }

    fn journal(&self, hook: &str) -> PathBuf {
        self.lab.directory().join(format!("state/hooks/{hook}.journal"))
    }

    fn is_held(&self, backend: &str) -> bool {
        let drain = self.ebb.backend(backend).ok().and_then(|backend| backend.drain);
        drain.is_some_and(|drain| drain.hold.is_some())
    }
}

/// What was told of b1, in a word each.
fn story_of_b1(told: &[Value]) -> Vec<String> {
    let of_b1 = told.iter().filter(|told| told["backend"] == "b1");
    of_b1.map(|told| format!("{} {}", told["kind"], told["state"]).replace('"', "")).collect()
}

#[test]
fn a_receiver_that_fails_and_hangs_hears_it_all_in_order_also_from_a_daemon_killed_meanwhile() -> Result<()> {
    let address = SocketAddr::new(Plan::client(Family::V4, 0), 8081);
    let hook = format!("name = \"scaler\"\nurl = \"http://{address}/ebb\"\ntimeout = \"1s\"\n");
    let mut stage = Stage::set(&hook, "")?;
    // It is not there yet: the first attempts find nobody.
    let receiver = Receiver::start(&stage.lab.client, address)?;
    wait_until("the beginning to be told", SOON, || receiver.told().len() == 3)?;

    receiver.react(&[Reaction::Answer(500), Reaction::Hang]);
    let begun = Instant::now();
    stage.ebb.ok(&["drain", "web/b1", "--timeout", "60s", "--wait"])?;
    let took = begun.elapsed();
    ensure!(took < Duration::from_secs(5), "the hook held up the drain for {took:?}");
    let journal = stage.journal("scaler");
    wait_until("the end to be in the queue on disk", SOON, || {
        fs::read_to_string(&journal).is_ok_and(|text| text.contains("drain_ended"))
    })?;
    wait_until("it to hang", SOON, || receiver.posts().iter().any(|post| post.reaction == Reaction::Hang))?;
    ensure!(story_of_b1(&receiver.told()) == ["backend_state active"], "nothing of it was told yet");
    stage.ebb.kill()?;
    stage.ebb.run()?;
    let story = [
        "backend_state active",
        "backend_state draining",
        "drain_started null",
        "drain_ended null",
        "backend_state drained",
    ];
    wait_until("the rest to be told", Duration::from_secs(30), || story_of_b1(&receiver.told()).len() >= story.len())?;
    let told = receiver.told();
    assert_eq!(story_of_b1(&told), story);
    let ids: Vec<u64> = told.iter().filter_map(|told| told["id"].as_u64()).collect();
    ensure!(ids.len() == told.len() && ids.is_sorted(), "in order: {ids:?}");
    let end = told.iter().find(|told| told["kind"] == "drain_ended").context("its end")?;
    assert_eq!((&end["outcome"], &end["address"]), (&"completed".into(), &"10.2.0.11".into()));
    let attempts = receiver.posts();
    let first = attempts.iter().position(|post| post.reaction == Reaction::Answer(500)).context("it failed once")?;
    let same = attempts[first..].iter().filter(|post| post.body["id"] == attempts[first].body["id"]).count();
    ensure!(same >= 3, "what failed and hung was tried again: {attempts:?}");
    Ok(())
}

#[test]
fn a_backend_is_told_itself_and_the_end_of_its_drain_is_held_until_somebody_says_so() -> Result<()> {
    let hook = "name = \"close\"\nurl = \"http://{address}:9000/{service}/{backend}\"\n\
                events = [\"drain_started\", \"drain_held\"]\n";
    let mut stage = Stage::set(hook, "drain_hold = \"60s\"")?;
    let receivers: Vec<Receiver> = (0..3)
        .map(|index| {
            let address = SocketAddr::new(Plan::backend(Family::V4, index), 9000);
            Receiver::start(&stage.lab.backends[index], address)
        })
        .collect::<Result<_>>()?;
    let talking = stage.hold(30)?;
    let mut waiting = stage.ebb.background(&["drain", "web/b1", "--timeout", "60s", "--wait"])?;
    wait_until("b1 to be told", SOON, || receivers[1].told().len() == 1)?;
    let post = receivers[1].posts().remove(0);
    assert_eq!((post.path.as_str(), &post.body["kind"]), ("/web/b1", &"drain_started".into()));
    let early = stage.ebb.cli(&["hook", "continue", "web/b1"])?;
    assert_eq!(early.code, 1, "its connections go on: {early:?}");

    let tally = talking.finish_and_wait(SOON)?;
    assert_eq!(tally.clean, 30, "{tally:?}");
    wait_until("the end to be held", SOON, || stage.is_held("web/b1"))?;
    wait_until("b1 to be told of it", SOON, || receivers[1].told().len() == 2)?;
    assert_eq!(receivers[1].told()[1]["kind"], "drain_held");
    assert_eq!(receivers[0].posts().len() + receivers[2].posts().len(), 0, "nobody else was told");
    assert!(waiting.is_running(), "the drain is not over");

    stage.ebb.kill()?;
    stage.ebb.run()?;
    assert!(stage.is_held("web/b1"), "{:?}", stage.ebb.backend("web/b1")?);
    stage.ebb.ok(&["hook", "heartbeat", "web/b1"])?;
    let hold = stage.ebb.backend("web/b1")?.drain.and_then(|drain| drain.hold).context("it is held")?;
    assert_eq!(hold.outcome, "completed");
    assert!((50.0..=60.0).contains(&hold.remaining_s), "{hold:?}");
    let late = stage.hold(30)?;
    assert_eq!(late.tally().served_by("b1"), 0, "it gets no new connection");
    stage.ebb.ok(&["hook", "continue", "web/b1"])?;
    let output = waiting.wait(SOON)?;
    assert_eq!(output.code, 0, "{output:?}");
    let last = stage.ebb.wait_state("web/b1", "drained", SOON)?.last_drain.context("a record")?;
    let over = last.held.context("it was held")?;
    assert_eq!((last.outcome.as_str(), over.result.as_str(), over.timed_out), ("completed", "continue", false));
    let twice = stage.ebb.cli(&["hook", "continue", "web/b1"])?;
    assert_eq!((twice.code, twice.stderr.lines().count()), (1, 1), "{twice:?}");
    Ok(())
}

#[test]
fn when_nobody_answers_the_default_stands() -> Result<()> {
    let hook = "name = \"none\"\ncommand = [\"true\"]\n";
    let stage = Stage::set(hook, "drain_hold = \"2s\"\non_hold_timeout = \"abandon\"")?;
    let begun = Instant::now();
    let output = stage.ebb.cli(&["drain", "web/b1", "--wait"])?;
    let took = begun.elapsed();
    assert_eq!(output.code, 0, "abandoned or not, no flow was cut: {output:?}");
    assert!(output.stdout.contains("abandoned as its hook did not answer"), "{output:?}");
    ensure!(took >= Duration::from_secs(2), "it was held for {took:?}");
    let over = stage.ebb.backend("web/b1")?.last_drain.and_then(|last| last.held).context("it was held")?;
    assert_eq!((over.result.as_str(), over.timed_out), ("abandon", true));
    // An operator's order is not held up.
    let begun = Instant::now();
    stage.ebb.ok(&["drain", "web/b0", "--timeout", "0", "--wait"])?;
    ensure!(begun.elapsed() < Duration::from_secs(2), "it took {:?}", begun.elapsed());
    Ok(())
}
