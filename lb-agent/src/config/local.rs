//! Who counts as a client on this node: kube-proxy's ways to tell, besides ours.

use std::collections::BTreeSet;

use clap::ValueEnum;
use ipnet::IpNet;

use super::ValueError;

/// `--detect-local-mode`, as kube-proxy names its values.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum DetectLocalMode {
    /// Packets that come in by --pod-bridge-interface, and no others.
    #[value(name = "BridgeInterface")]
    BridgeInterface,
    /// Sources in podCIDRs of this node's object that are part of --cluster-cidr as well.
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// Packets that come in by devices of --pod-interface-name-prefix, and no others.
    #[value(name = "InterfaceNamePrefix")]
    InterfaceNamePrefix,
    /// Sources in the podCIDRs of this node's object as well.
    #[value(name = "NodeCIDR")]
    NodeCidr,
}

/// How clients on this node are told from those outside. A process of the node is always one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum DetectLocal {
    /// They come in by this bridge.
    Bridge(String),
    /// They come in by a device that leads to pods, or from a pod network of the node within these.
    ///
    /// A pod of another node is outside: what kube-proxy would give it elsewhere answers past this
    /// node, so that the connection fails, and upstream's tests expect that.
    ClusterCidr(Vec<IpNet>),
    /// They come in by a device that leads to pods.
    #[default]
    Devices,
    /// They come in by a device whose name begins so.
    NamePrefix(String),
    /// They come in by a device that leads to pods, or from one of the node's pod networks.
    NodeCidr,
}

impl DetectLocal {
    /// From the settings. Without a mode it is kube-proxy's usual one where that says something.
    pub fn new(
        mode: Option<DetectLocalMode>,
        cluster: Vec<IpNet>,
        bridge: Option<String>,
        prefix: Option<String>,
    ) -> Self {
        match mode {
            Some(DetectLocalMode::BridgeInterface) => Self::Bridge(bridge.unwrap_or_default()),
            Some(DetectLocalMode::InterfaceNamePrefix) => {
                Self::NamePrefix(prefix.unwrap_or_default())
            }
            Some(DetectLocalMode::NodeCidr) => Self::NodeCidr,
            Some(DetectLocalMode::ClusterCidr) | None if cluster.is_empty() => Self::Devices,
            Some(DetectLocalMode::ClusterCidr) | None => Self::ClusterCidr(cluster),
        }
    }

    /// Does a device of this name lead to pods? `None` if names say nothing of that.
    pub fn leads_to_pods(&self, device: &str) -> Option<bool> {
        match self {
            Self::Bridge(name) => Some(device == name),
            Self::NamePrefix(prefix) => Some(device.starts_with(&**prefix)),
            Self::ClusterCidr(_) | Self::Devices | Self::NodeCidr => None,
        }
    }

    /// Sources that are clients on this node whatever device their packets come in by, on a node
    /// with these pod networks.
    pub fn sources(&self, pod_cidrs: &[IpNet]) -> BTreeSet<IpNet> {
        let counts = |cidr: &&IpNet| match self {
            Self::ClusterCidr(cluster) => cluster.iter().any(|net| net.contains(*cidr)),
            Self::NodeCidr => true,
            Self::Bridge(_) | Self::Devices | Self::NamePrefix(_) => false,
        };
        pod_cidrs.iter().filter(counts).copied().collect()
    }
}

/// Reads a network; host bits are cleared, whitespace around it is ignored.
///
/// # Errors
///
/// The text is none.
pub fn network(text: &str) -> Result<IpNet, ValueError> {
    text.trim().parse::<IpNet>().map(|net| net.trunc()).map_err(|_| ValueError::Network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_mode_a_cluster_cidr_counts() {
        let nets = vec![network("10.244.0.1/16").unwrap(), network(" fd00:244::/56").unwrap()];
        let local = DetectLocal::new(None, nets.clone(), None, None);
        assert_eq!(local, DetectLocal::ClusterCidr(nets.clone()));
        let own = ["10.244.7.0/24", "10.7.0.0/24"].map(|text| network(text).unwrap());
        assert_eq!(local.sources(&own), BTreeSet::from([own[0]]), "those in the cluster's");
        assert_eq!(nets[0].to_string(), "10.244.0.0/16");
        let mode = Some(DetectLocalMode::ClusterCidr);
        assert_eq!(DetectLocal::new(mode, Vec::new(), None, None), DetectLocal::Devices);
        assert_eq!(network("10.244.0.0"), Err(ValueError::Network));
    }

    #[test]
    fn other_modes_do_not_look_at_the_cluster_cidr() {
        let nets = vec![network("10.244.0.0/16").unwrap()];
        let node = DetectLocal::new(Some(DetectLocalMode::NodeCidr), nets.clone(), None, None);
        let pods = network("10.244.7.0/24").unwrap();
        assert_eq!(node.sources(&[pods]), BTreeSet::from([pods]));
        let mode = Some(DetectLocalMode::InterfaceNamePrefix);
        let prefix = DetectLocal::new(mode, nets, None, Some("cali".into()));
        assert_eq!(prefix.sources(&[pods]), BTreeSet::new());
        assert_eq!(
            (prefix.leads_to_pods("cali1"), prefix.leads_to_pods("eth0")),
            (Some(true), Some(false))
        );
    }
}
