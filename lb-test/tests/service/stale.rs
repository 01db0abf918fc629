//! What becomes of sockets and flows whose backend is removed: datagrams at once, connections only
//! where that is asked for (S11, S12).

use std::net::SocketAddr;

use anyhow::ensure;
use lb_test::PATIENT;
use lb_test::manifests::{Condition, Service, cluster_ips, external_ips, list, pod};
use lb_test::programs::{self, json_lines};
use lb_test::{Family, Host, Process, SocketLb, eventually};
use serde_json::Value;

use crate::ask::{answering, probe};
use crate::{Cluster, WEB, on_both_paths};

on_both_paths! {
    connected => s11_connected_sockets_leave_a_removed_backend_by_the_socket_path, s11_connected_sockets_leave_a_removed_backend_by_the_packet_path;
    ended => s11_connected_sockets_are_refused_without_endpoints_by_the_socket_path, s11_connected_sockets_are_refused_without_endpoints_by_the_packet_path;
    moves => s11_flows_follow_an_address_to_its_new_service_by_the_socket_path, s11_flows_follow_an_address_to_its_new_service_by_the_packet_path;
    stays => s12_connections_stay_with_a_removed_backend_by_the_socket_path, s12_connections_stay_with_a_removed_backend_by_the_packet_path;
    resets => s12_connections_to_a_removed_backend_are_reset_on_demand_by_the_socket_path, s12_connections_to_a_removed_backend_are_reset_on_demand_by_the_packet_path;
}

impl Cluster {
    /// Makes this pod the only backend of the group [`WEB`]; all serve in the groups of their names.
    fn put_only(&self, name: &str) {
        let groups = |other| if other == name { vec![WEB, other] } else { vec![other] };
        let object =
            |name: &&'static str| pod(name, self.pod(name), &groups(*name), Condition::Ready);
        self.apply("pods.yaml", &list(&["web-1", "web-2"].iter().map(object).collect::<Vec<_>>()))
            .unwrap();
    }
}

/// Connected sockets of pods, of the node, and outside, which connect again when they are closed.
fn connected_streams(cluster: &Cluster) -> Vec<(bool, Process)> {
    let mut streams = Vec::new();
    for family in Family::BOTH {
        let vip = cluster_ips(1).socket(family, 80);
        let node_port = cluster.node("node1").socket(family, 30080);
        let inside = cluster.inside().map(|from| (from, vip));
        // The node's own first: where its sockets are closed is not where the search ends.
        for (from, to) in inside.into_iter().rev().chain([(cluster.outside(), node_port)]) {
            streams.push((cluster.has_socket_path(from), stream(from, to)));
        }
    }
    streams
}

fn stream(from: &Host, to: SocketAddr) -> Process {
    let to = to.to_string();
    let arguments = ["udp", &to, "--seconds", "600", "--interval", "10", "--connected"];
    let more = ["--reconnect", "--timeout", "500"];
    programs::start_probe(from, &format!("to-{to}"), &[&arguments[..], &more].concat()).unwrap()
}

/// The lines that are whole.
pub(crate) fn lines(process: &Process) -> Vec<Value> {
    let log = process.log();
    json_lines(log.rfind('\n').map_or("", |end| &log[..end])).unwrap()
}

pub(crate) fn failures(lines: &[Value]) -> Vec<&Value> {
    lines.iter().filter(|line| line["event"] == "failure").collect()
}

/// How often this pod has answered.
pub(crate) fn answers_of(process: &Process, name: &str) -> usize {
    lines(process).iter().filter(|line| line["body"] == name).count()
}

fn failed(stream: &Process) -> usize {
    failures(&lines(stream)).len()
}

/// Waits until the newest line is an answer of this pod.
#[track_caller]
fn wait_for(stream: &Process, name: &str) {
    eventually(PATIENT, &format!("answer of {name}"), || {
        let lines = lines(stream);
        let payload = lines.last().and_then(|line| line["payload"].as_str()).unwrap_or_default();
        ensure!(payload.starts_with(&format!("{name}:")), "{:?}", lines.last());
        Ok(())
    });
}

/// Waits until one more failure than `before` tells of this.
#[track_caller]
fn wait_for_failure(stream: &Process, before: usize, what: &str) {
    eventually(PATIENT, &format!("failure: {what}"), || {
        let lines = lines(stream);
        let new = failures(&lines).into_iter().skip(before);
        let told = new.filter_map(|line| line["error"].as_str()).any(|error| error.contains(what));
        ensure!(told, "{:?}", lines.last());
        Ok(())
    });
}

