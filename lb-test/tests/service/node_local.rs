//! A DNS cache on each node that holds kube-dns's ClusterIP, as `NodeLocal` `DNSCache` does (S22).

use anyhow::ensure;
use lb_test::PATIENT;
use lb_test::address::DualStack;
use lb_test::manifests::{Service, cluster_ips};
use lb_test::programs::{dig, dnsmasq};
use lb_test::{Family, SocketLb, eventually};

use crate::{Cluster, on_both_paths};

/// kube-dns.
const DNS: u8 = 10;

on_both_paths! {
    cache => s22_a_local_dns_cache_answers_by_the_socket_path, s22_a_local_dns_cache_answers_by_the_packet_path;
}

/// While a device of the node holds the ClusterIP, the cache answers; else the Service's pod.
fn cache(path: SocketLb) {
    let service = Service::new("kube-dns", DNS).select("web-1").udp(53, 53).tcp(53, 53);
    let cluster = Cluster::start(path, &[service.object()]);
    let (pods, caches) = (DualStack::of_pod(1, 21), DualStack::of_pod(1, 99));
    let _pods = dnsmasq(cluster.pod("web-1"), "web.test", pods).unwrap();
    let node = cluster.node("node1");
    let _cache = dnsmasq(node, "web.test", caches).unwrap();
    wait_answers(&cluster, pods);
    node.run("ip", &["link", "add", "nodelocaldns", "type", "bridge"]).unwrap();
    for family in Family::BOTH {
        let address = cluster_ips(DNS).family(family).to_string();
        node.run("ip", &["addr", "add", &address, "dev", "nodelocaldns", "nodad"]).unwrap();
    }
    wait_answers(&cluster, caches);
    let left_alone = |count| {
        eventually(PATIENT, "what is left alone", || {
            let shown = cluster.agents[0].status()?["leftAlone"].take();
            ensure!(shown.as_array().map(Vec::len) == Some(count), "{shown}");
            Ok(shown)
        })
    };
    let shown = left_alone(4);
    let addresses: Vec<_> = shown.as_array().unwrap().iter().map(|left| &left["address"]).collect();
    let vip = |family, protocol| format!("{}/{protocol}", cluster_ips(DNS).socket(family, 53));
    let both = Family::BOTH.map(|family| [vip(family, "TCP"), vip(family, "UDP")]);
    assert!(addresses.into_iter().eq(both.as_flattened()), "{shown}");
    assert_eq!(shown[0]["service"], "default/kube-dns", "{shown}");
    assert_eq!(shown[0]["reason"], "held by device nodelocaldns", "{shown}");
    node.run("ip", &["link", "del", "nodelocaldns"]).unwrap();
    wait_answers(&cluster, pods);
    left_alone(0);
}

#[track_caller]
fn wait_answers(cluster: &Cluster, expected: DualStack) {
    for family in Family::BOTH {
        let server = cluster_ips(DNS).socket(family, 53);
        for from in cluster.inside() {
            let what = format!("{expected:?} for {} from {server}", from.name());
            eventually(PATIENT, &what, || {
                let answer = dig(from, server, "web.test", "A")?;
                ensure!(answer == expected.v4.to_string(), "{answer}");
                Ok(())
            });
        }
    }
}
