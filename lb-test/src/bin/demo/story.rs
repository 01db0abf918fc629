//! The story itself: what is shown, in which order, and what must be true of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use lb_test::{Family, Host, SocketLb, programs, run, try_eventually};

use crate::cluster::Cluster;
use crate::interrupt;
use crate::manifests::{
    self, CLUSTER_IPS, FOLDER, NODE_PORT, NODE_PORT_FOLDER, NODE_PORT_SERVICE, PODS, PORT, SERVICE,
};
use crate::narrator::Narrator;
use crate::traffic::{self, Client, PROBE};

/// The fewest requests that a place sends before it is content.
const FEWEST: usize = 9;
/// The most requests that a place sends for all pods to answer.
const MOST: usize = 200;
/// Requests of each background client, at least, after each change of scale.
const LOAD: u64 = 400;
/// How long programs may stay attached after a cleanup.
const DETACHED: Duration = Duration::from_secs(5);
/// How many lost requests are told one by one.
const FAILURES_SHOWN: usize = 10;
/// Commands that print a node's packet filter rules.
const RULES: [&[&str]; 3] = [&["nft", "list", "ruleset"], &["iptables-save"], &["ip6tables-save"]];

const TRANSLATED_AT_CONNECT: &str =
    "Socket path: connect() goes to the pod at once, and no packet carries the Service's address.";

/// Tells all of it but the end.
pub(crate) fn tell(narrator: &mut Narrator, cluster: &mut Cluster) -> Result<()> {
    show_cluster(narrator, cluster)?;
    start_agents(narrator, cluster)?;
    ask_from_pod(narrator, cluster)?;
    ask_from_node(narrator, cluster)?;
    open_node_port(narrator, cluster)?;
    scale_under_load(narrator, cluster)?;
    show_no_rules(narrator, cluster)
}

/// Ends the agents, undoes what they did, and removes the cluster.
pub(crate) fn end(narrator: &mut Narrator, mut cluster: Cluster) -> Result<()> {
    narrator.step("The agents stop: the Service goes on, until they clean up")?;
    for agent in cluster.agents() {
        agent.term()?;
    }
    narrator.say("Both agents have got SIGTERM and are gone; the BPF programs are still there.")?;
    ask_node_port(narrator, &cluster, "node1", Family::V4)?;
    for number in 0..cluster.agents().len() {
        run_agent(narrator, &cluster, number, "cleanup")?;
        cluster.agents()[number].command(&["cleanup"]).and_then(|text| narrator.excerpt(&text))?;
    }
    refuse_node_port(narrator, &cluster)?;
    let run = cluster.topology().run_name().to_owned();
    drop(cluster);
    ensure!(!run::directory(&run).exists(), "something is left of run {run}");
    narrator.say(&format!("Run {run} is gone; `cargo xtask demo --keep` would have left it up."))
}

/// Sees that nobody answers at the `NodePort` any more.
fn refuse_node_port(narrator: &Narrator, cluster: &Cluster) -> Result<()> {
    let (topology, client) = (cluster.topology(), cluster.topology().client("client"));
    let url = format!("http://{}/", topology.node("node1").socket(Family::V4, NODE_PORT));
    narrator.command(client.name(), &curl_command(&url))?;
    // The kernel detaches programs a moment after their last pin has gone.
    let error = try_eventually(DETACHED, "end of the Service", || {
        match programs::curl(client, &url, &[]) {
            Ok(answer) => bail!("{url} still answers {answer:?}"),
            Err(error) => Ok(error.to_string()),
        }
    })?;
    narrator.output(error.find("curl: (").map_or(&error, |start| &error[start..]))
}

fn show_cluster(narrator: &mut Narrator, cluster: &Cluster) -> Result<()> {
    narrator.step("Two nodes, three nginx pods, and a Service for them")?;
    let topology = cluster.topology();
    let mut places: Vec<(&Host, &str)> = vec![(topology.client("client"), "outside")];
    places.extend(topology.nodes().iter().map(|node| (&**node, "node")));
    places.extend(topology.pods().iter().map(|pod| (&**pod, pod.node())));
    for (host, place) in places {
        let what = match place {
            "outside" | "node" => place.to_owned(),
            node => format!("pod on {node}"),
        };
        let (v4, v6) = (host.ip(Family::V4), host.ip(Family::V6));
        narrator.say(&format!("{:<8} {what:<13} {v4:<12} {v6}", host.name()))?;
    }
    narrator.say(&format!(
        "Each is a network namespace of this machine: run {}.",
        topology.run_name()
    ))?;
    narrator.command("", &format!("cat {FOLDER}/service.yaml"))?;
    narrator.output(SERVICE)?;
    let manifests = topology.manifests();
    narrator.command("", &format!("cp {FOLDER}/*.yaml {}", manifests.display()))?;
    topology.apply("service.yaml", SERVICE)?;
    PODS.iter().try_for_each(|(name, _, _, text)| topology.apply(&pod_file(name), text))
}

