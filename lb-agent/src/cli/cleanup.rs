//! `lb-agent cleanup`: leaves the node as if there had been no agent.

use std::{path::Path, process::ExitCode};

use anyhow::Context;

use crate::{dataplane, instance::Instance, sysctl::NodeSettings};

pub(super) fn cleanup(bpffs: &Path) -> anyhow::Result<ExitCode> {
    let instance = Instance::of(bpffs);
    let had_folder = instance.folder().exists();
    // The lock keeps an agent from starting meanwhile; it makes the folder that it is in.
    let lock = instance.lock().context("stop it before the cleanup")?;
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
