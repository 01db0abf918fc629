//! The commands as processes: environment, exit codes, locks and privileges.
//!
//! No agent gets as far as the kernel here: each `run` must be refused before.

#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::{
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Output},
};

use lb_agent::instance::{Instance, Status};
use tempfile::TempDir;

/// A folder for pins that no other test has, and the place below `/run/lb` that goes with it.
struct Place {
    folder: TempDir,
    instance: Instance,
}

impl Place {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let instance = Instance::of(folder.path());
        Self { folder, instance }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lb-agent"));
        command.args(arguments).arg("--bpffs").arg(self.folder.path());
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LB_") {
                command.env_remove(name);
            }
        }
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn file(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(self.instance.folder());
    }
}

#[track_caller]
fn expect(output: &Output, code: i32, part: &str) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(error.contains(part), "{part} is not in\n{error}");
}

fn findings(output: &Output) -> Vec<serde_json::Value> {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    report["findings"].as_array().unwrap().clone()
}

/// The devices that `check` looks for, which shows where their names came from.
fn devices(output: &Output) -> Vec<String> {
    let findings = findings(output);
    let named = findings.iter().filter(|finding| finding["name"] == "device");
    let details = named.map(|finding| finding["detail"].as_str().unwrap());
    details.map(|detail| detail.split([' ', ':']).nth(1).unwrap().to_owned()).collect()
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let place = Place::new();
    let config = place.file("config.yaml", "device: [from-file]\n");
    let check = ["check", "-o", "json", "--config", &config];
    assert_eq!(devices(&place.output(&check)), ["from-file"]);
    let with_variable = |arguments: &[&str]| {
        let mut command = place.command(arguments);
        devices(&command.env("LB_DEVICE", "from-variable").output().unwrap())
    };
    assert_eq!(with_variable(&check), ["from-variable"]);
    assert_eq!(with_variable(&[&check[..], &["--device", "from-flag"]].concat()), ["from-flag"]);
}

/// A program in a network namespace of its own, with a device that by itself looks like an uplink.
const WITH_DEVICE: &str = "ip link add pod0 type veth peer name other && ip link set pod0 up && \
                           ip address add 192.0.2.1/24 dev pod0 && exec \"$@\"";

#[test]
fn s6_check_takes_devices_for_what_run_takes_them_for() {
    let place = Place::new();
    let uplinks = |more: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", WITH_DEVICE, "sh", env!("CARGO_BIN_EXE_lb-agent")]);
        command.arg("--bpffs").arg(place.folder.path()).args(["check", "-o", "json"]).args(more);
        let findings = findings(&command.output().unwrap());
        findings.iter().filter(|finding| finding["name"] == "xdp").count()
    };
    assert_eq!(uplinks(&[]), 1);
    let mode = "--detect-local-mode=InterfaceNamePrefix";
    assert_eq!(uplinks(&[mode, "--pod-interface-name-prefix=eth"]), 1);
    assert_eq!(uplinks(&[mode, "--pod-interface-name-prefix=pod"]), 0, "it leads to pods");
}

#[test]
fn the_file_itself_may_be_named_by_the_environment() {
    let place = Place::new();
    let config = place.file("config.yaml", "devices: eth0\n");
    let output = place.command(&["check"]).env("LB_CONFIG", config).output().unwrap();
    expect(&output, 2, "unknown key devices");
}

#[test]
fn mistakes_end_with_2_and_one_line() {
    let place = Place::new();
    for (arguments, part) in [
        (&["run", "--forward", "dsr"][..], "'--forward'"),
        (&["run", "--snat-port-range", "30000-40000"], "overlaps --service-node-port-range"),
        (&["conntrack"], "'conntrack'"),
    ] {
        let output = place.output(arguments);
        expect(&output, 2, part);
        assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    }
}

#[test]
fn a_second_agent_and_a_cleanup_are_told_who_holds_the_pins() {
    let place = Place::new();
    let lock = place.instance.lock().unwrap();
    let holder = format!("pid {}", std::process::id());
    let run = ["run", "--socket-lb", "off", "--manifests", "/"];
    expect(&place.output(&run), 1, &holder);
    expect(&place.output(&["cleanup"]), 1, &holder);
    drop(lock);
    expect(&place.output(&["cleanup"]), 0, "");
    assert!(!place.instance.folder().exists());
}