fn start_agents(narrator: &mut Narrator, cluster: &mut Cluster) -> Result<()> {
    narrator.step("An agent on each node puts the Service into the kernel")?;
    let manifests = cluster.topology().manifests();
    let socket_lb = match cluster.socket_lb() {
        SocketLb::All => "all",
        SocketLb::Host => "host",
        SocketLb::Off => "off",
    };
    let call =
        format!("lb-agent run --manifests {} --socket-lb {socket_lb} &", manifests.display());
    for node in cluster.topology().nodes() {
        narrator.command(node.name(), &call)?;
    }
    cluster.start_agents()?;
    cluster.wait_backends("ClusterIP", PODS.len())?;
    show_services(narrator, cluster)
}

fn ask_from_pod(narrator: &mut Narrator, cluster: &Cluster) -> Result<()> {
    narrator.step("From a pod to the ClusterIP")?;
    narrator.say(match cluster.socket_lb() {
        SocketLb::All => TRANSLATED_AT_CONNECT,
        SocketLb::Host | SocketLb::Off => {
            "Packet path: the TC programs at the pod's device rewrite its packets and the replies."
        }
    })?;
    ask_cluster_ips(narrator, cluster, cluster.topology().pod("shell"))
}

fn ask_from_node(narrator: &mut Narrator, cluster: &Cluster) -> Result<()> {
    narrator.step("From a node to the ClusterIP")?;
    narrator.say(match cluster.socket_lb() {
        SocketLb::All | SocketLb::Host => TRANSLATED_AT_CONNECT,
        SocketLb::Off => {
            "Packet path: the TC programs at the node's uplink rewrite its packets and the replies."
        }
    })?;
    ask_cluster_ips(narrator, cluster, cluster.topology().node("node2"))
}

fn open_node_port(narrator: &mut Narrator, cluster: &Cluster) -> Result<()> {
    narrator.step("A NodePort, for clients outside")?;
    let (before, after) =
        (format!("{FOLDER}/service.yaml"), format!("{NODE_PORT_FOLDER}/service.yaml"));
    narrator.command("", &format!("diff {before} {after}"))?;
    narrator.output(&manifests::changed_lines(SERVICE, NODE_PORT_SERVICE))?;
    let manifests = cluster.topology().manifests();
    narrator.command("", &format!("cp {after} {}", manifests.display()))?;
    cluster.topology().apply("service.yaml", NODE_PORT_SERVICE)?;
    cluster.wait_backends("NodePort", PODS.len())?;
    narrator.say("Packet path: the TC programs at the uplink of the node that is asked.")?;
    for (node, family) in [("node1", Family::V4), ("node2", Family::V4), ("node1", Family::V6)] {
        ask_node_port(narrator, cluster, node, family)?;
    }
    Ok(())
}

fn scale_under_load(narrator: &mut Narrator, cluster: &mut Cluster) -> Result<()> {
    narrator.step("Scaling from 3 pods to 1 and back to 3, under load")?;
    let topology = cluster.topology();
    let node = topology.node("node1").socket(Family::V4, NODE_PORT);
    let [v4, v6] = CLUSTER_IPS;
    let clients = [
        Client::new(topology.pod("shell"), SocketAddr::new(v4.parse()?, PORT)),
        Client::new(topology.node("node2"), SocketAddr::new(v6.parse()?, PORT)),
        Client::new(topology.client("client"), node),
    ];
    for Client { host, address, .. } in &clients {
        let probe = format!("while probe tcp-get {address} {}; do :; done &", PROBE.join(" "));
        narrator.command(host.name(), &probe)?;
    }
    traffic::during(&clients, || {
        traffic::wait_answers(&clients, LOAD)?;
        scale_down(narrator, cluster)?;
        traffic::wait_answers(&clients, LOAD)?;
        scale_up(narrator, cluster)?;
        traffic::wait_answers(&clients, LOAD)
    })?;
    sum_up(narrator, &clients)
}

fn scale_down(narrator: &Narrator, cluster: &mut Cluster) -> Result<()> {
    let files = PODS.map(|(name, ..)| pod_file(name));
    let manifests = cluster.topology().manifests();
    let leaving = &files[1..];
    narrator.command("", &format!("cd {}; rm {}", manifests.display(), leaving.join(" ")))?;
    leaving.iter().try_for_each(|file| cluster.topology().delete(file))?;
    cluster.wait_backends("ClusterIP", 1)?;
    for (name, ..) in &PODS[1..] {
        cluster.stop_server(name)?;
    }
    narrator.say("Their last connections have ended, and nginx has been stopped in both.")?;
    show_services(narrator, cluster)
}

