//! Sizes that must simply work: many endpoints, many Services, many ports.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::ensure;
use lb_test::{Agent, AgentOptions, Host, NodeSpec, Room, Topology, eventually, require_topology};

mod cluster;
use cluster::{PATIENT, get, metric, tables};

/// Reading ten thousand Services in a build without optimization, on a busy machine.
const LONG: Duration = Duration::from_mins(5);

fn node() -> Topology {
    Topology::builder().node(NodeSpec::new("node1")).build().unwrap()
}

fn agent(topology: &Topology) -> Agent {
    let options = AgentOptions::manifests(topology.manifests()).room(Room::Usual);
    Agent::start(topology.node("node1"), options).unwrap()
}

fn service(number: usize, ports: &str) -> String {
    let (high, low) = (number / 250, number % 250 + 1);
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}}}\n\
         spec: {{clusterIP: 10.97.{high}.{low}, ports: [{ports}]}}\n---\n"
    )
}

/// A slice of Service `number` with endpoints of these addresses.
fn slice(number: usize, addresses: impl Iterator<Item = String>) -> String {
    let endpoints: Vec<_> = addresses.map(|ip| format!("{{addresses: [{ip}]}}")).collect();
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: s{number}, labels: {{kubernetes.io/service-name: s{number}}}}}\n\
         addressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{}]\n---\n",
        endpoints.join(", ")
    )
}

/// Ten endpoints of a Service; the last part of the first can be chosen.
fn ten(number: usize, first: usize) -> String {
    let (high, low) = (number / 250, number % 250);
    let last = std::iter::once(first).chain(2..=10);
    slice(number, last.map(move |last| format!("10.{}.{low}.{last}", 100 + high)))
}

/// Resident memory of a process, in MiB.
fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Is this address translated? Its endpoints are nobody, so only the kernel's tables can say.
fn has_endpoints(node: &lb_test::Node, ip: &str, port: u16, count: usize) -> anyhow::Result<()> {
    let tables = tables(node);
    let ip: std::net::IpAddr = ip.parse()?;
    let found = tables.frontends.iter().find(|(key, _)| key.ip == ip && key.port == port);
    let Some((_, entry)) = found else { anyhow::bail!("no frontend {ip}:{port}") };
    let (_, slots) = &tables.regions[&entry.internal.first_chunk];
    let named: std::collections::BTreeSet<_> = slots.iter().collect();
    ensure!(named.len() == count, "{} endpoints of {ip}:{port}", named.len());
    Ok(())
}

#[test]
fn five_thousand_endpoints_in_one_service() {
    require_topology!();
    let topology = node();
    let address = |n: usize| format!("10.100.{}.{}", n / 250, n % 250 + 1);
    let text = service(0, "{port: 80}") + &slice(0, (0..5000).map(address));
    topology.apply("all.yaml", &text).unwrap();
    let mut agent = agent(&topology);
    agent.wait_synced(LONG).unwrap();
    has_endpoints(topology.node("node1"), "10.97.0.1", 80, 5000).unwrap();
    assert_eq!(agent.status().unwrap()["problems"], serde_json::json!([]));
}

#[test]
fn a_service_with_a_hundred_ports() {
    require_topology!();
    let topology = node();
    let node = topology.node("node1");
    let ports: Vec<_> =
        (1..=100).map(|n| format!("{{name: p{n}, port: {n}, targetPort: 8080}}")).collect();
    let named: Vec<_> = (1..=100).map(|n| format!("{{name: p{n}, port: 8080}}")).collect();
    let slice = slice(0, std::iter::once(node.addresses().v4.to_string()));
    let slice = slice.replace("{port: 80}", &named.join(", "));
    topology.apply("all.yaml", &(service(0, &ports.join(", ")) + &slice)).unwrap();
    let _server = lb_test::programs::nginx(node, &[8080]).unwrap();
    agent(&topology).wait_synced(lb_test::agent::START).unwrap();
    for port in [1, 50, 100] {
        assert_eq!(get(node as &Host, &format!("10.97.0.1:{port}")).unwrap(), "node1");
    }
    assert_eq!(tables(node).frontends.len(), 100);
}

/// What one changed endpoint costs.
#[derive(Debug)]
struct Cost {
    /// From the file's rename until the agent says so.
    seen: Duration,
    /// To write the tables, in milliseconds.
    written: f64,
    steps: f64,
}

/// Changes one endpoint of one Service.
fn change(topology: &Topology, agent: &Agent, number: usize) -> Cost {
    let steps = || metric(agent, "lb_sync_changes_total");
    let seconds = || metric(agent, "lb_sync_duration_seconds_sum");
    let (before, earlier, begun) = (steps(), seconds(), Instant::now());
    topology.apply(&format!("slice-{number}.yaml"), &ten(number, 77)).unwrap();
    eventually(PATIENT, "change", || {
        ensure!(steps() > before, "nothing was written");
        Ok(())
    });
    let seen = begun.elapsed();
    Cost { seen, written: (seconds() - earlier) * 1000.0, steps: steps() - before }
}

/// Starts an agent on so many Services, and returns it with the time from start to in step.
fn with_services(count: usize) -> (Topology, Agent, Duration) {
    let topology = node();
    let mut text = String::new();
    for number in 0..count {
        let service = service(number, "{port: 80}");
        if number == count / 2 {
            topology.apply(&format!("slice-{number}.yaml"), &ten(number, 1)).unwrap();
            write!(text, "{service}").unwrap();
        } else {
            write!(text, "{service}{}", ten(number, 1)).unwrap();
        }
    }
    topology.apply("all.yaml", &text).unwrap();
    let begun = Instant::now();
    let mut agent = agent(&topology);
    agent.wait_synced(LONG).unwrap();
    (topology, agent, begun.elapsed())
}

#[test]
#[ignore = "slow: more than 10 s"]
fn ten_thousand_services_cost_no_more_a_change_than_ten() {
    require_topology!();
    let (topology, agent, _) = with_services(10);
    let small = change(&topology, &agent, 5);
    drop((agent, topology));
    let (topology, mut agent, took) = with_services(10_000);
    let memory = resident(agent.process().pid());
    println!("10,000 Services: in step after {took:?}, {memory} MiB resident");
    for number in [0, 4_999, 9_999] {
        let ip = format!("10.97.{}.{}", number / 250, number % 250 + 1);
        has_endpoints(topology.node("node1"), &ip, 80, 10).unwrap();
    }
    let large = change(&topology, &agent, 5_000);
    println!("one change of 10 Services: {small:?}; of 10,000: {large:?}");
    assert!(large.seen < PATIENT, "the change took too long to be heard of");
    assert!((large.steps - small.steps).abs() < 0.5, "the steps differ");
    assert!(large.written < 100.0, "the change took too long to write");
    assert!(memory < 500, "{memory} MiB resident");
}
