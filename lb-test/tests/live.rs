//! What changes while the agent runs is in force within a second: manifests, devices, addresses.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::{fs::File, io::Write, net::IpAddr, path::Path};

use anyhow::{bail, ensure};
use lb_agent::dataplane::Reader;
use lb_test::{Family, Host, SocketLb, eventually, programs, require_topology};

mod cluster;
use cluster::{Cluster, PATIENT, WEB, answers, get, pod, tables};

const CLUSTER_IP: &str = "10.96.100.100";

/// Waits until the tables of node1 have a frontend with this address and port, or have none.
#[track_caller]
fn wait_frontend(cluster: &Cluster, ip: &str, port: u16, wanted: bool) {
    let (node, ip) = (cluster.topology.node("node1"), ip.parse::<IpAddr>().unwrap());
    eventually(PATIENT, &format!("frontend {ip}:{port} = {wanted}"), || {
        let tables = tables(node);
        let found = tables.frontends.keys().any(|key| key.ip == ip && key.port == port);
        ensure!(found == wanted, "{:?}", tables.frontends.keys());
        Ok(())
    });
}

fn shell(cluster: &Cluster) -> &Host {
    cluster.topology.pod("shell")
}

#[test]
fn endpoints_come_and_go() {
    require_topology!();
    let cluster = Cluster::start(&["web-1"], SocketLb::All);
    for names in [&["web-1", "web-2", "web-3"][..], &["web-2"], &["web-1", "web-3"]] {
        cluster.endpoints(names);
        for from in ["pod", "node", "client"] {
            cluster.wait_answers(from, names, PATIENT);
        }
    }
    cluster.endpoints(&[]);
    eventually(PATIENT, "refusal", || {
        let Err(refused) = get(shell(&cluster), "10.96.100.100:80") else { bail!("an answer") };
        let refused = refused.to_string();
        ensure!(refused.contains("Couldn't connect"), "{refused}");
        Ok(())
    });
    cluster.endpoints(&["web-3"]);
    cluster.wait_answers("pod", &["web-3"], PATIENT);
}

#[test]
fn a_pod_is_asked_only_while_it_is_ready_and_not_terminating() {
    require_topology!();
    let cluster = Cluster::start(&["web-1", "web-2"], SocketLb::All);
    let topology = &cluster.topology;
    let leaving = r#", deletionTimestamp: "2026-01-01T00:00:00Z""#;
    for (ready, metadata) in [("False", ""), ("True", leaving)] {
        let pods = pod(topology, "web-1", "True", "") + &pod(topology, "web-2", ready, metadata);
        topology.apply("pods.yaml", &pods).unwrap();
        cluster.wait_answers("pod", &["web-1"], PATIENT);
        cluster.wait_answers("client", &["web-1"], PATIENT);
        cluster.endpoints(&["web-1", "web-2"]);
        cluster.wait_answers("pod", &["web-1", "web-2"], PATIENT);
    }
    let last = pod(topology, "web-2", "True", leaving);
    topology.apply("pods.yaml", &last).unwrap();
    cluster.wait_answers("pod", &["web-2"], PATIENT);
}

#[test]
fn ports_and_types_change() {
    require_topology!();
    let cluster = Cluster::start(&["web-1"], SocketLb::All);
    let _more =
        programs::nginx_with_body(cluster.topology.pod("web-1"), &[8081], "new port").unwrap();
    let apply = |text: &str| cluster.topology.apply("service.yaml", text).unwrap();

    apply(&WEB.replace("8080", "8081"));
    eventually(PATIENT, "new target port", || {
        let body = get(shell(&cluster), "10.96.100.100:80")?;
        ensure!(body == "new port", "{body}");
        Ok(())
    });
    apply(&WEB.replace("port: 80,", "port: 81,"));
    wait_frontend(&cluster, CLUSTER_IP, 81, true);
    wait_frontend(&cluster, CLUSTER_IP, 80, false);
    assert_eq!(get(shell(&cluster), "10.96.100.100:81").unwrap(), "web-1");

    let node = cluster.topology.node("node1").ip(Family::V4).to_string();
    let no_node_port = WEB.replace("NodePort", "ClusterIP").replace(", nodePort: 30080", "");
    apply(&no_node_port);
    wait_frontend(&cluster, &node, 30080, false);
    assert!(cluster.ask("client", Family::V4).is_err());
    cluster.ask("pod", Family::V4).unwrap();
    apply(WEB);
    wait_frontend(&cluster, &node, 30080, true);
    cluster.ask("client", Family::V4).unwrap();
}

