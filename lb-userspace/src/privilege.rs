//! What the daemon may do: all that it needs to load the datapath until that is done, less from then on, and nothing for the
//! programs it runs.
//!
//! Capabilities belong to threads, and a thread hands its own on to those it makes. So they are given up while there is one
//! thread only.

use std::{fs, io};

use rustix::thread::{self, CapabilitySet, CapabilitySets};

/// A capability of the daemon's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Its name, as systemd and setpriv have it.
    pub name: &'static str,
    /// Its bit.
    pub bit: CapabilitySet,
    /// Whether it is kept once the datapath is loaded.
    pub kept: bool,
}

/// All of them. The service unit's `CapabilityBoundingSet` is the same list, which a test holds.
pub const NEEDS: [Need; 4] = [
    // Maps and pins, also those of rings made later; the program.
    Need { name: "CAP_BPF", bit: CapabilitySet::BPF, kept: true },
    // The verifier takes the program, which is loaded once: an interface that comes back gets the one that is there.
    Need { name: "CAP_PERFMON", bit: CapabilitySet::PERFMON, kept: false },
    // Attaching to interfaces, asking the kernel to resolve neighbours, listening to multicast groups.
    Need { name: "CAP_NET_ADMIN", bit: CapabilitySet::NET_ADMIN, kept: true },
    // Resets, announcements, and checks of the VIP at a backend.
    Need { name: "CAP_NET_RAW", bit: CapabilitySet::NET_RAW, kept: true },
];

/// Before there were `CAP_BPF` and `CAP_PERFMON` this stood for both, and it still does.
const STAND_IN: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// The names of those that are missing for loading the datapath.
pub fn missing() -> Vec<&'static str> {
    missing_from(thread::capabilities(None).map_or(CapabilitySet::empty(), |held| held.effective))
}

fn missing_from(held: CapabilitySet) -> Vec<&'static str> {
    NEEDS.iter().filter(|need| !held.intersects(need.bit | stand_in(need.bit))).map(|need| need.name).collect()
}

fn stand_in(bit: CapabilitySet) -> CapabilitySet {
    let has_one = bit.intersects(CapabilitySet::BPF | CapabilitySet::PERFMON);
    if has_one { STAND_IN } else { CapabilitySet::empty() }
}

/// What is kept of what was held.
fn kept_of(held: CapabilitySet) -> CapabilitySet {
    let kept = NEEDS.iter().filter(|need| need.kept);
    kept.map(|need| if held.contains(need.bit) { need.bit } else { held & stand_in(need.bit) }).collect()
}

/// Gives up what a running daemon does not need, for good, and with it the power of programs it starts to gain anything by
/// being executed.
///
/// # Errors
///
/// Fails when there are other threads, which would keep what they have, and when the kernel refuses.
pub fn keep_what_runs() -> io::Result<()> {
    if fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() > 1) {
        return Err(io::Error::other("there are other threads already"));
    }
    give_up(kept_of)
}

/// Gives up everything, for this thread and what it starts.
pub fn renounce() -> io::Result<()> {
    give_up(|_| CapabilitySet::empty())
}

fn give_up(keep: impl FnOnce(CapabilitySet) -> CapabilitySet) -> io::Result<()> {
    let held = thread::capabilities(None)?;
    let kept = keep(held.permitted);
    thread::set_no_new_privs(true)?;
    // Without it (under the service unit, which has set the bounds already) the bounds stay as they are; they bound nothing
    // that could still be gained.
    if held.effective.contains(CapabilitySet::SETPCAP) {
        lower_bounds(kept)?;
    }
    thread::clear_ambient_capability_set()?;
    thread::set_capabilities(
        None,
        CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() },
    )?;
    Ok(())
}

fn lower_bounds(kept: CapabilitySet) -> io::Result<()> {
    let bits = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
    for bit in bits {
        match thread::capability_is_in_bounding_set(bit) {
            Ok(true) if !kept.contains(bit) => thread::remove_capability_from_bounding_set(bit)?,
            Ok(_) => {}
            // The kernel knows no such capability, nor any after it.
            Err(_) => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: &str = include_str!("../../packaging/ebb.service");

    #[test]
    fn the_unit_has_the_same_list() {
        let listed = UNIT.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("it has one");
        let mut listed: Vec<&str> = listed.split(' ').collect();
        let mut needed = NEEDS.map(|need| need.name);
        listed.sort_unstable();
        needed.sort_unstable();
        assert_eq!(listed, needed);
    }

    #[test]
    fn what_is_missing_is_told_and_what_stands_in_counts() {
        let all = NEEDS.iter().map(|need| need.bit).collect::<CapabilitySet>();
        assert_eq!(missing_from(all), Vec::<&str>::new());
        assert_eq!(missing_from(CapabilitySet::NET_ADMIN), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_RAW"]);
        let old = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        assert_eq!(missing_from(old), Vec::<&str>::new());
    }

    #[test]
    fn no_more_is_kept_than_was_held_and_needed() {
        let daemon = CapabilitySet::BPF | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        assert_eq!(kept_of(CapabilitySet::all()), daemon);
        assert_eq!(kept_of(CapabilitySet::BPF | CapabilitySet::CHOWN), CapabilitySet::BPF);
        let old = CapabilitySet::SYS_ADMIN | CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
        assert_eq!(kept_of(old | CapabilitySet::KILL), old);
    }

    #[test]
    fn a_thread_that_renounces_has_nothing_and_others_keep_what_they_have() {
        let before = thread::capabilities(None).expect("readable");
        let after = std::thread::spawn(|| {
            renounce().expect("less is always allowed");
            (thread::capabilities(None), thread::no_new_privs())
        });
        let (held, no_new) = after.join().expect("it does not panic");
        let nothing = CapabilitySet::empty();
        let nothing = CapabilitySets { effective: nothing, permitted: nothing, inheritable: nothing };
        assert_eq!((held.expect("readable"), no_new), (nothing, Ok(true)));
        assert_eq!(thread::capabilities(None).expect("readable"), before);
        // This harness has threads of its own.
        assert!(keep_what_runs().is_err());
    }
}
