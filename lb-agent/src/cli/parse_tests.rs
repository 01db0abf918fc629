//! The command line contract: names, defaults, and one line for a mistake. What the environment
//! does is tested with processes of their own, in `tests/cli.rs`.

use std::path::Path;

use super::*;
use crate::{
    cli::{Command as Chosen, run::RunArgs},
    config::{BindAddress, DetectLocalMode, NetfilterSettings, SocketLb, XdpMode},
};

fn parsed(arguments: &[&str]) -> Result<Cli, Stop> {
    parse(["lb-agent"].iter().chain(arguments).map(OsString::from))
}

fn run(arguments: &[&str]) -> Cli {
    parsed(&[&["run"], arguments].concat()).unwrap()
}

fn run_args(cli: &Cli) -> &RunArgs {
    match &cli.command {
        Chosen::Run(arguments) => arguments,
        other => panic!("not run: {other:?}"),
    }
}

fn mistake(arguments: &[&str]) -> String {
    match parsed(arguments) {
        Err(Stop::Usage(line)) => line,
        other => panic!("no mistake: {other:?}"),
    }
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

fn with_file<'a>(path: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--config", path.to_str().unwrap()], more].concat()
}

#[test]
fn the_command_is_consistent() {
    command().debug_assert();
}

#[test]
fn defaults_are_those_of_the_contract() {
    let cli = run(&[]);
    assert_eq!(cli.common.bpffs, Path::new("/sys/fs/bpf/lb"));
    let arguments = run_args(&cli);
    assert_eq!(arguments.node.socket_lb, SocketLb::All);
    assert_eq!(arguments.node.xdp, XdpMode::Auto);
    assert_eq!(arguments.node.healthz_bind_address, BindAddress::parse(":10256").unwrap());
    assert_eq!(arguments.node.metrics_bind_address, BindAddress::parse("127.0.0.1:10249").unwrap());
    assert_eq!(arguments.node.snat_port_range, "61000-65535".parse().unwrap());
    assert_eq!(arguments.conntrack_max, None);
    assert!(!arguments.migrate && run_args(&run(&["--migrate"])).migrate);
    assert_eq!((arguments.max_frontends, arguments.max_backends), (262_144, 262_144));
    let ranges = &arguments.service_cluster_ip_range;
    let shown: Vec<_> = ranges.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.96.0.0/12", "fd00:10:96::/108"]);
    assert_eq!(arguments.node.service_node_port_range, "30000-32767".parse().unwrap());
}

#[test]
fn netfilter_is_set_as_kube_proxy_sets_it() {
    let defaults = NetfilterSettings {
        max_per_core: 32_768,
        min: 131_072,
        tcp_established: 86_400,
        tcp_close_wait: 3600,
        ..NetfilterSettings::default()
    };
    assert_eq!(run_args(&run(&[])).netfilter.settings(), defaults);
    let file = file(
        "kind: KubeProxyConfiguration\nconntrack:\n  maxPerCore: 0\n  min: null\n  \
         tcpBeLiberal: true\n  tcpCloseWaitTimeout: 1h30m0s\n  tcpEstablishedTimeout: 0s\n  \
         udpStreamTimeout: 180s\n  udpTimeout: 30s\n",
    );
    let cli = parsed(&with_file(file.path(), &[])).unwrap();
    let settings = NetfilterSettings {
        max_per_core: 0,
        tcp_established: 0,
        tcp_close_wait: 5400,
        tcp_be_liberal: true,
        udp: 30,
        udp_stream: 180,
        ..defaults
    };
    assert_eq!(run_args(&cli).netfilter.settings(), settings);
    assert_eq!(cli.note, None);
}

#[test]
fn node_ports_are_protected_unless_switched_off() {
    let protects = |more: &[&str]| run_args(&run(more)).node.nodeport_bind_protection;
    assert!(protects(&[]) && protects(&["--nodeport-bind-protection"]));
    assert!(!protects(&["--nodeport-bind-protection=false"]));
    let file = file("nodeportBindProtection: false\n");
    let cli = parsed(&with_file(file.path(), &[])).unwrap();
    assert!(!run_args(&cli).node.nodeport_bind_protection);
}

#[test]
fn common_flags_stand_before_or_behind_the_command() {
    for arguments in [["--bpffs", "/x", "status"], ["status", "--bpffs", "/x"]] {
        assert_eq!(parsed(&arguments).unwrap().common.bpffs, Path::new("/x"));
    }
}

#[test]
fn an_empty_address_switches_a_server_off() {
    let cli = run(&["--healthz-bind-address="]);
    assert_eq!(run_args(&cli).node.healthz_bind_address, BindAddress::Off);
}

#[test]
fn a_mistake_is_one_line_that_names_it() {
    for (arguments, part) in [
        (&["run", "--forward", "dsr"][..], "unexpected argument '--forward'"),
        (&["run", "--xdp", "hard"], "[possible values: auto, native, generic, off]"),
        (&["explain"], "unrecognized subcommand 'explain'"),
        (&["run", "--socket-lb", "some"], "[possible values: all, host, off]"),
        (&["run", "--snat-port-range", "9-1"], "expected FIRST-LAST within 1-65535"),
        (&["run", "--device", "eth("], "name of a device or a regular expression"),
        (&["run", "--conntrack-max", "0"], "0 is not in 1..=16777216"),
        (&["run", "--manifests", "/m", "--kubeconfig", "/k"], "cannot be used with"),
        (&["run", "--nodeport-addresses", "some"], "expected a CIDR such as 192.0.2.0/24"),
        (&["status", "-v", "a=b=c"], "--log-level"),
    ] {
        let line = mistake(arguments);
        assert!(line.contains(part) && !line.contains('\n'), "{line}");
    }
}