/// S11: a connected socket fails once and finds a backend that serves, also if nobody was there to
/// close it. Sockets that have come to the same pod another way stay.
fn connected(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB).udp(80, 5353).node_port(30080);
    let other = Service::new("other", 2).select("web-1").udp(80, 5353);
    let mut cluster = Cluster::start(path, &[service.object(), other.object()]);
    cluster.put_only("web-1");
    let streams = connected_streams(&cluster);
    let kept = Family::BOTH.map(|family| {
        let shell = cluster.pod("shell");
        let other = stream(shell, cluster_ips(2).socket(family, 80));
        [other, stream(shell, cluster.pod("web-1").socket(family, 5353))]
    });
    let all = streams.iter().map(|(_, stream)| stream).chain(kept.iter().flatten());
    for stream in all {
        wait_for(stream, "web-1");
    }
    let before: Vec<_> = streams.iter().map(|(_, stream)| failed(stream)).collect();
    cluster.put_only("web-2");
    for (_, stream) in &streams {
        wait_for(stream, "web-2");
    }
    cluster.agents[0].kill9().unwrap();
    cluster.put_only("web-1");
    cluster.agents[0].restart().unwrap();
    for ((is_closed, stream), before) in streams.iter().zip(before) {
        wait_for(stream, "web-1");
        // By packets, only an answer that is on its way while its flow is forgotten is lost.
        let allowed = if *is_closed { 2..=2 } else { 0..=2 };
        assert!(allowed.contains(&(failed(stream) - before)), "{}", stream.log());
    }
    for stream in kept.iter().flatten() {
        wait_for(stream, "web-1");
        assert_eq!(failed(stream), 0, "{}", stream.log());
    }
    no_thread_stays_elsewhere(&cluster);
    let expected = streams.iter().filter(|(is_closed, _)| *is_closed).count() as u64;
    eventually(PATIENT, "status of what was closed since the start", || {
        let status = cluster.agents[0].status()?;
        ensure!(status["agent"]["stale"]["closedSockets"] == expected, "{}", status["agent"]);
        Ok(())
    });
}

/// A pod's network namespace could not go for as long as a thread of the agent is in it.
#[track_caller]
fn no_thread_stays_elsewhere(cluster: &Cluster) {
    let status = cluster.agents[0].status().unwrap();
    let process = format!("/proc/{}", status["agent"]["pid"]);
    let home = std::fs::read_link(format!("{process}/ns/net")).unwrap();
    eventually(PATIENT, "all threads at home", || {
        for thread in std::fs::read_dir(format!("{process}/task"))? {
            let place = std::fs::read_link(thread?.path().join("ns/net"))?;
            ensure!(place == home, "{}, not {}", place.display(), home.display());
        }
        Ok(())
    });
}

/// S11, with zero endpoints and with a deleted Service.
fn ended(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB).udp(80, 5353).node_port(30080);
    let cluster = Cluster::start(path, &[service.object()]);
    cluster.put_pods(&["web-1"]);
    let streams = connected_streams(&cluster);
    let streams: Vec<_> = streams.into_iter().map(|(_, stream)| stream).collect();
    for stream in &streams {
        wait_for(stream, "web-1");
    }
    let before: Vec<_> = streams.iter().map(failed).collect();
    cluster.put_pods(&[]);
    for (stream, before) in streams.iter().zip(before) {
        wait_for_failure(stream, before, "refused");
    }
    cluster.put_pods(&["web-2"]);
    for stream in &streams {
        wait_for(stream, "web-2");
    }
    let before: Vec<_> = streams.iter().map(failed).collect();
    cluster.delete("objects.yaml").unwrap();
    for (stream, before) in streams.iter().zip(before) {
        wait_for_failure(stream, before, "");
    }
    eventually(PATIENT, "no flows", || {
        let flows = cluster.flows();
        ensure!(flows == [0, 0], "{flows:?}");
        Ok(())
    });
}

/// S11: known flows follow an address to the Service that has it, though their backends serve on.
fn moves(path: SocketLb) {
    let service = |name, number| Service::new(name, number).select(name).udp(80, 5353);
    let (first, second) = (service("web-1", 1), service("web-2", 2));
    let shared = |service: Service| service.external_ips(external_ips(1)).object();
    let cluster = Cluster::start(path, &[shared(first.clone()), second.clone().object()]);
    cluster.route_services();
    let mut streams = Vec::new();
    for from in cluster.inside().into_iter().chain([cluster.outside()]) {
        for to in Family::BOTH.map(|family| external_ips(1).socket(family, 80)) {
            streams.push(stream(from, to));
            let target = to.to_string();
            let arguments = ["udp", &target, "--seconds", "600", "--interval", "10"];
            let arguments = [&arguments[..], &["--timeout", "500"]].concat();
            let name = format!("unconnected-{target}");
            streams.push(programs::start_probe(from, &name, &arguments).unwrap());
        }
    }
    for stream in &streams {
        wait_for(stream, "web-1");
    }
    cluster.apply("objects.yaml", &list(&[first.object(), shared(second)])).unwrap();
    for stream in &streams {
        wait_for(stream, "web-2");
    }
}

