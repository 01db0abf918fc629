//! Agents on nodes follow an API server, and clients get their answers while it comes and goes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::ensure;
use lb_test::kubernetes::{ControlPlane, Objects, run_inside};
use lb_test::programs::{curl, json_lines, nginx, start_probe};
use lb_test::{
    Agent, AgentOptions, Family, Host, NodeSpec, PodSpec, Process, SocketLb, Topology, eventually,
    require_kubernetes,
};
use serde_json::{Value, json};

use crate::manifests::{NODE, pod_on, web_service};

const PORTS: &str = "[{name: http, port: 80, targetPort: 8080, nodePort: 30080}]";
const ADDRESSES: [&str; 2] = ["10.96.100.100:80", "[fd00:10:96::6464]:80"];
/// Each endpoint has a slice of its own, so that Services have several, as large ones do.
const SEVERAL_SLICES: [&str; 1] = ["--max-endpoints-per-slice=1"];
const PATIENCE: Duration = Duration::from_mins(1);

/// Two nodes with an agent each, three web servers, and the control plane beside them.
struct Cluster {
    plane: ControlPlane,
    _agents: Vec<Agent>,
    _servers: Vec<Process>,
    topology: Topology,
}

impl Cluster {
    fn start(path: SocketLb) -> Self {
        let builder = Topology::builder().node(NodeSpec::new("node-1"));
        let builder = builder.node(NodeSpec::new("node-2")).client("client");
        let builder = builder.pod(PodSpec::routed("web-1", "node-1").at(21));
        let builder = builder.pod(PodSpec::routed("web-2", "node-2").at(50));
        let builder = builder.pod(PodSpec::bridged("web-3", "node-1").at(20));
        let topology = builder.pod(PodSpec::routed("shell", "node-1")).build().unwrap();
        let servers = ["web-1", "web-2", "web-3"].map(|name| nginx(topology.pod(name), &[8080]));
        let plane = ControlPlane::start_with(topology.fabric(), &SEVERAL_SLICES).unwrap();
        let started = topology.nodes().iter().map(|node| {
            let options = AgentOptions::kubeconfig(plane.kubeconfig()).socket_lb(path);
            Agent::start_synced(node, options).unwrap()
        });
        let agents = started.collect();
        let servers = servers.into_iter().map(Result::unwrap).collect();
        Self { plane, _agents: agents, _servers: servers, topology }
    }

    fn with_objects(&self, work: impl AsyncFnOnce(&Objects) + Send) {
        let work = async || work(&self.plane.objects("default").await.unwrap()).await;
        run_inside(self.plane.host(), work).unwrap();
    }

    /// Applies a Pod as its kubelet reports it.
    async fn add(&self, objects: &Objects, name: &str) {
        let pod = self.topology.pod(name);
        let ips = Family::BOTH.map(|family| pod.ip(family).to_string());
        let manifest = pod_on(pod.node(), name, "web", &ips.each_ref().map(String::as_str), true);
        objects.apply(&manifest).await.unwrap();
    }

    /// Merges a change into the Service.
    fn change(&self, change: &Value) {
        self.with_objects(async |objects| {
            objects.merge("Service", "web", change).await.unwrap();
        });
    }

    /// Waits until exactly the `expected` Pods answer pod, node and client, over both families.
    fn assert_answers(&self, expected: &[&str]) {
        let shell: &Host = self.topology.pod("shell");
        let node: &Host = self.topology.node("node-2");
        for address in ADDRESSES {
            assert_all_answer(shell, address, expected);
            assert_all_answer(node, address, expected);
        }
        for family in Family::BOTH {
            let address = node.socket(family, 30080).to_string();
            assert_all_answer(self.topology.client("client"), &address, expected);
        }
    }

    /// Waits until nobody is answered.
    fn assert_no_answers(&self) {
        for address in ADDRESSES {
            assert_no_answer(self.topology.pod("shell"), address);
        }
        for family in Family::BOTH {
            let address = self.topology.node("node-2").socket(family, 30080).to_string();
            assert_no_answer(self.topology.client("client"), &address);
        }
    }
}

#[track_caller]
fn assert_no_answer(from: &Host, address: &str) {
    eventually(PATIENCE, &format!("no answer to {} at {address}", from.name()), || {
        let answer = curl(from, &format!("http://{address}/"), &["--max-time", "1"]);
        ensure!(answer.is_err(), "{answer:?}");
        Ok(())
    });
}

#[track_caller]
fn assert_all_answer(from: &Host, address: &str, expected: &[&str]) {
    let expected: BTreeSet<String> = expected.iter().map(|name| format!("{name}\n")).collect();
    let url = format!("http://{address}/");
    // Two backends of which one is missed: once in 2^23 runs. One too many: once in 2^8.
    let count = if expected.len() == 1 { 8 } else { 24 };
    eventually(PATIENCE, &format!("answers to {} at {url}", from.name()), || {
        let answers: Result<BTreeSet<_>, _> = (0..count).map(|_| curl(from, &url, &[])).collect();
        let answers = answers?;
        ensure!(answers == expected, "answers are {answers:?}");
        Ok(())
    });
}

