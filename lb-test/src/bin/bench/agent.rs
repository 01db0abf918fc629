//! The agent as a process: how fast it starts, how large it is.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_test::{Agent, AgentOptions, Room, Topology, agent};

use crate::report::{Report, Unit, median};

/// Starts that are timed.
const STARTS: usize = 9;
/// How long the largest cluster may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// Starts an agent on node1, waits until it is in step, and adds what that took.
pub(crate) fn start(topology: &Topology, size: u32, report: &mut Report) -> Result<Agent> {
    let begun = Instant::now();
    let options = AgentOptions::manifests(topology.manifests())
        .room(Room::Usual)
        .argument("--xdp=native")
        .argument("--conntrack-max=262144");
    let mut agent = Agent::start(topology.node("node1"), options)?;
    agent.wait_synced(PATIENCE)?;
    let time = begun.elapsed().as_secs_f64() * 1e3;
    report.add("agent: start until in step", size, (time, Unit::Milliseconds), None);
    let memory = resident(agent.process().pid())?;
    report.add("agent: resident memory", size, (memory, Unit::Megabytes), 100.0);
    let [maps, flows] = kernel_memory(&agent)?;
    report.add("kernel memory of maps that remember flows", size, (flows, Unit::Megabytes), None);
    let others = (maps - flows, Unit::Megabytes);
    report.add("kernel memory of all other maps", size, others, 120.0);
    Ok(agent)
}

/// Kernel memory of all maps, and of those that remember flows, in megabytes.
fn kernel_memory(agent: &Agent) -> Result<[f64; 2]> {
    let status = agent.status()?;
    let bytes = |what: &str| status["memory"][what].as_u64().with_context(|| format!("no {what}"));
    Ok([megabytes(bytes("maps")?), megabytes(bytes("flows")?)])
}

/// Adds the size of the binary, and the time from its start to the first program at a hook.
pub(crate) fn measure_starts(topology: &Topology, report: &mut Report) -> Result<()> {
    let size = fs::metadata(agent::binary()?)?.len();
    report.add("agent: binary", None, (megabytes(size), Unit::Megabytes), 20.0);
    let node = topology.node("node2");
    let folder = node.directory().join("empty");
    fs::create_dir_all(&folder)?;
    let first = node.bpffs().join("lb/links/lb_connect4");
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let mut agent =
            Agent::start(node, AgentOptions::manifests(folder.clone()).room(Room::Usual))?;
        while !first.exists() {
            ensure!(begun.elapsed() < PATIENCE, "nothing is attached:\n{}", agent.log());
            std::thread::yield_now();
        }
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        agent.wait_synced(PATIENCE)?;
        agent.term()?;
        agent.command(&["cleanup"])?;
    }
    let time = (median(&times), Unit::Milliseconds);
    report.add("agent: start until the first program is attached", None, time, 100.0);
    Ok(())
}

/// Resident memory of a process, in megabytes.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kibibytes: u64 =
        line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?;
    Ok(megabytes(kibibytes * 1024))
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