fn scale_up(narrator: &Narrator, cluster: &mut Cluster) -> Result<()> {
    for (name, ..) in &PODS[1..] {
        cluster.start_server(name)?;
    }
    narrator.say("nginx runs again in both.")?;
    let manifests = cluster.topology().manifests();
    for (name, _, _, text) in &PODS[1..] {
        let file = pod_file(name);
        narrator.command("", &format!("cp {FOLDER}/{file} {}", manifests.display()))?;
        cluster.topology().apply(&file, text)?;
    }
    cluster.wait_backends("ClusterIP", PODS.len())
}

/// Prints each client's requests, and fails if one was lost.
fn sum_up(narrator: &Narrator, clients: &[Client]) -> Result<()> {
    let (mut requests, mut failures) = (0, Vec::new());
    for client in clients {
        let (count, from) = (client.count(), client.host.name());
        let (sent, lost) = (count.answers + count.failures.len() as u64, count.failures.len());
        let slowest = count.slowest;
        narrator.say(&format!(
            "{from:<6} to {}: {sent} requests, {lost} lost, slowest answer {slowest:.0} ms",
            client.address
        ))?;
        requests += sent;
        failures.extend(count.failures);
    }
    narrator.say(&format!("{requests} requests, {} lost", failures.len()))?;
    let first = failures.get(..FAILURES_SHOWN).unwrap_or(&failures);
    ensure!(failures.is_empty(), "requests were lost; the first are\n{}", first.join("\n"));
    Ok(())
}

fn show_no_rules(narrator: &mut Narrator, cluster: &Cluster) -> Result<()> {
    narrator.step("Not one packet filter rule was needed")?;
    for node in cluster.topology().nodes() {
        for rules in RULES {
            let printed = narrator.run(node, rules[0], &rules[1..])?;
            ensure!(printed.trim().is_empty(), "{} has rules:\n{printed}", node.name());
        }
    }
    narrator.say("All of them printed nothing: there are no rules.")
}

fn show_services(narrator: &Narrator, cluster: &mut Cluster) -> Result<()> {
    run_agent(narrator, cluster, 0, "services")?;
    narrator.output(&cluster.agents()[0].command(&["services"])?)
}

/// Shows the call of a subcommand of the agent on a node.
fn run_agent(narrator: &Narrator, cluster: &Cluster, number: usize, name: &str) -> Result<()> {
    let node = &cluster.topology().nodes()[number];
    let pins = node.bpffs().join("lb");
    narrator.command(node.name(), &format!("lb-agent {name} --bpffs {}", pins.display()))
}

fn ask_cluster_ips(narrator: &Narrator, cluster: &Cluster, from: &Host) -> Result<()> {
    let [v4, v6] = CLUSTER_IPS;
    ask(narrator, cluster, from, &format!("http://{v4}/"))?;
    ask(narrator, cluster, from, &format!("http://[{v6}]/"))
}

fn ask_node_port(narrator: &Narrator, cluster: &Cluster, node: &str, family: Family) -> Result<()> {
    let address = cluster.topology().node(node).socket(family, NODE_PORT);
    ask(narrator, cluster, cluster.topology().client("client"), &format!("http://{address}/"))
}

/// Gets `url` again and again until all pods have answered, and prints how often each did.
fn ask(narrator: &Narrator, cluster: &Cluster, from: &Host, url: &str) -> Result<()> {
    narrator.command(from.name(), &curl_command(url))?;
    let mut answers = BTreeMap::<String, usize>::new();
    for sent in 1..=MOST {
        interrupt::check()?;
        let pod = programs::curl(from, url, &[])?.trim().to_owned();
        *answers.entry(pod).or_default() += 1;
        if sent >= FEWEST && answers.len() == PODS.len() {
            break;
        }
    }
    let family = if url.contains('[') { Family::V6 } else { Family::V4 };
    let counts: Vec<_> = answers
        .iter()
        .map(|(pod, count)| format!("{count} × {pod} {}", cluster.topology().pod(pod).ip(family)))
        .collect();
    let total: usize = answers.values().sum();
    narrator.output(&format!("{total} answers: {}", counts.join(", ")))?;
    ensure!(answers.len() == PODS.len(), "{url} from {}: not all pods answer", from.name());
    Ok(())
}

fn curl_command(url: &str) -> String {
    format!("curl -sS --fail '{url}'")
}

fn pod_file(name: &str) -> String {
    format!("{name}.yaml")
}
