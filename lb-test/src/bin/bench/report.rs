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

/// What came of a goal.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    /// There is no goal.
    Informs,
    /// The goal is met.
    Meets,
    /// The goal is missed by more than noise.
    Misses,
    /// The goal is missed, but by no more than noise.
    WithinNoise,
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
        let goal = goal.into();
        let (services, outcome) = (services.into(), outcome(value, goal));
        self.rows.push(Row { name: name.to_owned(), services, value, unit, goal, outcome });
    }

    /// Compares each figure of a packet or a change in the larger cluster with the smaller one's.
    pub(crate) fn compare_sizes(&mut self) {
        let [small, large] = crate::SIZES;
        let rows = self.rows.iter();
        let pairs = rows.filter(|row| row.services == Some(large)).filter_map(|big| {
            let is_peer = |row: &&Row| row.name == big.name && row.services == Some(small);
            let peer = self.rows.iter().find(is_peer)?;
            let is_packet = matches!(big.unit, Unit::References);
            is_packet.then(|| {
                (format!("{}: {large} Services over {small}", big.name), big.value / peer.value)
            })
        });
        for (name, ratio) in pairs.collect::<Vec<_>>() {
            self.add(&name, None, (ratio, Unit::Times), NOISE);
        }
    }
}

fn outcome(value: f64, goal: Option<f64>) -> Outcome {
    match goal {
        None => Outcome::Informs,
        Some(goal) if value <= goal => Outcome::Meets,
        Some(goal) if goal > 0.0 && value <= goal * NOISE => Outcome::WithinNoise,
        Some(_) => Outcome::Misses,
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cores, kernel, load, .. } = self;
        writeln!(f, "{cores} cores, Linux {kernel}, load {load} at the start\n")?;
        writeln!(f, "| figure | Services | value | goal | |\n|---|--:|--:|--:|---|")?;
        self.rows.iter().try_for_each(|row| write!(f, "{row}"))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, value, .. } = self;
        let services = self.services.map_or_else(String::new, |services| services.to_string());
        let goal = self.goal.map_or_else(String::new, |goal| format!("≤ {goal}"));
        let outcome = match self.outcome {
            Outcome::Informs => "",
            Outcome::Meets => "met",
            Outcome::Misses => "missed",
            Outcome::WithinNoise => "within noise",
        };
        writeln!(f, "| {name} | {services} | {value:.2} {unit} | {goal} | {outcome} |")
    }
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
        assert_eq!(outcome(0.9, Some(1.0)), Outcome::Meets);
        assert_eq!(outcome(1.1, Some(1.0)), Outcome::WithinNoise);
        assert_eq!(outcome(1.2, Some(1.0)), Outcome::Misses);
        assert_eq!(outcome(1.2, None), Outcome::Informs);
    }

    #[test]
    fn packets_of_two_sizes_are_compared_and_nothing_else() {
        let mut report = Report { cores: 1, kernel: String::new(), load: 0.0, rows: Vec::new() };
        for (size, value) in [(10, 2.0), (10_000, 3.0)] {
            report.add("packet", size, (value, Unit::References), 1.0);
            report.add("memory", size, (value, Unit::Megabytes), 1.0);
        }
        report.compare_sizes();
        let last = report.rows.last().unwrap();
        assert_eq!(report.rows.len(), 5);
        assert!(last.name.starts_with("packet: ") && last.outcome == Outcome::Misses, "{last:?}");
    }
}
