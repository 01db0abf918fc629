//! `lb-agent services`: who answers where, from the pinned maps and the names journal.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::ExitCode,
};

use anyhow::Context;
use clap::Args;
use ipnet::IpNet;
use lb_common::abi::{BackendFlags, FrontendFlags, FrontendKind, Region};
use serde::Serialize;

use super::output::{Format, OutputArgs, table};
use crate::{
    dataplane::{
        BackendId, FrontendAddress, FrontendEntry, Reader, ServiceId, Snapshot, check_version,
    },
    instance::Instance,
    model::Family,
    names::{self, NameTable, ServiceNames},
};

/// Backends that the short table names.
const SHOWN: usize = 3;

#[derive(Args, Debug)]
pub(super) struct ServicesArgs {
    /// Show only Services whose namespace/name contains one of these
    #[arg(value_name = "SERVICE")]
    filters: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

/// One frontend.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ServiceRow {
    /// `namespace/name`, and `:port` where the port has a name.
    pub service: String,
    /// Port of the frontend.
    pub port: u16,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// `ClusterIP`, `ExternalIP`, `LoadBalancer` or `NodePort`.
    pub kind: &'static str,
    /// Its address and port.
    pub frontend: Address,
    /// How long a client that begins no connection keeps its backend; zero without affinity.
    pub affinity_timeout_seconds: u32,
    /// For clients on this node.
    pub internal: Choice,
    /// For clients from outside.
    pub external: Choice,
    /// Who may ask; nobody is kept out where it is empty (S9).
    pub sources: Vec<IpNet>,
}

/// An address and a port.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Address {
    /// Address.
    pub ip: IpAddr,
    /// Port.
    pub port: u16,
}

/// What a new connection meets.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Choice {
    /// In a word.
    pub answer: Answer,
    /// The backends it may be given, in order of their addresses.
    pub backends: Vec<BackendRow>,
}

/// What becomes of a new connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// A backend takes it.
    Backends,
    /// It is dropped (S5).
    Drop,
    /// It is refused (S5).
    Reject,
}

/// One backend.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub struct BackendRow {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// Pod, as namespace/name; empty if unknown.
    pub pod: String,
    /// Node; empty if unknown.
    pub node: String,
    /// Does it run on this node?
    pub local: bool,
}

pub(super) fn services(arguments: &ServicesArgs, bpffs: &Path) -> anyhow::Result<ExitCode> {
    check_version(bpffs)?;
    let reader = Reader::open(bpffs).with_context(|| {
        format!("nothing is pinned below {}: start an agent with lb-agent run", bpffs.display())
    })?;
    let names = names::read(&Instance::of(bpffs).names())?;
    let mut rows = rows(&reader.snapshot()?, &names);
    rows.retain(|row| matches(row, &arguments.filters));
    let format = arguments.output.output;
    format.print(&rows, || text(&rows, format))?;
    Ok(ExitCode::SUCCESS)
}

fn matches(row: &ServiceRow, filters: &[String]) -> bool {
    filters.is_empty() || filters.iter().any(|filter| row.service.contains(filter))
}

/// Joins tables and names: one row a frontend, in order of Service, kind and address.
///
/// Without those at the unspecified address, which keep others from binding a node port.
pub fn rows(snapshot: &Snapshot, names: &NameTable) -> Vec<ServiceRow> {
    let mut rows: Vec<_> = snapshot
        .frontends
        .iter()
        .filter(|(address, _)| !address.ip.is_unspecified())
        .map(|(address, entry)| row(snapshot, names, *address, entry))
        .collect();
    // A stable sort: frontends come in order of their addresses.
    rows.sort_by(|a, b| (&a.service, a.kind).cmp(&(&b.service, b.kind)));
    rows
}

fn row(
    snapshot: &Snapshot,
    names: &NameTable,
    address: FrontendAddress,
    entry: &FrontendEntry,
) -> ServiceRow {
    let choice = |region: Region, drop: FrontendFlags| {
        let backends = backends(snapshot, names, Family::of(address.ip), region);
        let answer = match backends.is_empty() {
            false => Answer::Backends,
            true if entry.flags.has(drop) => Answer::Drop,
            true => Answer::Reject,
        };
        Choice { answer, backends }
    };
    ServiceRow {
        service: label(names, entry.service),
        port: address.port,
        protocol: address.protocol.to_string(),
        kind: kind_name(entry.kind),
        frontend: Address { ip: address.ip, port: address.port },
        affinity_timeout_seconds: entry.affinity_timeout,
        internal: choice(entry.internal, FrontendFlags::DROP_INTERNAL),
        external: choice(entry.external, FrontendFlags::DROP_EXTERNAL),
        sources: sources(snapshot, Family::of(address.ip), entry),
    }
}

