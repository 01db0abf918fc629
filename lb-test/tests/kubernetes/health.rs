//! What load balancers and people are told by agents that follow real controllers: health check
//! ports (S3), the node's health (S4), Events, and how long programming took (S20).

use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use lb_test::kubernetes::{ControlPlane, Objects, run_inside};
use lb_test::programs::{curl, nginx};
use lb_test::{Agent, AgentOptions, Family, NodeSpec, PodSpec, Process, Topology};
use lb_test::{eventually, require_kubernetes};
use serde_json::{Value, json};

use crate::manifests::{NODE, binding_of, pod_on};

const RBAC: &str = include_str!("../../../deploy/kubernetes/rbac.yaml");
const PATIENCE: Duration = Duration::from_mins(1);
const HEALTH_PORT: u16 = 30999;
/// A health check port that something else uses.
const TAKEN: u16 = 30998;

fn service(name: &str, health_port: u16, node_port: u16) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  healthCheckNodePort: {health_port}
  selector: {{app: web}}
  ipFamilyPolicy: RequireDualStack
  ports: [{{name: http, port: 80, targetPort: 8080, nodePort: {node_port}}}]
"
    )
}

/// Two nodes with a web server each; the agents have the rights of the manifest that is shipped.
struct Cluster {
    agents: Vec<Agent>,
    _servers: Vec<Process>,
    plane: ControlPlane,
    topology: Topology,
}

impl Cluster {
    fn start() -> Self {
        let builder = Topology::builder().node(NodeSpec::new("node-1"));
        let builder = builder.node(NodeSpec::new("node-2")).client("client");
        let builder = builder.pod(PodSpec::routed("web-1", "node-1"));
        let topology = builder.pod(PodSpec::routed("web-2", "node-2")).build().unwrap();
        let mut servers: Vec<_> =
            ["web-1", "web-2"].map(|name| nginx(topology.pod(name), &[8080]).unwrap()).into();
        servers.push(nginx(topology.node("node-1"), &[TAKEN]).unwrap());
        let plane = ControlPlane::start(topology.fabric()).unwrap();
        let cluster = Self { agents: Vec::new(), _servers: servers, plane, topology };
        let prepare = async || {
            let system = cluster.plane.objects("kube-system").await.unwrap();
            system.apply(RBAC).await.unwrap();
            system.apply(&binding_of("limited", "lb-agent")).await.unwrap();
            system.apply(NODE).await.unwrap();
            system.apply(&NODE.replace("node-1", "node-2")).await.unwrap();
        };
        run_inside(cluster.plane.host(), prepare).unwrap();
        let kubeconfig = cluster.plane.kubeconfig_of("limited").unwrap();
        let started = cluster.topology.nodes().iter().map(|node| {
            Agent::start_synced(node, AgentOptions::kubeconfig(kubeconfig.clone())).unwrap()
        });
        let agents = started.collect();
        Self { agents, ..cluster }
    }

    fn with_objects<T: Send>(&self, work: impl AsyncFnOnce(&Objects) -> T + Send) -> T {
        let work = async || work(&self.plane.objects("default").await.unwrap()).await;
        run_inside(self.plane.host(), work).unwrap()
    }

    /// What a page of the node answers to the client: its body and status.
    fn page(&self, node: &str, port: u16, path: &str) -> Result<(Value, String)> {
        let url = format!("http://{}{path}", self.topology.node(node).socket(Family::V4, port));
        let client = self.topology.client("client");
        let answer = client.run("curl", &["-sS", "-m", "10", "-w", "\n%{http_code}", &url])?;
        let (body, code) = answer.rsplit_once('\n').unwrap();
        Ok((serde_json::from_str(body)?, code.to_owned()))
    }

    #[track_caller]
    fn wait_page(&self, node: &str, (port, path): (u16, &str), code: &str) -> Value {
        eventually(PATIENCE, &format!("{node}{path} answers {code}"), || {
            let (body, found) = self.page(node, port, path)?;
            ensure!(found == code, "{found} {body}");
            Ok(body)
        })
    }

    #[track_caller]
    fn wait_count(&self, node: &str, count: u64) {
        let code = if count > 0 { "200" } else { "503" };
        let body = self.wait_page(node, (HEALTH_PORT, "/"), code);
        assert_eq!(body["localEndpoints"], count, "{node}");
    }

