//! Waiting for things to happen, instead of sleeping and hoping.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// Asks `look` every 20 ms until it gives a value, and returns it; an error after `timeout` says what
/// was awaited. `look` is asked at least once, and once more after the time is over.
pub fn wait_for<T>(what: &str, timeout: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
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
