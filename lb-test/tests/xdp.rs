//! XDP at uplinks: where it is, where it is not and why, and that packets really go by it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lb_agent::dataplane::cleanup;
use lb_test::{Agent, Family, Topology, require_topology};

mod cluster;
use cluster::{Cluster, PATIENT};

/// How XDP stands at a device of the agent's node.
fn standing(agent: &Agent, device: &str) -> Option<String> {
    let status = agent.status().unwrap();
    let devices = status["devices"].as_array().unwrap();
    let found = devices.iter().find(|found| found["name"] == device).unwrap();
    found["xdp"].as_str().map(str::to_owned)
}

/// What the kernel says of a device.
fn link(topology: &Topology, node: &str, device: &str) -> String {
    topology.node(node).run("ip", &["link", "show", device]).unwrap()
}

fn sent(topology: &Topology, node: &str) -> u64 {
    topology.node(node).sent_by_xdp("eth0").unwrap()
}

/// The client's requests to a backend on another node are sent on, and its answers back, by XDP.
#[test]
fn packets_between_clients_and_other_nodes_go_by_xdp() {
    require_topology!();
    let mut cluster = Cluster::start_with_xdp(&["web-2"]);
    let pins = cluster.topology.node("node1").bpffs().join("lb");
    assert_eq!(standing(&cluster.agents[0], "eth0").as_deref(), Some("native"));
    assert_eq!(standing(&cluster.agents[0], "veth-shell"), None, "only uplinks");
    assert!(pins.join("programs/lb_xdp").exists());
    for family in Family::BOTH {
        let before = sent(&cluster.topology, "node1");
        assert_eq!(cluster.ask("client", family).unwrap(), "web-2");
        // A connection: its opening, a request and an answer, its end.
        assert!(sent(&cluster.topology, "node1") > before + 6, "{family:?}");
    }
    // A connection to a backend here is for the stack.
    cluster.endpoints(&["web-1"]);
    cluster.wait_answers("client", &["web-1"], PATIENT);
    let before = sent(&cluster.topology, "node1");
    assert_eq!(cluster.ask("client", Family::V4).unwrap(), "web-1");
    assert_eq!(sent(&cluster.topology, "node1"), before);
    // Without endpoints the refusal is sent back before the stack.
    cluster.endpoints(&[]);
    for family in Family::BOTH {
        let before = sent(&cluster.topology, "node1");
        lb_test::eventually(PATIENT, "a refusal", || {
            let asked = cluster.ask("client", family);
            anyhow::ensure!(sent(&cluster.topology, "node1") > before, "{asked:?}");
            Ok(())
        });
    }
    cluster.agents.clear();
    let node = cluster.topology.node("node1");
    assert!(link(&cluster.topology, "node1", "eth0").contains("xdp"), "it outlives the agent");
    node.enter(|| cleanup(&pins).unwrap()).unwrap();
    assert!(!link(&cluster.topology, "node1", "eth0").contains("xdp"));
}
