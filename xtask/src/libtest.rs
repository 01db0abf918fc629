//! Reads what test programs print, to count it and to leave out lines that say nothing.

use crate::tally::Tally;

/// Follows the output of one `cargo test`, which runs several test programs.
#[derive(Default)]
pub(crate) struct Reader {
    tally: Tally,
    /// A program has begun and not yet given its result.
    running: bool,
    /// The names of failed tests follow.
    in_failures: bool,
}

impl Reader {
    /// Takes in one line; tells whether it is worth showing.
    pub(crate) fn line(&mut self, line: &str) -> bool {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.running = false;
            self.in_failures = false;
            let passed = count(result, "passed");
            self.tally.passed += passed;
            return passed + count(result, "failed") + count(result, "ignored") > 0;
        }
        if is_start(line) {
            self.end_program();
            self.running = true;
            return line != "running 0 tests";
        }
        self.names(line);
        !line.is_empty()
    }

    /// Ends reading: returns the counts, with a failure that no test explains named as `step`.
    pub(crate) fn finish(mut self, step: &str, succeeded: bool) -> Tally {
        self.end_program();
        if !succeeded && self.tally.failed.is_empty() {
            self.tally.failed.push(step.to_owned());
        }
        self.tally
    }

    /// A program that began and gave no result was killed, or ended itself.
    fn end_program(&mut self) {
        if self.running {
            self.tally.failed.push("a test program that ended without a result".to_owned());
        }
        self.running = false;
    }

    /// Notes the names of failed and of ignored tests.
    fn names(&mut self, line: &str) {
        if line == "failures:" {
            self.in_failures = true;
        } else if line.starts_with("---- ") {
            self.in_failures = false;
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.in_failures) {
            self.tally.failed.push(name.to_owned());
        } else if let Some((name, reason)) = ignored(line) {
            self.tally.skipped.insert(name.to_owned(), reason.to_owned());
        }
    }
}

/// `running 2 tests` begins the output of a test program.
fn is_start(line: &str) -> bool {
    let words: Vec<_> = line.split(' ').collect();
    matches!(words[..], ["running", number, "test" | "tests"] if number.parse::<usize>().is_ok())
}

/// Reads `test NAME ... ignored, REASON`.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let reason = outcome.strip_prefix("ignored")?;
    Some((name, reason.strip_prefix(", ").unwrap_or("ignored; --all runs it")))
}

/// Reads the number before `what` in `ok. 3 passed; 0 failed; …`.
fn count(result: &str, what: &str) -> usize {
    let words: Vec<_> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    let number = words.windows(2).find(|pair| pair[1] == what).map(|pair| pair[0]);
    number.and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(output: &str, succeeded: bool) -> Tally {
        let mut reader = Reader::default();
        for line in output.lines() {
            reader.line(line);
        }
        reader.finish("unit tests", succeeded)
    }

    const FAILING: &str = "\nrunning 3 tests\ntest a ... ok\ntest b::c ... FAILED\n\
        test d ... ignored, slow: 40 s of load\n\nfailures:\n\n---- b::c stdout ----\n    left: 1\n\
        \n\nfailures:\n    b::c\n\ntest result: FAILED. 1 passed; 1 failed; 1 ignored; \
        0 measured; 0 filtered out; finished in 0.00s\n";
    const PASSING: &str = "running 2 tests\ntest x ... ok\ntest y ... ok\n\ntest result: ok. \
        2 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.10s\n";

    #[test]
    fn results_of_several_programs_add_up() {
        let tally = read(&format!("{FAILING}{PASSING}"), false);
        assert_eq!(
            tally.to_string(),
            "skipped: d: slow: 40 s of load\nfailed: b::c\n3 passed, 1 failed, 1 skipped"
        );
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let dead = "running 2 tests\ntest x ... ok\n";
        for output in [dead.to_owned(), format!("{dead}{PASSING}")] {
            assert_eq!(read(&output, false).failed, ["a test program that ended without a result"]);
        }
    }

    #[test]
    fn a_step_that_does_not_compile_is_a_failure() {
        assert_eq!(read("", false).failed, ["unit tests"]);
        assert_eq!(read("", true), Tally::default());
    }

    #[test]
    fn programs_without_tests_are_not_shown() {
        let mut reader = Reader::default();
        assert!(!reader.line("running 0 tests"));
        assert!(!reader.line("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured"));
        assert!(reader.line("running 1 test"));
    }
}
