//! What the kernel side is started with: above all, how much room its tables have.
//!
//! Not for: making them (`dataplane`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::problems::{Finder, Problems};
use crate::{
    check,
    config::Settings,
    dataplane::{KernelOptions, SizeKept, XdpMode, pinned_conntrack},
    model::{Problem, ProblemKey},
    sysctl,
};

/// As many as kube-proxy gives netfilter's conntrack (S16).
const ENTRIES_PER_CPU: u64 = 32_768;
const LEAST_BY_CPUS: u64 = 131_072;
const MOST_BY_CPUS: u64 = 1 << 20;
/// However short memory is.
const LEAST: u64 = 4096;
/// Bytes of the kernel for one entry of IPv4 and one of IPv6, with their buckets.
const ENTRY_BYTES: u64 = 300;

/// Settings as the kernel side takes them.
pub(super) fn kernel_options(settings: &Settings) -> KernelOptions {
    KernelOptions {
        bpffs: settings.bpffs.clone(),
        cgroup: settings.cgroup.clone(),
        socket_lb: settings.socket_lb,
        bind_protection: settings.bind_protection,
        tc_attach: settings.tc_attach,
        xdp: settings.xdp != XdpMode::Off,
        snat_ports: (settings.snat_ports.first, settings.snat_ports.last),
        carrier_kind: settings.dsr_dispatch.kind(),
        carrier_port: settings.dsr_port,
        mid_flow: settings.mid_flow,
        reset_tcp: settings.reset_tcp_on_removal,
        timeouts: settings.netfilter.timeouts(),
        conntrack_max: settings
            .conntrack_max
            .or_else(|| pinned_conntrack(&settings.bpffs))
            .unwrap_or_else(|| entries(sysctl::cpus(), memory())),
        affinity_max: settings.affinity_max,
        max_frontends: settings.max_frontends,
        max_backends: settings.max_backends,
    }
}

/// Tells of tables that are not as large as they should be.
pub(super) fn tell(sizes: &[SizeKept], problems: &mut Problems) {
    for SizeKept { map, capacity, wanted, flag } in sizes {
        let problem = Problem {
            key: ProblemKey { kind: "map", name: (*map).into() },
            field: String::new(),
            message: format!("--{flag} asks for {wanted} entries, but it was made with {capacity}"),
            mend: "drain the node, stop the agent, run `lb-agent cleanup` and start again; or ask for \
                   what it has"
                .to_owned(),
        };
        problems.set(Finder::Size(map), [problem]);
    }
}

/// Entries of each conntrack map for so many CPUs, within so many bytes for both.
fn entries(cpus: u32, bytes: u64) -> u32 {
    let by_cpus = (ENTRIES_PER_CPU * u64::from(cpus)).clamp(LEAST_BY_CPUS, MOST_BY_CPUS);
    let entries = by_cpus.min(bytes / ENTRY_BYTES).max(LEAST);
    u32::try_from(entries).expect("invariant: at most 2^20")
}

/// Bytes that conntrack may take: a 32nd of the node's memory, or a quarter of what the agent's own
/// cgroup may have, which maps are charged to.
fn memory() -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let node = total(&meminfo).unwrap_or(u64::MAX);
    let limit = cgroup().as_deref().and_then(limit).unwrap_or(u64::MAX);
    (node / 32).min(limit / 4)
}

/// Bytes of memory that `/proc/meminfo` tells of.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The folder of the agent's own cgroup.
fn cgroup() -> Option<PathBuf> {
    let all = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = all.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(check::cgroup2_mount()?.join(own))
}

/// The least that a cgroup and those above it allow, in bytes.
fn limit(cgroup: &Path) -> Option<u64> {
    let limits = cgroup.ancestors().filter_map(|folder| {
        fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse().ok()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conntrack_has_room_by_cpus_within_memory() {
        let gib = 1 << 30;
        assert_eq!(entries(1, gib), 131_072);
        assert_eq!(entries(8, gib), 262_144);
        assert_eq!(entries(128, gib), 1 << 20);
        assert_eq!(entries(8, 32 << 20), 111_848, "a node of 1 GiB");
        assert_eq!(entries(8, 0), 4096);
    }

    #[test]
    fn a_table_of_another_size_is_a_problem() {
        let mut problems = Problems::default();
        let kept = SizeKept { map: "A", capacity: 4096, wanted: 8192, flag: "a-max" };
        tell(&[kept], &mut problems);
        let sentences: Vec<_> = problems.sentences().collect();
        assert_eq!(sentences.len(), 1);
        let wanted = "map A: --a-max asks for 8192 entries, but it was made with 4096; drain";
        assert!(sentences[0].starts_with(wanted), "{sentences:?}");
    }

    #[test]
    fn memory_is_read_as_the_kernel_tells_it() {
        assert_eq!(total("MemTotal:       16316412 kB\nMemFree: 1 kB\n"), Some(16_316_412 * 1024));
        assert_eq!(total(""), None);
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("a/b");
        fs::create_dir_all(&inner).unwrap();
        assert_eq!(limit(&inner), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(folder.path().join("a/memory.max"), "134217728\n").unwrap();
        assert_eq!(limit(&inner), Some(128 << 20), "that of the one above");
        fs::write(inner.join("memory.max"), "268435456\n").unwrap();
        assert_eq!(limit(&inner), Some(128 << 20), "the least of both");
    }
}
