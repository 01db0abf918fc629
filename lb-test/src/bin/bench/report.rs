//! The table: each figure beside its goal, and what came of it.

use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;

/// A difference below this factor is no difference.
const NOISE: f64 = 1.15;

/// What a figure is counted in.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Decimal megabytes.
    Megabytes,
    /// 10^-6 s.
    Microseconds,
    /// 10^-3 s.
    Milliseconds,
    /// 10^-9 s.
    Nanoseconds,
    /// Times the time of the reference NAT.
    References,
    /// Times the other thing named.
    Times,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Megabytes => "MB",
            Self::Microseconds => "µs",
            Self::Milliseconds => "ms",
            Self::Nanoseconds => "ns",
            Self::References => "R",
            Self::Times => "×",
        })
    }
}

/// What came of a goal, from best to worst.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// There is no goal.
    Informs,
    /// The goal is met.
    Meets,
    /// The goal is missed, but by no more than noise.
    WithinNoise,
    /// The goal is missed by more than noise.
    Misses,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    /// What is measured.
    name: String,
    /// In which cluster, in Services; none where that plays no part.
    services: Option<u32>,
    value: f64,
    unit: Unit,
    /// The most that it should be.
    goal: Option<f64>,
    outcome: Outcome,
}

/// All figures of a run, and where they were taken.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    cores: usize,
    kernel: String,
    /// Processes that wanted to run when it began: figures of a busy machine spread more.
    load: f64,
    rows: Vec<Row>,
}

impl Report {
    /// Nothing measured yet, on this machine.
    pub(crate) fn new() -> Result<Self> {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
        let load = std::fs::read_to_string("/proc/loadavg")?;
        let load = load.split(' ').next().context("an empty /proc/loadavg")?.parse()?;
        let cores = std::thread::available_parallelism()?.get();
        Ok(Self { cores, kernel, load, rows: Vec::new() })
    }

    /// Adds a figure.
    pub(crate) fn add(
        &mut self,
        name: &str,
        services: impl Into<Option<u32>>,
        (value, unit): (f64, Unit),
        goal: impl Into<Option<f64>>,
    ) {
        self.add_with_noise(name, services.into(), (value, unit), (goal.into(), NOISE));
    }

    /// Adds a figure that was taken in turn with what it is compared with, so often that it holds no noise.
    pub(crate) fn add_sharp(&mut self, name: &str, figure: (f64, Unit), goal: f64) {
        self.add_with_noise(name, None, figure, (Some(goal), 1.0));
    }

    fn add_with_noise(
        &mut self,
        name: &str,
        services: Option<u32>,
        (value, unit): (f64, Unit),
        (goal, noise): (Option<f64>, f64),
    ) {
        let outcome = outcome(value, goal, noise);
        self.rows.push(Row { name: name.to_owned(), services, value, unit, goal, outcome });
    }

    /// The figures of one name: one, or one for each size of cluster.
    fn named(&self) -> impl Iterator<Item = Vec<&Row>> {
        let is_first = |index: &usize| {
            !self.rows[..*index].iter().any(|row| row.name == self.rows[*index].name)
        };
        (0..self.rows.len())
            .filter(is_first)
            .map(|index| self.rows.iter().filter(|row| row.name == self.rows[index].name).collect())
    }
}

fn outcome(value: f64, goal: Option<f64>, noise: f64) -> Outcome {
    match goal {
        None => Outcome::Informs,
        Some(goal) if value <= goal => Outcome::Meets,
        Some(goal) if goal > 0.0 && value <= goal * noise => Outcome::WithinNoise,
        Some(_) => Outcome::Misses,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, kernel, load, .. } = self;
        writeln!(f, "{cores} cores, Linux {kernel}, load {load} at the start\n")?;
        let [small, large] = crate::SIZES;
        writeln!(f, "| figure | goal | {small} Services | {large} | larger / smaller | |")?;
        writeln!(f, "|---|--:|--:|--:|--:|---|")?;
        self.named().try_for_each(|rows| write_line(f, &rows))
    }
}

/// Writes the figures of one name; both sizes of a packet's should be equal.
fn write_line(f: &mut fmt::Formatter<'_>, rows: &[&Row]) -> fmt::Result {
    let shown = |row: &&Row| format!("{:.2} {}", row.value, row.unit);
    let growth = match rows {
        [small, large] => Some(large.value / small.value),
        _ => None,
    };
    let goal = rows[0].goal.map_or_else(String::new, |goal| format!("≤ {goal}"));
    let growth = growth.map_or_else(String::new, |growth| format!("{growth:.2}"));
    let [first, last] = [rows.first(), rows.get(1)].map(|row| row.map_or(String::new(), shown));
    let outcome = match rows.iter().map(|row| row.outcome).max() {
        Some(Outcome::Meets) => "met",
        Some(Outcome::WithinNoise) => "within noise",
        Some(Outcome::Misses) => "missed",
        _ => "",
    };
    writeln!(f, "| {} | {goal} | {first} | {last} | {growth} | {outcome} |", rows[0].name)
}

/// The value that this part of all values does not exceed.
///
/// # Panics
///
/// Without a value.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small index")]
    #[allow(clippy::cast_precision_loss, reason = "few values")]
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The value in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    percentile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5).to_bits(), 50.0_f64.to_bits());
        assert_eq!(percentile(&values, 0.99).to_bits(), 99.0_f64.to_bits());
        assert_eq!(percentile(&values, 1.0).to_bits(), 100.0_f64.to_bits());
        assert_eq!(median(&[3.0]).to_bits(), 3.0_f64.to_bits());
    }

    #[test]
    fn a_goal_is_missed_beyond_noise_only() {
        assert_eq!(outcome(0.9, Some(1.0), NOISE), Outcome::Meets);
        assert_eq!(outcome(1.1, Some(1.0), NOISE), Outcome::WithinNoise);
        assert_eq!(outcome(1.2, Some(1.0), NOISE), Outcome::Misses);
        assert_eq!(outcome(1.2, None, NOISE), Outcome::Informs);
        assert_eq!(outcome(1.1, Some(1.0), 1.0), Outcome::Misses);
    }

    #[test]
    fn a_line_has_both_sizes_and_the_worse_outcome() {
        let mut report = Report { cores: 1, kernel: String::new(), load: 0.0, rows: Vec::new() };
        for (size, value) in [(10, 2.0), (10_000, 3.0)] {
            report.add("packet", size, (value, Unit::References), 2.0);
            report.add("memory", size, (value, Unit::Megabytes), None);
        }
        let text = report.to_string();
        assert!(text.contains("| packet | ≤ 2 | 2.00 R | 3.00 R | 1.50 | missed |\n"), "{text}");
        assert!(text.contains("| memory |  | 2.00 MB | 3.00 MB | 1.50 |  |\n"), "{text}");
        assert_eq!(text.matches("packet").count(), 1, "{text}");
    }
}
