//! `ebb advise`.

use std::io::{self, Write};

use super::{
    failure::{Exit, Failure},
    print::Printer,
};
use crate::{
    api::client::Client,
    control::advisor::{Advice, Point},
};

/// Width of the plot's bars.
const WIDTH: f64 = 50.0;

pub(super) async fn advise(service: &str, client: &Client, print: Printer) -> Result<Exit, Failure> {
    let advice = client.advice(service).await?;
    print.show(&advice, write)?;
    Ok(Exit::Done)
}

fn write(out: &mut Vec<u8>, advice: &Advice) -> io::Result<()> {
    let Advice { service, ended_flows, censored_flows, drain_timeout_s, .. } = advice;
    writeln!(out, "{service}: {ended_flows} flows seen to end, {censored_flows} still open or cut")?;
    writeln!(out)?;
    for percentile in &advice.percentiles {
        let length = percentile.at_most_s.map_or_else(|| "longer than was seen".to_owned(), length);
        writeln!(out, "{:>6} % last at most  {length}", percentile.percent)?;
    }
    writeln!(out)?;
    match advice.longer_than_present {
        Some(share) => {
            writeln!(out, "drain timeout now  {drain_timeout_s}: {:.2} % of flows last longer", share * 100.0)?;
        }
        None => writeln!(out, "drain timeout now  {drain_timeout_s}: nothing seen tells how many last longer")?,
    }
    match advice.recommended_s {
        Some(delay) => writeln!(out, "recommended        {delay} (the 99th percentile and a quarter)")?,
        None => writeln!(out, "recommended        nothing yet")?,
    }
    plot(out, &advice.curve)?;
    writeln!(out)?;
    for limit in &advice.limits {
        writeln!(out, "- {limit}")?;
    }
    Ok(())
}

/// How many flows go on after so long.
fn plot(out: &mut Vec<u8>, curve: &[Point]) -> io::Result<()> {
    if curve.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nflows that go on after")?;
    for point in curve {
        #[expect(clippy::cast_sign_loss, reason = "a share is not negative")]
        let bar = "█".repeat((point.share * WIDTH).round() as usize);
        writeln!(out, "{:>9} {:>6.2} % {bar}", length(point.after_s), point.share * 100.0)?;
    }
    Ok(())
}

fn length(seconds: f64) -> String {
    match seconds {
        ..1.0 => format!("{:.0} ms", seconds * 1_000.0),
        1.0..120.0 => format!("{seconds:.1} s"),
        120.0..7_200.0 => format!("{:.1} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{
        advisor::{Histogram, Lengths, advise},
        duration::Limit,
    };

    #[test]
    fn it_says_what_to_do_and_shows_why() {
        let mut lengths = Lengths::default();
        for number in 1..=2_000 {
            lengths.ended.record(number * 10);
        }
        let mut text = Vec::new();
        write(&mut text, &advise("web", &lengths, &Histogram::default(), Limit::seconds(10))).expect("memory");
        let text = String::from_utf8(text).expect("text");
        assert!(text.starts_with("web: 2000 flows seen to end, 0 still open or cut\n"), "{text}");
        assert!(text.contains("   99 % last at most  20."), "{text}");
        assert!(text.contains("recommended        26s (the 99th percentile and a quarter)"), "{text}");
        assert!(text.contains("drain timeout now  10s: 5"), "{text}");
        assert!(text.contains("█") && text.contains("Kaplan-Meier"), "{text}");
        let mut text = Vec::new();
        let nothing = advise("web", &Lengths::default(), &Histogram::default(), Limit::NONE);
        write(&mut text, &nothing).expect("memory");
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("recommended        nothing yet") && !text.contains("go on after"), "{text}");
    }
}
