//! Named network namespaces: made, entered by threads, joined by commands, removed.
//!
//! They are bind mounts below /run/netns as `ip netns` makes them, so a human can look at them
//! with `ip netns exec NAME`. Programs enter with `setns` alone, because `ip netns exec` gives a
//! process a fresh /sys, which hides pinned BPF objects.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Once;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const DIRECTORY: &str = "/run/netns";

/// A named network namespace. A handle only: its run removes it.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace and sets `sysctls` in it, as pairs of a path below /proc/sys and a value.
    ///
    /// # Errors
    /// Without the right to make namespaces, or when the name is taken.
    pub fn create(name: &str, sysctls: &[(&str, &str)]) -> Result<Self> {
        share_directory_once();
        let netns = Self::named(name);
        let path = netns.path();
        File::create_new(&path).with_context(|| format!("namespace file {}", path.display()))?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).context("unshare a network namespace")?;
                    bind("/proc/thread-self/ns/net", &path)?;
                    set_sysctls(sysctls)
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })?;
        Ok(netns)
    }

    /// The handle of a namespace that exists.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// The name that `ip netns` knows it by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for the namespace.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(DIRECTORY).join(&self.name)
    }

    /// Runs `work` on a fresh thread inside; a panic in it goes on in the caller.
    ///
    /// # Errors
    /// When the namespace can't be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = self.open()?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(file, CloneFlags::CLONE_NEWNET)
                        .with_context(|| format!("enter namespace {}", self.name))?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Lets `command` start inside.
    ///
    /// # Errors
    /// When the namespace does not exist.
    pub fn join(&self, command: &mut Command) -> Result<()> {
        let file = self.open()?;
        let enter = move || Ok(setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?);
        // SAFETY: between fork and exec only async-signal-safe calls may run; this is one setns
        // on a descriptor that was opened before the fork and lives in the closure.
        unsafe { command.pre_exec(enter) };
        Ok(())
    }

    /// A command that starts inside, in the caller's cgroup.
    ///
    /// # Errors
    /// When the namespace does not exist.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        self.join(&mut command)?;
        Ok(command)
    }

    /// Runs the lines as one `ip -batch`.
    ///
    /// # Errors
    /// When a line fails; the message has what `ip` said, line number included.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        let mut child = self
            .command("ip")?
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start ip (package iproute2)")?;
        let mut input = child.stdin.take().context("stdin of ip")?;
        // When ip stops early its message says why, which a broken pipe would hide.
        let written = input.write_all(format!("{}\n", lines.join("\n")).as_bytes());
        drop(input);
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("ip -batch in {}: {}\n{}", self.name, said.trim(), numbered(lines));
        }
        Ok(written?)
    }

    fn open(&self) -> Result<File> {
        File::open(self.path()).with_context(|| format!("namespace {}", self.name))
    }
}

/// The names of all namespaces of this machine.
pub(crate) fn names() -> Vec<String> {
    let entries = fs::read_dir(DIRECTORY).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Removes the name; the kernel frees the namespace when its last process has gone.
pub(crate) fn remove(name: &str) {
    let path = Path::new(DIRECTORY).join(name);
    // An error means that another run's cleaning was faster, or that creation stopped halfway.
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(&path);
}

/// Writes sysctls of the calling thread's network namespace.
fn set_sysctls(sysctls: &[(&str, &str)]) -> Result<()> {
    for (name, value) in sysctls {
        let path = Path::new("/proc/sys").join(name);
        fs::write(&path, value).with_context(|| format!("sysctl {name} = {value}"))?;
    }
    Ok(())
}

/// Makes /run/netns a shared mount of its own, as `ip netns add` does: a later one by `ip` would
/// cover the names made here, and they could never be unmounted again.
fn share_directory_once() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // A failure shows in the first namespace's own error.
        let _ = fs::create_dir_all(DIRECTORY);
        let Ok(directory) = File::open(DIRECTORY) else { return };
        let Ok(lock) = Flock::lock(directory, FlockArg::LockExclusive) else { return };
        if set_shared().is_err() {
            let _ = bind(DIRECTORY, Path::new(DIRECTORY));
            let _ = set_shared();
        }
        drop(lock);
    });
}

fn set_shared() -> nix::Result<()> {
    let flags = MsFlags::MS_SHARED | MsFlags::MS_REC;
    mount(None::<&str>, DIRECTORY, None::<&str>, flags, None::<&str>)
}

fn bind(source: &str, target: &Path) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("bind {source} to {}", target.display()))
}

fn numbered(lines: &[String]) -> String {
    let numbered = lines.iter().zip(1..).map(|(line, number)| format!("{number:4}  {line}"));
    numbered.collect::<Vec<_>>().join("\n")
}
