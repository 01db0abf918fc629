//! XDP at uplinks: where it is, where it is not and why, and that packets really go by it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use lb_agent::dataplane::{Kernel, KernelOptions, XdpHook, cleanup};
use lb_test::{Agent, Family, Host, SocketLb, Topology, prog, require_topology};
use nix::net::if_::if_nametoindex;
use serde_json::Value;

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
    // The kernel detaches it a moment after its last name is gone.
    lb_test::eventually(PATIENT, "a device without XDP", || {
        let link = link(&cluster.topology, "node1", "eth0");
        anyhow::ensure!(!link.contains("xdp"), "{link}");
        Ok(())
    });
}

/// Starts node1's agent with this, ends the one before.
fn start(cluster: &mut Cluster, argument: &str) {
    cluster.agents.clear();
    let options = cluster.options(SocketLb::Off).argument(argument);
    let agent = Agent::start_synced(cluster.topology.node("node1"), options).unwrap();
    cluster.agents.push(agent);
}

#[track_caller]
fn assert_answers(cluster: &Cluster) {
    for family in Family::BOTH {
        assert_eq!(cluster.ask("client", family).unwrap(), "web-2", "{family:?}");
    }
}

/// What the agent says is wrong with a device.
fn problem(agent: &Agent, device: &str) -> Option<String> {
    let status = agent.status().unwrap();
    let sentences = status["problems"].as_array().unwrap().iter().filter_map(Value::as_str);
    let start = format!("device {device}:");
    sentences.into_iter().find(|sentence| sentence.starts_with(&start)).map(str::to_owned)
}

#[track_caller]
fn assert_refused(agent: &Agent, device: &str, reason: &str, mend: &str) {
    let shown = standing(agent, device).unwrap();
    assert!(shown.starts_with("off (") && shown.contains(reason), "{shown}");
    let problem = problem(agent, device).unwrap();
    assert!(problem.contains(reason) && problem.contains(mend), "{problem}");
}

/// A device whose driver has no XDP beside one that has, but whose far end takes no frames of it.
#[test]
fn what_was_asked_for_and_cannot_be_is_a_problem_and_tc_goes_on() {
    require_topology!();
    let mut cluster = Cluster::without_agents(&["web-2"]);
    for line in [
        "link add link eth0 name mac0 type macvlan",
        "addr add 198.51.100.7/24 dev mac0",
        "link set mac0 up",
    ] {
        let words: Vec<_> = line.split(' ').collect();
        cluster.topology.node("node1").run("ip", &words).unwrap();
    }
    start(&mut cluster, "--xdp=native");
    assert_refused(&cluster.agents[0], "mac0", "its driver has no XDP", "--xdp");
    assert_eq!(standing(&cluster.agents[0], "eth0").as_deref(), Some("native"));
    assert_eq!(problem(&cluster.agents[0], "eth0"), None);
    assert_answers(&cluster);
    assert_eq!(sent(&cluster.topology, "node1"), 0);
}

/// Another's program keeps the hook; each mode that is asked for takes the place of the one before.
#[test]
fn modes_follow_each_other_and_another_program_is_left_alone() {
    require_topology!();
    let mut cluster = Cluster::without_agents(&["web-2"]);
    cluster.topology.ready_for_xdp().unwrap();
    let node = Host::clone(cluster.topology.node("node1"));
    let pins = cluster.topology.node("node1").bpffs().join("other");
    let options = KernelOptions {
        bpffs: pins.clone(),
        cgroup: None,
        ..prog::options(cluster.topology.node("node1"))
    };
    let other = node.enter(|| {
        let mut other = Kernel::start(&options).unwrap();
        other.attach_xdp(if_nametoindex("eth0").unwrap(), XdpHook::Native).unwrap();
        other
    });
    start(&mut cluster, "--xdp=native");
    assert_refused(&cluster.agents[0], "eth0", "busy", "another program");
    assert_answers(&cluster);
    drop(other.unwrap());
    node.enter(|| cleanup(&pins).unwrap()).unwrap();
    let before = sent(&cluster.topology, "node1");
    for (mode, shown, in_kernel) in [
        ("native", "native", " xdp "),
        ("generic", "generic", " xdpgeneric "),
        ("auto", "off (it is no hardware)", ""),
        ("native", "native", " xdp "),
        ("off", "off (--xdp=off)", ""),
    ] {
        start(&mut cluster, &format!("--xdp={mode}"));
        assert_eq!(standing(&cluster.agents[0], "eth0").as_deref(), Some(shown));
        assert_eq!(problem(&cluster.agents[0], "eth0"), None, "{mode}");
        let link = link(&cluster.topology, "node1", "eth0");
        assert_eq!(link.contains("xdp"), !in_kernel.is_empty(), "{mode}: {link}");
        assert!(link.contains(in_kernel), "{mode}: {link}");
        assert_answers(&cluster);
    }
    assert!(sent(&cluster.topology, "node1") > before);
}