#[test]
fn a_service_is_deleted_and_made_again() {
    require_topology!();
    let cluster = Cluster::start(&["web-1"], SocketLb::All);
    for _ in 0..3 {
        cluster.topology.delete("service.yaml").unwrap();
        wait_frontend(&cluster, CLUSTER_IP, 80, false);
        assert!(cluster.ask("pod", Family::V4).is_err());
        cluster.topology.apply("service.yaml", WEB).unwrap();
        wait_frontend(&cluster, CLUSTER_IP, 80, true);
        for from in ["pod", "node", "client"] {
            cluster.ask(from, Family::V6).unwrap();
        }
    }
}

#[test]
fn an_emptied_folder_empties_the_tables() {
    require_topology!();
    let cluster = Cluster::start(&["web-1"], SocketLb::All);
    cluster.topology.delete("pods.yaml").unwrap();
    cluster.topology.delete("service.yaml").unwrap();
    let node = cluster.topology.node("node1");
    eventually(PATIENT, "empty tables", || {
        let left = tables(node);
        ensure!(left.frontends.is_empty() && left.backends.is_empty(), "{left:?}");
        Ok(())
    });
    assert_eq!(cluster.agents[0].status().unwrap()["synced"], true);
}

#[test]
fn a_file_in_the_middle_of_being_written_changes_nothing() {
    require_topology!();
    let cluster = Cluster::start(&["web-1", "web-2"], SocketLb::All);
    let topology = &cluster.topology;
    // The first half is a whole document, so only its open file tells that more is coming.
    let mut file = File::create(topology.manifests().join("pods.yaml")).unwrap();
    file.write_all(pod(topology, "web-3", "True", "").as_bytes()).unwrap();
    let marker = WEB.replace("{name: web}", "{name: marker}").replace("100.100", "100.101");
    let marker = marker.replace("6464", "6465").replace(", nodePort: 30080", "");
    topology.apply("marker.yaml", &marker).unwrap();
    wait_frontend(&cluster, "10.96.100.101", 80, true);
    assert_eq!(answers(shell(&cluster), "10.96.100.100:80").unwrap(), ["web-1", "web-2"]);
    file.write_all(pod(topology, "web-1", "True", "").as_bytes()).unwrap();
    drop(file);
    cluster.wait_answers("pod", &["web-1", "web-3"], PATIENT);
}

#[test]
fn a_broken_file_keeps_its_last_good_state_and_says_where_it_is_broken() {
    require_topology!();
    let cluster = Cluster::start(&["web-1"], SocketLb::All);
    let agent = &cluster.agents[0];
    let broken = WEB.replace("ports:", "ports: [}");
    cluster.topology.apply("service.yaml", &broken).unwrap();
    let file = cluster.topology.manifests().join("service.yaml");
    let place = format!("file {}: line 9 column 10: ", file.display());
    eventually(PATIENT, "sentence in status and log", || {
        let problems = agent.status()?["problems"].to_string();
        ensure!(problems.contains(&place) && agent.log().contains(&place), "{problems}");
        Ok(())
    });
    for from in ["pod", "node", "client"] {
        cluster.ask(from, Family::V4).unwrap();
    }
    cluster.topology.apply("service.yaml", WEB).unwrap();
    eventually(PATIENT, "no problem", || {
        let problems = agent.status()?["problems"].clone();
        ensure!(problems == serde_json::json!([]), "{problems}");
        Ok(())
    });
    assert!(agent.log().contains(&format!("solved: {place}")), "{}", agent.log());
}

/// The devices that `status` shows with programs.
fn attached(cluster: &Cluster) -> Vec<String> {
    let status = cluster.agents[0].status().unwrap();
    let devices = status["devices"].as_array().unwrap().iter();
    let with_programs = devices.filter(|device| device["attached"].as_array().unwrap().len() == 2);
    with_programs.map(|device| device["name"].as_str().unwrap().to_owned()).collect()
}

