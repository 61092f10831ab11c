//! How far a drain has got: a bar that empties on a terminal, plain lines for a log.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::control::duration;

/// Plain lines come at most this often while nothing but the number changes.
const LINE_INTERVAL: Duration = Duration::from_secs(1);

/// From so many columns on a bar has room for every word beside it.
const ROOMY: u16 = 150;

/// One look at a drain.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Look {
    /// Live flows when it began.
    pub(super) initial_flows: u64,
    /// Live flows now.
    pub(super) remaining_flows: u64,
    /// Until the deadline, when there is one.
    pub(super) remaining: Option<Duration>,
    /// Until the last flow has ended, if it goes on as lately.
    pub(super) estimate: Option<Duration>,
    /// Age of the oldest flow that is left.
    pub(super) oldest: Option<Duration>,
    /// Its flows are over; until the end of the wait for a hook.
    pub(super) held: Option<Duration>,
    /// How many flows ended a second, lately.
    pub(super) rate_per_s: Option<f64>,
}

impl Look {
    /// What fits beside a bar.
    fn brief(&self) -> String {
        if let Some(left) = self.held.filter(|_| self.remaining_flows == 0) {
            return format!("held for a hook, for {} at most", whole_seconds(left));
        }
        let flows = if self.remaining_flows == 1 { "flow" } else { "flows" };
        let estimate = match self.estimate {
            Some(left) if self.remaining_flows > 0 => format!(", about {} to go", whole_seconds(left)),
            _ => String::new(),
        };
        let deadline = match self.remaining {
            Some(left) => format!("{} to the deadline", whole_seconds(left)),
            None => "no deadline".to_owned(),
        };
        let initial = self.initial_flows.max(self.remaining_flows);
        format!("{} of {initial} {flows} left{estimate}, {deadline}", self.remaining_flows)
    }
}

impl fmt::Display for Look {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.brief())?;
        if self.remaining_flows == 0 {
            return Ok(());
        }
        if let Some(rate) = self.rate_per_s.filter(|rate| *rate > 0.0) {
            write!(f, ", {rate:.1} ending a second")?;
        }
        match self.oldest {
            Some(age) => write!(f, ", the oldest is {} old", whole_seconds(age)),
            None => Ok(()),
        }
    }
}

/// Rounded up, so that a countdown ends at 0s and not before.
fn whole_seconds(left: Duration) -> String {
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    duration::format(Duration::from_secs(seconds))
}

/// Where progress is shown.
#[derive(Debug)]
pub(super) enum Progress {
    /// Nowhere: the caller wants only the result.
    Silent,
    /// A bar on a terminal.
    Bar {
        /// The backend's name in front of the bar.
        label: String,
        /// The bar, once there is something to show.
        bar: Option<ProgressBar>,
    },
    /// A line for each change, on standard output.
    Lines {
        /// The backend's name in front of each line.
        label: String,
        /// What was said last, and when.
        last: Option<(u64, Instant)>,
    },
}

impl Progress {
    /// Shows the drain of `label` in the way that fits standard output; `lines` says whether it is to be shown in a log.
    pub(super) fn new(label: &str, lines: bool) -> Self {
        let label = label.to_owned();
        match (io::stdout().is_terminal(), lines) {
            (true, _) => Self::Bar { label, bar: None },
            (false, true) => Self::Lines { label, last: None },
            (false, false) => Self::Silent,
        }
    }

    /// Shows one look. When the reader (`head`) has seen enough, no further one is shown.
    pub(super) fn show(&mut self, look: &Look) -> io::Result<()> {
        match self.draw(look) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                *self = Self::Silent;
                Ok(())
            }
            drawn => drawn,
        }
    }

    fn draw(&mut self, look: &Look) -> io::Result<()> {
        match self {
            Self::Silent => Ok(()),
            Self::Bar { label, bar } => {
                let length = look.initial_flows.max(look.remaining_flows);
                let bar = bar.get_or_insert_with(|| new_bar(label));
                bar.set_length(length.max(1));
                bar.set_position(look.remaining_flows);
                // The bar gets what room the words leave.
                let roomy = crossterm::terminal::size().is_ok_and(|(columns, _)| columns >= ROOMY);
                bar.set_message(if roomy { look.to_string() } else { look.brief() });
                bar.tick();
                Ok(())
            }
            Self::Lines { label, last } => {
                let now = Instant::now();
                let due = last
                    .is_none_or(|(flows, at)| flows != look.remaining_flows && now.duration_since(at) >= LINE_INTERVAL);
                if !due {
                    return Ok(());
                }
                *last = Some((look.remaining_flows, now));
                let mut out = io::stdout().lock();
                writeln!(out, "{label}: {look}")?;
                out.flush()
            }
        }
    }

    /// Takes the bar away, so that the line that names the outcome stands alone.
    pub(super) fn clear(&mut self) {
        if let Self::Bar { bar, .. } = self
            && let Some(bar) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn new_bar(label: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout_with_hz(10));
    let style = ProgressStyle::with_template("{prefix} [{wide_bar}] {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    bar.set_style(style);
    bar.set_prefix(label.to_owned());
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_in_words() {
        let mut look = Look {
            initial_flows: 300,
            remaining_flows: 120,
            remaining: Some(Duration::from_millis(41_200)),
            estimate: Some(Duration::from_secs(12)),
            oldest: Some(Duration::from_mins(5)),
            held: None,
            rate_per_s: None,
        };
        assert_eq!(look.brief(), "120 of 300 flows left, about 12s to go, 42s to the deadline");
        assert_eq!(look.to_string(), format!("{}, the oldest is 5m old", look.brief()));
        look.rate_per_s = Some(9.96);
        assert_eq!(look.to_string(), format!("{}, 10.0 ending a second, the oldest is 5m old", look.brief()));
        look = Look { remaining: None, remaining_flows: 1, estimate: None, oldest: None, rate_per_s: None, ..look };
        assert_eq!(look.to_string(), "1 of 300 flow left, no deadline");
        // Flows that were half open when the drain began may be adopted later.
        look.remaining_flows = 301;
        assert_eq!(look.to_string(), "301 of 301 flows left, no deadline");
        look = Look { remaining_flows: 0, held: Some(Duration::from_secs(30)), ..look };
        assert_eq!(look.to_string(), "held for a hook, for 30s at most");
    }
}
