//! Input that is wrong: one sentence names object, field and mend, and all else goes on.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::process::Output;

use anyhow::ensure;
use lb_test::{
    Agent, AgentOptions, NodeSpec, PodSpec, Process, Topology, eventually, programs,
    require_topology,
};

mod cluster;
use cluster::{PATIENT, get, pod};

/// One node with a Service `good` that must go on working.
struct Place {
    agent: Agent,
    _server: Process,
    topology: Topology,
}

const GOOD: &str = "apiVersion: v1
kind: Service
metadata: {name: good}
spec: {type: NodePort, selector: {app: web}, clusterIP: 10.96.0.80, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
";

impl Place {
    fn new(arguments: &[&str]) -> Self {
        let topology = Topology::builder()
            .node(NodeSpec::new("node1"))
            .pod(PodSpec::routed("web-1", "node1"))
            .build()
            .unwrap();
        let server = programs::nginx(topology.pod("web-1"), &[8080]).unwrap();
        topology.apply("good.yaml", GOOD).unwrap();
        topology.apply("pods.yaml", &pod(&topology, "web-1", "True", "")).unwrap();
        let mut options = AgentOptions::manifests(topology.manifests());
        options.arguments = arguments.iter().map(ToString::to_string).collect();
        let agent = Agent::start_synced(topology.node("node1"), options).unwrap();
        Self { agent, _server: server, topology }
    }

    /// Waits until exactly these sentences are in `status`, and each in the log.
    #[track_caller]
    fn expect(&self, sentences: &[&str]) {
        eventually(PATIENT, "sentences in status and log", || {
            let problems = self.agent.status()?["problems"].clone();
            ensure!(problems == serde_json::json!(sentences), "{problems:#}");
            let log = self.agent.log();
            ensure!(sentences.iter().all(|sentence| log.contains(sentence)), "{log}");
            Ok(())
        });
        let node = self.topology.node("node1");
        for address in ["10.96.0.80:80", "127.0.0.1:30080"] {
            assert_eq!(get(node, address).unwrap(), "web-1");
        }
    }

    /// Applies a manifest that is wrong, expects the sentences, and none once it is gone.
    #[track_caller]
    fn refuses(&self, manifest: &str, sentences: &[&str]) {
        self.topology.apply("bad.yaml", manifest).unwrap();
        self.expect(sentences);
        self.topology.delete("bad.yaml").unwrap();
        self.expect(&[]);
    }
}

/// The name comes after `good`: where both claim one thing, it is the one that is refused.
fn service(spec: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: worse}}\nspec: {{{spec}}}\n")
}

/// A Service with a slice of one endpoint.
fn slice(family: &str, address: &str, port: u32) -> String {
    let service = service("ports: [{port: 80}]");
    format!(
        "{service}---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: worse-1, labels: {{kubernetes.io/service-name: worse}}}}\n\
         addressType: {family}\nports: [{{port: {port}}}]\n\
         endpoints: [{{addresses: [\"{address}\"]}}]\n"
    )
}

/// One agent for all: what is wrong is told, and told no more once it has gone.
#[test]
fn each_fault_of_a_manifest_is_told_in_one_sentence() {
    require_topology!();
    let place = Place::new(&[]);
    a_file_that_is_no_yaml(&place);
    an_unknown_protocol(&place);
    a_port_out_of_range(&place);
    an_address_of_the_wrong_family(&place);
    a_cluster_ip_that_another_service_has(&place);
    an_endpoint_that_nobody_else_can_reach(&place);
}

fn a_file_that_is_no_yaml(place: &Place) {
    let file = place.topology.manifests().join("bad.yaml");
    let sentence = format!(
        "file {}: line 1 column 7: mismatched bracket '[' closed by '}}'; mend the file; what it \
         held before stays in force",
        file.display()
    );
    place.refuses("kind: [}", &[&sentence]);
}

fn an_unknown_protocol(place: &Place) {
    for protocol in ["ICMP", "tcp"] {
        let sentence = format!(
            "Service default/worse: spec.ports[0].protocol: unknown protocol \"{protocol}\"; use \
             TCP, UDP or SCTP"
        );
        place.refuses(
            &service(&format!("ports: [{{port: 80, protocol: {protocol}}}]")),
            &[&sentence],
        );
    }
}

