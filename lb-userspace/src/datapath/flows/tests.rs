//! The daemon's side of the flow table, on ordinary memory and beside threads that play packets.

use std::{net::Ipv4Addr, thread, time::Duration};

use lb_common::{
    addr::Addr,
    flow::{CUT_TICKS, OPENING_TICKS, Phase, flow_flag as ff},
    flow_table::{Insert, Lookup, claim_emptiest, claim_near, insert, lookup},
    hash, time,
};

use super::*;

const SECOND_NS: u64 = 1_000_000_000;
const NOW_NS: u64 = 1_000 * SECOND_NS;
const SERVICE: u16 = 3;

struct Memory {
    words: Vec<AtomicU64>,
    geometry: Geometry,
    keys: [u64; TABLE_KEYS],
}

impl Memory {
    fn new(slots: u32) -> Self {
        Self {
            words: (0..slots as usize * WORDS).map(|_| AtomicU64::new(0)).collect(),
            geometry: Geometry { slots, secret: 77 },
            keys: std::array::from_fn(|i| hash::mix(i as u64 + 5)),
        }
    }

    fn table(&self) -> Table<'_> {
        Table {
            view: View::new(&self.words, self.geometry.slots),
            geometry: self.geometry,
            keys: &self.keys,
            tallies: None,
        }
    }

    fn home(&self, key: &FlowKey) -> u32 {
        self.geometry.home(key.hash(&self.keys))
    }

    fn lookup(&self, key: &FlowKey) -> Lookup {
        lookup(self.table().view, self.geometry, self.home(key), key, 0, ff::CANDIDATE)
    }

    /// Adds a flow as the packet path does.
    fn add(&self, n: u32, backend: u32, generation: u32, flags: u16, seen_ns: u64) -> Option<u32> {
        let key = key(n);
        let view = self.table().view;
        let home = self.home(&key);
        let now = time::ticks(seen_ns);
        let init = FlowInit { backend, generation, now, flags, client_seq: n, client_ack: n, peer: 0, nat_port: 0 };
        for _ in 0..100 {
            let hop = match self.lookup(&key) {
                Lookup::Found { .. } => return None,
                Lookup::Missing { hop } => hop,
            };
            let index = claim_near(view, home, now).or_else(|| claim_emptiest(view, self.geometry, home, now))?;
            match insert(view, self.geometry, home, hop, index, (&key, &init), None) {
                Insert::Done => return Some(index),
                Insert::Raced => {}
                Insert::Crowded => return None,
            }
        }
        None
    }

    fn in_use(&self) -> usize {
        self.table().view.iter().filter(|(_, e)| e.meta().life() != Life::Free).count()
    }

    fn linked_places(&self) -> u32 {
        self.table().view.iter().map(|(_, e)| (e.hop() & ((1 << 48) - 1)).count_ones()).sum()
    }
}

fn key(n: u32) -> FlowKey {
    FlowKey::new(Addr::from(std::net::IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n / 1000))), (n % 1000) as u16, SERVICE)
}

/// One service with an idle timeout of 350 s; backends 0 to 3 of generation 1, of which 3 is free.
fn facts() -> Facts {
    let mut service: Service = bytemuck::Zeroable::zeroed();
    let unused = service;
    service.protocol = 6;
    service.idle_ticks = time::duration_ticks(350 * SECOND_NS);
    service.fin_quiet_ticks = time::duration_ticks(SECOND_NS);
    let states = [BackendState::Active, BackendState::Draining, BackendState::Active, BackendState::Free];
    let backends = states.map(|state| Row { generation: 1, state: Some(state), deadline_ns: NO_DEADLINE });
    Facts::new([unused, unused, unused, service].into_iter(), backends.into_iter())
}

fn sweep(memory: &Memory, facts: &Facts, now_ns: u64) -> Vec<Tally> {
    let mut tallies = vec![Tally::default(); 4];
    Scan { table: memory.table(), facts, now_ns, log: None }.sweep(&mut tallies, &mut Vec::new());
    tallies
}

