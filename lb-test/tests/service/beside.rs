//! What is not ours stays as it is: traffic of no Service, and the filters of others.

use std::ffi::CString;
use std::net::{IpAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use lb_test::manifests::Service;
use lb_test::{Family, Host, SocketLb};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

use crate::ask::{assert_answering, assert_silent, client_seen, probe};
use crate::{Cluster, WEB, on_both_paths};

on_both_paths! {
    direct => direct_traffic_is_unchanged_beside_the_socket_path, direct_traffic_is_unchanged_beside_the_packet_path;
}

fn direct(path: SocketLb) {
    let service = Service::new("web", 1).select(WEB).tcp(80, 8080).node_port(30080);
    let cluster = Cluster::start(path, &[service.udp(80, 5353).node_port(30080).object()]);
    let from = ["shell", "side", "kata"].map(|name| &**cluster.pod(name));
    for from in from.into_iter().chain([cluster.outside()]) {
        for pod in ["web-1", "web-2", "web-3"].map(|name| cluster.pod(name)) {
            for family in Family::BOTH {
                assert_direct(from, pod, family);
            }
        }
    }
}

/// Asks the pod itself by HTTP, by datagrams of several packets, and by ping.
#[track_caller]
fn assert_direct(from: &Host, pod: &Host, family: Family) {
    let between = format!("{} to {}", from.name(), pod.name());
    let to = pod.socket(family, 8080);
    assert_answering(from, to, &[pod.name()]);
    assert_eq!(client_seen(from, to).0, from.ip(family), "{between}");
    let to = pod.socket(family, 5353).to_string();
    let lines = probe(from, &["udp", &to, "--size", "2000", "--count", "2"]);
    for line in &lines {
        assert_eq!(line["source"], to, "{between}: {lines:?}");
        let seen = line["payload"].as_str().unwrap();
        assert!(
            seen.contains(&format!("{}:", from.socket(family, 0).ip())) || family == Family::V6
        );
    }
    from.enter(|| ping(pod.ip(family))).unwrap();
}

/// Sends an echo request and waits for its answer.
#[track_caller]
fn ping(address: IpAddr) {
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
    let (family, protocol, request, answer) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129),
    };
    let socket = socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut packet = [7; 1000];
    packet[..8].copy_from_slice(&[request, 0, 0, 0, 0, 0, 0, 1]);
    socket.send_to(&packet, (address, 0)).unwrap();
    let (length, source) = socket.recv_from(&mut packet).unwrap();
    assert_eq!((length, source.ip(), packet[0]), (1000, address, answer));
}

/// Ahead of all others.
const BPF_F_BEFORE: u32 = 1 << 3;
/// `r0 = TC_ACT_SHOT; exit`.
const DROP: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
/// `mark = 5; r0 = TCX_NEXT; exit`: the mark stands at byte 8.
const MARK: [u64; 4] = [0x0000_0005_0000_00b7, 0x0000_0000_0008_0163, 0xffff_ffff_0000_00b7, 0x95];
/// `if mark == 5 { mark = 7 }; r0 = TC_ACT_UNSPEC; exit`.
const TURN_MARK: [u64; 6] = [
    0x0000_0000_0008_1061,
    0x0000_0005_0002_0055,
    0x0000_0007_0000_00b7,
    0x0000_0000_0008_0163,
    0xffff_ffff_0000_00b7,
    0x95,
];

/// The hooks of a device.
#[derive(Clone, Copy, Debug)]
enum Hook {
    Egress,
    Ingress,
}

impl Hook {
    /// `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
    fn tcx(self) -> u32 {
        if matches!(self, Self::Ingress) { 46 } else { 47 }
    }

    fn name(self) -> &'static str {
        if matches!(self, Self::Ingress) { "ingress" } else { "egress" }
    }
}

/// A packet that we translated goes on to the filters behind ours, which may drop it.
#[test]
fn a_filter_behind_ours_still_drops() {
    lb_test::require_topology!();
    let service = Service::new("web", 1).select("web-1").tcp(80, 8080).node_port(30080);
    let service = service.udp(80, 5353).node_port(30080);
    let cluster = Cluster::start(SocketLb::Off, &[service.object()]);
    // Neighbours are known from here on: the filters drop their discovery, too.
    assert_open(&cluster);
    for hook in [Hook::Ingress, Hook::Egress] {
        with_tcx_filter(&cluster, hook);
        with_clsact_filter(&cluster, hook);
    }
    let cluster = cluster.with_agents(&["node1"], &["--tc-attach=clsact"]);
    for hook in [Hook::Ingress, Hook::Egress] {
        with_clsact_filter(&cluster, hook);
    }
}

