//! The node of a random cluster: what the agent is told of it, and what the rules make of it.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_agent::{
    config::NodePortAddresses,
    desired::NodeFacts,
    net::{AddressFacts, Layer, LinkFacts, Reach, RouteFacts, classify, nodeports},
};
use proptest::prelude::*;
use serde_json::{Value, json};

/// Addresses of the uplink; the first of each family is the node's.
const UPLINK: [&str; 4] = ["192.0.2.2", "198.51.100.2", "2001:db8::2", "fe80::1"];

/// The node's name.
pub(crate) const HERE: &str = "here";

/// One picture of the node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) zone: Option<String>,
    /// Names of devices besides the uplink, with an address that each holds.
    devices: Vec<(&'static str, &'static str)>,
    /// `--nodeport-addresses`.
    wanted: Vec<&'static str>,
}

impl Default for Node {
    fn default() -> Self {
        Self { name: HERE.to_owned(), zone: None, devices: Vec::new(), wanted: vec!["all"] }
    }
}

prop_compose! {
    pub(crate) fn any_node()(
        zone in prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))],
        devices in prop::collection::vec(any_device(), 0..2),
        wanted in prop_oneof![
            4 => Just(vec!["all"]),
            1 => Just(vec!["primary"]),
            1 => Just(vec!["localhost", "198.51.100.0/24"]),
            1 => Just(vec![]),
        ],
    ) -> Node {
        Node { name: HERE.to_owned(), zone: zone.map(str::to_owned), devices, wanted }
    }
}

fn any_device() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![
        Just(("nodelocaldns", "10.96.0.10")),
        Just(("dummy0", "fd00:96::10")),
        Just(("kube-ipvs0", "10.97.0.20")),
        Just(("eth1", "203.0.113.10")),
    ]
}

impl Node {
    /// The node's own object.
    pub(crate) fn object(&self) -> Value {
        let labels = match &self.zone {
            Some(zone) => json!({"topology.kubernetes.io/zone": zone}),
            None => json!({}),
        };
        json!({"metadata": {"name": self.name, "labels": labels}})
    }

    /// What the agent finds out of it.
    pub(crate) fn facts(&self) -> NodeFacts {
        let (mut links, mut addresses) = (Vec::new(), Vec::new());
        for (ifindex, (name, address)) in (1..).zip(self.all_devices()) {
            links.push(LinkFacts {
                ifindex,
                name: name.into(),
                layer: Layer::Ethernet,
                ..LinkFacts::default()
            });
            addresses.extend(address.map(|address| AddressFacts { ifindex, address, prefix: 24 }));
        }
        let default = RouteFacts { ifindex: 1, reach: Reach::Default };
        let network = classify(&links, &addresses, &BTreeSet::from([default]), &[]);
        let wanted: Vec<NodePortAddresses> =
            self.wanted.iter().map(|text| text.parse().unwrap()).collect();
        NodeFacts {
            name: self.name.as_str().into(),
            node_port_addresses: nodeports(&network, &wanted),
            local_addresses: network.addresses,
            ..NodeFacts::default()
        }
    }

    fn all_devices(&self) -> impl Iterator<Item = (&'static str, impl Iterator<Item = IpAddr>)> {
        let parse = |texts: Vec<&str>| {
            texts.into_iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>().into_iter()
        };
        let others = self.devices.iter().map(move |(name, text)| (*name, parse(vec![*text])));
        std::iter::once(("eth0", parse(UPLINK.to_vec()))).chain(others)
    }

    /// S22: does a device of somebody else have the address?
    pub(crate) fn holds(&self, address: IpAddr) -> bool {
        let mut devices = self.all_devices().filter(|(name, _)| *name != "kube-ipvs0");
        devices.any(|(_, mut addresses)| addresses.any(|other| other == address))
    }

    /// S8.
    pub(crate) fn node_port_addresses(&self) -> BTreeSet<IpAddr> {
        let ordinary = |name: &str| !["kube-ipvs0", "nodelocaldns"].contains(&name);
        let own = self.all_devices().filter(|(name, _)| ordinary(name)).flat_map(|(_, own)| own);
        let global = own.filter(|ip| !ip.to_string().starts_with("fe80:"));
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        global
            .chain(loopback)
            .filter(|ip| self.wanted.iter().any(|word| names(word, *ip)))
            .collect()
    }

    /// Do node ports answer on loopback?
    pub(crate) fn has_loopback_node_ports(&self) -> bool {
        self.wanted.iter().any(|word| ["all", "localhost"].contains(word))
    }
}

fn names(word: &str, ip: IpAddr) -> bool {
    match word {
        "all" => true,
        "localhost" => ip.is_loopback(),
        "primary" => [UPLINK[0], UPLINK[2]].contains(&&*ip.to_string()),
        "198.51.100.0/24" => ip.to_string().starts_with("198.51.100."),
        other => panic!("{other}"),
    }
}
