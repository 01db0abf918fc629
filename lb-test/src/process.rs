//! A guard around one program: its log, its end, and no survivor when the guard goes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wait::{PATIENT, try_eventually};

/// A running program, killed with its children when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, which appends its output to `log`; `host` is for messages.
    ///
    /// # Errors
    /// When it can't start.
    pub(crate) fn spawn(host: &str, mut command: Command, log: PathBuf) -> Result<Self> {
        let program = command.get_program().to_string_lossy().into_owned();
        let name = format!("{program} on {host}");
        let output = append(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn().with_context(|| format!("start {name}"))?;
        Ok(Self { name, child, log })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The file its output goes to.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All it has written so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its exit status, once it has ended.
    ///
    /// # Errors
    /// When the kernel does not know the process.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        try_eventually(timeout, &format!("end of {name}"), || {
            self.ended()?.context("it still runs")
        })
    }

    /// Waits for a line with `pattern` in its log and returns the line.
    ///
    /// # Errors
    /// When it ends first or `timeout` passes; the message has the log's last lines.
    pub fn wait_line(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        let find = |log: &str| log.lines().find(|line| line.contains(pattern)).map(str::to_owned);
        try_eventually(timeout, &format!("line with {pattern:?} from {}", self.name), || {
            // The end is looked at before the log: the last line may be the one.
            let ended = self.ended()?;
            let log = self.log();
            match (find(&log), ended) {
                (Some(line), _) => Ok(Ok(line)),
                (None, Some(status)) => Ok(Err(format!("it ended: {status}\n{}", tail(&log, 20)))),
                (None, None) => bail!("its log ends:\n{}", tail(&log, 20)),
            }
        })?
        .map_err(|ended| anyhow::anyhow!("no line with {pattern:?} from {}: {ended}", self.name))
    }

    /// Asks it to end with SIGTERM and waits half a minute for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(PATIENT)
    }

    /// Ends it with SIGKILL, its children too.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn kill9(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        Ok(self.child.wait()?)
    }

    /// Sends `signal` to it and its children.
    ///
    /// # Errors
    /// When it may not be signalled; that it has ended is none.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let group = Pid::from_raw(i32::try_from(self.child.id())?);
        match killpg(group, signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("{signal} to {}", self.name)),
        }
    }

    /// Lets it run on after the guard, for a topology that is kept.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already, or was never ours to end.
        let _ = self.kill9();
    }
}

/// The last `count` lines of `text`.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let start = lines.len().saturating_sub(count);
    lines.get(start..).unwrap_or_default().join("\n")
}

fn append(log: &Path) -> Result<File> {
    let open = OpenOptions::new().create(true).append(true).open(log);
    open.with_context(|| format!("log {}", log.display()))
}