fn a_port_out_of_range(place: &Place) {
    let range = "is out of range; use a number from 1 to 65535";
    for (ports, field, port) in
        [("port: 70000", "port", 70000), ("port: 0", "port", 0), ("port: -1", "port", -1)]
    {
        let text = service(&format!("selector: {{app: web}}, ports: [{{{ports}}}]"));
        let sentence = format!("Service default/worse: spec.ports[0].{field}: port {port} {range}");
        place.refuses(&text, &[&sentence]);
    }
    place.refuses(
        &service("selector: {app: web}, ports: [{port: 80, targetPort: 70000}]"),
        &["Service default/worse: spec.ports[0].targetPort: port 70000 is out of range; use a \
           number from 1 to 65535, or a container port's name"],
    );
    let node_port = service("type: NodePort, ports: [{port: 80, nodePort: 8080}]");
    place.refuses(
        &node_port,
        &["Service default/worse: spec.ports[0].nodePort: node port 8080 is outside 30000-32767; \
           choose a free one in 30000-32767, or leave it out"],
    );
    let sentence = format!("EndpointSlice default/worse-1: ports[0].port: port 70000 {range}");
    place.refuses(&slice("IPv4", "10.248.1.99", 70000), &[&sentence]);
}

fn an_address_of_the_wrong_family(place: &Place) {
    let mend = "use an address of that family, or change the families";
    let text = service("ipFamilies: [IPv4], clusterIP: \"fd00:10:96::7\", ports: [{port: 80}]");
    let sentence = format!(
        "Service default/worse: spec.clusterIPs[0]: fd00:10:96::7 is not an IPv4 address; {mend}"
    );
    place.refuses(&text, &[&sentence]);
    for (family, address) in [("IPv4", "fd00:248:1::99"), ("IPv6", "10.248.1.99")] {
        let sentence = format!(
            "EndpointSlice default/worse-1: endpoints[0].addresses[0]: {address} is not an \
             {family} address; {mend}"
        );
        place.refuses(&slice(family, address, 80), &[&sentence]);
    }
}

fn a_cluster_ip_that_another_service_has(place: &Place) {
    place.refuses(
        &service("clusterIP: 10.96.0.80, ports: [{port: 80}]"),
        &["Service default/worse: spec.clusterIPs[0]: cluster IP 10.96.0.80 belongs to Service \
           default/good; choose another, or leave it out"],
    );
}

#[test]
fn a_node_port_that_another_service_has() {
    require_topology!();
    let place = Place::new(&[]);
    place.refuses(
        &service("type: NodePort, ports: [{port: 80, nodePort: 30080}]"),
        &["Service default/worse: spec.ports[0].nodePort: node port 30080/TCP belongs to Service \
           default/good; choose a free one in 30000-32767, or leave it out"],
    );
}

fn an_endpoint_that_nobody_else_can_reach(place: &Place) {
    for (family, address, what) in [
        ("IPv4", "127.0.0.1", "a loopback address"),
        ("IPv4", "169.254.1.1", "a link-local address"),
        ("IPv4", "224.0.0.1", "a multicast address"),
        ("IPv4", "0.0.0.0", "the unspecified address"),
        ("IPv6", "::1", "a loopback address"),
        ("IPv6", "fe80::1", "a link-local address"),
        ("IPv6", "ff02::1", "a multicast address"),
    ] {
        let sentence = format!(
            "EndpointSlice default/worse-1: endpoints[0].addresses[0]: {address} is {what}; use an \
             address that other machines can reach"
        );
        place.refuses(&slice(family, address, 80), &[&sentence]);
    }
}

/// Applies more than fits, and expects each that has no room to be told, until it is gone.
#[track_caller]
fn overfills(place: &Place, manifest: &str, reason: &str) {
    place.topology.apply("bad.yaml", manifest).unwrap();
    let before = "Service default/worse: spec.ports: port ";
    eventually(PATIENT, reason, || {
        let problems = place.agent.status()?["problems"].clone();
        let problems = problems.as_array().unwrap().iter().map(|problem| problem.as_str().unwrap());
        let mut told = problems.filter(|told| told.starts_with(before) && told.ends_with(reason));
        ensure!(told.next().is_some(), "{}", place.agent.log());
        Ok(())
    });
    assert!(place.agent.log().contains(reason), "{}", place.agent.log());
    assert_eq!(get(place.topology.node("node1"), "10.96.0.80:80").unwrap(), "web-1");
    place.topology.delete("bad.yaml").unwrap();
    place.expect(&[]);
}