#[test]
fn cleanup_of_nothing_is_fine_twice() {
    let place = Place::new();
    for _ in 0..2 {
        let output = place.output(&["cleanup"]);
        expect(&output, 0, "");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "nothing to remove\n");
        assert!(!place.instance.folder().exists());
    }
}

#[test]
fn an_agent_is_alive_while_it_holds_the_lock() {
    let place = Place::new();
    let lock = place.instance.lock().unwrap();
    let status = Status { synced: true, ..Status::starting("folder /x".to_owned()) };
    status.write(&place.instance.status()).unwrap();
    let alive = || {
        let output = place.output(&["status", "-o", "json"]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (report["alive"] == true, report["synced"] == true, output.status.code())
    };
    assert_eq!(alive(), (true, true, Some(0)));
    drop(lock);
    assert_eq!(alive(), (false, false, Some(1)));
}

#[test]
fn an_unfit_node_is_refused_with_the_mend() {
    let place = Place::new();
    let run = |more: &[&str]| place.output(&[&["run"], more].concat());
    expect(&run(&["--device", "no-such-dev"]), 1, "there is no such device; name one of: ");
    expect(&run(&["--cgroup", "/proc"]), 1, "/proc is no cgroup v2 folder; mount it");
    expect(&run(&["--socket-lb", "off", "--kubeconfig", "/no"]), 1, "this node's own NodePorts");
    expect(&run(&["--kubeconfig", "/no/such"]), 1, "--kubeconfig /no/such: No such file");
    assert!(!place.instance.folder().exists(), "nothing was begun");
}

#[test]
fn without_privileges_check_and_run_name_what_is_missing() {
    let place = Place::new();
    // The program is copied to where another user may reach it.
    let program = place.folder.path().join("lb-agent");
    std::fs::copy(env!("CARGO_BIN_EXE_lb-agent"), &program).unwrap();
    open_to_all(place.folder.path());
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.args(arguments).uid(65534).gid(65534).output().unwrap()
    };
    let output = as_nobody(&["check", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let privileges = &findings(&output)[0];
    assert_eq!(
        (&privileges["name"], &privileges["outcome"]),
        (&"privileges".into(), &"fail".into())
    );
    assert!(privileges["detail"].as_str().unwrap().contains("CAP_NET_ADMIN"));
    expect(
        &as_nobody(&["run"]),
        1,
        "error: uid 65534 lacks CAP_NET_ADMIN, CAP_SYS_ADMIN; run as root",
    );
}

#[test]
fn maps_of_another_layout_are_said_by_each_command_with_the_mend() {
    let place = Place::new();
    std::fs::create_dir(place.folder.path().join("abi-0")).unwrap();
    std::fs::create_dir(place.folder.path().join("maps")).unwrap();
    let manifests = place.folder.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    let run = ["run", "--socket-lb=off", "--manifests", manifests.to_str().unwrap()];
    for command in [&run[..], &["services"], &["status"]] {
        let output = place.output(command);
        expect(&output, 1, "holds maps of layout 0, this program has layout");
        expect(&output, 1, "run the `lb-agent cleanup` of the version that made them");
    }
    let found = findings(&place.output(&["check", "-o", "json"]));
    let bpffs = found.iter().find(|finding| finding["name"] == "bpffs").unwrap();
    assert_eq!(bpffs["outcome"], "fail", "{bpffs}");
}

#[test]
fn what_kube_proxy_leaves_is_seen() {
    let place = Place::new();
    let in_namespace = |prepare: &str| {
        let program = env!("CARGO_BIN_EXE_lb-agent");
        let script = format!("set -e; {prepare}; exec {program} check -o json --bpffs $0");
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", &script]).arg(place.folder.path());
        let warned = findings(&command.output().unwrap()).into_iter();
        let warned = warned.filter(|finding| finding["outcome"] == "warn");
        warned.map(|finding| finding["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let rules = "kube-proxy-rules".to_owned();
    assert!(!in_namespace("true").contains(&rules));
    assert!(in_namespace("nft add table ip kube-proxy").contains(&rules));
    let chain = "ip6tables-nft -t nat -N KUBE-SERVICES";
    assert!(in_namespace(chain).contains(&rules));
    let chain = "iptables-legacy -t nat -N KUBE-SERVICES";
    assert!(in_namespace(chain).contains(&rules));
    let device = "ip link add kube-ipvs0 type bridge";
    assert!(in_namespace(device).contains(&"kube-proxy-ipvs".to_owned()));
}

/// What `check` finds in a namespace that a script has prepared, under one of its names.
fn found_after(place: &Place, (prepare, arguments): (&str, &str), name: &str) -> Vec<[String; 3]> {
    let program = env!("CARGO_BIN_EXE_lb-agent");
    let script = format!("set -e; {prepare}; exec {program} check {arguments} -o json --bpffs $0");
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &script]).arg(place.folder.path());
    let found = findings(&command.output().unwrap()).into_iter();
    let text = |it: &serde_json::Value| it.as_str().unwrap().to_owned();
    let found = found.filter(|finding| finding["name"] == name);
    found.map(|it| ["outcome", "detail", "mend"].map(|field| text(&it[field]))).collect()
}

const UPLINKS: &str = "ip link set lo up; ip link add eth0 type veth peer name far; \
    ip link set far up; ip addr add 192.0.2.1/24 dev eth0; ip link set eth0 up; \
    ip link add vx0 type vxlan id 7 dstport 8472; ip addr add 198.51.100.1/24 dev vx0; \
    ip link set vx0 up";

#[test]
fn check_tells_what_becomes_of_xdp_at_each_uplink() {
    let place = Place::new();
    let xdp = |mode: &str| found_after(&place, (UPLINKS, &format!("--xdp={mode}")), "xdp");
    let ok = |detail: &str| ["ok", detail, ""].map(str::to_owned);
    let off = "off (it is no hardware)";
    assert_eq!(xdp("auto"), [ok(&format!("eth0: {off}")), ok(&format!("vx0: {off}"))]);
    let [native, refused] = <[_; 2]>::try_from(xdp("native")).unwrap();
    assert_eq!(native, ok("eth0: native"));
    let [outcome, detail, mend] = refused;
    assert_eq!((&*outcome, &*detail), ("warn", "vx0: off (its driver has no XDP)"));
    assert!(mend.contains("--xdp"), "{mend}");
    assert_eq!(xdp("off")[0], ok("eth0: off (--xdp=off)"));
}

#[test]
fn check_tells_what_direct_server_return_lacks() {
    let place = Place::new();
    let prepare = format!(
        "{UPLINKS}; ip link add cbr0 type bridge; ip addr add 10.1.0.1/24 dev cbr0; \
         ip link set cbr0 up; echo 1 > /proc/sys/net/ipv4/conf/vx0/rp_filter"
    );
    let found = |arguments: &str, name: &str| found_after(&place, (&prepare, arguments), name);
    let dsr = "--forwarding=dsr";
    let [eth0, vx0] = <[_; 2]>::try_from(found(dsr, "dsr-mtu")).unwrap();
    assert!(eth0[1].starts_with("eth0: MTU 1500, pods 1500: packets above 1464"), "{eth0:?}");
    assert!(eth0[2].contains("ip link set eth0 mtu 1556"), "{eth0:?}");
    assert!(vx0[1].starts_with("vx0: MTU"), "{vx0:?}");
    let strict = &found(dsr, "dsr-rp_filter")[0];
    assert!(strict[2].ends_with("net.ipv4.conf.vx0.rp_filter=2"), "{strict:?}");
    let none = found("--forwarding=dsr --dsr-port=0", "dsr-port");
    assert_eq!(none[0][0], "fail", "{none:?}");
    let ipip = "--forwarding=dsr --dsr-port=0 --dsr-dispatch=ipip";
    assert!(found(ipip, "dsr-port").is_empty(), "IPIP needs no port");
    let eth0 = &found(ipip, "dsr-mtu")[0];
    assert!(
        eth0[1].ends_with(
            "packets above 1480 bytes (IPv6: 1460) fit no carrier, and clients have to learn that"
        ),
        "{eth0:?}"
    );
    assert!(eth0[2].contains("ip link set eth0 mtu 1540"), "{eth0:?}");
    // The port of the VXLAN device is the kernel's own, and is seen all the same.
    let taken = found("--dsr-port=8472", "dsr-port");
    assert_eq!((&*taken[0][0], taken[0][1].contains("UDP 8472")), ("warn", true), "{taken:?}");
    assert_eq!(found("", "dsr-port")[0][0], "ok");
    assert!(found("", "dsr-mtu").is_empty(), "nobody asks for it");
}

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}
