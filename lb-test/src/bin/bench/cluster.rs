//! The cluster that is measured: two Services with real endpoints, one with many, and as many others
//! as asked.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::Result;
use lb_test::{Family, Topology};

/// Node port of the Service whose endpoint is on node1.
pub(crate) const LOCAL: u16 = 30080;
/// Node port of the Service whose endpoint is on node2.
pub(crate) const REMOTE: u16 = 30081;
/// Node port of the Service with many endpoints, all on node2.
pub(crate) const CROWD: u16 = 30082;
/// How many those are: so many that a flood does not use up the ports of SNAT.
const CROWD_SIZE: u8 = 200;
/// Node port of the Service whose endpoint is on node2, by direct server return.
pub(crate) const CARRIED: u16 = 30083;
/// Distance between the node ports of TCP and of UDP.
pub(crate) const UDP_DISTANCE: u16 = 100;
/// Cluster IP of the Service whose endpoint is on node1: port 80 of TCP, port 53 of UDP.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 80);
/// The endpoints' port of TCP.
pub(crate) const TCP_PORT: u16 = 8080;
/// The endpoints' port of UDP.
pub(crate) const UDP_PORT: u16 = 5353;
/// Endpoints of each of the other Services.
pub(crate) const ENDPOINTS: u32 = 10;
/// Services in one file.
const PER_FILE: u32 = 500;

/// Cluster IP of another Service, by number.
pub(crate) fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a60_0001 + number)
}

/// An endpoint of another Service, by number.
pub(crate) fn endpoint(service: u32, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0b00_0000 + service * 16 + number)
}

/// Writes manifests of that many Services.
pub(crate) fn write(topology: &Topology, services: u32) -> Result<()> {
    let pod = |name| Family::BOTH.map(|family| vec![topology.pod(name).ip(family)]);
    let crowd = pod("web2").map(|one| crowd(one[0]));
    let local = real(("local", LOCAL), (pod("web1"), "node1"), [80, 80]);
    let remote = real(("remote", REMOTE), (pod("web2"), "node2"), [80, 81]);
    let crowd = real(("crowd", CROWD), (crowd, "node2"), [80, 82]);
    let carried = real(("carried", CARRIED), (pod("web2"), "node2"), [80, 83]);
    let way = "{name: carried, annotations: {lb-agent/forwarding: dsr}}";
    let carried = carried.replacen("{name: carried}", way, 1);
    topology.apply("real.yaml", &[local, remote, crowd, carried].concat())?;
    let numbers: Vec<u32> = (0..services - 4).collect();
    for (index, numbers) in numbers.chunks(PER_FILE as usize).enumerate() {
        let text = numbers.iter().map(|number| other(*number)).collect::<String>();
        topology.apply(&format!("others-{index}.yaml"), &text)?;
    }
    Ok(())
}

/// Addresses beside that of a pod: nobody answers there, but the way to its node leads there.
fn crowd(pod: IpAddr) -> Vec<IpAddr> {
    let beside = |last: u8| match pod {
        IpAddr::V4(pod) => {
            let [a, b, c, _] = pod.octets();
            IpAddr::from([a, b, c, last])
        }
        IpAddr::V6(pod) => {
            let mut octets = pod.octets();
            octets[15] = last;
            octets.into()
        }
    };
    (50..50 + CROWD_SIZE).map(beside).collect()
}

/// A Service of both families, and the slices of its endpoints.
fn real(
    (name, node_port): (&str, u16),
    (endpoints, node): ([Vec<IpAddr>; 2], &str),
    [port, last]: [u8; 2],
) -> String {
    let (v6_tail, udp_node_port) = (last, node_port + UDP_DISTANCE);
    let mut text = format!(
        r#"apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  clusterIPs: [10.96.255.{last}, "fd00:10:96::{v6_tail}"]
  ports:
  - {{name: tcp, port: {port}, targetPort: {TCP_PORT}, nodePort: {node_port}}}
  - {{name: udp, port: 53, targetPort: {UDP_PORT}, nodePort: {udp_node_port}, protocol: UDP}}
---
"#
    );
    for (addresses, kind) in endpoints.iter().zip(["IPv4", "IPv6"]) {
        let _ = write!(
            text,
            r"apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{suffix}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {kind}
ports:
- {{name: tcp, port: {TCP_PORT}}}
- {{name: udp, port: {UDP_PORT}, protocol: UDP}}
endpoints:
",
            suffix = kind.to_lowercase()
        );
        for address in addresses {
            let _ = writeln!(text, "- {{addresses: [\"{address}\"], nodeName: {node}}}");
        }
        text.push_str("---\n");
    }
    text
}

/// A Service that nothing is sent to.
fn other(number: u32) -> String {
    let address = cluster_ip(number);
    let mut endpoints = String::new();
    for address in (0..ENDPOINTS).map(|n| endpoint(number, n)) {
        let _ = writeln!(endpoints, "- {{addresses: [{address}], nodeName: elsewhere}}");
    }
    format!(
        r"apiVersion: v1
kind: Service
metadata: {{name: other-{number}}}
spec:
  clusterIP: {address}
  ports: [{{name: http, port: 80, targetPort: {TCP_PORT}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: other-{number}-1, labels: {{kubernetes.io/service-name: other-{number}}}}}
addressType: IPv4
ports: [{{name: http, port: {TCP_PORT}}}]
endpoints:
{endpoints}---
"
    )
}
