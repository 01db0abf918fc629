//! The library itself: everything in a topology reaches what it should, and nothing of it stays.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::ensure;
use lb_test::PATIENT;
use lb_test::address::DualStack;
use lb_test::programs::{self, curl, dig, dnsmasq, nginx, probe, udp_echo};
use lb_test::{
    Family, Host, NodeSpec, PodSpec, Topology, cgroup, eventually, require, require_topology, run,
};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;

/// Two nodes with a routed pod each and a client.
fn two_nodes() -> Topology {
    let builder = Topology::builder().node(NodeSpec::new("node1")).node(NodeSpec::new("node2"));
    let builder = builder.pod(PodSpec::routed("web-1", "node1").at(21));
    let builder = builder.pod(PodSpec::routed("web-2", "node2").at(50));
    builder.client("client").build().unwrap()
}

/// Asserts that each of `from` gets the name of `server` from nginx, over IPv4 and IPv6.
#[track_caller]
fn assert_answers(from: &[&Host], server: &Host) {
    let _nginx = nginx(server, &[80]).unwrap();
    for client in from {
        for family in Family::BOTH {
            let body = curl(client, &format!("http://{}/", server.socket(family, 80)), &[]);
            assert_eq!(body.unwrap(), format!("{}\n", server.name()), "from {}", client.name());
        }
    }
}

#[test]
fn everyone_reaches_a_routed_pod() {
    require_topology!();
    let topology = two_nodes();
    let pod = topology.pod("web-2");
    let (node1, node2) = (topology.node("node1"), topology.node("node2"));
    let from: [&Host; 5] = [topology.pod("web-1"), node1, node2, topology.client("client"), pod];
    assert_answers(&from, pod);
}

#[test]
fn everyone_reaches_a_bridged_pod() {
    require_topology!();
    let builder = Topology::builder().node(NodeSpec::new("node1")).node(NodeSpec::new("node2"));
    let builder = builder.pod(PodSpec::bridged("a", "node1")).pod(PodSpec::bridged("b", "node1"));
    let builder = builder.pod(PodSpec::routed("c", "node2"));
    let topology = builder.client("client").build().unwrap();
    let (node1, node2) = (topology.node("node1"), topology.node("node2"));
    let client = topology.client("client");
    assert_answers(
        &[topology.pod("b"), topology.pod("c"), node1, node2, client],
        topology.pod("a"),
    );
}

#[test]
fn routed_and_bridged_pods_share_a_node_with_strict_rp_filter() {
    require_topology!();
    let builder = Topology::builder().node(NodeSpec::new("node1").strict_rp_filter());
    let builder = builder.pod(PodSpec::routed("a", "node1")).pod(PodSpec::bridged("b", "node1"));
    let topology = builder.client("client").build().unwrap();
    let node = topology.node("node1");
    let read = || fs::read_to_string("/proc/sys/net/ipv4/conf/veth-a/rp_filter").unwrap();
    assert_eq!(node.enter(read).unwrap(), "1\n");
    assert_answers(&[topology.client("client"), node, topology.pod("b")], topology.pod("a"));
    assert_answers(&[topology.client("client"), node, topology.pod("a")], topology.pod("b"));
}

#[test]
fn a_node_answers_a_client_outside_at_its_own_and_at_routed_addresses() {
    require_topology!();
    let topology = two_nodes();
    let (node, client) = (topology.node("node1"), topology.client("client"));
    assert_answers(&[client], node);
    let _nginx = nginx(node, &[8080]).unwrap();
    for vip in ["10.96.100.100", "fd00:96::100"] {
        node.run("ip", &["addr", "add", vip, "dev", "lo"]).unwrap();
        let url = if vip.contains(':') { format!("[{vip}]") } else { vip.to_owned() };
        let url = format!("http://{url}:8080/");
        curl(client, &url, &["--max-time", "0.2"]).unwrap_err();
        let network = if vip.contains(':') { "fd00:96::/112" } else { "10.96.0.0/12" };
        topology.route_vip(network, "node1").unwrap();
        assert_eq!(curl(client, &url, &[]).unwrap(), "node1\n");
    }
}