#[test]
fn what_was_open_at_a_deadline_is_open_however_late_one_looks() {
    let memory = Memory::new(1024);
    let deadline_ns = NOW_NS - 500 * SECOND_NS;
    let mut facts = facts();
    facts.rows[1] = Some(Row { generation: 1, state: Some(BackendState::Draining), deadline_ns });
    let all = [
        (ff::ESTABLISHED, 349),
        (ff::ESTABLISHED, 351),
        (ff::ESTABLISHED | ff::RST, 1),
        (ff::ESTABLISHED | ff::CUT, 1),
        (ff::ESTABLISHED | ff::DATAGRAM, 1),
        (0, 1),
    ];
    for (n, (flags, before_s)) in (0u32..).zip(all) {
        memory.add(n, 1, 1, flags, deadline_ns - before_s * SECOND_NS).unwrap();
        memory.add(100 + n, 0, 1, flags, deadline_ns - before_s * SECOND_NS).unwrap();
    }
    let tallies = sweep(&memory, &facts, NOW_NS);
    assert_eq!((tallies[1].live(), tallies[0].live()), (1, 0), "the other backend has no deadline");
    let scan = Scan { table: memory.table(), facts: &facts, now_ns: NOW_NS, log: None };
    assert_eq!(scan.mark_cut(1, 1, ff::CUT, |_, _| true).marked.len(), 1);
}

#[test]
fn a_sweep_tells_once_how_long_finished_flows_have_lasted() {
    let memory = Memory::new(1024);
    let old = NOW_NS - 400 * SECOND_NS;
    let all = [
        (1, ff::ESTABLISHED),
        (1, ff::ESTABLISHED | ff::RST),
        (1, ff::ESTABLISHED | ff::CUT),
        // No flow ever, or nobody's any more.
        (1, 0),
        (1, ff::ESTABLISHED | ff::PROVISIONAL),
        (0, ff::ESTABLISHED),
    ];
    for (n, (generation, flags)) in (0u32..).zip(all) {
        memory.add(n, 0, generation, flags, old).unwrap();
    }
    let look = || {
        let (facts, mut tallies, mut ended) = (facts(), vec![Tally::default(); 4], Vec::new());
        Scan { table: memory.table(), facts: &facts, now_ns: NOW_NS, log: None }.sweep(&mut tallies, &mut ended);
        ended
    };
    let mut ended: Vec<_> = look().iter().map(|flow| (flow.length_ms / 1_000, flow.cut)).collect();
    ended.sort_unstable();
    assert_eq!(ended, [(0, false), (0, true), (400, false)], "the silent one lasted until now");
    assert_eq!(look(), [], "nothing is told twice");
}

#[test]
fn what_is_taken_out_is_kept_once_for_the_log() {
    let memory = Memory::new(1024);
    let old = NOW_NS - 400 * SECOND_NS;
    let told = [ff::ESTABLISHED, ff::ESTABLISHED | ff::RST, ff::ESTABLISHED | ff::CUT];
    let never_flows = [0, ff::ESTABLISHED | ff::PROVISIONAL, ff::ESTABLISHED | ff::CANDIDATE];
    for (n, flags) in (0u32..).zip(told.into_iter().chain(never_flows)) {
        memory.add(n, 0, 1, flags, old).unwrap();
    }
    memory.add(50, 0, 1, ff::ESTABLISHED, NOW_NS).unwrap();
    let facts = facts();
    let kept = |sample: u16, look: &dyn Fn(&Scan<'_>)| -> Vec<u16> {
        let tap = Tap::new(sample.try_into().unwrap());
        look(&Scan { table: memory.table(), facts: &facts, now_ns: NOW_NS, log: Some(&tap) });
        let (flows, missed) = tap.empty();
        assert_eq!(missed, 0);
        let mut flags: Vec<u16> = flows.iter().map(|kept| kept.meta.flags()).collect();
        flags.sort_unstable();
        flags
    };
    let sweep = |scan: &Scan<'_>| scan.sweep(&mut vec![Tally::default(); 4], &mut Vec::new());
    assert_eq!(kept(1, &sweep), told);
    assert!(kept(1, &sweep).is_empty(), "each once");
    assert_eq!(kept(1, &|scan| assert_eq!(scan.purge(0, 1), 1)), [ff::ESTABLISHED], "purged ones too");
    for n in 100..300 {
        memory.add(n, 0, 1, ff::ESTABLISHED, old).unwrap();
    }
    let half = kept(2, &sweep).len();
    assert!((50..150).contains(&half), "{half} of 200");
}