fn sources(snapshot: &Snapshot, family: Family, entry: &FrontendEntry) -> Vec<IpNet> {
    if !entry.flags.has(FrontendFlags::CHECK_SOURCE) {
        return Vec::new();
    }
    let ranges = snapshot.source_ranges.iter().filter(|(id, _)| *id == entry.service);
    ranges.map(|(_, range)| *range).filter(|range| Family::of(range.addr()) == family).collect()
}

fn backends(
    snapshot: &Snapshot,
    names: &NameTable,
    family: Family,
    region: Region,
) -> Vec<BackendRow> {
    if region.length == 0 {
        return Vec::new();
    }
    let Some((_, slots)) = snapshot.regions.get(&region.first_chunk) else {
        return Vec::new();
    };
    let indices: BTreeSet<u32> = slots.iter().copied().collect();
    let mut rows: Vec<_> = indices
        .into_iter()
        .filter_map(|index| backend_row(snapshot, names, BackendId { family, index }))
        .collect();
    rows.sort();
    rows
}

fn backend_row(snapshot: &Snapshot, names: &NameTable, id: BackendId) -> Option<BackendRow> {
    let entry = snapshot.backends.get(&id)?;
    let known = names.get(&entry.service).and_then(|service| service.backend(id));
    let known = known.cloned().unwrap_or_default();
    Some(BackendRow {
        address: entry.address.ip(),
        port: entry.address.port(),
        pod: known.pod,
        node: known.node,
        local: entry.flags.has(BackendFlags::LOCAL),
    })
}

fn label(names: &NameTable, service: ServiceId) -> String {
    names.get(&service).map_or_else(|| format!("service {}", service.0), ServiceNames::label)
}

fn kind_name(kind: FrontendKind) -> &'static str {
    match kind {
        FrontendKind::CLUSTER_IP => "ClusterIP",
        FrontendKind::EXTERNAL_IP => "ExternalIP",
        FrontendKind::LOAD_BALANCER => "LoadBalancer",
        FrontendKind::NODE_PORT => "NodePort",
        _ => "unknown",
    }
}

fn text(rows: &[ServiceRow], format: Format) -> String {
    let cells = rows.iter().map(|row| {
        let frontend = SocketAddr::new(row.frontend.ip, row.frontend.port);
        let frontend = format!("{frontend}/{}", row.protocol);
        let mut cells = vec![row.service.clone(), row.kind.to_owned(), frontend];
        if format == Format::Wide {
            cells.push(affinity(row.affinity_timeout_seconds));
        }
        cells.push(choices(row, format));
        cells
    });
    match format {
        Format::Wide => table(&["SERVICE", "TYPE", "FRONTEND", "AFFINITY", "BACKENDS"], cells),
        _ => table(&["SERVICE", "TYPE", "FRONTEND", "BACKENDS"], cells),
    }
}

fn affinity(seconds: u32) -> String {
    if seconds == 0 { "none".to_owned() } else { format!("{seconds} s") }
}

/// The answer for clients on this node, and the other one where it is not the same.
///
/// A ClusterIP is asked for on its node alone.
fn choices(row: &ServiceRow, format: Format) -> String {
    let mut lines = vec![choice(&row.internal, format)];
    if row.internal != row.external && row.kind != "ClusterIP" {
        let break_ = if format == Format::Wide { "\n" } else { " " };
        lines.push(format!("from outside:{break_}{}", choice(&row.external, format)));
    }
    if !row.sources.is_empty() {
        let sources: Vec<_> = row.sources.iter().map(IpNet::to_string).collect();
        lines.push(format!("only from: {}", sources.join(", ")));
    }
    lines.join("\n")
}

fn choice(choice: &Choice, format: Format) -> String {
    let backends = &choice.backends;
    match choice.answer {
        Answer::Drop => "none: dropped".to_owned(),
        Answer::Reject => "none: refused".to_owned(),
        Answer::Backends if format == Format::Wide => {
            backends.iter().map(wide).collect::<Vec<_>>().join("\n")
        }
        Answer::Backends => {
            let shown: Vec<_> = backends.iter().take(SHOWN).map(short).collect();
            let rest = match backends.len().saturating_sub(SHOWN) {
                0 => String::new(),
                rest => format!(" +{rest}"),
            };
            format!("{}: {}{rest}", backends.len(), shown.join(", "))
        }
    }
}

fn short(backend: &BackendRow) -> String {
    SocketAddr::new(backend.address, backend.port).to_string()
}

fn wide(backend: &BackendRow) -> String {
    let or_unknown = |text: &str| if text.is_empty() { "?".to_owned() } else { text.to_owned() };
    let place = if backend.local { " (this node)" } else { "" };
    format!(
        "{} {} on {}{place}",
        short(backend),
        or_unknown(&backend.pod),
        or_unknown(&backend.node)
    )
}

#[cfg(test)]
#[path = "services_tests.rs"]
mod tests;
