//! The one door: set-up, build, lint, test, demo and bench, as `cargo xtask TASK`.
//!
//! One file a task. Needs nothing but a Rust toolchain to start: it knows nothing of the other
//! crates, since set-up has to work before the BPF programs can be built.
#![forbid(unsafe_code)]

mod build;
mod command;
mod demo;
mod imports;
mod kubernetes;
mod libtest;
mod lint;
mod mutants;
mod requirement;
mod setup;
mod tally;
mod test;
mod toolchain;
mod tree;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing: BPF toolchain, BPF linker, test programs
    Setup,
    /// Build lb-agent: one program, the BPF object inside
    Build {
        /// Optimized and, where this machine can, static
        #[arg(long)]
        release: bool,
    },
    /// Check format, clippy, the direction of imports, file sizes and links in documents
    Lint,
    /// Lint and run all tests; with NAME only the tests whose name contains it, with their output
    Test {
        /// Part of a test's name
        name: Option<String>,
        /// Run the tests slower than 10 s too
        #[arg(long)]
        all: bool,
    },
    /// Show a Service at work on two nodes made of network namespaces
    #[command(disable_help_flag = true)]
    Demo {
        /// Passed on: see `cargo xtask demo --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure: nanoseconds per packet, connects, sync times, memory
    #[command(disable_help_flag = true)]
    Bench {
        /// Passed on: see `cargo xtask bench --help`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Change the pure code line by line, and show the changes that no test notices (hours)
    #[command(disable_help_flag = true)]
    Mutants {
        /// Passed on: see `cargo mutants --help`; `--file PATH` limits it to a file
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Build the Kubernetes API server, controller manager and etcd that tests run against
    Kubernetes,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().task {
        Some(task) => run(task),
        None => list_tasks(),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Setup => setup::run()?,
        Task::Build { release } => build::run(release)?,
        Task::Lint => return lint::run(),
        Task::Test { name, all } => return test::run(test::Options { name, all }),
        Task::Demo { args } => return demo::run("demo", build::Profile::Dev, &args),
        Task::Bench { args } => return demo::run("bench", build::Profile::Release, &args),
        Task::Mutants { args } => mutants::run(&args)?,
        Task::Kubernetes => kubernetes::run()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list_tasks() -> Result<ExitCode> {
    Cli::command().print_help()?;
    Ok(ExitCode::SUCCESS)
}
