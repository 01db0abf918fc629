//! The real agent, `lb-agent run`, in a node of a topology.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_agent::instance::{Instance, Status};
use serde_json::Value;

use crate::host::Host;
use crate::process::Process;
use crate::programs;
use crate::topology::Node;
use crate::wait::try_eventually;

/// How long a start may take: a second or two of CPU time, on a machine with other tests on it.
pub const START: Duration = Duration::from_mins(1);

/// Which sockets the agent translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketLb {
    /// Those of the node and of its pods.
    All,
    /// Those of the node alone.
    Host,
    /// None: every packet goes by the packet path.
    Off,
}

impl SocketLb {
    /// The values that every data path test runs with.
    pub const ALL_AND_OFF: [Self; 2] = [Self::All, Self::Off];

    fn argument(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Host => "host",
            Self::Off => "off",
        }
    }
}

/// Where the agent learns of Services.
#[derive(Clone, Debug)]
pub enum Source {
    /// A kubeconfig for an API server.
    Kubeconfig(PathBuf),
    /// A folder of manifests.
    Manifests(PathBuf),
}

/// How much room an agent's tables have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// As much as a test needs: a build without optimization takes half a second of CPU time to read
    /// tables of the usual sizes, and `status` reads them each time.
    Small,
    /// What the agent takes by itself.
    Usual,
}

/// The sizes of [`Room::Small`], but for those that an argument gives.
const SMALL: [(&str, u32); 3] =
    [("--max-frontends", 1024), ("--max-backends", 1024), ("--affinity-max", 4096)];

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Where it learns of Services.
    pub source: Source,
    /// Which sockets it translates.
    pub socket_lb: SocketLb,
    /// The devices it is told to use; empty lets it find them.
    pub devices: Vec<String>,
    /// The sizes of its tables that no argument gives.
    pub room: Room,
    /// More arguments.
    pub arguments: Vec<String>,
}

impl AgentOptions {
    /// An agent that reads manifests and is left to its defaults, but for the room of its tables.
    #[must_use]
    pub fn manifests(folder: PathBuf) -> Self {
        Self::from_source(Source::Manifests(folder))
    }

    /// An agent that follows an API server and is left to its defaults, but for the room of its tables.
    #[must_use]
    pub fn kubeconfig(file: PathBuf) -> Self {
        Self::from_source(Source::Kubeconfig(file))
    }

    /// Chooses which sockets it translates.
    #[must_use]
    pub fn socket_lb(mut self, socket_lb: SocketLb) -> Self {
        self.socket_lb = socket_lb;
        self
    }

    /// Adds an argument, as `--xdp=off`.
    #[must_use]
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// Chooses how much room its tables have.
    #[must_use]
    pub fn room(mut self, room: Room) -> Self {
        self.room = room;
        self
    }

    fn from_source(source: Source) -> Self {
        let (devices, arguments) = (Vec::new(), Vec::new());
        Self { source, socket_lb: SocketLb::All, devices, room: Room::Small, arguments }
    }

    /// The sizes that no argument gives, as arguments.
    fn sizes(&self) -> impl Iterator<Item = String> {
        let name_of = |argument: &str| argument.split_once('=').map(|(name, _)| name.to_owned());
        let given: Vec<_> = self.arguments.iter().filter_map(|given| name_of(given)).collect();
        let is_given = move |name: &str| given.iter().any(|given| given == name);
        let left = SMALL.iter().filter(move |(name, _)| !is_given(name));
        let left = left.filter(|_| self.room == Room::Small);
        left.map(|(name, size)| format!("{name}={size}"))
    }
}

/// A running agent; killed when dropped, which leaves its pinned state in the node's bpffs.
#[derive(Debug)]
pub struct Agent {
    host: Host,
    bpffs: PathBuf,
    options: AgentOptions,
    process: Process,
}

impl Agent {
    /// Starts the agent on `node`.
    ///
    /// # Errors
    /// When its binary is not there.
    pub fn start(node: &Node, options: AgentOptions) -> Result<Self> {
        let bpffs = node.bpffs().join("lb");
        let process = spawn(node, &bpffs.to_string_lossy(), &options)?;
        Ok(Self { host: Host::clone(node), bpffs, options, process })
    }

    /// Starts the agent and waits until it is in step.
    ///
    /// # Errors
    /// When its binary is not there or it does not get in step within [`START`].
    pub fn start_synced(node: &Node, options: AgentOptions) -> Result<Self> {
        let mut agent = Self::start(node, options)?;
        agent.wait_synced(START)?;
        Ok(agent)
    }

