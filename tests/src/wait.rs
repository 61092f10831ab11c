//! Waiting for things to happen, instead of sleeping and hoping.

use std::{
    env,
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Names how many times longer than elsewhere things may take on this machine: an emulated one is slow.
const PATIENCE_VARIABLE: &str = "EBB_PATIENCE";

/// A time that is long enough where the tests were written, for here. Not for what the program itself promises.
pub fn patient(time: Duration) -> Duration {
    static FACTOR: LazyLock<u32> =
        LazyLock::new(|| env::var(PATIENCE_VARIABLE).ok().and_then(|factor| factor.parse().ok()).unwrap_or(1).max(1));
    time * *FACTOR
}

/// Asks `look` every 20 ms until it gives a value, and returns it; an error after `timeout` (longer on slow machines, see
/// [`patient`]) says what was awaited. `look` is asked at least once, and once more after the time is over.
pub fn wait_for<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    let timeout = patient(timeout);
    loop {
        let late = begun.elapsed() >= timeout;
        if let Some(value) = look() {
            return Ok(value);
        }
        if late {
            bail!("waited {timeout:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// [`wait_for`] a condition.
pub fn wait_until(what: &str, timeout: Duration, mut holds: impl FnMut() -> bool) -> Result<()> {
    wait_for(what, timeout, || holds().then_some(()))
}
