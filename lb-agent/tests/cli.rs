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

fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}
