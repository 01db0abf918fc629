//! What a packet, a connection, a change and the agent itself cost.
//!
//! Prints one table of ratios against the project's goals; `docs/performance.md` says how each
//! figure is measured. All of it runs in namespaces, with agents of its own.

mod agent;
mod carried;
mod cases;
mod cluster;
mod crowd;
mod frame;
mod harness;
mod lab;
mod live;
mod north_south;
mod packets;
mod report;
mod routed;
mod sockets;
mod sync;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum, value_parser};
use lb_test::{NodeSpec, PodSpec, Topology, require};

use report::Report;

/// Sizes of the clusters that are measured, in Services.
const SIZES: [u32; 2] = [10, 10_000];

#[derive(Parser)]
#[command(bin_name = "cargo xtask bench", about = "Measures against the goals; takes 7 minutes")]
struct Cli {
    /// What to measure [default: all of it]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// Take figures of packets alone whose names hold this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
    /// Sizes of the clusters, in Services
    #[arg(long, value_name = "NUMBER", value_delimiter = ',', default_values_t = SIZES,
          value_parser = value_parser!(u32).range(10..=10_000))]
    services: Vec<u32>,
    /// Write the figures to this file, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measures system calls from within a node's cgroup, at these places
    #[arg(long, value_name = "JSON", hide = true)]
    socket_places: Option<String>,
}

/// A part of the table.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Part {
    /// The agent: start, memory, size
    Agent,
    /// Packets of clients outside that a node translates, next to routed ones
    NorthSouth,
    /// Packets through the programs of XDP and TC
    Packet,
    /// Packets of no Service that a node routes
    Routed,
    /// System calls on sockets
    Socket,
    /// From a change in the cluster to the last map write
    Sync,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(places) = cli.socket_places {
        return sockets::run_child(&places);
    }
    ensure!(require::root(), "needs root, for network namespaces and BPF");
    let mut report = Report::new()?;
    measure(&cli, &mut report)?;
    print!("{report}");
    if let Some(path) = cli.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn measure(cli: &Cli, report: &mut Report) -> Result<()> {
    let wants = |part| cli.parts.is_empty() || cli.parts.contains(&part);
    let topology = topology()?;
    let node = topology.node("node1");
    for size in cli.services.iter().copied() {
        eprintln!("measuring with {size} Services");
        if [Part::Agent, Part::Packet, Part::Socket].into_iter().any(wants) {
            cluster::write(&topology, size)?;
            let mut agent = agent::start(&topology, size, report)?;
            if wants(Part::Packet) {
                packets::measure(&topology, (size, &cli.only), report)?;
            }
            if wants(Part::Socket) {
                sockets::measure(&topology, size, report)?;
            }
            agent.term()?;
            agent.command(&["cleanup"])?;
        }
        if wants(Part::Sync) {
            sync::measure(node, size, report)?;
        }
    }
    if wants(Part::Routed) {
        routed::measure(&topology, report)?;
    }
    if wants(Part::NorthSouth) {
        north_south::measure(&topology, report)?;
    }
    if let (true, [small, large]) = (wants(Part::Sync), &cli.services[..]) {
        sync::compare(node, [*small, *large], report)?;
    }
    if wants(Part::Agent) {
        agent::measure_starts(&topology, report)?;
    }
    Ok(())
}

fn topology() -> Result<Topology> {
    let topology = Topology::builder()
        .node(NodeSpec::new("node1"))
        .node(NodeSpec::new("node2"))
        .pod(PodSpec::routed("web1", "node1"))
        .pod(PodSpec::routed("shell1", "node1"))
        .pod(PodSpec::routed("web2", "node2"))
        .pod(PodSpec::routed("shell2", "node2"))
        .client("client")
        .build()?;
    topology.ready_for_xdp()?;
    Ok(topology)
}
