//! Nodes as CNIs and administrators build them, and the roles that their devices must get.

use lb_common::abi::DeviceFlags;

use super::*;

const UPLINK: Usage = Usage::Attach(DeviceRole::UPLINK);
const PODS: Usage = Usage::Attach(DeviceRole::PODS);

/// A node in few words: indices are places in the list, from 1.
#[derive(Default)]
struct Node {
    links: Vec<LinkFacts>,
    addresses: Vec<AddressFacts>,
    routes: BTreeSet<RouteFacts>,
}

impl Node {
    fn link(mut self, name: &str, kind: &str) -> Self {
        self.links.push(LinkFacts {
            ifindex: self.links.last().map_or(1, |last| last.ifindex + 1),
            name: name.into(),
            kind: kind.into(),
            layer: if kind == "ipoib" { Layer::Other } else { Layer::Ethernet },
            up: true,
            ..LinkFacts::default()
        });
        self
    }

    fn last(&mut self) -> &mut LinkFacts {
        self.links.last_mut().unwrap()
    }

    fn begins_with_ip(mut self) -> Self {
        self.last().layer = Layer::Ip;
        self
    }

    fn peer_elsewhere(mut self) -> Self {
        self.last().peer_elsewhere = true;
        self
    }

    fn master(mut self, name: &str) -> Self {
        let master = self.links.iter().find(|link| link.name == name).unwrap().ifindex;
        self.last().master = Some(master);
        self
    }

    fn address(mut self, text: &str) -> Self {
        let net: ipnet::IpNet = text.parse().unwrap();
        let ifindex = self.last().ifindex;
        self.addresses.push(AddressFacts {
            ifindex,
            address: net.addr(),
            prefix: net.prefix_len(),
        });
        self
    }

    fn route(mut self, reach: Reach) -> Self {
        let ifindex = self.last().ifindex;
        self.routes.insert(RouteFacts { ifindex, reach });
        self
    }

    fn classified(&self, named: &[&str]) -> NodeNetwork {
        let named: Vec<_> = named.iter().map(|text| text.parse().unwrap()).collect();
        classify(&self.links, &self.addresses, &self.routes, &named)
    }

    #[track_caller]
    fn expect(&self, expected: &[(&str, Usage)]) {
        let network = self.classified(&[]);
        let found: Vec<_> =
            network.devices.iter().map(|device| (&*device.name, device.usage)).collect();
        assert_eq!(found, expected);
    }
}

fn node() -> Node {
    Node::default().link("lo", LOOPBACK).address("127.0.0.1/8").address("::1/128")
}

fn with_eth0() -> Node {
    node()
        .link("eth0", "")
        .address("192.0.2.2/24")
        .address("fe80::1/64")
        .address("2001:db8::2/64")
        .route(Reach::Default)
        .route(Reach::Network)
}

const LO: (&str, Usage) = ("lo", Usage::Skip(SkipReason::Loopback));

#[test]
fn calico_veths_without_an_address_lead_to_pods() {
    with_eth0()
        .link("cali1", "veth")
        .peer_elsewhere()
        .address("fe80::ecee:eeff:feee:eeee/64")
        .route(Reach::Host)
        .expect(&[LO, ("eth0", UPLINK), ("cali1", PODS)]);
}

#[test]
fn ptp_veths_with_the_gateway_as_a_host_address_lead_to_pods() {
    with_eth0()
        .link("veth1", "veth")
        .address("10.244.0.1/32")
        .route(Reach::Host)
        .link("veth2", "veth")
        .address("10.244.0.1/32")
        .route(Reach::Host)
        .expect(&[LO, ("eth0", UPLINK), ("veth1", PODS), ("veth2", PODS)]);
}

#[test]
fn a_gateway_address_that_all_veths_share_is_nobodys_own() {
    with_eth0()
        .link("veth1", "veth")
        .address("10.244.0.1/24")
        .peer_elsewhere()
        .link("veth2", "veth")
        .address("10.244.0.1/24")
        .peer_elsewhere()
        .expect(&[LO, ("eth0", UPLINK), ("veth1", PODS), ("veth2", PODS)]);
}

#[test]
fn a_bridge_of_veths_and_its_ports_lead_to_pods() {
    with_eth0()
        .link("cbr0", "bridge")
        .address("10.248.1.1/24")
        .route(Reach::Network)
        .link("veth1", "veth")
        .peer_elsewhere()
        .master("cbr0")
        .expect(&[LO, ("eth0", UPLINK), ("cbr0", PODS), ("veth1", PODS)]);
}

#[test]
fn an_uplink_veth_of_a_test_node_is_an_uplink() {
    node()
        .link("eth0", "veth")
        .peer_elsewhere()
        .address("172.30.0.11/24")
        .route(Reach::Default)
        .link("eth1", "veth")
        .peer_elsewhere()
        .address("172.31.0.11/24")
        .route(Reach::Network)
        .expect(&[LO, ("eth0", UPLINK), ("eth1", UPLINK)]);
}

