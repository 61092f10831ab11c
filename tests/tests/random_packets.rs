//! Random frames through the real program, each compared with the model: action, counter, backend, every byte.
//!
//! `EBB_RANDOM_PACKETS` says how many (a million for the long run), `EBB_RANDOM_SEED` where to start; both are printed.

use std::{env, time::SystemTime};

use ebb_tests::{
    model::{BACKENDS, Fate, MISTAKES, Model, RING, Random, backend_slot, cells, frame, owner},
    rig::{Action, Rig, Sizes},
};
use lb_common::{outcome::Outcome, ring::RingSlot};

/// How a packet of a flow may be counted: that depends on what came before, which the model leaves aside.
const OF_A_FLOW: [Outcome; 5] =
    [Outcome::Forwarded, Outcome::NewFlow, Outcome::Adopted, Outcome::Untracked, Outcome::Stateless];

/// After so many packets, a few seconds' worth, fragments are forgotten on both sides, since the program would by and by.
const FRAGMENT_MEMORY: u64 = 20_000;

/// What the program did with a frame.
struct Run {
    frame: Vec<u8>,
    action: Action,
    outcome: Outcome,
    out: Vec<u8>,
}

fn set_up() -> Rig {
    let mut rig = Rig::load(Sizes::SMALL).expect("load the program");
    for (service, cell) in cells().into_iter().enumerate() {
        rig.put_vip(cell.vip_entry(service as u16)).expect("room for four services");
        rig.services.set(service as u32, cell.service_row());
        for backend in 0..BACKENDS {
            let slot = backend_slot(service, backend);
            rig.backends.set(slot, cell.backend_row(slot as u8, service as u16));
        }
        let slots: Vec<RingSlot> = (0..RING)
            .map(|slot| RingSlot { owner: 1 + backend_slot(service, owner(service, slot)), previous: 0 })
            .collect();
        rig.put_ring(service as u16, 0, &slots).expect("publish a ring");
    }
    rig
}

fn number(variable: &str, default: u64) -> u64 {
    env::var(variable).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

fn run(rig: &Rig, random: &mut Random) -> Run {
    let frame = frame(random);
    let before = rig.counters();
    let (action, out) = rig.run(&frame).expect("test-run");
    let after = rig.counters();
    let mut counted = Outcome::ALL.iter().filter(|&&outcome| after.outcome(outcome) != before.outcome(outcome));
    let outcome = *counted.next().expect("every packet is counted");
    assert_eq!(counted.next(), None, "and once");
    Run { frame, action, outcome, out }
}

/// Why the run is not what the model says, if so.
fn difference(rig: &Rig, model: &mut Model, run: &Run) -> Option<String> {
    let fate = model.fate(&run.frame);
    let sent_to = |slot: u32| {
        let row = rig.backends.get(slot);
        let mut out = run.frame.clone();
        out[..6].copy_from_slice(&row.dst_mac);
        out[6..12].copy_from_slice(&row.src_mac);
        let action = if row.ifindex == ebb_tests::rig::INGRESS { Action::Tx } else { Action::Redirect };
        (action, out)
    };
    let (action, out) = match fate {
        Fate::To(slot) | Fate::Fragment(slot) => sent_to(slot),
        Fate::Ends(outcome) => {
            let passes = matches!(outcome, Outcome::NotForService | Outcome::PassedMalformed | Outcome::PassedHost);
            (if passes { Action::Pass } else { Action::Drop }, run.frame.clone())
        }
    };
    let counted = match fate {
        Fate::To(_) => OF_A_FLOW.contains(&run.outcome),
        Fate::Fragment(_) => run.outcome == Outcome::Fragment,
        Fate::Ends(outcome) => run.outcome == outcome,
    };
    let same = counted && run.action == action && (run.action == Action::Drop || run.out == out);
    (!same).then(|| {
        format!(
            "the model says {fate:?}, the program {:?} and {:?}\n  in  {:02x?}\n  out {:02x?}",
            run.action, run.outcome, run.frame, run.out
        )
    })
}

#[test]
fn the_program_does_what_the_model_says() {
    let packets = number("EBB_RANDOM_PACKETS", 20_000);
    let clock = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_nanos() as u64;
    let seed = number("EBB_RANDOM_SEED", clock);
    println!("EBB_RANDOM_SEED={seed} EBB_RANDOM_PACKETS={packets}");
    let (mut rig, mut model, mut random) = (set_up(), Model::default(), Random::new(seed));
    let mut kinds = std::collections::BTreeMap::<&str, u64>::new();
    for index in 0..packets {
        if index % FRAGMENT_MEMORY == 0 {
            rig.forget_fragments().expect("empty the map");
            model.forget();
        }
        let run = run(&rig, &mut random);
        *kinds.entry(run.outcome.name()).or_default() += 1;
        if let Some(difference) = difference(&rig, &mut model, &run) {
            panic!("packet {index} of EBB_RANDOM_SEED={seed}: {difference}");
        }
    }
    println!("{kinds:?}");
    // A generator that reaches only the first check would compare nothing.
    for outcome in ["not_for_service", "passed_malformed", "dropped_malformed", "new_flow", "forwarded", "fragment"] {
        assert!(kinds.contains_key(outcome), "no packet was counted as {outcome}: {kinds:?}");
    }
}

#[test]
fn every_seeded_mistake_is_noticed() {
    let (rig, mut random) = (set_up(), Random::new(1));
    let runs: Vec<Run> = (0..20_000).map(|_| run(&rig, &mut random)).collect();
    for mistake in MISTAKES {
        let mut model = Model::mistaken(mistake);
        let noticed = runs.iter().position(|run| difference(&rig, &mut model, run).is_some());
        println!("{mistake:?} noticed at packet {noticed:?}");
        assert!(noticed.is_some(), "{mistake:?} makes no difference in {} packets", runs.len());
    }
}