/// Names of the pinned links, and indices of the known devices, of a node.
fn links(bpffs: &Path) -> (Vec<String>, usize) {
    let reader = Reader::open(&bpffs.join("lb")).unwrap();
    (reader.links(), reader.devices().unwrap().len())
}

#[test]
fn a_new_pods_device_gets_its_programs_and_a_deleted_one_is_forgotten() {
    require_topology!();
    let cluster = Cluster::start(&["web-1", "web-2"], SocketLb::Off);
    let (node, late) = (cluster.topology.node("node1"), cluster.topology.client("client"));
    let before = (links(node.bpffs()), attached(&cluster));
    for _ in 0..2 {
        plug_in(node, late);
        eventually(PATIENT, "answers to the new pod", || get(late, "10.96.100.100:80"));
        eventually(PATIENT, "the new device in status", || {
            let devices = attached(&cluster);
            ensure!(devices.contains(&"veth-late".to_owned()), "{devices:?}");
            Ok(())
        });
        node.run("ip", &["link", "del", "veth-late"]).unwrap();
        eventually(PATIENT, "programs of old devices alone", || {
            let now = (links(node.bpffs()), attached(&cluster));
            ensure!(now == before, "{now:?}, not {before:?}");
            Ok(())
        });
    }
}

/// A host that nobody has mounted a BPF file system on, as one without systemd.
#[test]
fn the_usual_folder_of_pins_is_made_where_nothing_is_mounted() {
    require_topology!();
    let cluster = Cluster::start(&["web-1"], SocketLb::Off);
    let node = cluster.topology.node("node2");
    let agent = lb_test::agent::binary().unwrap();
    let script = format!(
        "umount -R -l /sys; mount -t sysfs sysfs /sys; export LB_BPFFS=/sys/fs/bpf/lb-{0}; \
         {1} run --manifests {2} --socket-lb off & \
         for i in $(seq 300); do {1} status >/dev/null 2>&1 && break; sleep 0.1; done; \
         {1} services; kill $!; wait $!; {1} cleanup",
        std::process::id(),
        agent.display(),
        cluster.topology.manifests().display(),
    );
    let output = node.run("unshare", &["--mount", "sh", "-c", &script]).unwrap();
    assert!(output.contains("10.96.100.100:80"), "{output}");
    assert!(output.contains("removed pin /sys/fs/bpf/lb-"), "{output}");
}

/// Gives a host a second device, which makes it a pod of the node with address 10.248.1.77.
fn plug_in(node: &Host, late: &Host) {
    let (gateway, mac) = ("169.254.1.1", "ee:ee:ee:ee:ee:ee");
    let lines = format!(
        "link add veth-late address {mac} type veth peer name eth1 netns {}\n\
         link set veth-late up\nroute add 10.248.1.77/32 dev veth-late",
        late.netns().name()
    );
    node.netns().ip_batch(&lines.lines().map(str::to_owned).collect::<Vec<_>>()).unwrap();
    let lines = format!(
        "addr add 10.248.1.77/32 dev eth1\nlink set eth1 up\n\
         route add {gateway} dev eth1 scope link\n\
         neigh replace {gateway} lladdr {mac} dev eth1 nud permanent\n\
         route add 10.96.0.0/12 via {gateway} dev eth1 src 10.248.1.77"
    );
    late.netns().ip_batch(&lines.lines().map(str::to_owned).collect::<Vec<_>>()).unwrap();
}

#[test]
fn a_new_address_of_the_node_gets_its_node_ports_and_loses_them() {
    require_topology!();
    let cluster = Cluster::start(&["web-1", "web-2"], SocketLb::All);
    let (node, client) = (cluster.topology.node("node1"), cluster.topology.client("client"));
    for (ip, with_prefix) in [("172.20.0.77", "172.20.0.77/24"), ("fd00:20::77", "fd00:20::77/64")]
    {
        node.run("ip", &["addr", "add", with_prefix, "dev", "eth0", "nodad"]).unwrap();
        let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
        eventually(PATIENT, "answers at the new address", || get(client, &format!("{host}:30080")));
        node.run("ip", &["addr", "del", with_prefix, "dev", "eth0"]).unwrap();
        wait_frontend(&cluster, ip, 30080, false);
        cluster.ask("client", Family::V4).unwrap();
    }
}
