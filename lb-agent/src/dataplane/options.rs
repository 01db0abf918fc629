//! What the programs are told at their start.

use std::path::PathBuf;

use lb_common::{carrier, conntrack::Timeouts};

/// Whose sockets are translated at `connect` and `sendmsg`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum SocketLb {
    /// Sockets of the host and of its pods.
    #[default]
    All,
    /// Sockets of the host alone; pods keep seeing the ClusterIP until the packet path.
    Host,
    /// None.
    Off,
}

/// How packet programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum TcAttach {
    /// By tcx where the kernel has it (Linux 6.6), else by the clsact qdisc.
    #[default]
    Auto,
    /// By the clsact qdisc, as on older kernels.
    Clsact,
}

/// Where the XDP program is attached to uplinks.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum XdpMode {
    /// In the driver, where hardware and its driver can do so.
    #[default]
    Auto,
    /// In the driver; a device that can't is a problem.
    Native,
    /// In the stack's own hook, which every device has: for tests.
    Generic,
    /// Nowhere.
    Off,
}

/// What becomes of a packet of a connection that conntrack does not know, and that does not begin it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum MidFlow {
    /// Its hash finds the backend again that the connection had, here or by another node.
    #[default]
    Balanced,
    /// Somebody else began the connection before the agent came, and still translates it.
    LeftToStack,
}

/// What is fixed while the agent runs.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Folder of pins.
    pub bpffs: PathBuf,
    /// Folder of the cgroup below which sockets are looked at; none to look at none.
    pub cgroup: Option<PathBuf>,
    /// Which of them are translated.
    pub socket_lb: SocketLb,
    /// Are processes of the host kept from binding `NodePort`s?
    pub bind_protection: bool,
    /// How packet programs are attached.
    pub tc_attach: TcAttach,
    /// May the XDP program be asked for?
    pub xdp: bool,
    /// First and last port that SNAT may use.
    pub snat_ports: (u16, u16),
    /// What packets are carried in between nodes (DSR).
    pub carrier_kind: carrier::Kind,
    /// Port that packets are carried to between nodes; zero for none.
    pub carrier_port: u16,
    /// What becomes of a connection that conntrack does not know.
    pub mid_flow: MidFlow,
    /// Are TCP connections to a backend that was removed reset?
    pub reset_tcp: bool,
    /// How long silent flows are remembered.
    pub timeouts: Timeouts,
    /// Entries of each conntrack map.
    pub conntrack_max: u32,
    /// Entries of each affinity map.
    pub affinity_max: u32,
    /// Entries of each frontend map.
    pub max_frontends: u32,
    /// Entries of each backend map.
    pub max_backends: u32,
}
