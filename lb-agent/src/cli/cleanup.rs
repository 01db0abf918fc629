//! `lb-agent cleanup`: leaves the node as if there had been no agent.

use std::{
    path::Path,
    process::ExitCode,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Args;

use crate::{
    config::Seconds,
    dataplane::{self, Drain},
    instance::Instance,
    sysctl::NodeSettings,
};

/// Between looks at what still goes on.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
pub(super) struct CleanupArgs {
    /// Before that, begins no connection, and waits so long for the known ones to end: 30s, 10m
    #[arg(long, value_name = "TIME", default_value = "0", hide_default_value = true)]
    drain: Seconds,
}

pub(super) fn cleanup(arguments: &CleanupArgs, bpffs: &Path) -> anyhow::Result<ExitCode> {
    let instance = Instance::of(bpffs);
    let had_folder = instance.folder().exists();
    // The lock keeps an agent from starting meanwhile; it makes the folder that it is in.
    let lock = instance.lock().context("stop it before the cleanup")?;
    if arguments.drain != Seconds(0) {
        drain(bpffs, Duration::from_secs(arguments.drain.0.into()))?;
    }
    let pins = dataplane::cleanup(bpffs)?;
    let mut removed: Vec<_> = pins.iter().map(|path| format!("pin {}", path.display())).collect();
    let settings = NodeSettings::new(instance.node_settings()).restore();
    removed.extend(settings.context("take settings of the node back")?);
    let folder = instance.folder().display().to_string();
    instance.remove(lock).with_context(|| format!("remove {folder}"))?;
    if had_folder {
        removed.push(format!("folder {folder}"));
    }
    if removed.is_empty() {
        println!("nothing to remove");
    }
    for thing in removed {
        println!("removed {thing}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits until no connection goes on by the packet path, at most for `limit`; says how many do.
fn drain(bpffs: &Path, limit: Duration) -> anyhow::Result<()> {
    dataplane::check_version(bpffs)?;
    let Some(drain) = Drain::begin(bpffs)? else { return Ok(()) };
    let end = Instant::now() + limit;
    let mut told = None;
    loop {
        let living = drain.living()?;
        if living == 0 {
            println!("no connection is left");
            return Ok(());
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            println!("{living} connections are cut");
            return Ok(());
        }
        if told != Some(living) {
            println!("{living} connections go on; waiting {} s more at most", left.as_secs());
            told = Some(living);
        }
        sleep(left.min(LOOK));
    }
}
