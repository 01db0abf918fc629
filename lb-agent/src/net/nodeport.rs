//! Which of the node's addresses answer on node ports (S8): a pure function.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{DNS_CACHE_DEVICE, IPVS_DEVICE, NodeNetwork, is_global};
use crate::config::NodePortAddresses;

/// Picks the addresses that any entry of `wanted` names: global ones of the node, and 127.0.0.1 and
/// `::1`, which only sockets of the host can use.
pub fn nodeports(network: &NodeNetwork, wanted: &[NodePortAddresses]) -> BTreeSet<IpAddr> {
    let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
    network
        .devices
        .iter()
        .filter(|device| device.name != IPVS_DEVICE && device.name != DNS_CACHE_DEVICE)
        .flat_map(super::DeviceFacts::addresses)
        .filter(|&address| is_global(address))
        .chain(loopback)
        .filter(|&address| wanted.iter().any(|entry| names(entry, network, address)))
        .collect()
}

fn names(entry: &NodePortAddresses, network: &NodeNetwork, address: IpAddr) -> bool {
    match entry {
        NodePortAddresses::All => true,
        NodePortAddresses::Cidr(cidr) => cidr.contains(&address),
        NodePortAddresses::Localhost => address.is_loopback(),
        NodePortAddresses::Primary => {
            let primary = network.primary;
            [primary.v4.map(IpAddr::from), primary.v6.map(IpAddr::from)].contains(&Some(address))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::IpAddr};

    use super::*;
    use crate::net::{AddressFacts, LinkFacts, Reach, RouteFacts, classify};

    fn network() -> NodeNetwork {
        let devices: &[(&str, &[&str])] = &[
            ("lo", &["127.0.0.1", "::1", "203.0.113.9"]),
            ("eth0", &["192.0.2.2", "fe80::1", "2001:db8::2"]),
            ("eth1", &["198.51.100.2", "169.254.1.1"]),
            ("kube-ipvs0", &["10.96.0.1"]),
            ("nodelocaldns", &["10.96.0.10", "169.254.20.10"]),
        ];
        let (mut links, mut addresses) = (Vec::new(), Vec::new());
        for (ifindex, (name, texts)) in (1..).zip(devices) {
            let name = (*name).to_owned();
            links.push(LinkFacts { ifindex, name, ..LinkFacts::default() });
            addresses.extend(texts.iter().map(|text| AddressFacts {
                ifindex,
                address: text.parse().unwrap(),
                prefix: 24,
            }));
        }
        let default = RouteFacts { ifindex: 2, reach: Reach::Default };
        classify(&links, &addresses, &BTreeSet::from([default]), &[])
    }

    #[track_caller]
    fn expect(wanted: &[&str], addresses: &[&str], loopback: (bool, bool)) {
        let wanted: Vec<_> = wanted.iter().map(|text| text.parse().unwrap()).collect();
        let mut expected: BTreeSet<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        expected.extend(loopback.0.then_some(IpAddr::from(Ipv4Addr::LOCALHOST)));
        expected.extend(loopback.1.then_some(IpAddr::from(Ipv6Addr::LOCALHOST)));
        assert_eq!(nodeports(&network(), &wanted), expected);
    }

    #[test]
    fn all_means_no_link_local_ipvs_or_dns_cache_address() {
        let addresses = ["192.0.2.2", "198.51.100.2", "2001:db8::2", "203.0.113.9"];
        expect(&["all"], &addresses, (true, true));
    }

    #[test]
    fn words_and_networks_add_up() {
        expect(&["primary"], &["192.0.2.2", "2001:db8::2"], (false, false));
        expect(&["localhost"], &[], (true, true));
        expect(&["198.51.100.0/24", "127.0.0.0/8"], &["198.51.100.2"], (true, false));
        expect(&["169.254.0.0/16", "10.96.0.0/12"], &[], (false, false));
        expect(&[], &[], (false, false));
    }
}
