//! The clocks: monotonic for deadlines, wall for people and for what must survive a reboot.

use std::{io, path::Path};

use jiff::Timestamp;

/// Changes with every boot of the machine (random(4)).
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where the engine gets the time from.
pub trait Clock: Send + Sync {
    /// `CLOCK_MONOTONIC_COARSE` in nanoseconds, the clock of the packet path.
    fn mono_ns(&self) -> u64;
    /// The wall clock.
    fn wall(&self) -> Timestamp;
    /// Changes when the monotonic clock starts anew.
    fn boot_id(&self) -> String;
}

/// The machine's clocks.
#[derive(Clone, Debug)]
pub struct SystemClock {
    /// Read once: a state saved while no file can be opened must not look like one of another boot.
    boot_id: String,
}

impl SystemClock {
    /// Fails when the kernel does not say which boot this is: what was kept of this one could not be told from an earlier one's.
    pub fn new() -> io::Result<Self> {
        Self::of_boot(Path::new(BOOT_ID))
    }

    fn of_boot(path: &Path) -> io::Result<Self> {
        let failed = |why: &dyn std::fmt::Display| {
            io::Error::other(format!("cannot read which boot of the machine this is in {}: {why}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        match text.trim() {
            "" => Err(failed(&"it is empty")),
            id => Ok(Self { boot_id: id.to_owned() }),
        }
    }
}

impl Clock for SystemClock {
    fn mono_ns(&self) -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a live timespec, which is all that the call asks for.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut time) };
        debug_assert_eq!(failed, 0, "every Linux has this clock");
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }

    fn boot_id(&self) -> String {
        self.boot_id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_stays_known_when_its_file_cannot_be_read_any_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("boot_id");
        std::fs::write(&path, "0c81\n").expect("written");
        let clock = SystemClock::of_boot(&path).expect("a clock");
        std::fs::remove_file(&path).expect("removed");
        assert_eq!(clock.boot_id(), "0c81");
        assert!(SystemClock::of_boot(&path).is_err(), "a start without it is refused");
        std::fs::write(&path, "\n").expect("written");
        assert!(SystemClock::of_boot(&path).is_err());
        assert!(!SystemClock::new().expect("this machine says").boot_id().is_empty());
    }
}
