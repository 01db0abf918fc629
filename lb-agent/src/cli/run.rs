//! `lb-agent run`: from flags to checked settings, then the agent itself.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, bail, ensure};
use clap::{ArgAction, ArgGroup, Args, builder::RangedI64ValueParser};
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{forwarding::ForwardingArgs, local::LocalArgs, netfilter::NetfilterArgs};
use crate::{
    agent::{self, Start},
    check::{self, Outcome, Plan},
    config::{
        BindAddress, DevicePattern, MidFlow, NodePortAddresses, PortRange, ProxyNames, Settings,
        SocketLb, Source, TcAttach, XdpMode,
    },
    instance::{Instance, Status},
    net::DeviceSettings,
};

/// Where Services come from without a cluster and without a flag.
const MANIFESTS: &str = "/etc/lb/manifests";

/// The variable that tells a process that it runs in a pod.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Shown below the flags.
pub(super) const EXAMPLES: &str = "\
Examples:
  lb-agent run --manifests ./services             Services from a folder, no cluster needed
  lb-agent run --kubeconfig /etc/kubernetes/lb    Services from a cluster
  lb-agent run --config /etc/lb/config.yaml       conntrackMax: 500000 and the like in a file
  LB_SOCKET_LB=host lb-agent run                  every flag is an LB_ variable, too";

#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
#[command(group = ArgGroup::new("cluster").args(["kubeconfig", "master"]).multiple(true))]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct RunArgs {
    /// Folder of Kubernetes manifests, in place of a cluster [default without a cluster:
    /// /etc/lb/manifests]
    #[arg(long, value_name = "DIR", conflicts_with = "cluster")]
    pub(super) manifests: Option<PathBuf>,
    /// How to reach the API server [default in a pod: its own account]
    #[arg(long, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// URL of the API server, in place of the one in the kubeconfig
    #[arg(long, value_name = "URL")]
    pub(super) master: Option<String>,
    /// Name of this node's object [default: the hostname in lower case]
    #[arg(long, value_name = "NAME")]
    pub(super) hostname_override: Option<String>,
    #[command(flatten)]
    pub(super) node: NodeArgs,
    /// Addresses of this node that answer on node ports: CIDRs, all, localhost, primary
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "all")]
    pub(super) nodeport_addresses: Vec<NodePortAddresses>,
    /// Metrics that kube-proxy has are served under its names, too
    #[arg(long, value_name = "BOOL", default_value_t = false, action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) kube_proxy_metrics: bool,
    /// Leaves connections that began before the agent to the stack: kube-proxy's go on
    #[arg(long, value_name = "true|false", default_value_t = false, action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) migrate: bool,
    /// Resets TCP connections to an endpoint that was removed, in place of letting them go on
    #[arg(long, value_name = "true|false", default_value_t = false, action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) reset_tcp_on_removal: bool,
    /// Show backends this node's address in place of every client's, but under policy Local
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, default_value_t = false)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) masquerade_all: bool,
    /// Entries of the agent's own conntrack, each family [default: 32768 for each CPU, at least 131072,
    /// less where memory is short]
    #[arg(long, value_name = "N", value_parser = size())]
    pub(super) conntrack_max: Option<u32>,
    /// Clients of each family whose backend is remembered for session affinity
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = size())]
    pub(super) affinity_max: u32,
    /// Frontends of each family, and one more for each of their addresses
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = size())]
    pub(super) max_frontends: u32,
    /// Backends of each family
    #[arg(long, value_name = "N", default_value_t = 262_144, value_parser = size())]
    pub(super) max_backends: u32,
    /// Networks that a folder's Services get cluster IPs from
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    #[arg(default_value = "10.96.0.0/12,fd00:10:96::/108")]
    pub(super) service_cluster_ip_range: Vec<IpNet>,
    #[command(flatten)]
    pub(super) netfilter: NetfilterArgs,
}

