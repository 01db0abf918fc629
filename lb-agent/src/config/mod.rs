//! Settings of the agent: where each comes from, and what it is made of.
//!
//! A setting is taken from its flag, else from its environment variable, else from the file named
//! by `--config`, else it has its default. Not for: reading the command line (that is `cli`).

use std::{fmt, path::PathBuf};

use ipnet::IpNet;

pub mod file;
mod kube_proxy;
mod local;
mod values;

pub use crate::{
    dataplane::{MidFlow, SocketLb, TcAttach, XdpMode},
    health::ProxyNames,
    model::{DsrDispatch, Forwarding},
    sysctl::NetfilterSettings,
};
pub use local::{DetectLocal, DetectLocalMode, network};
pub use values::{BindAddress, DevicePattern, NodePortAddresses, PortRange, Seconds, ValueError};

/// Where Services come from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// A Kubernetes API server.
    Cluster {
        /// Path of the kubeconfig; without one, the account of the pod that the agent runs in.
        kubeconfig: Option<PathBuf>,
        /// URL of the API server, in place of the one that the kubeconfig names.
        master: Option<String>,
    },
    /// A folder of manifests.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Networks that cluster IPs are allocated from.
        service_networks: Vec<IpNet>,
        /// Ports that node ports are allocated from.
        node_ports: PortRange,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cluster { master: Some(master), .. } => write!(f, "cluster at {master}"),
            Self::Cluster { kubeconfig: Some(path), .. } => {
                write!(f, "cluster of kubeconfig {}", path.display())
            }
            Self::Cluster { .. } => f.write_str("cluster of this pod's account"),
            Self::Folder { path, .. } => write!(f, "folder {}", path.display()),
        }
    }
}

/// Everything that `lb-agent run` was told, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where Services come from.
    pub source: Source,
    /// Name of this node's object.
    pub node_name: String,
    /// Devices to use; empty means those that netlink tells of.
    pub devices: Vec<DevicePattern>,
    /// The cgroup whose sockets are looked at; none where nothing is to be attached.
    pub cgroup: Option<PathBuf>,
    /// Folder of the pins.
    pub bpffs: PathBuf,
    /// Whose sockets are translated.
    pub socket_lb: SocketLb,
    /// Are processes of the host kept from binding node ports?
    pub bind_protection: bool,
    /// How packet programs are attached.
    pub tc_attach: TcAttach,
    /// Where the XDP program is attached to uplinks.
    pub xdp: XdpMode,
    /// Where `/healthz` and `/livez` are served.
    pub healthz: BindAddress,
    /// Where `/metrics` and `/proxyMode` are served.
    pub metrics: BindAddress,
    /// Under which names there is what kube-proxy counts as well.
    pub proxy_names: ProxyNames,
    /// Addresses of this node that answer on node ports.
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// Who counts as a client on this node.
    pub detect_local: DetectLocal,
    /// Do backends see this node in place of their clients?
    pub masquerade_all: bool,
    /// Ports that SNAT may give to a client.
    pub snat_ports: PortRange,
    /// How packets of clients outside come to backends on other nodes.
    pub forwarding: Forwarding,
    /// What packets are carried in between nodes.
    pub dsr_dispatch: DsrDispatch,
    /// Port that packets are carried to between nodes; zero for none.
    pub dsr_port: u16,
    /// What becomes of connections that began before the agent.
    pub mid_flow: MidFlow,
    /// Are TCP connections to a backend that was removed reset?
    pub reset_tcp_on_removal: bool,
    /// Ports that node ports are taken from.
    pub node_ports: PortRange,
    /// What is made of netfilter's conntrack; its times are those of the agent's own, too.
    pub netfilter: NetfilterSettings,
    /// Conntrack entries in each family; without a number, as many as the pinned maps have room for,
    /// else by CPUs and memory.
    pub conntrack_max: Option<u32>,
    /// Clients with affinity in each family.
    pub affinity_max: u32,
    /// Frontends in each family.
    pub max_frontends: u32,
    /// Backends in each family.
    pub max_backends: u32,
}
