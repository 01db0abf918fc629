//! What kube-proxy left on this node, or still does.

use std::{fs, process::Command};

use super::{Finding, Plan};
use crate::{
    config::BindAddress,
    instance::Instance,
    model::Protocol,
    net::{self, IPVS_DEVICE},
};

const MEND: &str = "stop kube-proxy (kubectl -n kube-system delete ds kube-proxy) and, when its \
                    connections have ended, run kube-proxy --cleanup once";

pub(super) fn findings(plan: &Plan<'_>) -> Vec<Finding> {
    let mut findings = vec![rules(), ipvs()];
    let agent_runs = Instance::of(plan.bpffs).holder().is_ok_and(|holder| holder.is_some());
    for server in plan.servers {
        if let BindAddress::Listen(address) = server {
            findings.push(port(address.port(), agent_runs));
        }
    }
    findings
}

fn rules() -> Finding {
    let mut found = Vec::new();
    if output("nft", &["list", "tables"]).is_some_and(|tables| tables.contains(" kube-proxy")) {
        found.push("nftables table kube-proxy");
    }
    let chain = ["ip", "ip6"]
        .map(|family| output("nft", &["list", "chain", family, "nat", "KUBE-SERVICES"]).is_some());
    if chain.contains(&true) || has_legacy_chain() {
        found.push("iptables chain KUBE-SERVICES");
    }
    if found.is_empty() {
        return Finding::ok("kube-proxy-rules", "none seen");
    }
    let detail = format!("{}: Services may be translated twice", found.join(", "));
    Finding::warn("kube-proxy-rules", detail, MEND)
}

/// Asking for a table makes it, so the kernel's list of those in use comes first.
fn has_legacy_chain() -> bool {
    let tables = [
        ("ip_tables_names", "iptables-legacy-save"),
        ("ip6_tables_names", "ip6tables-legacy-save"),
    ];
    tables.iter().any(|(list, command)| {
        let list = fs::read_to_string(format!("/proc/thread-self/net/{list}")).unwrap_or_default();
        let is_used = list.lines().any(|table| table == "nat");
        is_used
            && output(command, &["-t", "nat"])
                .is_some_and(|rules| rules.contains(":KUBE-SERVICES "))
    })
}

fn ipvs() -> Finding {
    if nix::net::if_::if_nametoindex(IPVS_DEVICE).is_err() {
        return Finding::ok("kube-proxy-ipvs", format!("no device {IPVS_DEVICE}"));
    }
    let detail = format!("device {IPVS_DEVICE} holds every ClusterIP");
    Finding::warn("kube-proxy-ipvs", detail, format!("{MEND}, or ip link delete {IPVS_DEVICE}"))
}

fn port(port: u16, agent_runs: bool) -> Finding {
    let name = "port";
    let is_taken = net::bound_ports().contains(&(Protocol::Tcp, port));
    match (is_taken, agent_runs) {
        (false, _) => Finding::ok(name, format!("{port} is free")),
        (true, true) => Finding::ok(name, format!("{port} is in use, and an agent is running")),
        (true, false) => Finding::warn(
            name,
            format!("{port} is taken by another process"),
            "stop kube-proxy, or set --healthz-bind-address and --metrics-bind-address",
        ),
    }
}

/// What a command prints; none if it is not installed or ends with an error.
fn output(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
