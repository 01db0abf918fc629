//! Cgroups of the v2 hierarchy below `lb-test/`: one a node, with its pods' below it.
//!
//! Socket programs are attached to a node's cgroup, so they see the node's processes and its
//! pods', and no one else's.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{PATIENT, try_eventually};

/// One cgroup. A handle only: its run removes it.
#[derive(Clone, Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// The handle of the cgroup at `path`.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Makes the cgroup, and those above it.
    ///
    /// # Errors
    /// Without the right to make cgroups.
    pub fn create(&self) -> Result<()> {
        fs::create_dir_all(&self.path).with_context(|| format!("cgroup {}", self.path.display()))
    }

    /// The folder that stands for the cgroup.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets `command` start as a member.
    ///
    /// # Errors
    /// When the cgroup does not exist.
    pub fn join(&self, command: &mut Command) -> Result<()> {
        let path = self.path.join("cgroup.procs");
        let file = OpenOptions::new()
            .write(true)
            .open(&path)
            .with_context(|| format!("cgroup file {}", path.display()))?;
        let enter = move || (&file as &File).write_all(b"0");
        // SAFETY: between fork and exec only async-signal-safe calls may run; this is one write
        // to a descriptor that was opened before the fork and lives in the closure.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    /// The ids of the processes in it and below it.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let folders = folders_below(&self.path);
        let files = folders.iter().map(|folder| folder.join("cgroup.procs"));
        let texts = files.filter_map(|file| fs::read_to_string(file).ok());
        texts
            .flat_map(|text| text.lines().filter_map(|l| l.parse().ok()).collect::<Vec<_>>())
            .collect()
    }

    /// Ends every process in it and below it, then removes it.
    ///
    /// # Errors
    /// When a process outlives SIGKILL for half a minute.
    pub(crate) fn remove(&self) -> Result<()> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill();
        try_eventually(PATIENT, "an empty cgroup", || {
            let pids = self.pids();
            ensure!(pids.is_empty(), "{} still has processes {pids:?}", self.path.display());
            Ok(())
        })?;
        for folder in folders_below(&self.path).iter().rev() {
            // Another run that cleans the same leftover may have been faster.
            let _ = fs::remove_dir(folder);
        }
        Ok(())
    }

    fn kill(&self) {
        if fs::write(self.path.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for pid in self.pids() {
            // A process that has ended meanwhile is what is asked for.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The folder below which all cgroups of this library are.
///
/// # Errors
/// Without a cgroup v2 mount.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = lines.find(|fields| fields.get(2) == Some(&"cgroup2"));
    let path =
        mount.and_then(|fields| fields.get(1).copied()).context("no cgroup2 in /proc/mounts")?;
    Ok(Path::new(path).join("lb-test"))
}

/// The folder and all folders below it, parents before children.
pub(crate) fn folders_below(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    let mut next = 0;
    while let Some(folder) = found.get(next) {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let below: Vec<_> =
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        found.extend(below);
        next += 1;
    }
    found
}