#[test]
fn probe_reports_answers_failures_and_addresses() {
    require_topology!();
    let topology = two_nodes();
    let (pod, server) = (topology.pod("web-1"), topology.pod("web-2"));
    let _nginx = nginx(server, &[80]).unwrap();
    for family in Family::BOTH {
        let address = server.socket(family, 80).to_string();
        let lines = probe(pod, &["tcp-get", &address, "--count", "3", "--parallel", "2"]).unwrap();
        let summary = lines.last().unwrap();
        assert_eq!(summary["answers"], 6, "{lines:?}");
        assert_eq!(summary["bodies"]["web-2"], 6, "{lines:?}");
        let local = lines[0]["local"].as_str().unwrap();
        assert_eq!(local.parse::<std::net::SocketAddr>().unwrap().ip(), pod.ip(family));
        let lines = probe(pod, &["tcp-keepalive", &address, "--count", "5"]).unwrap();
        assert_eq!((&lines[0]["event"], &lines[1]["answers"]), (&"ready".into(), &5.into()));
        let lines = probe(pod, &["peername", &address]).unwrap();
        assert_eq!(lines[0]["address"], address);
        let lines = probe(pod, &["tcp-get", &server.socket(family, 81).to_string()]).unwrap();
        assert!(lines[0]["error"].as_str().unwrap().contains("refused"), "{lines:?}");
        assert_eq!(lines[1]["failures"], 1);
    }
    let mapped = format!("[::ffff:{}]:80", server.addresses().v4);
    let lines = probe(pod, &["tcp-get", &mapped]).unwrap();
    assert_eq!(lines[0]["body"], "web-2", "{lines:?}");
}

#[test]
fn udp_answers_show_their_source_and_the_client() {
    require_topology!();
    let topology = two_nodes();
    let (client, server) = (topology.client("client"), topology.pod("web-2"));
    let _echo = udp_echo(server, 5353).unwrap();
    for family in Family::BOTH {
        let address = server.socket(family, 5353).to_string();
        for options in [&["--count", "2"][..], &["--count", "2", "--connected"]] {
            let lines = probe(client, &[&["udp", &address], options].concat()).unwrap();
            assert_eq!(lines.len(), 2);
            assert_eq!(lines[1]["source"], address);
            let payload = lines[1]["payload"].as_str().unwrap();
            let from = client.ip(family).to_string();
            assert!(payload.starts_with("web-2:") && payload.contains(&from), "{payload}");
        }
    }
}

#[test]
fn a_real_dns_server_is_asked_over_udp() {
    require_topology!();
    let topology = two_nodes();
    let server = topology.pod("web-2");
    let _dns = dnsmasq(server, "web.test", DualStack::of_pod(1, 21)).unwrap();
    for family in Family::BOTH {
        let at = server.socket(family, 53);
        assert_eq!(dig(topology.pod("web-1"), at, "web.test", "A").unwrap(), "10.248.1.21");
        assert_eq!(dig(topology.node("node1"), at, "web.test", "AAAA").unwrap(), "fd00:248:1::21");
    }
}

#[test]
fn iperf3_measures_one_client_after_the_other() {
    require_topology!();
    let topology = two_nodes();
    let server = topology.pod("web-2");
    let _iperf3 = programs::iperf3_server(server).unwrap();
    let to = server.socket(Family::V4, 5201);
    std::thread::scope(|scope| {
        for from in [&**topology.pod("web-1"), topology.node("node1"), topology.node("node2")] {
            scope.spawn(move || {
                let report = programs::iperf3(from, to, &["-n", "20M"]).unwrap();
                assert!(report["end"]["sum_received"]["bytes"].as_u64().unwrap() > 0);
            });
        }
    });
    let nobody = server.socket(Family::V4, 5202);
    let error = programs::iperf3(topology.node("node1"), nobody, &[]).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error:#}");
}

#[test]
fn processes_are_in_their_hosts_cgroup() {
    require_topology!();
    let builder = Topology::builder().node(NodeSpec::new("node1"));
    let builder = builder.pod(PodSpec::routed("seen", "node1"));
    let topology = builder.pod(PodSpec::routed("kata", "node1").sandboxed()).build().unwrap();
    let of = |host: &Host| host.run("grep", &["^0::", "/proc/self/cgroup"]).unwrap();
    let run = topology.run_name();
    assert_eq!(of(topology.node("node1")), format!("0::/lb-test/{run}/node1\n"));
    assert_eq!(of(topology.pod("seen")), format!("0::/lb-test/{run}/node1/seen\n"));
    assert_eq!(of(topology.pod("kata")), format!("0::/lb-test/{run}/kata\n"));
}

#[test]
fn each_node_has_a_bpffs_that_its_processes_see() {
    require_topology!();
    let topology = two_nodes();
    for node in topology.nodes() {
        let kind = node.run("stat", &["-f", "-c", "%T", &node.bpffs().to_string_lossy()]);
        assert_eq!(kind.unwrap(), "bpf_fs\n");
    }
    assert_ne!(topology.nodes()[0].bpffs(), topology.nodes()[1].bpffs());
}

