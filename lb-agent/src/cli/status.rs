//! `lb-agent status`: what the agent says of itself, and what the pinned maps say.

use std::{collections::BTreeMap, path::Path, process::ExitCode};

use lb_common::abi::Counter;
use serde::Serialize;

use super::output::{OutputArgs, table};
use crate::{
    dataplane::{MapFill, Memory, Reader, check_version},
    instance::{DeviceStatus, Instance, LeftAlone, StaleStatus, Status},
};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    alive: bool,
    synced: bool,
    agent: Option<Status>,
    problems: Vec<String>,
    left_alone: Vec<LeftAlone>,
    devices: Vec<DeviceStatus>,
    counters: BTreeMap<&'static str, u64>,
    maps: Vec<MapFill>,
    memory: Memory,
}

pub(super) fn status(arguments: OutputArgs, bpffs: &Path) -> anyhow::Result<ExitCode> {
    check_version(bpffs)?;
    let instance = Instance::of(bpffs);
    let (counters, maps, memory) = match Reader::open(bpffs) {
        Some(reader) => (reader.counters()?, reader.fill()?, reader.memory()),
        None => (Vec::new(), Vec::new(), Memory::default()),
    };
    // In this order: a status that is older than its holder is the one of an agent before.
    let status = Status::read(&instance.status())?;
    let holder = instance.holder()?.map(|holder| holder.pid);
    let report = report(holder, status, &counters, (maps, memory));
    arguments.output.print(&report, || text(&report))?;
    Ok(if report.is_healthy() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A dead agent's last word tells what it was, not that all is in step; nor does it speak for the
/// agent that has taken its place.
fn report(
    holder: Option<u32>,
    status: Option<Status>,
    counters: &[(Counter, u64)],
    (maps, memory): (Vec<MapFill>, Memory),
) -> Report {
    let alive = holder.is_some();
    let status = status.filter(|status| holder.is_none_or(|pid| pid == status.pid));
    let last = status.clone();
    Report {
        alive,
        synced: alive && last.as_ref().is_some_and(|last| last.synced),
        problems: last.as_ref().map(|last| last.problems.clone()).unwrap_or_default(),
        left_alone: last.as_ref().map(|last| last.left_alone.clone()).unwrap_or_default(),
        devices: last.map(|last| last.devices).unwrap_or_default(),
        agent: status,
        counters: counters.iter().map(|(counter, count)| (counter.name(), *count)).collect(),
        maps,
        memory,
    }
}

impl Report {
    fn is_healthy(&self) -> bool {
        let source_error = self.agent.as_ref().and_then(|agent| agent.source.error.as_ref());
        self.alive && self.synced && source_error.is_none()
    }
}

fn text(report: &Report) -> String {
    let mut blocks = vec![summary(report)];
    if !report.problems.is_empty() {
        blocks.push(format!("PROBLEMS\n{}", report.problems.join("\n")));
    }
    if !report.left_alone.is_empty() {
        let rows = report.left_alone.iter().map(left_alone_row);
        blocks.push(table(&["LEFT ALONE", "SERVICE", "WHY"], rows));
    }
    if !report.devices.is_empty() {
        blocks.push(table(
            &["DEVICE", "ROLE", "ATTACHED", "XDP"],
            report.devices.iter().map(device_row),
        ));
    }
    let counters = report.counters.iter().filter(|(_, count)| **count > 0);
    let counted: Vec<_> =
        counters.map(|(name, count)| vec![(*name).to_owned(), count.to_string()]).collect();
    if !counted.is_empty() {
        blocks.push(table(&["NOT TRANSLATED", "PACKETS"], counted));
    }
    if !report.maps.is_empty() {
        let rows = report.maps.iter().map(map_row);
        let memory = memory(report.memory);
        blocks.push(table(&["MAP", "ENTRIES", "CAPACITY", "BYTES"], rows) + "\n" + &memory);
    }
    blocks.join("\n\n")
}

fn summary(report: &Report) -> String {
    let Some(agent) = &report.agent else {
        let word = if report.alive { "starting" } else { "not running, and never was" };
        return format!("Agent:   {word}");
    };
    let life = if report.alive { "running" } else { "dead; what is pinned goes on" };
    let sync = match (report.synced, agent.synced, agent.last_sync) {
        (true, _, Some(time)) => format!("in step since {time}"),
        (true, _, None) => "in step".to_owned(),
        (false, true, Some(time)) => format!("were in step at {time}"),
        (false, false, Some(time)) => format!("behind; last in step {time}"),
        (false, _, None) => "never".to_owned(),
    };
    let listed = if agent.source.listed { "listed" } else { "not listed yet" };
    let health = agent.source.error.as_deref().unwrap_or(listed);
    let ended = ended(&agent.stale);
    format!(
        "Agent:   {life}, pid {}, version {}, started {}\nSource:  {}: {health}\nTables:  {sync}{ended}",
        agent.pid, agent.version, agent.started, agent.source.from
    )
}

fn ended(stale: &StaleStatus) -> String {
    let StaleStatus { closed_sockets, deleted_entries, expired_entries, evicted_entries } = stale;
    let counts = [
        (*closed_sockets, "sockets and"),
        (*deleted_entries, "flow entries of removed endpoints"),
        (*expired_entries, "flow entries silent for long"),
        (*evicted_entries, "flow entries thrown out of a full table"),
    ];
    if counts.iter().all(|(count, _)| *count == 0) {
        return String::new();
    }
    let [sockets, deleted, expired, evicted] =
        counts.map(|(count, what)| format!("{count} {what}"));
    format!("\nEnded:   {sockets} {deleted}, {expired}, {evicted}")
}

fn left_alone_row(left: &LeftAlone) -> Vec<String> {
    vec![left.address.clone(), left.service.clone(), left.reason.clone()]
}

fn device_row(device: &DeviceStatus) -> Vec<String> {
    let attached = match &device.reason {
        Some(reason) => reason.clone(),
        None => device.attached.join(", "),
    };
    let xdp = device.xdp.clone().unwrap_or_default();
    vec![device.name.clone(), device.role.clone(), attached, xdp]
}

/// With those maps that have no row, as of cached flows.
fn memory(Memory { maps, flows }: Memory) -> String {
    format!("All maps take {maps} bytes of the kernel's memory, {flows} of them to remember flows.")
}

fn map_row(map: &MapFill) -> Vec<String> {
    vec![
        map.name.to_owned(),
        map.entries.to_string(),
        map.capacity.to_string(),
        map.bytes.to_string(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 7;
    const OURS: Option<u32> = Some(PID);
    const NO_MAPS: (Vec<MapFill>, Memory) = (Vec::new(), Memory { maps: 0, flows: 0 });

    fn synced() -> Status {
        Status { pid: PID, synced: true, ..Status::starting("folder /x".into()) }
    }

    #[test]
    fn a_dead_agents_last_word_is_not_health() {
        let dead = report(None, Some(synced()), &[], NO_MAPS);
        assert!(!dead.alive && !dead.synced && !dead.is_healthy());
        assert!(text(&dead).contains("dead; what is pinned goes on"), "{}", text(&dead));
        assert!(report(OURS, Some(synced()), &[], NO_MAPS).is_healthy());
        assert!(!report(OURS, None, &[], NO_MAPS).is_healthy());
    }

    #[test]
    fn a_dead_agents_last_word_is_not_that_of_the_next() {
        let next = report(Some(synced().pid + 1), Some(synced()), &[], NO_MAPS);
        assert!(next.alive && !next.synced && !next.is_healthy());
        assert!(text(&next).contains("starting"), "{}", text(&next));
    }

    #[test]
    fn a_source_that_is_not_heard_is_unhealthy() {
        let mut status = synced();
        status.source.error = Some("connection refused".into());
        let report = report(OURS, Some(status), &[], NO_MAPS);
        assert!(!report.is_healthy());
        assert!(text(&report).contains("connection refused"));
    }

    #[test]
    fn programs_read_the_promised_fields() {
        let map = MapFill { name: "SLOTS", entries: 1, capacity: 2, bytes: 3 };
        let memory = Memory { maps: 9, flows: 4 };
        let mut status = synced();
        status.problems.push("Service a/b: bad".into());
        status.left_alone.push(LeftAlone {
            service: "kube-system/kube-dns".into(),
            address: "10.96.0.10:53/UDP".into(),
            reason: "held by device nodelocaldns".into(),
        });
        let report = report(OURS, Some(status), &[(Counter::NoEndpoint, 4)], (vec![map], memory));
        let last = "All maps take 9 bytes of the kernel's memory, 4 of them to remember flows.";
        assert!(text(&report).ends_with(last), "{}", text(&report));
        let line = "10.96.0.10:53/UDP  kube-system/kube-dns  held by device nodelocaldns";
        assert!(text(&report).contains(line), "{}", text(&report));
        let value = serde_json::to_value(&report).unwrap();
        assert_eq!(value["synced"], true);
        assert_eq!(value["alive"], true);
        assert_eq!(value["problems"][0], "Service a/b: bad");
        assert_eq!(value["leftAlone"][0]["address"], "10.96.0.10:53/UDP");
        assert_eq!(value["counters"]["no_endpoint"], 4);
        assert_eq!(value["maps"][0]["bytes"], 3);
        assert_eq!(value["memory"]["maps"], 9);
        assert!(value["devices"].is_array());
    }
}