#[test]
fn a_bridge_over_a_nic_is_the_uplink_in_its_place() {
    let node = node()
        .link("br0", "bridge")
        .address("192.0.2.2/24")
        .route(Reach::Default)
        .link("eth0", "")
        .master("br0")
        .link("veth1", "veth")
        .peer_elsewhere()
        .master("br0");
    node.expect(&[LO, ("br0", UPLINK), ("eth0", Usage::Skip(SkipReason::Member)), ("veth1", PODS)]);
    let without_default_route = Node { routes: BTreeSet::new(), ..node };
    assert_eq!(without_default_route.classified(&[]).devices[1].usage, UPLINK);
}

#[test]
fn bonds_vlans_and_tunnels_are_uplinks_and_members_are_not() {
    node()
        .link("bond0", "bond")
        .address("192.0.2.2/24")
        .route(Reach::Default)
        .link("eth0", "")
        .master("bond0")
        .link("bond0.100", "vlan")
        .address("198.51.100.2/24")
        .link("flannel.1", "vxlan")
        .address("10.244.0.0/32")
        .route(Reach::Network)
        .expect(&[
            LO,
            ("bond0", UPLINK),
            ("eth0", Usage::Skip(SkipReason::Member)),
            ("bond0.100", UPLINK),
            ("flannel.1", UPLINK),
        ]);
}

#[test]
fn devices_that_lead_nowhere_are_left_alone() {
    let node = node()
        .link("kube-ipvs0", "dummy")
        .address("10.96.0.1/32")
        .link("ifb0", "ifb")
        .link("eth1", "")
        .address("fe80::2/64")
        .link("ib0", "ipoib")
        .address("10.9.0.1/24")
        .route(Reach::Default)
        .link("veth1", "veth")
        .link("tunl0", "ipip")
        .begins_with_ip();
    let network = node.classified(&[]);
    let unsupported: Vec<_> = network.unsupported().map(|device| &*device.name).collect();
    assert_eq!(unsupported, ["ib0"]);
    node.expect(&[
        LO,
        ("kube-ipvs0", Usage::Skip(SkipReason::Dummy)),
        ("ifb0", Usage::Skip(SkipReason::Dummy)),
        ("eth1", Usage::Skip(SkipReason::Idle)),
        ("ib0", Usage::Skip(SkipReason::OtherLayer)),
        ("veth1", Usage::Skip(SkipReason::Idle)),
        ("tunl0", Usage::Skip(SkipReason::Idle)),
    ]);
}

/// A tun device is no tap of a virtual machine, whatever a route to it says.
#[test]
fn devices_without_ethernet_headers_are_uplinks_with_their_own_programs() {
    let node = with_eth0()
        .link("wg0", "wireguard")
        .begins_with_ip()
        .address("10.9.0.1/24")
        .link("tun0", "tun")
        .begins_with_ip()
        .route(Reach::Host)
        .link("eth1", "")
        .address("172.20.1.1/24");
    let network = node.classified(&[]);
    let flags = |device: &DeviceFacts| device.entry(network.primary).map(|entry| entry.flags);
    let flags: Vec<_> = network.devices[1..].iter().map(flags).collect();
    let (begins_with_ip, plain) = (Some(DeviceFlags::BEGINS_WITH_IP), Some(DeviceFlags::NONE));
    assert_eq!(flags, [plain, begins_with_ip, begins_with_ip, plain]);
    assert!(network.devices[1..].iter().all(|device| device.usage == UPLINK), "{network:#?}");
}

#[test]
fn named_devices_alone_are_used_and_even_an_idle_one() {
    let node = with_eth0().link("eth1", "").link("veth1", "veth").peer_elsewhere();
    let network = node.classified(&["eth[1-9]", "veth1", "lo"]);
    let usages: Vec<_> = network.devices.iter().map(|device| device.usage).collect();
    assert_eq!(usages, [LO.1, Usage::Skip(SkipReason::NotNamed), UPLINK, PODS]);
}

#[test]
fn ipvs_addresses_are_not_the_nodes_own() {
    let network = with_eth0()
        .link("kube-ipvs0", "dummy")
        .address("10.96.0.1/32")
        .link("nodelocaldns", "dummy")
        .address("10.96.0.10/32")
        .classified(&[]);
    assert!(!network.addresses.contains(&"10.96.0.1".parse().unwrap()));
    assert!(network.addresses.contains(&"10.96.0.10".parse().unwrap()));
}

#[test]
fn an_unnumbered_device_sends_from_the_nodes_primary_address() {
    let network = node()
        .link("eth1", "")
        .address("198.51.100.2/24")
        .link("eth0", "")
        .address("192.0.2.2/24")
        .address("2001:db8::2/64")
        .route(Reach::Default)
        .link("cali1", "veth")
        .address("fe80::1/64")
        .route(Reach::Host)
        .classified(&[]);
    let expected = Primary { v4: "192.0.2.2".parse().ok(), v6: "2001:db8::2".parse().ok() };
    assert_eq!(network.primary, expected);
    let source = |index: usize| {
        let entry = network.devices[index].entry(network.primary).unwrap();
        (IpAddr::from(entry.source_v4).to_string(), IpAddr::from(entry.source_v6).to_string())
    };
    assert_eq!(source(1), ("198.51.100.2".into(), "2001:db8::2".into()));
    assert_eq!(source(3), ("192.0.2.2".into(), "2001:db8::2".into()));
    assert!(network.devices[0].entry(network.primary).is_none());
}