#[test]
fn checksum_offload_can_be_turned_off() {
    require_topology!();
    let topology = two_nodes();
    let fabric = topology.fabric();
    let offload = || fabric.run("ethtool", &["-k", "node1"]).unwrap();
    assert!(offload().contains("tx-checksumming: on"));
    fabric.complete_checksums("node1").unwrap();
    assert!(offload().contains("tx-checksumming: off"));
    assert_answers(&[topology.client("client")], topology.pod("web-1"));
}

/// What still carries a run's name: namespaces, cgroups, mounts and processes.
fn remains(run: &str, pids: &[u32]) -> Vec<String> {
    let netns = run::netns_of(run, "");
    let names = fs::read_dir("/run/netns").unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    let mut remains: Vec<String> = names.filter(|name| name.starts_with(&netns)).collect();
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let is_ours = |line: &&str| line.contains(&netns) || line.contains(&format!("/{run}/"));
    remains.extend(mounts.lines().filter(is_ours).map(str::to_owned));
    let folders = [cgroup::root().unwrap().join(run), run::directory(run)];
    remains.extend(folders.iter().filter(|path| path.exists()).map(|p| p.display().to_string()));
    remains.extend(pids.iter().filter(|pid| lives(**pid)).map(|pid| format!("process {pid}")));
    remains
}

/// Whether a process runs, or has ended and waits for this one to be told.
fn lives(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((_, state)) = stat.rsplit_once(") ") else { return false };
    !state.starts_with('Z') || state.starts_with(&format!("Z {} ", std::process::id()))
}

#[test]
fn nothing_stays_after_a_panic() {
    require_topology!();
    let mut run = String::new();
    let mut pids = Vec::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let topology = two_nodes();
        topology.run_name().clone_into(&mut run);
        let server = nginx(topology.pod("web-1"), &[80]).unwrap();
        topology.capture(topology.node("node1"), "eth0").unwrap();
        // A grandchild that no guard knows of.
        let script = "setsid sleep 1000 >/dev/null 2>&1 &";
        topology.node("node1").run("sh", &["-c", script]).unwrap();
        pids.push(server.pid());
        pids.extend(topology.node("node1").cgroup().pids().iter().map(|pid| pid.cast_unsigned()));
        assert!(pids.len() >= 3, "nginx, tcpdump and sleep run: {pids:?}");
        assert!(!remains(&run, &pids).is_empty());
        panic!("as a failing test does");
    }));
    let message = *panicked.unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(message, "as a failing test does");
    assert_eq!(remains(&run, &pids), [""; 0]);
}

#[test]
fn parallel_topologies_do_not_meet() {
    require_topology!();
    std::thread::scope(|scope| {
        let threads: Vec<_> = ["x", "y", "z"].map(|body| scope.spawn(move || talk(body))).into();
        for thread in threads {
            thread.join().unwrap();
        }
    });
}

/// Builds a topology of its own and asserts that its server is the one that answers.
fn talk(body: &str) {
    let topology = two_nodes();
    let server = topology.pod("web-2");
    let _nginx = programs::nginx_with_body(server, &[80], body).unwrap();
    for family in Family::BOTH {
        let url = format!("http://{}/", server.socket(family, 80));
        assert_eq!(curl(topology.client("client"), &url, &[]).unwrap(), body);
    }
}

#[test]
fn a_topology_is_built_and_removed_quickly() {
    require_topology!();
    let start = Instant::now();
    let builder = Topology::builder().node(NodeSpec::new("node1")).node(NodeSpec::new("node2"));
    let pods = [("web-1", "node1"), ("web-2", "node2"), ("web-3", "node1")];
    let builder = pods.iter().fold(builder, |b, (name, node)| b.pod(PodSpec::routed(name, node)));
    let topology = builder.client("client").build().unwrap();
    let built = start.elapsed();
    drop(topology);
    let removed = start.elapsed().saturating_sub(built);
    eprintln!("built in {built:?}, removed in {removed:?}");
    // Far above what it takes alone, because tests run beside it.
    assert!(built < PATIENT, "built in {built:?}");
}

#[test]
fn a_topology_that_can_not_be_built_leaves_nothing() {
    require_topology!();
    // Refused late, by the kernel, when all namespaces are there.
    let builder = Topology::builder().node(NodeSpec::new("node1")).client("br0");
    let error = format!("{:#}", builder.build().unwrap_err());
    let run = error.split("ip -batch in lb").nth(1).and_then(|rest| rest.split("-fabric").next());
    assert_eq!(remains(run.expect(&error), &[]), [""; 0]);
}

