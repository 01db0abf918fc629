//! Demos that were left up: how they are kept, entered and removed.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use lb_test::cgroup::{self, Cgroup};
use lb_test::{agent, run, try_eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster::Cluster;
use crate::narrator::Narrator;

/// The file in a run's folder that tells a demo from the other runs that are kept.
const MARK: &str = "demo";

#[derive(Args)]
pub(crate) struct Shell {
    /// Where: client, shell, node1, node2, web-1, web-2, web-3 or fabric
    place: String,
    /// Which demo, if several are up
    #[arg(long)]
    run: Option<String>,
    /// What to run there instead of a shell
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Down {
    /// Only these; without a name, all demos that are up
    runs: Vec<String>,
}

/// Leaves the cluster up and says how to look around.
pub(crate) fn keep(narrator: &mut Narrator, cluster: Cluster) -> Result<()> {
    narrator.step("It stays up: look around")?;
    let run = cluster.topology().run_name().to_owned();
    fs::write(run::directory(&run).join(MARK), "")?;
    let manifests = cluster.topology().manifests();
    cluster.keep()?;
    let which = if demos().len() > 1 { format!(" --run {run}") } else { String::new() };
    let lines = [
        (
            format!("cargo xtask demo shell{which} client"),
            "a shell outside; or node1, shell, web-1 …",
        ),
        (format!("cargo xtask demo shell{which} node1 lb-agent status"), "a command on a node"),
        (format!("cargo xtask demo shell{which} shell curl 10.96.100.100"), "a command in a pod"),
        (manifests.display().to_string(), "change these files: the agents follow"),
        (format!("cargo xtask demo down {run}"), "remove it"),
    ];
    lines.iter().try_for_each(|(what, why)| narrator.say(&format!("{what:<54} {why}")))
}

/// Becomes a shell, or a command, in a place of a kept demo.
///
/// On a node, `lb-agent` is found and means that node's agent.
pub(crate) fn shell(shell: &Shell) -> Result<()> {
    let run = chosen(shell.run.as_deref())?;
    let own_shell = || vec![env::var("SHELL").unwrap_or_else(|_| "/bin/sh".to_owned())];
    let words = if shell.command.is_empty() { own_shell() } else { shell.command.clone() };
    let (program, arguments) = words.split_first().context("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", path_with_agent()?);
    command.env("LB_BPFFS", pins(&run, &shell.place));
    run::join(&run, &shell.place, &mut command)?;
    Err(command.exec()).with_context(|| format!("run {program} in {}", shell.place))
}

/// Removes kept demos.
pub(crate) fn down(down: &Down) -> Result<()> {
    let up = demos();
    for run in &down.runs {
        ensure!(up.contains(run), "no demo {run} is up; up: {}", names(&up));
    }
    let chosen = if down.runs.is_empty() { &up } else { &down.runs };
    for run in chosen {
        remove(run)?;
        println!("demo {run} is down");
    }
    if chosen.is_empty() {
        println!("no demo is up");
    }
    Ok(())
}

/// Removes a run, and what its agents keep outside of it.
fn remove(name: &str) -> Result<()> {
    let binary = agent::binary()?;
    for node in ["node1", "node2"] {
        stop_agent(name, node)?;
        let mut cleanup = Command::new(&binary);
        cleanup.arg("cleanup").arg("--bpffs").arg(pins(name, node));
        run::join(name, node, &mut cleanup)?;
        cleanup.output().with_context(|| format!("clean up {node}"))?;
    }
    run::remove(name)
}

/// Ends the agent that runs on a node of a run, and waits for its end.
fn stop_agent(run: &str, node: &str) -> Result<()> {
    let cgroup = Cgroup::at(cgroup::root()?.join(run).join(node));
    let is_agent = |pid: &i32| {
        fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "lb-agent\n")
    };
    let agents = || cgroup.pids().into_iter().filter(is_agent).collect::<Vec<_>>();
    for pid in agents() {
        // One that has ended meanwhile is what is asked for.
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    try_eventually(Duration::from_secs(10), "end of the agent", || {
        ensure!(agents().is_empty(), "{node} has agents {:?}", agents());
        Ok(())
    })
}

fn pins(run: &str, node: &str) -> PathBuf {
    run::directory(run).join(node).join("bpf/lb")
}

/// The demo of a name, or the only one.
fn chosen(name: Option<&str>) -> Result<String> {
    let up = demos();
    match (name, up.as_slice()) {
        (Some(name), _) if up.iter().any(|run| run == name) => Ok(name.to_owned()),
        (Some(name), _) => bail!("no demo {name} is up; up: {}", names(&up)),
        (None, [run]) => Ok(run.clone()),
        (None, []) => bail!("no demo is up; start one: cargo xtask demo --keep"),
        (None, _) => bail!("several demos are up; choose with --run: {}", names(&up)),
    }
}

/// The names of the demos that are up.
fn demos() -> Vec<String> {
    let mut runs = run::kept();
    runs.retain(|name| run::directory(name).join(MARK).exists());
    runs
}

fn names(runs: &[String]) -> String {
    if runs.is_empty() { "none".to_owned() } else { runs.join(", ") }
}

fn path_with_agent() -> Result<std::ffi::OsString> {
    let binary = agent::binary()?;
    let folder = binary.parent().unwrap_or(Path::new("."));
    let rest = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_owned()).chain(env::split_paths(&rest));
    Ok(env::join_paths(folders)?)
}