/// Flags that `run` and `check` share.
#[derive(Args, Debug)]
pub(super) struct NodeArgs {
    /// YAML file of settings: flags' names in camelCase, or a `KubeProxyConfiguration`
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Use this device: a name or a regular expression; repeatable [default: found by netlink]
    #[arg(long, value_name = "NAME|REGEX")]
    pub(super) device: Vec<DevicePattern>,
    /// The cgroup v2 whose sockets are translated and kept off node ports [default: where it is
    /// mounted]
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup: Option<PathBuf>,
    /// Whose sockets are translated at connect
    #[arg(long, value_enum, value_name = "WHOSE", default_value_t = SocketLb::All)]
    pub(super) socket_lb: SocketLb,
    /// Keeps processes of the host from binding node ports
    #[arg(long, value_name = "BOOL", default_value_t = true, action = ArgAction::Set)]
    #[arg(num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) nodeport_bind_protection: bool,
    /// How packet programs are attached to devices
    #[arg(long, value_enum, value_name = "HOW", default_value_t = TcAttach::Auto)]
    pub(super) tc_attach: TcAttach,
    /// Sends on before the stack what comes in by an uplink for elsewhere, in the driver or (generic)
    /// behind it
    #[arg(long, value_enum, value_name = "WHERE", default_value_t = XdpMode::Auto)]
    pub(super) xdp: XdpMode,
    #[command(flatten)]
    pub(super) local: LocalArgs,
    #[command(flatten)]
    pub(super) forwarding: ForwardingArgs,
    /// Where /healthz and /livez are served; empty for nowhere
    #[arg(long, value_name = "IP:PORT", default_value = ":10256")]
    #[arg(value_parser = BindAddress::parse)]
    pub(super) healthz_bind_address: BindAddress,
    /// Where /metrics and /proxyMode are served; empty for nowhere
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:10249")]
    #[arg(value_parser = BindAddress::parse)]
    pub(super) metrics_bind_address: BindAddress,
    /// Ports that a client may get on the way to another node
    #[arg(long, value_name = "FIRST-LAST", default_value = "61000-65535")]
    pub(super) snat_port_range: PortRange,
    /// Node ports of the cluster; a folder's Services get theirs from here
    #[arg(long, value_name = "FIRST-LAST", default_value = "30000-32767")]
    pub(super) service_node_port_range: PortRange,
}

fn size() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=1 << 24)
}

impl NodeArgs {
    /// What is to be checked.
    pub(super) fn plan<'a>(&'a self, bpffs: &'a Path) -> Plan<'a> {
        Plan {
            bpffs,
            cgroup: self.cgroup.as_deref(),
            socket_lb: self.socket_lb,
            bind_protection: self.nodeport_bind_protection,
            devices: DeviceSettings {
                named: self.device.clone(),
                local: self.local.detect_local(),
            },
            xdp: self.xdp,
            forwarding: self.forwarding.forwarding,
            dsr_dispatch: self.forwarding.dsr_dispatch,
            dsr_port: self.forwarding.dsr_port,
            servers: [self.healthz_bind_address, self.metrics_bind_address],
            snat_ports: self.snat_port_range,
            node_ports: self.service_node_port_range,
        }
    }
}

