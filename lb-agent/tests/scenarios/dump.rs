//! Tables as lines that each stand alone, so that a difference is lines that came and went.

use std::{collections::BTreeSet, fmt::Write as _};

use lb_agent::{
    dataplane::{BackendId, FrontendAddress, FrontendEntry, ServiceId, Snapshot, Tables},
    model::Family,
    reconcile::{Reconciler, ServiceNames},
};
use lb_common::abi::{BackendFlags, FrontendFlags, FrontendKind, Region};

use crate::pipeline::Pipeline;

/// Everything, one line a fact.
pub(crate) fn lines(pipeline: &mut Pipeline) -> BTreeSet<String> {
    let problems = pipeline.problems();
    let problems = problems.rules.values().chain(problems.tables.values()).flatten();
    let mut lines: BTreeSet<_> = problems.map(|problem| format!("problem: {problem}")).collect();
    let reconciler = pipeline.reconciler();
    let snapshot = reconciler.tables().inner().snapshot().unwrap();
    // What keeps others from binding a node port is beside every node port, and no story by itself.
    for (address, entry) in snapshot.frontends.iter().filter(|(at, _)| !at.ip.is_unspecified()) {
        let name = name(&names(reconciler, entry.service));
        lines.extend(frontend(&snapshot, &name, address, entry));
    }
    for (id, range) in &snapshot.source_ranges {
        lines.insert(format!("{} lets {range} in", name(&names(reconciler, *id))));
    }
    let ids: BTreeSet<ServiceId> = snapshot.backends.values().map(|entry| entry.service).collect();
    for id in ids {
        lines.extend(backends(&snapshot, &names(reconciler, id)));
    }
    lines
}

/// All lines.
pub(crate) fn whole(lines: &BTreeSet<String>) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

/// The lines that went (`-`) and came (`+`).
pub(crate) fn difference(before: &BTreeSet<String>, after: &BTreeSet<String>) -> String {
    let mut text = String::new();
    for line in before.symmetric_difference(after) {
        let sign = if before.contains(line) { '-' } else { '+' };
        writeln!(text, "{sign} {line}").unwrap();
    }
    if text.is_empty() { "nothing changes\n".to_owned() } else { text }
}

fn names<T: Tables>(reconciler: &Reconciler<T>, id: ServiceId) -> ServiceNames {
    reconciler.names(id).unwrap_or_else(|| panic!("{id:?} has no names"))
}

fn name(names: &ServiceNames) -> String {
    let port = &names.port;
    format!("{}:{}", port.service, port.port)
}

fn frontend(
    snapshot: &Snapshot,
    name: &str,
    at: &FrontendAddress,
    entry: &FrontendEntry,
) -> [String; 2] {
    let kind = match entry.kind {
        FrontendKind::CLUSTER_IP => "ClusterIP",
        FrontendKind::EXTERNAL_IP => "ExternalIP",
        FrontendKind::LOAD_BALANCER => "LoadBalancer",
        _ => "NodePort",
    };
    let affinity = match entry.affinity_timeout {
        0 => String::new(),
        seconds => format!(", affinity {seconds} s"),
    };
    let words = [
        (FrontendFlags::HOST_ONLY, ", host only"),
        (FrontendFlags::CHECK_SOURCE, ", checks sources"),
        (FrontendFlags::MASQUERADE, ", masquerades"),
        (FrontendFlags::LOCAL_BY_SOURCE, ", local by source"),
    ];
    let words = words.iter().filter(|(flag, _)| entry.flags.has(*flag));
    let more: String = words.map(|(_, word)| *word).collect();
    let line = |side, region, drop| {
        let leads_to = leads_to(snapshot, Family::of(at.ip), region, entry.flags.has(drop));
        format!("{name} {at} ({kind}{affinity}{more}) from {side}: {leads_to}")
    };
    [
        line("inside", entry.internal, FrontendFlags::DROP_INTERNAL),
        line("outside", entry.external, FrontendFlags::DROP_EXTERNAL),
    ]
}

fn leads_to(snapshot: &Snapshot, family: Family, region: Region, drops: bool) -> String {
    if region.length == 0 {
        return if drops { "drop" } else { "reject" }.to_owned();
    }
    let (_, slots) = &snapshot.regions[&region.first_chunk];
    let backend = |index: &u32| snapshot.backends[&BackendId { family, index: *index }].address;
    let addresses: BTreeSet<_> = slots.iter().map(backend).collect();
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

fn backends(snapshot: &Snapshot, names: &ServiceNames) -> Vec<String> {
    let line = |(id, backend): (&BackendId, &lb_agent::reconcile::BackendName)| {
        let flags = snapshot.backends[id].flags;
        let when = |flag, text| if flags.has(flag) { text } else { "" };
        let local = when(BackendFlags::LOCAL, ", local");
        let cluster = when(BackendFlags::AFFINE_CLUSTER, ", kept in Cluster");
        let in_local = when(BackendFlags::AFFINE_LOCAL, ", kept in Local");
        let pod = backend.pod.as_ref().map_or("no pod".to_owned(), ToString::to_string);
        let node = backend.node.as_deref().unwrap_or("no node");
        let about = format!("{pod} on {node}{local}{cluster}{in_local}");
        format!("{} backend {} is {about}", name(names), backend.address)
    };
    names.backends.iter().map(line).collect()
}