#[test]
fn a_sweep_counts_by_phase_and_reclaims_the_dead() {
    let memory = Memory::new(1024);
    let old = NOW_NS - 400 * SECOND_NS;
    let ago = |s: u64| NOW_NS - s * SECOND_NS;
    for (n, (backend, generation, flags, seen)) in [
        (0, 1, 0, ago(1)),
        (0, 1, ff::ESTABLISHED, ago(200)),
        (0, 1, ff::ESTABLISHED | ff::BOTH_WAYS | ff::CLIENT_FIN, ago(9)),
        (0, 1, ff::ESTABLISHED | ff::CLIENT_FIN, ago(9)),
        (0, 1, ff::ESTABLISHED | ff::CUT, ago(50)),
        (0, 1, ff::PROVISIONAL, ago(2)),
        (1, 1, ff::ESTABLISHED, ago(3)),
        // Dead: idle, expired, of an earlier generation, of a free row, of a row out of range.
        (0, 1, ff::ESTABLISHED, old),
        (0, 1, 0, ago(11)),
        (1, 0, ff::ESTABLISHED, ago(1)),
        (3, 1, ff::ESTABLISHED, ago(1)),
        (9, 1, ff::ESTABLISHED, ago(1)),
        // A cut flow of an earlier generation is remembered.
        (1, 0, ff::ESTABLISHED | ff::CUT, ago(1)),
    ]
    .into_iter()
    .enumerate()
    {
        memory.add(n as u32, backend, generation, flags, seen).unwrap();
    }
    let tallies = sweep(&memory, &facts(), NOW_NS);
    let first = tallies[0];
    for phase in [Phase::Opening, Phase::Established, Phase::HalfClosed, Phase::Closing, Phase::Cut, Phase::Provisional]
    {
        assert_eq!(first.of(phase), 1, "{phase:?}");
    }
    assert_eq!(first.live(), 3);
    assert_eq!(first.oldest_age, time::ticks(NOW_NS) - time::ticks(ago(200)));
    assert_eq!((tallies[1].live(), tallies[1].of(Phase::Cut)), (1, 0));
    assert!(tallies[2].is_empty() && tallies[3].is_empty());
    assert_eq!(memory.in_use(), 8);
    assert_eq!(memory.linked_places(), 8, "the dead are unlinked too");
    assert!(matches!(memory.lookup(&key(7)), Lookup::Missing { .. }));
    assert!(matches!(memory.lookup(&key(1)), Lookup::Found { .. }));

    // Long after, nothing of it is left.
    let later = NOW_NS + u64::from(CUT_TICKS + OPENING_TICKS) * (1 << 20) + 400 * SECOND_NS;
    assert!(sweep(&memory, &facts(), later).iter().all(Tally::is_empty));
    assert_eq!((memory.in_use(), memory.linked_places()), (0, 0));
}

#[test]
fn an_entry_that_a_killed_daemon_left_dying_is_healed_after_a_while() {
    let memory = Memory::new(64);
    let index = memory.add(1, 0, 1, ff::ESTABLISHED, NOW_NS).unwrap();
    let entry = memory.table().view.at(index).unwrap();
    assert!(flow_table::condemn(entry, entry.meta(), time::ticks(NOW_NS)));
    sweep(&memory, &facts(), NOW_NS + 4 * SECOND_NS);
    assert_eq!(memory.in_use(), 1, "whoever took it out may be at work");
    sweep(&memory, &facts(), NOW_NS + 6 * SECOND_NS);
    assert_eq!((memory.in_use(), memory.linked_places()), (0, 0));
}

#[test]
fn a_purge_takes_one_generation_of_one_backend() {
    let memory = Memory::new(4096);
    for n in 0..1500 {
        memory.add(n, n % 2, 1 + n % 3 / 2, ff::ESTABLISHED, NOW_NS).unwrap();
    }
    let scan = Scan { table: memory.table(), facts: &facts(), now_ns: NOW_NS, log: None };
    assert_eq!(scan.purge(1, 1), 500);
    assert_eq!(scan.purge(1, 1), 0);
    assert_eq!(scan.purge(1, 2), 250);
    assert_eq!(memory.in_use(), 750);
    assert_eq!(memory.linked_places(), 750);
}

