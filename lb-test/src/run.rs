//! A run: the name that all of one topology's namespaces, cgroups, mounts and files carry, so
//! that they can be found and removed by it, in this process or in a later one.
//!
//! The name is `<pid>-<count>`. What it names:
//! - `/run/netns/lb<run>-<host>`: network namespaces,
//! - `<cgroup2 mount>/lb-test/<run>/…`: cgroups,
//! - `/run/lb-test/<run>/…`: manifests, logs, state, and a bpffs a node.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use lb_agent::instance::Instance;
use nix::mount::{MntFlags, umount2};

use crate::cgroup::{self, Cgroup};
use crate::netns::{self, Netns};

const DIRECTORY: &str = "/run/lb-test";
/// The file in a run's folder that saves it from being removed as a leftover.
pub(crate) const KEEP: &str = "keep";

/// Owns everything that carries its name, and removes it when dropped.
#[derive(Debug)]
pub struct Run {
    name: String,
}

impl Run {
    /// Begins a run. The process's first one removes what dead runs left behind.
    ///
    /// # Errors
    /// When the run's folder can't be made.
    pub fn begin() -> Result<Self> {
        static LEFTOVERS: Once = Once::new();
        static COUNT: AtomicU32 = AtomicU32::new(1);
        LEFTOVERS.call_once(remove_leftovers);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{count}", std::process::id());
        fs::create_dir_all(directory(&name)).with_context(|| format!("folder of run {name}"))?;
        Ok(Self { name })
    }

    /// The name, `<pid>-<count>`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder for files.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        directory(&self.name)
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("run {}: {error:#}", self.name);
        }
    }
}

/// The names of the runs that were kept.
#[must_use]
pub fn kept() -> Vec<String> {
    let mut names = entries(Path::new(DIRECTORY));
    names.retain(|name| directory(name).join(KEEP).exists());
    names.sort();
    names
}

/// Lets `command` start as a program of `host` in a run of this or another process.
///
/// # Errors
/// When the run has no such host.
pub fn join(run: &str, host: &str, command: &mut Command) -> Result<()> {
    Netns::named(&netns_of(run, host)).join(command)?;
    let folders = cgroup::folders_below(&cgroup::root()?.join(run));
    let folder = folders.into_iter().find(|folder| folder.ends_with(host));
    Cgroup::at(folder.with_context(|| format!("no cgroup of {host} in run {run}"))?).join(command)
}

/// Removes everything of one run: processes first, then mounts, namespaces, cgroups and files.
///
/// # Errors
/// With the first thing that stays; the rest is removed all the same.
pub fn remove(name: &str) -> Result<()> {
    let cgroup = cgroup::root().and_then(|root| Cgroup::at(root.join(name)).remove());
    unmount_below(&directory(name));
    let prefix = format!("{}-", netns_name(name));
    for netns in netns::names().iter().filter(|netns| netns.starts_with(&prefix)) {
        netns::remove(netns);
    }
    remove_instances(name);
    let files = fs::remove_dir_all(directory(name));
    cgroup?;
    files.or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error).with_context(|| format!("remove {}", directory(name).display())),
    })
}

/// Removes the folders that the agents of a run keep for themselves.
fn remove_instances(run: &str) {
    let instance = Instance::of(&directory(run));
    let (Some(all), Some(name)) = (instance.folder().parent(), instance.folder().file_name())
    else {
        return;
    };
    let prefix = format!("{}-", name.to_string_lossy());
    for entry in entries(all).iter().filter(|entry| entry.starts_with(&prefix)) {
        // Another run's cleaning may have been faster.
        let _ = fs::remove_dir_all(all.join(entry));
    }
}

/// The name of the namespace of `host` in run `run`.
#[must_use]
pub fn netns_of(run: &str, host: &str) -> String {
    format!("{}-{host}", netns_name(run))
}

/// The folder of run `run`.
#[must_use]
pub fn directory(run: &str) -> PathBuf {
    Path::new(DIRECTORY).join(run)
}

/// Removes the runs whose process is dead, or had this process's id, unless they were kept.
fn remove_leftovers() {
    let mut runs = entries(Path::new(DIRECTORY));
    runs.extend(cgroup::root().map(|root| entries(&root)).unwrap_or_default());
    runs.extend(netns::names().iter().filter_map(|netns| run_of_netns(netns)));
    runs.sort();
    runs.dedup();
    for run in runs.iter().filter(|run| is_leftover(run)) {
        if let Err(error) = remove(run) {
            eprintln!("leftovers of run {run}: {error:#}");
        }
    }
}

fn is_leftover(run: &str) -> bool {
    let Some(pid) = run.split('-').next().and_then(|pid| pid.parse::<u32>().ok()) else {
        return false;
    };
    let alive = Path::new("/proc").join(pid.to_string()).exists() && pid != std::process::id();
    !alive && !directory(run).join(KEEP).exists()
}

/// The run in a namespace's name, `lb<pid>-<count>-<host>`.
fn run_of_netns(netns: &str) -> Option<String> {
    let mut parts = netns.strip_prefix("lb")?.splitn(3, '-');
    let (pid, count, _host) = (parts.next()?, parts.next()?, parts.next()?);
    pid.parse::<u32>().ok()?;
    count.parse::<u32>().ok()?;
    Some(format!("{pid}-{count}"))
}

fn netns_name(run: &str) -> String {
    format!("lb{run}")
}

fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let paths = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for path in paths.filter(|path| Path::new(path).starts_with(directory)) {
        // Another run's cleaning may have been faster.
        let _ = umount2(path, MntFlags::MNT_DETACH);
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.path().is_dir());
    folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_namespaces_name_a_run() {
        assert_eq!(run_of_netns("lb12-3-node1"), Some("12-3".into()));
        assert_eq!(run_of_netns("lb12-3-web-1"), Some("12-3".into()));
        for other in ["lb12-3", "lbx-3-node1", "12-3-node1", "lb-test", "cni-1"] {
            assert_eq!(run_of_netns(other), None, "{other}");
        }
    }

    #[test]
    fn a_living_process_of_another_id_has_no_leftovers() {
        assert!(!is_leftover("1-1"));
        assert!(!is_leftover("not-ours"));
        assert!(is_leftover(&format!("{}-1", std::process::id())));
        assert!(is_leftover("4194305-1"), "above the largest possible pid");
    }
}