#[test]
fn help_is_no_mistake() {
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"]] {
        assert!(matches!(parsed(arguments), Err(Stop::Help(error)) if error.exit_code() == 0));
    }
}

#[test]
fn a_flag_beats_the_file_and_the_file_beats_the_default() {
    let file = file("conntrackMax: 1000\nmaxBackends: 2000\nbpffs: /from/file\nsocketLb: off\n");
    let cli = parsed(&with_file(file.path(), &["--conntrack-max", "3000"])).unwrap();
    let arguments = run_args(&cli);
    assert_eq!(arguments.conntrack_max, Some(3000));
    assert_eq!(arguments.max_backends, 2000);
    assert_eq!(arguments.max_frontends, 262_144);
    assert_eq!(arguments.node.socket_lb, SocketLb::Off);
    assert_eq!(cli.common.bpffs, Path::new("/from/file"));
    let cli = parsed(&with_file(file.path(), &["--bpffs", "/from/flag"])).unwrap();
    assert_eq!(cli.common.bpffs, Path::new("/from/flag"));
}

#[test]
fn a_switch_needs_no_value_and_takes_one_from_a_file() {
    let is_on = |arguments: &[&str]| run_args(&run(arguments)).kube_proxy_metrics;
    assert!(!is_on(&[]));
    assert!(is_on(&["--kube-proxy-metrics"]));
    assert!(!is_on(&["--kube-proxy-metrics=false"]));
    let file = file("kubeProxyMetrics: true\n");
    let with = |more: &[&str]| parsed(&with_file(file.path(), more)).unwrap();
    assert!(run_args(&with(&[])).kube_proxy_metrics);
    assert!(!run_args(&with(&["--kube-proxy-metrics=false"])).kube_proxy_metrics);
}

#[test]
fn a_given_list_replaces_the_files_list() {
    let file = file("device: [eth0, eth1]\n");
    let names = |more: &[&str]| {
        let cli = parsed(&with_file(file.path(), more)).unwrap();
        run_args(&cli).node.device.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&[]), ["eth0", "eth1"]);
    assert_eq!(names(&["--device", "eth2"]), ["eth2"]);
}

#[test]
fn a_files_mistake_names_file_and_setting() {
    for (text, part) in [
        ("snatPortRange: 9-1\n", "--snat-port-range"),
        ("config: /other\n", "unknown key config"),
        ("xpd: native\n", "unknown key xpd"),
        ("manifests: /m\nkubeconfig: /k\n", "cannot be used with"),
    ] {
        let file = file(text);
        let line = mistake(&with_file(file.path(), &[]));
        assert!(line.contains(file.path().to_str().unwrap()), "{line}");
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn a_given_source_of_services_beats_the_files_other_one() {
    let file = file(
        "kind: KubeProxyConfiguration\nclientConnection:\n  kubeconfig: /k\nmode: nftables\n\
         metricsBindAddress: 127.0.0.1:1\n",
    );
    let cli = parsed(&with_file(file.path(), &["--manifests", "/m"])).unwrap();
    let arguments = run_args(&cli);
    assert_eq!(arguments.manifests.as_deref(), Some(Path::new("/m")));
    assert_eq!(arguments.kubeconfig, None);
    assert!(cli.note.as_ref().is_some_and(|note| note.ends_with("without meaning here: mode")));
    assert_eq!(arguments.node.metrics_bind_address, BindAddress::parse("127.0.0.1:1").unwrap());
}

#[test]
fn settings_of_run_alone_may_stand_in_a_file_for_check() {
    let file = file("conntrackMax: 1000\ndevice: eth7\n");
    let cli = parsed(&["check", "--config", file.path().to_str().unwrap()]).unwrap();
    assert!(format!("{:?}", cli.command).contains("eth7"));
}

#[test]
fn who_is_local_is_told_as_to_kube_proxy() {
    let local = |arguments: &[&str]| {
        let cli = run(arguments);
        let arguments = run_args(&cli);
        let local = &arguments.node.local;
        let cidrs: Vec<_> = local.cluster_cidr.iter().map(ToString::to_string).collect();
        (cidrs.join(" "), local.detect_local_mode, arguments.masquerade_all)
    };
    assert_eq!(local(&[]), (String::new(), None, false));
    let cidr = "--cluster-cidr=10.244.1.0/16, fd00:244::/56";
    let mode = "--detect-local-mode=ClusterCIDR";
    let cidrs = "10.244.0.0/16 fd00:244::/56".to_owned();
    let expected = (cidrs.clone(), Some(DetectLocalMode::ClusterCidr), true);
    assert_eq!(local(&[cidr, mode, "--masquerade-all"]), expected);
    assert_eq!(local(&[cidr, "--masquerade-all=false"]), (cidrs.clone(), None, false));
    let file = file(
        "kind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16,fd00:244::/56\n\
         detectLocalMode: ''\niptables:\n  masqueradeAll: true\n",
    );
    let cli = parsed(&with_file(file.path(), &[])).unwrap();
    assert_eq!(run_args(&cli).node.local.cluster_cidr.len(), 2);
    assert!(run_args(&cli).masquerade_all);
    for (mode, flag) in [
        ("BridgeInterface", "--pod-bridge-interface"),
        ("InterfaceNamePrefix", "--pod-interface-name-prefix"),
    ] {
        let line = mistake(&["run", "--detect-local-mode", mode]);
        assert!(line.contains(flag), "{line}");
    }
    let line = mistake(&["run", "--cluster-cidr", "10.244.0.0"]);
    assert!(line.contains("expected a CIDR"), "{line}");
}