#[test]
fn a_cut_marks_what_is_due_and_resteers_datagrams() {
    let memory = Memory::new(4096);
    for n in 0..1000 {
        memory.add(n, 1, 1, ff::ESTABLISHED, NOW_NS).unwrap();
    }
    for n in 1000..1010 {
        memory.add(n, 1, 1, ff::ESTABLISHED | ff::DATAGRAM, NOW_NS).unwrap();
    }
    memory.add(2000, 1, 1, ff::PROVISIONAL, NOW_NS).unwrap();
    memory.add(2001, 1, 1, ff::RST, NOW_NS).unwrap();
    memory.add(2002, 0, 1, ff::ESTABLISHED, NOW_NS).unwrap();
    let scan = Scan { table: memory.table(), facts: &facts(), now_ns: NOW_NS, log: None };
    let half = scan.mark_cut(1, 1, ff::CUT, |share, _| share < 1 << 15);
    assert_eq!(half.marked.len() as u64 + half.resteered + half.remaining, 1010);
    assert!((350..650).contains(&half.remaining), "shares are spread: {}", half.remaining);
    let rest = scan.mark_cut(1, 1, ff::CUT, |_, _| true);
    assert_eq!(rest.remaining, 0);
    assert_eq!(half.marked.len() + rest.marked.len(), 1000);
    assert_eq!(half.resteered + rest.resteered, 10);
    assert_eq!(memory.in_use(), 1003);
    let (meta, flow) = scan.flow(rest.marked[0]).unwrap();
    assert!(meta.any(ff::CUT) && flow.backend == 1);
    assert_eq!(scan.mark_cut(1, 1, ff::CUT, |_, _| true), CutList::default(), "done once");
}

#[test]
fn a_list_shows_flows_that_are_wanted() {
    let memory = Memory::new(256);
    for n in 0..20 {
        memory.add(n, n % 2, 1, ff::ESTABLISHED, NOW_NS).unwrap();
    }
    memory.add(30, 1, 1, ff::PROVISIONAL, NOW_NS).unwrap();
    let scan = Scan { table: memory.table(), facts: &facts(), now_ns: NOW_NS, log: None };
    assert_eq!(scan.list(100, |flow| flow.backend == 1).len(), 10);
    assert_eq!(scan.list(7, |_| true).len(), 7);
}

/// Packets open and touch flows while the daemon sweeps and purges; afterwards every bit stands for a flow.
#[test]
fn sweeping_beside_packets_loses_and_doubles_nothing() {
    let memory = Memory::new(256);
    thread::scope(|scope| {
        for worker in 0..2u64 {
            let memory = &memory;
            scope.spawn(move || {
                let mut random = worker + 1;
                for _ in 0..60_000 {
                    random = hash::mix(random.wrapping_add(0x9e37_79b9_7f4a_7c15));
                    let n = (random % 150) as u32;
                    match memory.lookup(&key(n)) {
                        Lookup::Missing { .. } => drop(memory.add(n, n % 4, 1, ff::ESTABLISHED, NOW_NS)),
                        Lookup::Found { index, meta } => {
                            let entry = memory.table().view.at(index).unwrap();
                            entry.swap_meta(meta, meta.with(ff::CLIENT_FIN, 0, time::ticks(NOW_NS)));
                        }
                    }
                }
            });
        }
        let facts = facts();
        for round in 0..2_000u32 {
            let scan = Scan { table: memory.table(), facts: &facts, now_ns: NOW_NS, log: None };
            scan.purge(round % 3, 1);
            sweep(&memory, &facts, NOW_NS);
        }
    });
    let facts = facts();
    let tallies = sweep(&memory, &facts, NOW_NS);
    let live: u64 = tallies.iter().map(Tally::live).sum();
    assert_eq!(live, memory.in_use() as u64);
    assert_eq!(live, u64::from(memory.linked_places()));
}

/// Time that this thread has run: on a busy machine the wall clock tells of others.
fn running() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec, which is ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec.cast_unsigned(), u32::try_from(time.tv_nsec).expect("less than a second"))
}

/// Not a benchmark: prints what a sweep and a purge of a million flows take with this build.
#[test]
#[ignore = "takes long in a debug build; run with --release -- --ignored --nocapture"]
fn a_million_flows() {
    let flows = 1_000_000;
    let memory = Memory::new(flow_table::slots_for(flows));
    let failures: Vec<u32> = (0..flows).filter(|&n| memory.add(n, 0, 1, ff::ESTABLISHED, NOW_NS).is_none()).collect();
    println!("{} of {flows} flows found no place, the first being {:?}", failures.len(), failures.first());
    let placed = u64::from(flows) - failures.len() as u64;
    let facts = facts();
    let mut times: Vec<Duration> = (0..30)
        .map(|_| {
            let start = running();
            let tallies = sweep(&memory, &facts, NOW_NS);
            let taken = running().saturating_sub(start);
            assert_eq!(tallies.iter().map(Tally::live).sum::<u64>(), placed);
            taken
        })
        .collect();
    times.sort();
    println!("sweep of {flows} flows: min {:?} median {:?} max {:?}", times[0], times[15], times[29]);
    let start = running();
    let freed = Scan { table: memory.table(), facts: &facts, now_ns: NOW_NS, log: None }.purge(0, 1);
    println!("purge of {freed} flows: {:?}", running().saturating_sub(start));
}