    /// Waits until it says that everything known is programmed.
    ///
    /// # Errors
    /// When `timeout` passes or the agent ends; the message has the last status.
    pub fn wait_synced(&mut self, timeout: Duration) -> Result<()> {
        let ended = try_eventually(timeout, "synced agent", || {
            if let Some(status) = self.process.ended()? {
                return Ok(Some(status));
            }
            // Its file, because the command would take the CPU that the agent needs.
            let said = Status::read(&Instance::of(&self.bpffs).status())?;
            let said = said.filter(|status| status.pid == self.process.pid());
            ensure!(said.as_ref().is_some_and(|status| status.synced), "status is {said:?}");
            Ok(None)
        })?;
        match ended {
            None => Ok(()),
            Some(status) => bail!("agent on {} ended: {status}\n{}", self.host.name(), self.log()),
        }
    }

    /// What `lb-agent status` says; works with the agent dead, too.
    ///
    /// # Errors
    /// When the command fails or prints no JSON.
    pub fn status(&self) -> Result<Value> {
        self.query("status")
    }

    /// What `lb-agent services` says; works with the agent dead, too.
    ///
    /// # Errors
    /// When the command fails or prints no JSON.
    pub fn services(&self) -> Result<Value> {
        self.query("services")
    }

    /// Runs any subcommand of the agent against its bpffs and returns what it prints.
    ///
    /// # Errors
    /// When the command does not exit with 0.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let (binary, bpffs) = (binary()?, self.bpffs.to_string_lossy());
        let mut call = arguments.to_vec();
        call.extend(["--bpffs", &bpffs]);
        self.host.run(&binary.to_string_lossy(), &call)
    }

    /// Starts a subcommand that stays, as `cleanup --drain=10m`; its output goes to `<name>.log`.
    ///
    /// # Errors
    /// When it can't start.
    pub fn start_command(&self, name: &str, arguments: &[&str]) -> Result<Process> {
        let (binary, bpffs) = (binary()?, self.bpffs.to_string_lossy());
        let call = [arguments, &["--bpffs", &bpffs]].concat();
        self.host.start(name, &binary.to_string_lossy(), &call)
    }

    /// What the agent has logged.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The agent's process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Reads a page of the agent's own server, as `/metrics` at `127.0.0.1:10249`.
    ///
    /// # Errors
    /// When the server does not answer.
    pub fn page(&self, address: IpAddr, port: u16, path: &str) -> Result<String> {
        let address = std::net::SocketAddr::new(address, port);
        programs::curl(&self.host, &format!("http://{address}{path}"), &[])
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn kill9(&mut self) -> Result<ExitStatus> {
        self.process.kill9()
    }

    /// Ends it with SIGTERM and waits for its end.
    ///
    /// # Errors
    /// When it does not end within half a minute.
    pub fn term(&mut self) -> Result<ExitStatus> {
        self.process.stop()
    }

    /// Starts it again after [`Agent::kill9`] or [`Agent::term`], with the same options.
    ///
    /// # Errors
    /// When its binary is not there.
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.host, &self.bpffs.to_string_lossy(), &self.options)?;
        Ok(())
    }

    /// Lets it run on after the guard, for a topology that is kept.
    pub fn keep(self) {
        self.process.keep();
    }

    fn query(&self, subcommand: &str) -> Result<Value> {
        let output = self.command(&[subcommand, "-o", "json"])?;
        serde_json::from_str(&output).with_context(|| format!("{subcommand} prints {output:?}"))
    }
}

/// The agent's binary: `LB_AGENT_BIN`, else beside the running program.
///
/// # Errors
/// When it is not there.
pub fn binary() -> Result<PathBuf> {
    programs::built_binary("LB_AGENT_BIN", "lb-agent")
}

fn spawn(host: &Host, bpffs: &str, options: &AgentOptions) -> Result<Process> {
    let mut command = host.command(&binary()?.to_string_lossy())?;
    // A setting of the caller's environment would change what is tested.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("LB_")) {
        command.env_remove(name);
    }
    command.arg("run").args(["--bpffs", bpffs]).arg("--cgroup").arg(host.cgroup().path());
    command.args(["--hostname-override", host.name()]);
    command.args(["--socket-lb", options.socket_lb.argument()]);
    match &options.source {
        Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
        Source::Manifests(folder) => command.arg("--manifests").arg(folder),
    };
    for device in &options.devices {
        command.args(["--device", device]);
    }
    command.args(options.sizes()).args(&options.arguments);
    host.spawn("lb-agent", command)
}