    /// Applies both Pods as their kubelets report them, and waits until all know of them.
    fn populate(&self) {
        self.with_objects(async |objects| {
            objects.apply(&service("web", HEALTH_PORT, 30080)).await.unwrap();
        });
        self.wait_count("node-1", 0);
        self.with_objects(async |objects| {
            for name in ["web-1", "web-2"] {
                let pod = self.topology.pod(name);
                let ips = Family::BOTH.map(|family| pod.ip(family).to_string());
                let ips = ips.each_ref().map(String::as_str);
                objects.apply(&pod_on(pod.node(), name, "web", &ips, true)).await.unwrap();
            }
        });
        self.wait_count("node-1", 1);
        self.wait_count("node-2", 1);
    }

    /// Waits for the agents' one Event about a Service.
    #[track_caller]
    fn wait_event(&self, service: &str) -> Value {
        eventually(PATIENCE, "an Event", || {
            let all = async |objects: &Objects| objects.events("Service", service).await;
            let mut events = self.with_objects(all)?;
            events.retain(|event| event["reportingController"] == "lb-agent");
            ensure!(events.len() == 1, "{events:?}");
            Ok(events[0].clone())
        })
    }
}

#[test]
fn s3_s4_s20_load_balancers_people_and_dashboards_are_told_of_a_real_cluster() {
    require_kubernetes!();
    let cluster = Cluster::start();
    cluster.populate();
    a_pod_that_ends(&cluster);
    a_node_that_leaves(&cluster);
    a_port_that_is_taken(&cluster);
    a_service_that_comes(&cluster);
}

/// The load balancer leaves, and clients that still come are served.
fn a_pod_that_ends(cluster: &Cluster) {
    cluster.with_objects(async |objects| objects.delete("Pod", "web-1").await.unwrap());
    cluster.wait_count("node-1", 0);
    let node = cluster.topology.node("node-1");
    for family in Family::BOTH {
        let url = format!("http://{}/", node.socket(family, 30080));
        assert_eq!(curl(cluster.topology.client("client"), &url, &[]).unwrap(), "web-1\n");
    }
    cluster.wait_count("node-2", 1);
}

fn a_node_that_leaves(cluster: &Cluster) {
    let taint = |taints: Value| {
        let change = json!({"spec": {"taints": taints}});
        cluster
            .with_objects(async |objects| objects.merge("Node", "node-2", &change).await.unwrap());
    };
    cluster.wait_page("node-2", (10256, "/healthz"), "200");
    taint(json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]));
    let body = cluster.wait_page("node-2", (10256, "/healthz"), "503");
    assert_eq!(body["nodeEligible"], false);
    cluster.wait_page("node-2", (10256, "/livez"), "200");
    cluster.wait_count("node-2", 1);
    taint(json!(null));
    cluster.wait_page("node-2", (10256, "/healthz"), "200");
    cluster.with_objects(async |objects| objects.delete("Node", "node-2").await.unwrap());
    cluster.wait_page("node-2", (10256, "/healthz"), "503");
}

fn a_port_that_is_taken(cluster: &Cluster) {
    let manifest = service("other", TAKEN, 30081);
    cluster.with_objects(async |objects| objects.apply(&manifest).await.unwrap());
    let event = cluster.wait_event("other");
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "FailedToStartServiceHealthcheck");
    assert_eq!(event["reportingInstance"], "node-1");
    assert_eq!(event["regarding"]["fieldPath"], "spec.healthCheckNodePort");
    assert!(event["regarding"]["uid"].is_string(), "{event}");
    let note = event["note"].as_str().unwrap();
    assert!(note.contains(&format!("listen on [::]:{TAKEN}: Address already in use")), "{note}");
    let status = cluster.agents[0].status().unwrap();
    let told = status["problems"][0].as_str().unwrap();
    assert!(told.starts_with("Service default/other: spec.healthCheckNodePort: listen"), "{told}");
}

/// How long after it the tables had it is measured, by each agent.
fn a_service_that_comes(cluster: &Cluster) {
    // Times of the API have whole seconds: what comes in the agents' first one may be older.
    thread::sleep(Duration::from_secs(1));
    let manifest = service("late", 30997, 30082);
    cluster.with_objects(async |objects| objects.apply(&manifest).await.unwrap());
    for agent in &cluster.agents {
        for family in ["IPv4", "IPv6"] {
            let start =
                format!("lb_network_programming_duration_seconds_count{{ip_family=\"{family}\"}}");
            eventually(PATIENCE, &start, || {
                let text = agent.page([127, 0, 0, 1].into(), 10249, "/metrics")?;
                ensure!(text.lines().any(|line| line.starts_with(&start)), "{text}");
                Ok(())
            });
        }
    }
}
