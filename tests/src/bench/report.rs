//! What came out: a table for people, JSON for programs.

use std::fmt;

use serde::Serialize;

/// Smallest, middle and largest of several runs, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    /// Smallest.
    pub min: f64,
    /// Middle.
    pub median: f64,
    /// Largest.
    pub max: f64,
}

impl Spread {
    /// Of at least one run.
    pub fn of(runs: &[f64]) -> Self {
        let mut sorted = runs.to_vec();
        sorted.sort_by(f64::total_cmp);
        Self { min: sorted[0], median: sorted[sorted.len() / 2], max: sorted[sorted.len() - 1] }
    }
}

/// One case, net of the floor.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name.
    pub case: String,
    /// Flows among which packets were spread.
    pub flows: u32,
    /// Ebb.
    pub ebb: Spread,
    /// The driver alone.
    pub floor: Spread,
    /// The conventional balancer, where it can do the same.
    pub yardstick: Option<Spread>,
}

/// A row as `--json` has it.
#[derive(Serialize)]
struct JsonRow<'a> {
    case: &'a str,
    flows: u32,
    ns_min: f64,
    ns_median: f64,
    ns_max: f64,
    floor_ns: f64,
    yardstick_ns: Option<f64>,
}

/// Everything.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The cases.
    pub rows: Vec<Row>,
    /// Figures that are no times per packet, by name.
    pub figures: Vec<Figure>,
}

/// A figure that is no time per packet.
#[derive(Clone, Debug)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
}

impl Figure {
    /// A figure.
    pub fn new(name: impl Into<String>, value: impl Into<f64>, unit: &'static str) -> Self {
        Self { name: name.into(), value: value.into(), unit }
    }
}

impl Report {
    /// The object that `--json` writes.
    pub fn json(&self) -> serde_json::Value {
        let rows: Vec<JsonRow<'_>> = self
            .rows
            .iter()
            .map(|row| JsonRow {
                case: &row.case,
                flows: row.flows,
                ns_min: row.ebb.min,
                ns_median: row.ebb.median,
                ns_max: row.ebb.max,
                floor_ns: row.floor.median,
                yardstick_ns: row.yardstick.map(|yardstick| yardstick.median),
            })
            .collect();
        let figures: serde_json::Map<_, _> =
            self.figures.iter().map(|figure| (figure.name.clone(), figure.value.into())).collect();
        serde_json::json!({ "rows": rows, "figures": figures })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "ns a packet, net of the floor       Ebb                     yardstick               ratio   floor"
        )?;
        writeln!(f, "case                   flows     min  median     max     min  median     max")?;
        for row in &self.rows {
            write!(f, "{:<20}{:>8}", row.case, row.flows)?;
            let spread = |f: &mut fmt::Formatter<'_>, spread: Spread| {
                write!(f, "{:>8.0}{:>8.0}{:>8.0}", spread.min, spread.median, spread.max)
            };
            spread(f, row.ebb)?;
            match row.yardstick {
                Some(yardstick) => {
                    spread(f, yardstick)?;
                    write!(f, "{:>8.2}", row.ebb.median / yardstick.median)?;
                }
                None => write!(f, "{:>8}{:>8}{:>8}{:>8}", "-", "-", "-", "-")?,
            }
            writeln!(f, "{:>8.0}", row.floor.median)?;
        }
        for Figure { name, value, unit } in &self.figures {
            writeln!(f, "{name:<50}{value:>14.3} {unit}")?;
        }
        Ok(())
    }
}
