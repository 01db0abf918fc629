//! What became of all the tests of a run, and the summary of it.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result};

/// Counts of everything that ran so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Tests that ran to their end and hold.
    pub(crate) passed: usize,
    /// Names of tests and steps that do not.
    pub(crate) failed: Vec<String>,
    /// Tests that did not run, with the reason.
    pub(crate) skipped: BTreeMap<String, String>,
    /// Names of tests that failed among others and passed by themselves: counted as passed.
    pub(crate) unsteady: Vec<String>,
}

impl Tally {
    /// Counts skips that tests wrote down, one `SKIP name: reason` a line.
    ///
    /// Such a test has returned like one that passed, and was counted so.
    pub(crate) fn add_skips(&mut self, file: &Path) -> Result<()> {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("read the skips in {}", file.display()))?;
        self.move_to_skipped(&text);
        Ok(())
    }

    /// Adds what became of other tests.
    pub(crate) fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
        self.unsteady.extend(other.unsteady);
    }

    /// Counts what became of a failed test that ran once more, by itself. If it did not run to its end,
    /// nothing is known of it.
    pub(crate) fn add_second_try(&mut self, name: &str, second: &Tally) {
        if second.passed == 0 || !second.failed.is_empty() {
            return;
        }
        self.failed.retain(|failed| failed != name);
        self.unsteady.push(name.to_owned());
        self.passed += second.passed;
    }

    fn move_to_skipped(&mut self, text: &str) {
        for line in text.lines().filter_map(|line| line.strip_prefix("SKIP ")) {
            let (name, reason) = line.split_once(": ").unwrap_or((line, "no reason given"));
            if self.failed.iter().any(|failed| failed == name) {
                continue;
            }
            if self.skipped.insert(name.to_owned(), reason.to_owned()).is_none() {
                self.passed = self.passed.saturating_sub(1);
            }
        }
    }
}

impl fmt::Display for Tally {
    /// Writes each skip, unsteady test and failure, then the summary as the last line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, reason) in &self.skipped {
            writeln!(f, "skipped: {name}: {reason}")?;
        }
        for name in &self.unsteady {
            writeln!(f, "unsteady: {name}: failed among others, passed by itself")?;
        }
        for name in &self.failed {
            writeln!(f, "failed: {name}")?;
        }
        let (failed, skipped) = (self.failed.len(), self.skipped.len());
        write!(f, "{} passed, {failed} failed, {skipped} skipped", self.passed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let mut tally = Tally { passed: 3, ..Tally::default() };
        tally.move_to_skipped("SKIP kube::watch: no API server: go is missing\n");
        tally.move_to_skipped("SKIP kube::watch: said twice\nSKIP lone\n");
        assert_eq!(
            tally.to_string(),
            "skipped: kube::watch: said twice\nskipped: lone: no reason given\n\
             1 passed, 0 failed, 2 skipped"
        );
    }

    #[test]
    fn a_test_that_failed_after_its_skip_stays_failed() {
        let mut tally = Tally { passed: 1, failed: vec!["a".into()], ..Tally::default() };
        tally.move_to_skipped("SKIP a: half of it\n");
        assert_eq!(tally.to_string(), "failed: a\n1 passed, 1 failed, 0 skipped");
    }

    #[test]
    fn what_passes_by_itself_is_named_and_what_fails_again_is_a_failure() {
        let failed = vec!["a".into(), "b".into()];
        let mut tally = Tally { passed: 1, failed, ..Tally::default() };
        tally.add_second_try("a", &Tally { passed: 1, ..Tally::default() });
        tally.add_second_try("b", &Tally { failed: vec!["b".into()], ..Tally::default() });
        assert_eq!(
            tally.to_string(),
            "unsteady: a: failed among others, passed by itself\nfailed: b\n\
             2 passed, 1 failed, 0 skipped"
        );
    }

    #[test]
    fn a_second_try_that_ran_too_little_changes_nothing() {
        let mut tally =
            Tally { failed: vec!["a test program that ended".into()], ..Tally::default() };
        tally.add_second_try("a test program that ended", &Tally::default());
        assert_eq!(tally.failed, ["a test program that ended"]);
        assert!(tally.unsteady.is_empty());
    }
}
