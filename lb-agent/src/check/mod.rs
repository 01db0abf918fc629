//! Can this node run the agent? Each finding says what is there and, where it falls short, the
//! mend.
//!
//! Not for: changing anything.

use std::path::Path;

use serde::Serialize;

use crate::{
    config::{BindAddress, DsrDispatch, Forwarding, PortRange, SocketLb, XdpMode},
    net::DeviceSettings,
};

mod carriers;
mod kernel;
mod leftovers;
mod mounts;
mod network;
mod uplinks;

pub use mounts::cgroup2_mount;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// Works, with the loss that the finding names.
    Warn,
    /// The agent can't do its work.
    Fail,
}

/// One thing looked at.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was seen.
    pub detail: String,
    /// What to do about it; empty where all is well.
    pub mend: String,
}

impl Finding {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Ok, detail: detail.into(), mend: String::new() }
    }

    fn warn(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Warn, detail: detail.into(), mend: mend.into() }
    }

    fn fail(name: &'static str, detail: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, outcome: Outcome::Fail, detail: detail.into(), mend: mend.into() }
    }
}

/// What the agent is to do on this node.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Folder of the pins.
    pub bpffs: &'a Path,
    /// The cgroup named by the user; none to find it.
    pub cgroup: Option<&'a Path>,
    /// Whose sockets are translated.
    pub socket_lb: SocketLb,
    /// Are processes of the host kept from binding node ports?
    pub bind_protection: bool,
    /// Devices named by the user, and which of them lead to pods.
    pub devices: DeviceSettings,
    /// Where XDP is wanted.
    pub xdp: XdpMode,
    /// How packets come to endpoints on other nodes.
    pub forwarding: Forwarding,
    /// What packets are carried in.
    pub dsr_dispatch: DsrDispatch,
    /// The port of carriers; zero for none.
    pub dsr_port: u16,
    /// Where the agent's servers listen.
    pub servers: [BindAddress; 2],
    /// Ports for SNAT.
    pub snat_ports: PortRange,
    /// Node ports of the cluster.
    pub node_ports: PortRange,
}

/// Looks at everything.
pub fn all(plan: &Plan<'_>) -> Vec<Finding> {
    let mut findings = needed(plan);
    findings.extend(kernel::features());
    findings.extend(network::sysctls());
    findings.extend(network::ports(plan.snat_ports, plan.node_ports));
    findings.extend(uplinks::findings(plan));
    findings.extend(leftovers::findings(plan));
    findings
}

/// Looks at what the agent can't start without, and at what it should warn of.
pub fn needed(plan: &Plan<'_>) -> Vec<Finding> {
    let mut findings = vec![kernel::privileges(), kernel::version(), mounts::bpffs(plan.bpffs)];
    match plan.socket_lb {
        SocketLb::Off => {
            findings.push(without_sockets());
            findings.extend(plan.bind_protection.then(|| protection(plan.cgroup)));
        }
        SocketLb::All | SocketLb::Host => findings.push(mounts::cgroup(plan.cgroup)),
    }
    findings.extend(network::devices(&plan.devices.named));
    findings
}

/// Without the socket path, a node without a cgroup loses the protection alone.
fn protection(cgroup: Option<&Path>) -> Finding {
    let found = mounts::cgroup(cgroup);
    match found.outcome {
        Outcome::Fail if cgroup.is_none() => Finding::warn(
            "cgroup",
            format!(
                "{}: nothing keeps processes of the host from binding node ports",
                found.detail
            ),
            found.mend.replace("--socket-lb=off", "--nodeport-bind-protection=false"),
        ),
        _ => found,
    }
}

/// Such a connection goes by `lo`, where a mended reply would meet strict `rp_filter`.
fn without_sockets() -> Finding {
    Finding::warn(
        "socket-lb",
        "off: a process of the host can't reach this node's own NodePorts",
        "set --socket-lb=host where the sockets of pods must be left alone, else all",
    )
}