#[test]
fn a_full_map() {
    require_topology!();
    let place = Place::new(&["--max-frontends=8", "--max-backends=8"]);
    let ports: Vec<_> = (1..20).map(|port| format!("{{port: {port}, name: p{port}}}")).collect();
    let frontends = service(&format!("ports: [{}]", ports.join(", ")));
    overfills(&place, &frontends, "FRONTENDS_V4 is full at 8 entries; raise --max-frontends");
    let addresses: Vec<_> =
        (100..120).map(|host| format!("{{addresses: [10.248.1.{host}]}}")).collect();
    let backends = slice("IPv4", "10.248.1.99", 80)
        .replace("{addresses: [\"10.248.1.99\"]}", &addresses.join(", "));
    overfills(&place, &backends, "BACKENDS_V4 is full at 8 entries; raise --max-backends");
}

/// Runs a command to its end, in a node of its own, with pins below `bpffs` there.
fn run(bpffs: Option<&str>, arguments: &[&str]) -> Output {
    let topology = Topology::builder().node(NodeSpec::new("node1")).build().unwrap();
    let node = topology.node("node1");
    let binary = lb_test::agent::binary().unwrap();
    let mut command = node.command(&binary.to_string_lossy()).unwrap();
    let bpffs = bpffs.map_or_else(|| node.bpffs().join("lb"), Into::into);
    command.args(["run", "--hostname-override", "node1", "--bpffs"]).arg(bpffs);
    command.arg("--cgroup").arg(node.cgroup().path()).args(arguments);
    command.output().unwrap()
}

#[track_caller]
fn expect_end(output: &Output, code: i32, last: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert_eq!(error.lines().last(), Some(last), "{error}");
}

#[test]
fn a_folder_of_manifests_that_is_not_there() {
    require_topology!();
    let error = "error: --manifests /no/such: No such file or directory (os error 2); create it, \
                 or name another";
    expect_end(&run(None, &["--manifests", "/no/such"]), 1, error);
}

#[test]
fn pins_that_cannot_be_made() {
    require_topology!();
    for (bpffs, reason) in [
        ("/proc/self/lb", "No such file or directory (os error 2)"),
        ("/dev/null/lb", "Not a directory (os error 20)"),
    ] {
        let output = run(Some(bpffs), &["--manifests", "/"]);
        let error = format!("error: {bpffs}: {reason}; name another folder with --bpffs");
        expect_end(&output, 1, &error);
    }
}

#[test]
fn a_server_that_does_not_answer_is_said_and_waited_for() {
    require_topology!();
    let mut place = Place::new(&[]);
    place.agent.term().unwrap();
    let folder = place.topology.manifests();
    let kubeconfig = folder.join("config");
    let text = "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
                clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
                contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u}]\n";
    std::fs::write(&kubeconfig, text).unwrap();
    let options = AgentOptions::kubeconfig(kubeconfig);
    let agent = Agent::start(place.topology.node("node1"), options).unwrap();
    let sentence = "source http://127.0.0.1:1: ServiceError: client error (Connect): tcp connect \
                    error: Connection refused (os error 111); check that the API server runs and \
                    can be reached; it is tried again";
    eventually(PATIENT, "sentence in log and status", || {
        ensure!(agent.log().contains(sentence), "{}", agent.log());
        // The command ends with 1, as for an agent that is unwell.
        let status = agent.status().unwrap_err().to_string();
        ensure!(status.contains(sentence), "{status}");
        Ok(())
    });
    // Nothing was listed, so nothing is removed.
    assert_eq!(get(place.topology.node("node1"), "10.96.0.80:80").unwrap(), "web-1");
}

#[test]
fn ctrl_c_ends_it_and_its_last_word_is_told() {
    require_topology!();
    let mut place = Place::new(&[]);
    let pid = nix::unistd::Pid::from_raw(place.agent.process().pid().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(place.agent.process().wait(PATIENT).unwrap().code(), Some(0));
    let status = place.agent.status().unwrap_err().to_string();
    assert!(status.contains("exit status: 1") && status.contains("\"alive\": false"), "{status}");
    let services = place.agent.services().unwrap().to_string();
    for part in ["good", "10.96.0.80", "30080", "web-1"] {
        assert!(services.contains(part), "{part} is not in {services}");
    }
}
