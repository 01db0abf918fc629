//! Flags of `run` and `check` for who counts as a client on this node: kube-proxy's names.

use clap::Args;
use ipnet::IpNet;

use crate::config::{DetectLocal, DetectLocalMode, network};

/// How clients on this node are told from those outside.
#[derive(Args, Debug)]
pub(super) struct LocalArgs {
    /// Networks of the cluster's pods: those of this node's pods among them count as clients here
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = network)]
    pub(super) cluster_cidr: Vec<IpNet>,
    /// How clients on this node are told from others [default: by device, and by --cluster-cidr]
    #[arg(long, value_enum, value_name = "MODE")]
    pub(super) detect_local_mode: Option<DetectLocalMode>,
    /// The bridge of the pods, for --detect-local-mode=BridgeInterface
    #[arg(long, value_name = "NAME")]
    #[arg(required_if_eq("detect_local_mode", "BridgeInterface"))]
    pod_bridge_interface: Option<String>,
    /// How names of pods' devices begin, for --detect-local-mode=InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    #[arg(required_if_eq("detect_local_mode", "InterfaceNamePrefix"))]
    pod_interface_name_prefix: Option<String>,
}

impl LocalArgs {
    /// As a setting.
    pub(super) fn detect_local(&self) -> DetectLocal {
        DetectLocal::new(
            self.detect_local_mode,
            self.cluster_cidr.clone(),
            self.pod_bridge_interface.clone(),
            self.pod_interface_name_prefix.clone(),
        )
    }
}
