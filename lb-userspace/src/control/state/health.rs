//! When checks make a backend healthy or unhealthy.

use serde::{Deserialize, Serialize};

use crate::control::model::HealthSpec;

/// What checks have found so far. So many in a row that agree are needed to change the verdict.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Passes (positive) or failures (negative) in a row.
    run: i64,
    /// The verdict; none until enough checks agree.
    verdict: Option<bool>,
    /// What the latest failed check saw.
    detail: String,
}

impl Health {
    /// Takes in one check.
    pub fn check(&mut self, passed: bool, detail: &str, spec: &HealthSpec) {
        self.run = match (passed, self.run) {
            (true, run) => run.max(0) + 1,
            (false, run) => run.min(0) - 1,
        };
        if !passed {
            detail.clone_into(&mut self.detail);
        }
        if self.run >= i64::from(spec.rise.max(1)) {
            self.verdict = Some(true);
        } else if -self.run >= i64::from(spec.fall.max(1)) {
            self.verdict = Some(false);
        }
    }

    /// Forgets everything: the check is another one.
    pub fn reset(&mut self) {
        *self = Self::default();
    }

    /// Whether enough checks have passed.
    pub fn is_good(&self) -> bool {
        self.verdict == Some(true)
    }

    /// Whether enough checks have failed.
    pub fn is_bad(&self) -> bool {
        self.verdict == Some(false)
    }

    /// What the latest check saw, if it failed.
    pub fn failing(&self) -> Option<&str> {
        (self.run < 0).then_some(&*self.detail)
    }

    /// What the latest failed check saw.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::model::Check;

    fn spec(rise: u32, fall: u32) -> HealthSpec {
        serde_json::from_value(serde_json::json!({ "check": Check::Tcp, "rise": rise, "fall": fall })).expect("a check")
    }

    #[test]
    fn so_many_in_a_row_change_the_verdict() {
        let spec = spec(2, 3);
        let mut health = Health::default();
        let mut verdicts = Vec::new();
        for passed in [true, false, true, true, false, false, true, false, false, false, true, true] {
            health.check(passed, "refused", &spec);
            verdicts.push(health.verdict);
        }
        let (good, bad) = (Some(true), Some(false));
        assert_eq!(verdicts, [None, None, None, good, good, good, good, good, good, bad, bad, good]);
        assert_eq!(health.detail(), "refused");
    }
}
