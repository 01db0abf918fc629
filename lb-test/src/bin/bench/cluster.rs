//! The cluster that is measured: two Services with real endpoints, and as many others as asked.

use std::{fmt::Write as _, net::Ipv4Addr};

use anyhow::Result;
use lb_test::{Family, Topology};

/// Node port of the Service whose endpoint is on node1.
pub(crate) const LOCAL: u16 = 30080;
/// Node port of the Service whose endpoint is on node2.
pub(crate) const REMOTE: u16 = 30081;
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
    let local = real(topology, ("local", LOCAL), ("web1", "node1"), [80, 80]);
    let remote = real(topology, ("remote", REMOTE), ("web2", "node2"), [80, 81]);
    topology.apply("real.yaml", &(local + &remote))?;
    let numbers: Vec<u32> = (0..services - 2).collect();
    for (index, numbers) in numbers.chunks(PER_FILE as usize).enumerate() {
        let text = numbers.iter().map(|number| other(*number)).collect::<String>();
        topology.apply(&format!("others-{index}.yaml"), &text)?;
    }
    Ok(())
}

/// A Service of both families with one endpoint, and the endpoint's slices.
fn real(
    topology: &Topology,
    (name, node_port): (&str, u16),
    (pod, node): (&str, &str),
    [port, last]: [u8; 2],
) -> String {
    let (v6_tail, udp_node_port) = (last, node_port + 100);
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
    for (family, kind) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        let address = topology.pod(pod).ip(family);
        let _ = write!(
            text,
            r#"apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{suffix}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: {kind}
ports:
- {{name: tcp, port: {TCP_PORT}}}
- {{name: udp, port: {UDP_PORT}, protocol: UDP}}
endpoints:
- {{addresses: ["{address}"], nodeName: {node}}}
---
"#,
            suffix = kind.to_lowercase()
        );
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
