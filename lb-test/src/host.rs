//! A host: one place of the topology where programs run, with a network namespace, a cgroup, a
//! folder and addresses of its own. Nodes, pods, clients and the fabric router are hosts.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::address::{DualStack, Family};
use crate::cgroup::{self, Cgroup};
use crate::netns::Netns;
use crate::process::Process;
use crate::run;

/// A place where programs run. A handle only: its topology owns what it names.
#[derive(Clone, Debug)]
pub struct Host {
    name: String,
    netns: Netns,
    cgroup: Cgroup,
    directory: PathBuf,
    addresses: DualStack,
}

impl Host {
    /// Makes the cgroup and the folder of a host; its namespace is made by the caller.
    pub(crate) fn create(
        run: &str,
        name: &str,
        cgroup_path: &str,
        addresses: DualStack,
    ) -> Result<Self> {
        let host = Self {
            name: name.to_owned(),
            netns: Netns::named(&run::netns_of(run, name)),
            cgroup: Cgroup::at(cgroup::root()?.join(run).join(cgroup_path)),
            directory: run::directory(run).join(name),
            addresses,
        };
        host.cgroup.create()?;
        fs::create_dir_all(&host.directory).with_context(|| format!("folder of {name}"))?;
        Ok(host)
    }

    /// The name in the topology.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The network namespace.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup that its programs are in.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The folder for logs and other files.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its addresses in both families.
    #[must_use]
    pub fn addresses(&self) -> DualStack {
        self.addresses
    }

    /// Its address in one family.
    #[must_use]
    pub fn ip(&self, family: Family) -> IpAddr {
        self.addresses.family(family)
    }

    /// Its address in one family, with a port.
    #[must_use]
    pub fn socket(&self, family: Family, port: u16) -> SocketAddr {
        self.addresses.socket(family, port)
    }

    /// A command that starts in the namespace and in the cgroup.
    ///
    /// # Errors
    /// When the topology is gone.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.netns.command(program)?;
        self.cgroup.join(&mut command)?;
        Ok(command)
    }

    /// Runs a program to its end and returns what it wrote to stdout.
    ///
    /// # Errors
    /// When it can't start or does not exit with 0; the message has what it wrote to stderr.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(program)?;
        command.args(arguments);
        let output = command.output().with_context(|| format!("start {program}"))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let call = format!("{program} {}", arguments.join(" "));
            bail!("{call} on {}: {}: {}{stdout}", self.name, output.status, stderr.trim_end());
        }
        Ok(stdout)
    }

    /// Starts a program that stays; its output goes to `<name>.log` in the host's folder.
    ///
    /// # Errors
    /// When it can't start.
    pub fn start(&self, name: &str, program: &str, arguments: &[&str]) -> Result<Process> {
        let mut command = self.command(program)?;
        command.args(arguments);
        self.spawn(name, command)
    }

    /// Starts a command that [`Host::command`] gave; its output goes to `<name>.log`.
    ///
    /// # Errors
    /// When it can't start.
    pub fn spawn(&self, name: &str, command: Command) -> Result<Process> {
        Process::spawn(&self.name, command, self.directory.join(format!("{name}.log")))
    }

    /// Runs `work` on a fresh thread in the namespace. The thread stays in the caller's cgroup:
    /// what the socket programs should see must run as a process.
    ///
    /// # Errors
    /// When the topology is gone.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.netns.enter(work)
    }

    /// How many frames that came in by a veth device of this host XDP has sent on.
    ///
    /// # Errors
    /// When the device is not there, or is no veth.
    pub fn sent_by_xdp(&self, device: &str) -> Result<u64> {
        let statistics = self.run("ethtool", &["-S", device])?;
        let lines = statistics.lines().filter_map(|line| line.trim().split_once(": "));
        let is_sent = |name: &str| name.starts_with("rx_") && name.ends_with("_xdp_redirect");
        let sent = lines.filter(|(name, _)| is_sent(name));
        Ok(sent.map(|(_, count)| count.parse::<u64>()).sum::<Result<_, _>>()?)
    }

    /// Turns transmit checksum offload off, so that frames leave `device` with whole checksums, as
    /// those of a real wire. Needed on the far end of a device with XDP.
    ///
    /// # Errors
    /// When the device is not there.
    pub fn complete_checksums(&self, device: &str) -> Result<()> {
        self.run("ethtool", &["-K", device, "tx", "off"]).map(drop)
    }
}
