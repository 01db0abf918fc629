//! A Service as its users meet it: from pods, nodes and outside, on each path.

use lb_test::{
    Agent, AgentOptions, Family, NodeSpec, PodSpec, SocketLb, Topology, programs, require_topology,
};

const SERVICE: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: web-svc}
spec:
  type: NodePort
  selector: {app: web-nginx}
  ipFamilyPolicy: RequireDualStack
  clusterIPs: [10.96.100.100, "fd00:10:96::6464"]
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
"#;

fn pod(topology: &Topology, name: &str, node: &str) -> String {
    let pod = topology.pod(name);
    let (v4, v6) = (pod.ip(Family::V4), pod.ip(Family::V6));
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web-nginx}}}}\n\
         spec: {{nodeName: {node}}}\nstatus: {{phase: Running, podIPs: [{{ip: {v4}}}, {{ip: \"{v6}\"}}]}}\n---\n"
    )
}

fn curl_all(path: SocketLb) {
    let topology = Topology::builder()
        .node(NodeSpec::new("node1"))
        .node(NodeSpec::new("node2"))
        .pod(PodSpec::routed("web-1", "node1"))
        .pod(PodSpec::routed("web-2", "node2"))
        .pod(PodSpec::bridged("web-3", "node1"))
        .pod(PodSpec::routed("shell", "node1"))
        .client("client")
        .build()
        .unwrap();
    let mut pods = String::new();
    for (name, node) in [("web-1", "node1"), ("web-2", "node2"), ("web-3", "node1")] {
        pods += &pod(&topology, name, node);
    }
    let _servers: Vec<_> = ["web-1", "web-2", "web-3"]
        .into_iter()
        .map(|name| programs::nginx(topology.pod(name), &[8080]).unwrap())
        .collect();
    topology.apply("service.yaml", SERVICE).unwrap();
    topology.apply("pods.yaml", &pods).unwrap();
    let _agents: Vec<_> = ["node1", "node2"]
        .into_iter()
        .map(|name| {
            let options = AgentOptions::manifests(topology.manifests()).socket_lb(path);
            Agent::start_synced(topology.node(name), options).unwrap()
        })
        .collect();
    let node = topology.node("node1");
    for (from, name) in [
        (&**topology.pod("shell"), "pod"),
        (&**node, "node"),
        (topology.client("client"), "client"),
    ] {
        let urls = if name == "client" {
            [
                format!("http://{}:30080/", node.ip(Family::V4)),
                format!("http://[{}]:30080/", node.ip(Family::V6)),
            ]
        } else {
            ["http://10.96.100.100/".into(), "http://[fd00:10:96::6464]/".into()]
        };
        for url in urls {
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..60 {
                seen.insert(
                    programs::curl(from, &url, &["-m", "3"])
                        .unwrap_or_else(|e| panic!("{name} {url}: {e}")),
                );
                if seen.len() == 3 {
                    break;
                }
            }
            assert_eq!(seen.len(), 3, "{name} {url}: {seen:?}");
        }
    }
}

#[test]
fn all_backends_answer_by_the_socket_path() {
    require_topology!();
    curl_all(SocketLb::All);
}

#[test]
fn all_backends_answer_by_the_packet_path() {
    require_topology!();
    curl_all(SocketLb::Off);
}
