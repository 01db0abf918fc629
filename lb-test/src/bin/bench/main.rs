//! First figures: what a packet, a connection, a change and the agent itself cost.
//!
//! Prints one table of ratios against the project's goals; `docs/performance.md` says how each
//! figure is measured. All of it runs in namespaces, with agents of its own.

mod agent;
mod cluster;
mod frame;
mod harness;
mod packets;
mod report;
mod sockets;
mod sync;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use lb_test::{NodeSpec, PodSpec, Topology, require};

use report::Report;

/// Sizes of the clusters that are measured, in Services.
const SIZES: [u32; 2] = [10, 10_000];

#[derive(Parser)]
#[command(bin_name = "cargo xtask bench", about = "Measures against the goals; takes 2 minutes")]
struct Cli {
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Subcommand)]
enum Part {
    /// Measures system calls from within a node's cgroup
    #[command(hide = true)]
    Sockets {
        /// Where, as JSON
        places: String,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Part::Sockets { places }) = cli.part {
        return sockets::run_child(&places);
    }
    ensure!(require::root(), "needs root, for network namespaces and BPF");
    let mut report = Report::new()?;
    measure(&mut report)?;
    print!("{report}");
    if let Some(path) = cli.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn measure(report: &mut Report) -> Result<()> {
    let topology = Topology::builder()
        .node(NodeSpec::new("node1"))
        .node(NodeSpec::new("node2"))
        .pod(PodSpec::routed("web1", "node1"))
        .pod(PodSpec::routed("shell1", "node1"))
        .pod(PodSpec::routed("web2", "node2"))
        .pod(PodSpec::routed("shell2", "node2"))
        .client("client")
        .build()?;
    for size in SIZES {
        eprintln!("measuring with {size} Services");
        cluster::write(&topology, size)?;
        let mut agent = agent::start(&topology, size, report)?;
        packets::measure(&topology, size, report)?;
        sockets::measure(&topology, size, report)?;
        agent.term()?;
        agent.command(&["cleanup"])?;
        sync::measure(topology.node("node1"), size, report)?;
    }
    agent::measure_starts(&topology, report)
}
