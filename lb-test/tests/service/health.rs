//! What load balancers in front ask: health check ports (S3), the node's own health (S4), and what
//! was measured on the way (S20).

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lb_test::PATIENT;
use lb_test::manifests::{Condition, Service, external_ips, list, pod, slices};
use lb_test::{Agent, AgentOptions, Family, Host, NodeSpec, PodSpec, SocketLb, Topology};
use lb_test::{eventually, programs, require_topology};
use serde_json::{Value, json};

use crate::{BACKENDS, Cluster, WEB, on_both_paths};

const HEALTH_PORT: u16 = 31900;
const OTHER_PORT: u16 = 31901;
const NODE_PORT: u16 = 30080;

on_both_paths! {
    health_ports => s3_health_check_ports_follow_endpoints_policy_and_restarts_by_the_socket_path, s3_health_check_ports_follow_endpoints_policy_and_restarts_by_the_packet_path;
}

/// A load balancer's Service with the Local policy and a health check port.
fn balanced(port: u16) -> Service {
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(NODE_PORT);
    let service = service.ingress(external_ips(1), "VIP").external_local();
    service.spec("healthCheckNodePort", json!(port))
}

/// The whole answer to a health check.
fn ask(from: &Host, to: SocketAddr, options: &[&str]) -> Result<String> {
    let url = format!("http://{to}/any/path?whatever");
    let mut arguments = vec!["-sSi", "--noproxy", "*", "--globoff", "--max-time", "10"];
    arguments.extend(options);
    arguments.push(&url);
    from.run("curl", &arguments)
}

/// Waits until the port answers that this node has so many endpoints, then asks for each byte
/// from everywhere.
#[track_caller]
fn assert_counts(cluster: &Cluster, node: &str, port: u16, count: usize) {
    let at = |family| cluster.node(node).socket(family, port);
    let status = if count > 0 { "200 OK" } else { "503 Service Unavailable" };
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t}},\n\t\
         \"localEndpoints\": {count},\n\t\"serviceProxyHealthy\": true\n}}"
    );
    for family in Family::BOTH {
        eventually(PATIENT, &format!("{count} endpoints on {node}"), || {
            let answer = ask(cluster.outside(), at(family), &[])?;
            ensure!(answer.ends_with(&body), "{answer}");
            Ok(())
        });
    }
    let askers = [cluster.outside(), cluster.pod("shell"), cluster.pod("side"), cluster.node(node)];
    for (from, family) in askers.into_iter().flat_map(|from| Family::BOTH.map(|f| (from, f))) {
        let answer = ask(from, at(family), &["-X", "PUT"]).unwrap();
        let (head, found) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(found, body, "{}", from.name());
        for line in [
            &*format!("HTTP/1.1 {status}"),
            "Content-Type: application/json",
            "X-Content-Type-Options: nosniff",
            &*format!("X-Load-Balancing-Endpoint-Weight: {count}"),
        ] {
            assert!(head.lines().any(|found| found == line), "{line} is not in\n{head}");
        }
    }
}

/// The health check ports that something in the node's namespace listens on.
fn listeners(node: &Host) -> Result<Vec<String>> {
    let sockets = node.run("ss", &["-ltnH"])?;
    let ports =
        sockets.lines().filter_map(|line| line.split_whitespace().nth(3)?.rsplit(':').next());
    let ours = ports.filter(|port| {
        [HEALTH_PORT, OTHER_PORT].map(|p| p.to_string()).contains(&(*port).to_owned())
    });
    Ok(ours.map(str::to_owned).collect())
}

#[track_caller]
fn wait_listeners(cluster: &Cluster, expected: &[u16]) {
    let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
    for node in ["node1", "node2"] {
        eventually(PATIENT, &format!("listeners {expected:?} on {node}"), || {
            let found = listeners(cluster.node(node))?;
            ensure!(found == expected, "{found:?}");
            Ok(())
        });
    }
}

