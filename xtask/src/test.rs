//! Runs every test there is, or those of one name, and sums up.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::build::{self, Profile};
use crate::libtest::Reader;
use crate::tally::Tally;
use crate::{command, kubernetes, lint, setup, tree};

/// The environment variable that names the file where tests write why they skip.
const SKIPS_VARIABLE: &str = "LB_TEST_SKIPS";
const NODE_TESTS: &[&str] = &["--test", "*"];
/// With more failures than this, it is not the machine that was too busy for a test.
const SECOND_TRIES: usize = 3;

/// Which tests to run.
pub(crate) struct Options {
    /// Only those whose name contains this, with their output shown.
    pub(crate) name: Option<String>,
    /// Those slower than 10 s too.
    pub(crate) all: bool,
}

/// Runs the tests and prints the summary; exits with 1 if anything failed, 2 without root.
pub(crate) fn run(options: Options) -> Result<ExitCode> {
    if !command::is_root() {
        eprintln!(
            "error: the tests load BPF programs and make network namespaces, which needs root; \
             run: sudo env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask test"
        );
        return Ok(ExitCode::from(2));
    }
    let mut run = Run { options, tally: Tally::default(), skips: skips_file()?, assets: None };
    if let Err(error) = run.steps() {
        run.tally.failed.push(format!("{error:#}"));
    }
    let skips = run.tally.add_skips(&run.skips).and(Ok(fs::remove_file(&run.skips)?));
    println!("\n{}", run.tally);
    skips?;
    Ok(if run.tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run: what is asked for, what it needs, what came out.
struct Run {
    options: Options,
    tally: Tally,
    skips: PathBuf,
    /// The folder of Kubernetes programs.
    assets: Option<PathBuf>,
}

impl Run {
    fn steps(&mut self) -> Result<()> {
        setup::run()?;
        if self.options.name.is_none() {
            let failures = lint::failures();
            self.tally.failed.extend(failures.iter().map(|name| format!("lint: {name}")));
        }
        compile()?;
        let units = self.cargo_test("unit and property tests", &["--lib", "--bins"], &[])?;
        self.tally.add(units);
        let examples = self.cargo_test("examples in documentation", &["--doc"], &[])?;
        self.tally.add(examples);
        if has_test_programs() {
            self.assets = self.kubernetes();
            let nodes = self.node_tests()?;
            self.tally.add(nodes);
        }
        if self.options.name.is_some() && self.tally == Tally::default() {
            bail!("no test's name contains {}", self.options.name.as_deref().unwrap_or_default());
        }
        Ok(())
    }

    /// Provides the Kubernetes programs; without them, the tests that need them skip.
    ///
    /// Minutes of building are not worth it for a single test: then only what is there is used.
    fn kubernetes(&self) -> Option<PathBuf> {
        let folder = match self.options.name {
            Some(_) => kubernetes::ready(),
            None => kubernetes::provide().map(Some),
        };
        folder.unwrap_or_else(|error| {
            println!("tests against a Kubernetes API server will be skipped: {error:#}");
            None
        })
    }

    /// Runs what needs nodes. A few failures are tried once more, one at a time: a machine that is
    /// busy with something else delays programs by seconds, and each that passes then is named.
    fn node_tests(&self) -> Result<Tally> {
        let mut tally = self.cargo_test("scenarios and tests on nodes", NODE_TESTS, &[])?;
        if !(1..=SECOND_TRIES).contains(&tally.failed.len()) || self.options.name.is_some() {
            return Ok(tally);
        }
        for name in tally.failed.clone() {
            let step = format!("{name}, by itself");
            let second = self.cargo_test(&step, NODE_TESTS, &["--exact", &name])?;
            tally.add_second_try(&name, &second);
        }
        Ok(tally)
    }

    /// Runs `cargo test` on some targets, with more for libtest than all have, shows its output as it comes, and
    /// counts.
    fn cargo_test(&self, step: &str, targets: &[&str], more: &[&str]) -> Result<Tally> {
        println!("== {step}");
        let mut cargo = command::cargo(&["test", "--no-fail-fast"]);
        cargo.args(targets).arg("--").args(self.libtest_args()).args(more);
        cargo.env(SKIPS_VARIABLE, &self.skips);
        cargo.env(build::AGENT_VARIABLE, build::local_path(build::AGENT, Profile::Dev));
        match &self.assets {
            Some(assets) => cargo.env(kubernetes::VARIABLE, assets),
            None => cargo.env_remove(kubernetes::VARIABLE),
        };
        follow(&mut cargo, step).with_context(|| format!("run {step}"))
    }

    fn libtest_args(&self) -> Vec<String> {
        // A lone thread would hide a test's name from the test itself.
        let threads = thread::available_parallelism().map_or(2, |threads| threads.get().max(2));
        let mut args = vec![format!("--test-threads={threads}")];
        if self.options.all {
            args.push("--include-ignored".into());
        }
        if let Some(name) = &self.options.name {
            args.extend(["--nocapture".into(), name.clone()]);
        }
        args
    }
}

/// Compiles all tests and lb-agent at once: built apart, they would differ in dependencies.
fn compile() -> Result<()> {
    command::run(&mut command::cargo(&["build", "--bins", "--tests"]))
}

fn follow(cargo: &mut Command, step: &str) -> Result<Tally> {
    let mut child = cargo.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().context("no output to read")?;
    let mut reader = Reader::default();
    let mut screen = std::io::stdout().lock();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        if reader.line(&String::from_utf8_lossy(&line)) {
            screen.write_all(&line)?;
            screen.write_all(b"\n")?;
        }
    }
    Ok(reader.finish(step, child.wait()?.success()))
}

/// Creates the file of skips, empty, one for each run.
fn skips_file() -> Result<PathBuf> {
    let path = build::target_folder().join(format!("skips-{}.txt", std::process::id()));
    fs::write(&path, "").with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// Tells whether any crate has tests in programs of their own: cargo refuses to run none.
fn has_test_programs() -> bool {
    tree::files_of("rs").is_ok_and(|files| files.iter().any(|file| file.contains("/tests/")))
}