/// What others say ahead of ours decides, and what they note is there behind ours, on packets that
/// we translate.
#[test]
fn programs_ahead_of_ours_and_behind_all_run() {
    lb_test::require_topology!();
    let service = Service::new("web", 1).select("web-1").tcp(80, 8080).node_port(30080);
    let service = service.udp(80, 5353).node_port(30080);
    let mut cluster = Cluster::start(SocketLb::Off, &[service.object()]);
    assert_open(&cluster);
    let rules = "table inet beside { counter seen {}
        chain pods { type filter hook forward priority 0; meta mark 7 tcp dport 8080 counter name seen; }; }";
    cluster.node("node1").run("nft", &[rules]).unwrap();
    for way in ["auto", "clsact"] {
        cluster = cluster.with_agents(&["node1"], &[&format!("--tc-attach={way}")]);
        for hook in [Hook::Ingress, Hook::Egress] {
            let drops = load(&DROP);
            let attach = || attach(&drops, "eth0", (hook, BPF_F_BEFORE));
            let link = cluster.node("node1").enter(attach).unwrap();
            assert_only_without(&cluster, || drop(link));
        }
        let node = cluster.node("node1");
        let marks = load(&MARK);
        let ahead = || attach(&marks, "eth0", (Hook::Ingress, BPF_F_BEFORE));
        let _ahead = node.enter(ahead).unwrap();
        let before = seen(node);
        assert_open(&cluster);
        assert_eq!(seen(node), before, "nobody behind ours has turned the mark yet");
        let detach = attach_clsact(&cluster, Hook::Ingress, &load(&TURN_MARK));
        assert_open(&cluster);
        assert!(seen(node) > before + 20, "{way}: packets that all programs have seen");
        detach();
    }
}

/// Packets for the pod with a mark that one program made and another one turned.
fn seen(node: &Host) -> u64 {
    let list = ["-j", "list", "counter", "inet", "beside", "seen"];
    let shown = node.run("nft", &list).unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    let counter = shown["nftables"].as_array().unwrap().iter().find_map(|it| it.get("counter"));
    counter.unwrap()["packets"].as_u64().unwrap()
}

fn with_tcx_filter(cluster: &Cluster, hook: Hook) {
    let program = load(&DROP);
    let link = cluster.node("node1").enter(|| attach(&program, "eth0", (hook, 0))).unwrap();
    assert_only_without(cluster, || drop(link));
}

fn with_clsact_filter(cluster: &Cluster, hook: Hook) {
    assert_only_without(cluster, attach_clsact(cluster, hook, &load(&DROP)));
}

/// Attaches a program behind ours by clsact; returns what takes it away again.
fn attach_clsact(cluster: &Cluster, hook: Hook, program: &OwnedFd) -> impl FnOnce() + use<> {
    let node = Host::clone(cluster.node("node1"));
    let path = cluster.node("node1").bpffs().join("beside");
    pin(program, &path);
    let tc = move |words: &str| {
        let arguments: Vec<_> = words.split_whitespace().collect();
        node.run("tc", &arguments)
    };
    // Ours may be there already.
    let _ = tc("qdisc add dev eth0 clsact");
    let filter = format!("dev eth0 {} protocol all pref 60000 bpf", hook.name());
    tc(&format!("filter add {filter} direct-action object-pinned {}", path.display())).unwrap();
    move || {
        let hook = hook.name();
        tc(&format!("filter del dev eth0 {hook} protocol all pref 60000")).unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}

/// Asserts that a client gets an answer after `detach`, and none before.
#[track_caller]
fn assert_only_without(cluster: &Cluster, detach: impl FnOnce()) {
    for family in Family::BOTH {
        assert_silent(cluster.outside(), cluster.node("node1").socket(family, 30080));
    }
    detach();
    assert_open(cluster);
}

#[track_caller]
fn assert_open(cluster: &Cluster) {
    for family in Family::BOTH {
        let to = cluster.node("node1").socket(family, 30080);
        assert_answering(cluster.outside(), to, &["web-1"]);
    }
}

/// A program of another's for TC.
fn load(instructions: &[u64]) -> OwnedFd {
    #[repr(C)]
    struct Load {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        rest: [u64; 12],
    }
    let license = c"GPL";
    let load = Load {
        kind: 3, // BPF_PROG_TYPE_SCHED_CLS
        count: u32::try_from(instructions.len()).unwrap(),
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        rest: [0; 12],
    };
    bpf(5, &load)
}

fn attach(program: &OwnedFd, device: &str, (hook, flags): (Hook, u32)) -> OwnedFd {
    #[repr(C)]
    struct Create {
        program: u32,
        device: u32,
        kind: u32,
        flags: u32,
        rest: [u64; 4],
    }
    let device = nix::net::if_::if_nametoindex(device).unwrap();
    let program = program.as_raw_fd().cast_unsigned();
    bpf(28, &Create { program, device, kind: hook.tcx(), flags, rest: [0; 4] })
}

fn pin(program: &OwnedFd, path: &Path) {
    #[repr(C)]
    struct Pin {
        path: u64,
        program: u32,
        flags: u32,
    }
    let path = CString::new(path.to_str().unwrap()).unwrap();
    let program = program.as_raw_fd().cast_unsigned();
    let pin = Pin { path: path.as_ptr() as u64, program, flags: 0 };
    assert_eq!(call(6, &pin), 0, "{}", std::io::Error::last_os_error());
}

/// A command of `bpf(2)` that gives a descriptor.
#[track_caller]
fn bpf<T>(command: i32, attributes: &T) -> OwnedFd {
    let descriptor = i32::try_from(call(command, attributes)).unwrap();
    assert!(descriptor >= 0, "command {command}: {}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just opened it for us.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn call<T>(command: i32, attributes: &T) -> i64 {
    // SAFETY: the attributes, and what they point to, live until the call returns.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) }
}