fn health_ports(path: SocketLb) {
    let cluster = Cluster::without_agents(path, &[balanced(HEALTH_PORT).object()]);
    let mut cluster = cluster.with_agents(&["node1", "node2"], &[]);
    assert_counts(&cluster, "node1", HEALTH_PORT, 2);
    assert_counts(&cluster, "node2", HEALTH_PORT, 1);
    assert!(ask(cluster.node("node1"), ([127, 0, 0, 1], HEALTH_PORT).into(), &[]).is_ok());
    cluster.put_pods(&["web-2"]);
    assert_counts(&cluster, "node1", HEALTH_PORT, 0);
    assert_counts(&cluster, "node2", HEALTH_PORT, 1);
    only_terminating(&cluster);
    changes_of_the_service(&cluster);
    restarts(&mut cluster);
}

/// "fail health check node port if there are only terminating endpoints": load balancers leave,
/// and who comes is served until the pods end.
fn only_terminating(cluster: &Cluster) {
    let leaving = |name: &&str| pod(name, cluster.pod(name), &[WEB, name], Condition::Leaving);
    cluster.apply("pods.yaml", &list(&BACKENDS.each_ref().map(leaving))).unwrap();
    assert_counts(cluster, "node2", HEALTH_PORT, 0);
    assert_counts(cluster, "node1", HEALTH_PORT, 0);
    for family in Family::BOTH {
        let url = format!("http://{}/", cluster.node("node2").socket(family, NODE_PORT));
        assert_eq!(programs::curl(cluster.outside(), &url, &[]).unwrap(), "web-2\n");
    }
    cluster.put_pods(&BACKENDS);
    assert_counts(cluster, "node1", HEALTH_PORT, 2);
}

/// "implement NodePort and `HealthCheckNodePort` correctly when `ExternalTrafficPolicy` changes".
fn changes_of_the_service(cluster: &Cluster) {
    let put = |service: Service| cluster.apply("objects.yaml", &list(&[service.object()])).unwrap();
    wait_listeners(cluster, &[HEALTH_PORT]);
    put(balanced(OTHER_PORT));
    wait_listeners(cluster, &[OTHER_PORT]);
    assert_counts(cluster, "node1", OTHER_PORT, 2);
    put(balanced(OTHER_PORT).spec("externalTrafficPolicy", json!("Cluster")));
    wait_listeners(cluster, &[]);
    let url = format!("http://{}/", cluster.node("node1").socket(Family::V4, NODE_PORT));
    programs::curl(cluster.outside(), &url, &[]).unwrap();
    put(balanced(HEALTH_PORT));
    wait_listeners(cluster, &[HEALTH_PORT]);
    assert_counts(cluster, "node1", HEALTH_PORT, 2);
}

fn restarts(cluster: &mut Cluster) {
    cluster.agents[0].kill9().unwrap();
    assert_eq!(listeners(cluster.node("node1")).unwrap(), [""; 0]);
    cluster.put_pods(&["web-1"]);
    cluster.agents[0].restart().unwrap();
    cluster.agents[0].wait_synced(lb_test::agent::START).unwrap();
    assert_counts(cluster, "node1", HEALTH_PORT, 1);
    wait_listeners(cluster, &[HEALTH_PORT]);
    cluster.delete("objects.yaml").unwrap();
    wait_listeners(cluster, &[]);
}

/// A node that a cluster's autoscaler is about to delete, or that is being deleted, or neither.
fn node_object(name: &str, taint: Option<&str>, is_deleted: bool) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    if let Some(key) = taint {
        object["spec"]["taints"] = json!([{"key": key, "effect": "NoSchedule"}]);
    }
    if is_deleted {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    object
}

/// Status and body of a page of the agent's own server, from outside.
fn page(topology: &Topology, path: &str) -> Result<(String, Value)> {
    let node = topology.node("node1").socket(Family::V6, 10256);
    let url = format!("http://{node}{path}");
    let client = topology.client("client");
    let answer = client.run("curl", &["-sS", "--globoff", "-w", "\n%{http_code}", &url])?;
    let (body, code) = answer.rsplit_once('\n').unwrap();
    Ok((code.to_owned(), serde_json::from_str(body)?))
}