#[test]
fn the_world_shows_nodes_logs_and_packets() {
    require_topology!();
    let topology = two_nodes();
    let (node, server) = (topology.node("node1"), topology.pod("web-1"));
    let file = topology.capture(node, "veth-web-1").unwrap();
    let shell = ["-c", "echo words of a log"];
    node.start("chatter", "sh", &shell).unwrap().wait(PATIENT).unwrap();
    assert_answers(&[topology.client("client")], server);
    eventually(PATIENT, "packet in the capture", || {
        let packets = node.run("tcpdump", &["-nn", "-r", &file.to_string_lossy()])?;
        ensure!(packets.contains("172.21.0.2."), "{packets}");
        Ok(())
    });
    let world = topology.describe();
    for expected in [
        "node1: ip -br addr",
        "172.20.0.12/24",
        "10.248.1.21 dev veth-web-1",
        "node1: chatter.log\nwords of a log",
        "packets at node1 veth-web-1",
        "10.248.1.21.80: Flags [S]",
    ] {
        assert!(world.contains(expected), "no {expected:?} in {world}");
    }
}

/// Removes a kept run, though the test may fail before it does.
struct Kept(String);

impl Drop for Kept {
    fn drop(&mut self) {
        run::remove(&self.0).unwrap();
    }
}

#[test]
fn a_kept_topology_can_be_entered_and_removed_later() {
    require_topology!();
    let topology = two_nodes();
    let server = nginx(topology.pod("web-1"), &[80]).unwrap();
    let (pid, url) = (server.pid(), format!("http://{}/", topology.pod("web-1").ip(Family::V4)));
    server.keep();
    let name = topology.keep().unwrap();
    let kept = Kept(name.clone());
    assert!(run::kept().contains(&name));
    let mut command = Command::new("curl");
    run::join(&name, "web-2", command.args(["-sS", &url])).unwrap();
    assert_eq!(command.output().unwrap().stdout, b"web-1\n");
    drop(kept);
    waitpid(Pid::from_raw(pid.cast_signed()), None).unwrap();
    assert_eq!(remains(&name, &[pid]), [""; 0]);
    assert!(!run::kept().contains(&name));
}

/// A command that runs one test of this file in a process of its own.
fn test(name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    command
}

/// Builds a topology, says so, and stays until it is killed.
fn build_and_stay() -> ! {
    let topology = two_nodes();
    let server = nginx(topology.pod("web-1"), &[80]).unwrap();
    println!("\nrun {} {}", topology.run_name(), server.pid());
    loop {
        std::thread::park();
    }
}

#[test]
fn the_next_run_removes_what_a_killed_one_left() {
    require_topology!();
    if std::env::var_os("BUILD_AND_STAY").is_some() {
        build_and_stay();
    }
    let mut first = test("the_next_run_removes_what_a_killed_one_left");
    let mut child = first.env("BUILD_AND_STAY", "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.starts_with("run ")).unwrap();
    let (run, pid) = line["run ".len()..].split_once(' ').unwrap();
    let pids = [pid.parse().unwrap()];
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(lives(pids[0]), "nginx outlives the killed run");
    let next = test("each_node_has_a_bpffs_that_its_processes_see").output().unwrap();
    assert!(next.status.success(), "{next:?}");
    assert_eq!(remains(run, &pids), [""; 0]);
}

#[test]
fn a_test_that_can_not_run_is_written_down_with_its_reason() {
    if std::env::var_os("SKIP_THIS").is_some() {
        require!(true, "not a reason");
        require!(false, "needs another machine");
        panic!("a skipped test goes no further");
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("skips");
    let name = "a_test_that_can_not_run_is_written_down_with_its_reason";
    let mut skipped = test(name);
    skipped.env("SKIP_THIS", "1").env("LB_TEST_SKIPS", &file);
    assert!(skipped.output().unwrap().status.success());
    let skips = fs::read_to_string(file).unwrap();
    assert_eq!(skips, format!("SKIP {name}: needs another machine\n"));
}

#[test]
fn a_failing_test_prints_the_world_and_a_passing_one_does_not() {
    require_topology!();
    let name = "a_failing_test_prints_the_world_and_a_passing_one_does_not";
    if let Some(outcome) = std::env::var_os("OUTCOME") {
        let _topology = two_nodes();
        assert_eq!(outcome, "pass", "as asked for");
        return;
    }
    for (outcome, printed) in [("pass", false), ("fail", true)] {
        let output = test(name).env("OUTCOME", outcome).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), !printed, "{stderr}");
        assert_eq!(stderr.contains("the world of run"), printed, "{stderr}");
    }
}