pub(super) fn run(arguments: RunArgs, bpffs: PathBuf) -> anyhow::Result<ExitCode> {
    let (snat, nodes) = (arguments.node.snat_port_range, arguments.node.service_node_port_range);
    if snat.overlaps(nodes) {
        eprintln!("error: --snat-port-range {snat} overlaps --service-node-port-range {nodes}");
        return Ok(ExitCode::from(2));
    }
    refuse_unfit_node(&arguments.node.plan(&bpffs))?;
    let settings = settings(arguments, bpffs)?;
    if settings.mid_flow == MidFlow::LeftToStack {
        tracing::info!(
            "connections that began before are left to the stack; they are counted as migrating"
        );
    }
    let instance = Instance::of(&settings.bpffs);
    let lock = instance.lock()?;
    let status = Status::starting(settings.source.to_string());
    status.write(&instance.status()).context("write the status file")?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("start the runtime")?;
    runtime.block_on(async {
        let stop = stop_on_signals()?;
        agent::agent(Start { settings, instance, lock, status, stop }).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Stops at what can't work, and logs what works with a loss.
fn refuse_unfit_node(plan: &Plan<'_>) -> anyhow::Result<()> {
    let findings = check::needed(plan);
    let of = |outcome| findings.iter().filter(move |finding| finding.outcome == outcome);
    for finding in of(Outcome::Warn) {
        tracing::warn!("{}: {}", finding.detail, finding.mend);
    }
    let failures: Vec<_> =
        of(Outcome::Fail).map(|finding| format!("{}; {}", finding.detail, finding.mend)).collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\nerror: "));
    }
    Ok(())
}

fn settings(arguments: RunArgs, bpffs: PathBuf) -> anyhow::Result<Settings> {
    let source = source(&arguments, std::env::var_os(IN_CLUSTER).is_some())?;
    let proxy_names = arguments.proxy_names();
    let node = arguments.node;
    Ok(Settings {
        source,
        node_name: node_name(arguments.hostname_override)?,
        devices: node.device,
        cgroup: match (node.socket_lb, node.nodeport_bind_protection) {
            (SocketLb::Off, false) => None,
            _ => node.cgroup.or_else(check::cgroup2_mount),
        },
        bpffs,
        socket_lb: node.socket_lb,
        bind_protection: node.nodeport_bind_protection,
        tc_attach: node.tc_attach,
        xdp: node.xdp,
        healthz: node.healthz_bind_address,
        metrics: node.metrics_bind_address,
        proxy_names,
        nodeport_addresses: arguments.nodeport_addresses,
        masquerade_all: arguments.masquerade_all,
        detect_local: node.local.detect_local(),
        snat_ports: node.snat_port_range,
        forwarding: node.forwarding.forwarding,
        dsr_dispatch: node.forwarding.dsr_dispatch,
        dsr_port: node.forwarding.dsr_port,
        mid_flow: if arguments.migrate { MidFlow::LeftToStack } else { MidFlow::Balanced },
        reset_tcp_on_removal: arguments.reset_tcp_on_removal,
        node_ports: node.service_node_port_range,
        netfilter: arguments.netfilter.settings(),
        conntrack_max: arguments.conntrack_max,
        affinity_max: arguments.affinity_max,
        max_frontends: arguments.max_frontends,
        max_backends: arguments.max_backends,
    })
}

impl RunArgs {
    fn proxy_names(&self) -> ProxyNames {
        if self.kube_proxy_metrics { ProxyNames::Both } else { ProxyNames::Own }
    }
}

fn source(arguments: &RunArgs, in_cluster: bool) -> anyhow::Result<Source> {
    let RunArgs { manifests, kubeconfig, master, .. } = arguments;
    let wants_cluster = kubeconfig.is_some() || master.is_some();
    if wants_cluster || (manifests.is_none() && in_cluster) {
        if let Some(path) = kubeconfig {
            let readable = std::fs::read(path);
            readable.with_context(|| format!("--kubeconfig {}", path.display()))?;
        }
        return Ok(Source::Cluster { kubeconfig: kubeconfig.clone(), master: master.clone() });
    }
    let path = manifests.clone().unwrap_or_else(|| MANIFESTS.into());
    if let Err(error) = std::fs::read_dir(&path) {
        bail!("--manifests {}: {error}; create it, or name another", path.display());
    }
    Ok(Source::Folder {
        path,
        service_networks: arguments.service_cluster_ip_range.clone(),
        node_ports: arguments.node.service_node_port_range,
    })
}

/// As the kubelet names nodes: lower case, without space around.
fn node_name(named: Option<String>) -> anyhow::Result<String> {
    let name = match named {
        Some(name) => name,
        None => {
            std::fs::read_to_string("/proc/sys/kernel/hostname").context("read the hostname")?
        }
    };
    let name = name.trim().to_lowercase();
    ensure!(!name.is_empty(), "this node has no name; set --hostname-override");
    Ok(name)
}

/// A token that SIGTERM and SIGINT cancel.
fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).context("listen for signals")?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            tracing::info!("stopping; what is pinned goes on without the agent");
            stop.cancel();
        });
    }
    Ok(stop)
}