/// S11: nothing more is sent, and the entries go all the same; those of connections stay (S12).
#[test]
fn s11_flows_of_a_removed_backend_are_forgotten() {
    lb_test::require_topology!();
    let service = Service::new("web", 1).select(WEB).udp(80, 5353).node_port(30080);
    let service = service.tcp(81, 8080).node_port(30081);
    let cluster = Cluster::start(SocketLb::Off, &[service.object()]);
    // One with the client's address kept, one behind another node.
    for name in ["web-1", "web-2"] {
        cluster.put_pods(&[name]);
        let mut connections = Vec::new();
        for family in Family::BOTH {
            let node = cluster.node("node1");
            let to = node.socket(family, 30080);
            eventually(PATIENT, name, || {
                // An answer that is on its way while its flow is forgotten is lost.
                // The second datagram proves the flow.
                let to = to.to_string();
                let two = ["udp", &to, "--timeout", "500", "--count", "2"];
                let lines = probe(cluster.outside(), &two);
                let payload = lines[0]["payload"].as_str().unwrap_or_default();
                ensure!(payload.starts_with(name), "{lines:?}");
                Ok(())
            });
            connections.push(connection(cluster.outside(), node.socket(family, 30081)));
        }
        let [v4, v6] = cluster.flows();
        assert!(v4 >= 4 && v6 >= 4, "two for each flow: {v4}, {v6}");
        cluster.put_pods(&[]);
        eventually(PATIENT, "flows of connections alone", || {
            let flows = cluster.flows();
            ensure!(flows[0] < v4 && flows[1] < v6, "{flows:?} of {v4}, {v6}");
            Ok(())
        });
        assert!(cluster.flows().iter().all(|flows| *flows >= 2), "{:?}", cluster.flows());
    }
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    let metrics = cluster.agents[0].page(address, 10249, "/metrics").unwrap();
    for family in ["IPv4", "IPv6"] {
        let name = "lb_conntrack_reconciler_deleted_entries_total";
        let line = format!("{name}{{ip_family=\"{family}\"}} ");
        let count = metrics.lines().find_map(|metric| metric.strip_prefix(&line)).unwrap();
        assert!(count.parse::<u64>().unwrap() >= 4, "{line}{count}");
    }
}

/// A connection that asks again and again, after its first answer.
fn connection(from: &Host, to: SocketAddr) -> Process {
    let to = to.to_string();
    let arguments = ["tcp-keepalive", &to, "--each", "--seconds", "600", "--interval", "20"];
    let mut process = programs::start_probe(from, &format!("stay-{to}"), &arguments).unwrap();
    process.wait_line("ready", PATIENT).unwrap();
    process
}

/// A connection each from pods, from the node and from outside, while web-1 serves alone.
pub(crate) fn connections(path: SocketLb, arguments: &[&str]) -> (Cluster, Vec<Process>) {
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080);
    let cluster =
        Cluster::without_agents(path, &[service.object()]).with_agents(&["node1"], arguments);
    cluster.put_pods(&["web-1"]);
    for family in Family::BOTH {
        let vip = cluster_ips(1).socket(family, 80);
        eventually(PATIENT, "web-1 alone", || {
            let pods = answering(cluster.pod("shell"), vip);
            ensure!(pods.iter().eq(["web-1"]), "{pods:?}");
            Ok(())
        });
    }
    let mut open = Vec::new();
    for family in Family::BOTH {
        let vip = cluster_ips(1).socket(family, 80);
        open.extend(cluster.inside().map(|from| connection(from, vip)));
        open.push(connection(cluster.outside(), cluster.node("node1").socket(family, 30080)));
    }
    cluster.put_pods(&["web-2"]);
    for family in Family::BOTH {
        let vip = cluster_ips(1).socket(family, 80);
        eventually(PATIENT, "web-2 alone", || {
            let pods = answering(cluster.pod("shell"), vip);
            ensure!(pods.iter().eq(["web-2"]), "{pods:?}");
            Ok(())
        });
    }
    (cluster, open)
}

/// S12: a connection goes on until the pod itself ends.
fn stays(path: SocketLb) {
    let (_cluster, open) = connections(path, &[]);
    let answers = |process| answers_of(process, "web-1");
    let before: Vec<_> = open.iter().map(answers).collect();
    for (process, before) in open.iter().zip(before) {
        eventually(PATIENT, "more answers of web-1", || {
            ensure!(answers(process) >= before + 5, "{before}, {:?}", lines(process).last());
            Ok(())
        });
        assert!(failures(&lines(process)).is_empty(), "{}", process.log());
    }
}

/// `--reset-tcp-on-removal`: its program learns at once that it must connect again.
fn resets(path: SocketLb) {
    let (cluster, open) = connections(path, &["--reset-tcp-on-removal"]);
    for process in &open {
        eventually(PATIENT, "end of the connection", || {
            let lines = lines(process);
            let error = failures(&lines).first().and_then(|line| line["error"].as_str());
            let error = error.unwrap_or_default().to_lowercase();
            ensure!(error.contains("reset") || error.contains("abort"), "{lines:?}");
            Ok(())
        });
    }
    drop(cluster);
}