impl Cluster {
    /// Starts one where `web-1` and `web-2` are ready, and waits until both answer.
    fn serving(path: SocketLb) -> Self {
        let cluster = Self::start(path);
        cluster.with_objects(async |objects| {
            objects.apply(NODE).await.unwrap();
            objects.apply(&NODE.replace("node-1", "node-2")).await.unwrap();
            objects.apply(&web_service(PORTS)).await.unwrap();
            cluster.add(objects, "web-1").await;
            cluster.add(objects, "web-2").await;
        });
        cluster.assert_answers(&["web-1", "web-2"]);
        cluster
    }

    /// Puts `web-3` in the place of `web-1`, and waits until it answers.
    fn replace_a_pod(&self) {
        self.with_objects(async |objects| {
            self.add(objects, "web-3").await;
            objects.finish_pod("web-1").await.unwrap();
        });
        self.assert_answers(&["web-2", "web-3"]);
    }
}

/// What users do to a Service, with real controllers between them and the agents.
fn follows_changes(path: SocketLb) {
    let cluster = Cluster::serving(path);
    cluster.replace_a_pod();
    type_transitions(&cluster);
    traffic_policies(&cluster);
    terminating_endpoints(&cluster);
}

fn type_transitions(cluster: &Cluster) {
    let alias = json!({"spec": {
        "type": "ExternalName", "externalName": "example.com",
        "clusterIP": "", "clusterIPs": null, "ipFamilies": null, "ipFamilyPolicy": null,
        "ports": [{"name": "http", "port": 80, "targetPort": 8080, "nodePort": null}],
    }});
    cluster.change(&alias);
    cluster.assert_no_answers();
    cluster.with_objects(async |objects| objects.apply(&web_service(PORTS)).await.unwrap());
    cluster.assert_answers(&["web-2", "web-3"]);
}

/// S6, S7: who asks from outside gets an endpoint of the node that was asked; who asks from inside
/// gets any, until the internal policy says otherwise.
fn traffic_policies(cluster: &Cluster) {
    let topology = &cluster.topology;
    let ask = |node: &str, expected: &str| {
        for family in Family::BOTH {
            let address = topology.node(node).socket(family, 30080).to_string();
            assert_all_answer(topology.client("client"), &address, &[expected]);
        }
    };
    let policies = |internal: &str, external: &str| {
        let policies = json!({
            "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
        });
        cluster.change(&json!({"spec": policies}));
    };
    policies("Cluster", "Local");
    ask("node-1", "web-3");
    ask("node-2", "web-2");
    for address in ADDRESSES {
        assert_all_answer(topology.pod("shell"), address, &["web-2", "web-3"]);
    }
    policies("Local", "Cluster");
    for address in ADDRESSES {
        assert_all_answer(topology.pod("shell"), address, &["web-3"]);
        assert_all_answer(topology.node("node-2"), address, &["web-2"]);
    }
    policies("Cluster", "Cluster");
    cluster.assert_answers(&["web-2", "web-3"]);
}

/// S1: Pods that are being deleted answer while they serve and nothing else is ready.
fn terminating_endpoints(cluster: &Cluster) {
    cluster.with_objects(async |objects| {
        objects.delete("Pod", "web-2").await.unwrap();
    });
    cluster.assert_answers(&["web-3"]);
    cluster.with_objects(async |objects| {
        objects.delete("Pod", "web-3").await.unwrap();
    });
    cluster.assert_answers(&["web-2", "web-3"]);
    cluster.with_objects(async |objects| {
        let failing = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        objects.merge_status("Pod", "web-3", &failing).await.unwrap();
    });
    cluster.assert_answers(&["web-2"]);
    cluster.with_objects(async |objects| {
        objects.finish_pod("web-2").await.unwrap();
        objects.finish_pod("web-3").await.unwrap();
    });
    cluster.assert_no_answers();
}

fn serves_through_a_restart(path: SocketLb) {
    let mut cluster = Cluster::serving(path);
    // Longer than the test; it ends with it.
    let arguments = ["tcp-get", ADDRESSES[0], "--seconds", "600", "--interval", "5"];
    let traffic = start_probe(cluster.topology.pod("shell"), "traffic", &arguments).unwrap();
    cluster.plane.kill_api().unwrap();
    cluster.assert_answers(&["web-1", "web-2"]);
    cluster.plane.restart_api().unwrap();
    cluster.replace_a_pod();
    assert_nothing_lost(&traffic.log());
}

#[track_caller]
fn assert_nothing_lost(log: &str) {
    // The last line may be half written.
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = json_lines(whole).unwrap();
    let failures: Vec<_> = lines.iter().filter(|line| line["event"] == "failure").collect();
    let answers = lines.iter().filter(|line| line["event"] == "answer").count();
    assert!(failures.is_empty() && answers > 100, "{answers} answers, {failures:?}");
}

#[test]
fn nodes_follow_an_api_server_by_the_socket_path() {
    require_kubernetes!();
    follows_changes(SocketLb::All);
}

#[test]
fn nodes_follow_an_api_server_by_the_packet_path() {
    require_kubernetes!();
    follows_changes(SocketLb::Off);
}

#[test]
#[ignore = "slow: two starts of the API server"]
fn nothing_is_lost_by_the_socket_path_while_the_api_server_restarts() {
    require_kubernetes!();
    serves_through_a_restart(SocketLb::All);
}

#[test]
#[ignore = "slow: two starts of the API server"]
fn nothing_is_lost_by_the_packet_path_while_the_api_server_restarts() {
    require_kubernetes!();
    serves_through_a_restart(SocketLb::Off);
}