#[track_caller]
fn assert_eligible(topology: &Topology, is_eligible: bool) {
    let expected = if is_eligible { "200" } else { "503" };
    let what = format!("/healthz answers {expected}");
    let body = eventually(PATIENT, &what, || {
        let (code, body) = page(topology, "/healthz")?;
        ensure!(code == expected, "{code} {body}");
        Ok(body)
    });
    assert_eq!(body["nodeEligible"], is_eligible);
    assert!(body["lastUpdated"].is_string() && body["currentTime"].is_string(), "{body}");
    let (code, body) = page(topology, "/livez").unwrap();
    assert_eq!(code, "200", "a node that leaves is alive");
    assert_eq!(
        body.as_object().unwrap().keys().collect::<Vec<_>>(),
        ["currentTime", "lastUpdated"]
    );
    let port = topology.node("node1").socket(Family::V4, HEALTH_PORT);
    let check = ask(topology.client("client"), port, &[]).unwrap();
    assert!(check.starts_with("HTTP/1.1 200"), "no matter of a Service's health: {check}");
}

#[test]
fn s4_a_node_that_leaves_tells_load_balancers_and_s20_programming_is_measured() {
    require_topology!();
    let topology = Topology::builder()
        .node(NodeSpec::new("node1"))
        .pod(PodSpec::routed("web-1", "node1"))
        .client("client")
        .build()
        .unwrap();
    let node = topology.node("node1");
    let slices_now = || {
        let pods = [topology.pod("web-1")];
        let mut slices = slices("web", "web", ("tcp-80", 8080), &pods, &[]);
        let now = node.run("date", &["-u", "+%FT%T.%NZ"]).unwrap();
        for slice in &mut slices {
            let key = "endpoints.kubernetes.io/last-change-trigger-time";
            slice["metadata"]["annotations"] = json!({key: now.trim()});
        }
        list(&slices)
    };
    topology.apply("service.yaml", &list(&[balanced(HEALTH_PORT).object()])).unwrap();
    topology.apply("slices.yaml", &slices_now()).unwrap();
    topology.apply("node.yaml", &list(&[node_object(node.name(), None, false)])).unwrap();
    let options = AgentOptions::manifests(topology.manifests()).argument("--kube-proxy-metrics");
    let agent = Agent::start_synced(node, options).unwrap();
    assert_eligible(&topology, true);
    for (taint, is_deleted) in
        [(Some("ToBeDeletedByClusterAutoscaler"), false), (Some("other"), false), (None, true)]
    {
        let object = node_object(node.name(), taint, is_deleted);
        topology.apply("node.yaml", &list(&[object])).unwrap();
        assert_eligible(&topology, taint == Some("other"));
    }
    measured(&topology, &agent, &slices_now());
    assert_eq!(agent.page([127, 0, 0, 1].into(), 10249, "/proxyMode").unwrap(), "ebpf");
}

/// The first list is not measured; each slice that comes later is, under both names.
#[track_caller]
fn measured(topology: &Topology, agent: &Agent, slices: &str) {
    let metrics = || agent.page([127, 0, 0, 1].into(), 10249, "/metrics").unwrap();
    let name = "network_programming_duration_seconds_count";
    assert!(!metrics().contains(name), "the first list was measured:\n{}", metrics());
    topology.apply("slices.yaml", slices).unwrap();
    for prefix in ["lb", "kubeproxy"] {
        for family in ["IPv4", "IPv6"] {
            let line = format!("{prefix}_{name}{{ip_family=\"{family}\"}} 1\n");
            eventually(PATIENT, &line, || {
                ensure!(metrics().contains(&line), "{}", metrics());
                Ok(())
            });
        }
    }
    let text = metrics();
    for line in [
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
        "kubeproxy_sync_proxy_rules_service_changes_total 1",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv4\"} 0",
        "kubeproxy_proxy_livez_total{code=\"200\"} 4",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}
