//! The lab itself, with no balancer in it: a fault seen here is not Ebb's.

use std::{net::SocketAddr, time::Duration};

use anyhow::Result;
use ebb_tests::{
    lab::{Arms, FAMILIES, Family, Lab, Plan, Replies, ip},
    traffic::{Client, Conversation, Lasting, Server, Tally, Transport},
    wait_until,
};

const SOON: Duration = Duration::from_secs(10);

/// With `forwarding`, the balancer's kernel can stand in for Ebb where there is one backend to choose.
fn build(arms: Arms, replies: Replies) -> Result<Lab> {
    Lab::build(Plan { backends: 2, arms, replies, forwarding: true, ..Plan::default() })
}

fn talk_to(lab: &Lab, target: SocketAddr) -> Result<Tally> {
    let client = Client::start(lab)?;
    let connections = client.open(Conversation { payload_len: 20_000, ..Conversation::with(target) }, 20);
    let datagrams = client.datagrams(target, 5, Duration::from_millis(10));
    connections.wait_open(20, SOON)?;
    datagrams.wait_answered(SOON)?;
    connections.finish_and_wait(SOON)
}

fn carries_direct_replies(arms: Arms) -> Result<()> {
    let lab = build(arms, Replies::Direct)?;
    for family in FAMILIES {
        let (vip, via) = (Plan::vip(family, 0), Plan::backend(family, 1));
        ip(Some(&lab.balancer), &format!("route add {vip} via {via}"))?;
        let server = Server::start(&lab.backends[1], "b1")?;
        server.serve(lab.plan.listen(family, 1, 0, 80))?;
        let tally = talk_to(&lab, SocketAddr::new(vip, 80))?;
        assert_eq!((tally.served_by("b1"), tally.clean), (20, 20), "{family:?}: {tally:?}");
        assert_eq!((server.accepted(), server.open()), (20, 0));
    }
    Ok(())
}

fn carries_replies_through_the_balancer(arms: Arms) -> Result<()> {
    let lab = build(arms, Replies::ThroughBalancer)?;
    for family in FAMILIES {
        let server = Server::start(&lab.backends[0], "b0")?;
        let target = lab.plan.listen(family, 0, 0, 80);
        server.serve(target)?;
        let tally = talk_to(&lab, target)?;
        assert_eq!((tally.served_by("b0"), tally.clean), (20, 20), "{family:?}: {tally:?}");
    }
    Ok(())
}

#[test]
fn one_segment_carries_direct_replies() -> Result<()> {
    carries_direct_replies(Arms::One)
}

#[test]
fn two_segments_carry_direct_replies() -> Result<()> {
    carries_direct_replies(Arms::Two)
}

#[test]
fn one_segment_carries_replies_through_the_balancer() -> Result<()> {
    carries_replies_through_the_balancer(Arms::One)
}

#[test]
fn two_segments_carry_replies_through_the_balancer() -> Result<()> {
    carries_replies_through_the_balancer(Arms::Two)
}

#[test]
fn what_a_program_transmits_arrives() -> Result<()> {
    let lab = Lab::build(Plan { backends: 2, ..Plan::default() })?;
    let server = Server::start(&lab.backends[1], "b1")?;
    for family in FAMILIES {
        let vip = Plan::vip(family, 0);
        let _program = lab.bounce(vip, 1)?;
        server.serve(lab.plan.listen(family, 1, 0, 80))?;
        let tally = talk_to(&lab, SocketAddr::new(vip, 80))?;
        assert_eq!((tally.served_by("b1"), tally.clean), (20, 20), "{family:?}: {tally:?}");
    }
    Ok(())
}

#[test]
fn ten_thousand_connections_at_once_are_no_trouble() -> Result<()> {
    let lab = Lab::build(Plan { backends: 1, client_addresses: 8, ..Plan::default() })?;
    let vip = Plan::vip(Family::V4, 0);
    let _program = lab.bounce(vip, 0)?;
    // Both ends of so many are more than one process may open everywhere.
    let server = Server::start_apart(env!("CARGO_BIN_EXE_ebb-test-server"), &lab.backends[0], "b0")?;
    server.serve(lab.plan.listen(Family::V4, 0, 0, 80))?;
    let client = Client::start(&lab)?;
    let held = client.open(Conversation::rarely_talking_with((vip, 80).into()), 10_000);
    held.wait_open(10_000, Duration::from_mins(1))?;
    assert_eq!((server.accepted(), server.open()), (10_000, 10_000));
    let tally = held.finish_and_wait(Duration::from_mins(1))?;
    assert_eq!(tally.clean, 10_000, "{tally:?}");
    Ok(())
}

#[test]
fn a_dead_server_shows_in_the_accounts() -> Result<()> {
    let lab = build(Arms::One, Replies::ThroughBalancer)?;
    let server = Server::start(&lab.backends[0], "b0")?;
    let target = lab.plan.listen(Family::V4, 0, 0, 80);
    server.listen(target, Transport::Tcp)?;
    let client = Client::start(&lab)?;
    let held = client.open(Conversation::with(target), 10);
    held.wait_open(10, SOON)?;
    drop(server);
    wait_until("the clients to notice", SOON, || held.tally().broken() == 10)?;

    let late = client.open(Conversation::with(target), 3);
    wait_until("refusals", SOON, || late.tally().could_not_connect() == 3)?;
    Ok(())
}

#[test]
fn kept_connections_come_again() -> Result<()> {
    let lab = build(Arms::One, Replies::ThroughBalancer)?;
    let server = Server::start(&lab.backends[0], "b0")?;
    let target = lab.plan.listen(Family::V6, 0, 0, 80);
    server.listen(target, Transport::Tcp)?;
    let client = Client::start(&lab)?;
    let lasting = Lasting::Between(Duration::from_millis(1), Duration::from_millis(100));
    let kept = client.keep(Conversation { lasting, ..Conversation::with(target) }, 10);
    wait_until("a hundred connections", SOON, || kept.tally().clean > 100)?;
    let tally = kept.finish_and_wait(SOON)?;
    assert_eq!((tally.broken(), tally.could_not_connect()), (0, 0), "{tally:?}");
    assert_eq!(server.accepted(), tally.opened);
    Ok(())
}
