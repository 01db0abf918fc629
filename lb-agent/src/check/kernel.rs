//! Privileges, version and features.

use std::path::Path;

use super::Finding;
use crate::net::sockets::can_close;

/// Capabilities that the agent can't do without, with their numbers (`linux/capability.h`).
const CAPABILITIES: &[(&str, u32)] = &[("CAP_NET_ADMIN", 12), ("CAP_SYS_ADMIN", 21)];

/// Oldest kernel that the programs are made for.
const OLDEST: (u32, u32) = (5, 15);

pub(super) fn privileges() -> Finding {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        return Finding::ok("privileges", "all capabilities needed");
    }
    let uid = nix::unistd::geteuid();
    Finding::fail(
        "privileges",
        format!("uid {uid} lacks {}", missing.join(", ")),
        "run as root, in a container as privileged",
    )
}

fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing = CAPABILITIES.iter().filter(|(_, bit)| effective >> bit & 1 == 0);
    missing.map(|(name, _)| *name).collect()
}

pub(super) fn version() -> Finding {
    let release = release();
    let (major, minor) = OLDEST;
    if parse_version(&release) >= Some(OLDEST) {
        return Finding::ok("kernel", release);
    }
    let mend = format!("run Linux {major}.{minor} or newer");
    Finding::fail("kernel", format!("Linux {release}"), mend)
}

pub(super) fn features() -> Vec<Finding> {
    let version = parse_version(&release());
    let since = |wanted: (u32, u32)| version >= Some(wanted);
    let btf = feature(
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        Finding::ok("btf", "/sys/kernel/btf/vmlinux"),
        "no /sys/kernel/btf/vmlinux",
        "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys in the container",
    );
    let tcx = feature(
        since((6, 6)),
        Finding::ok("tcx", "links at the TC hooks can be pinned"),
        "not before Linux 6.6: clsact filters are used, which leave no pinned link",
        "nothing to do; a newer kernel lets several owners share the hook safely",
    );
    let refusal = feature(
        since((5, 18)),
        Finding::ok("set_retval", "a refused connect says ECONNREFUSED"),
        "not before Linux 5.18: a refused connect says EPERM",
        "nothing to do; programs see another error for a Service without endpoints",
    );
    vec![btf, tcx, refusal, sockets(), processes()]
}

/// Sockets of removed backends are closed by the kernel, on demand (S11).
fn sockets() -> Finding {
    match can_close() {
        Ok(()) => Finding::ok("sock_destroy", "sockets of removed backends are closed"),
        Err(error) => Finding::warn(
            "sock_destroy",
            format!("{error}: connected UDP sockets keep sending to a backend that was removed"),
            "use a kernel with CONFIG_INET_DIAG_DESTROY=y and CONFIG_INET_UDP_DIAG, and run as root",
        ),
    }
}

/// Network namespaces are found by their processes.
fn processes() -> Finding {
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    let first = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    if sees_all_processes(&own.to_string_lossy(), &first) {
        return Finding::ok("processes", "those of all pods are seen");
    }
    Finding::warn(
        "processes",
        "this is a pid namespace of its own: sockets of pods outside it are not closed when their \
         backend is removed",
        "run in the host's pid namespace, in a pod with hostPID: true",
    )
}

/// A node that is a container itself, as of kind, has an init and its pods below it.
fn sees_all_processes(namespace: &str, first: &str) -> bool {
    /// `PROC_PID_INIT_INO` of `include/linux/proc_ns.h`.
    const MACHINE: &str = "pid:[4026531836]";
    namespace == MACHINE || matches!(first.trim(), "init" | "systemd")
}

fn feature(is_there: bool, present: Finding, absent: &str, mend: &str) -> Finding {
    if is_there { present } else { Finding::warn(present.name, absent, mend) }
}

fn release() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.trim().to_owned()
}

/// Major and minor number of a release such as `5.15.0-91-generic` or `6.18-rc1`.
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_shapes_are_compared_by_number() {
        assert_eq!(parse_version("5.15.0-91-generic"), Some((5, 15)));
        assert_eq!(parse_version("6.18-rc1"), Some((6, 18)));
        assert!(parse_version("5.4.0") < Some(OLDEST));
        assert!(parse_version("10.0") > Some(OLDEST));
        assert!(parse_version("") < Some(OLDEST));
    }

    #[test]
    fn a_container_of_the_agents_own_hides_the_other_processes() {
        assert!(sees_all_processes("pid:[4026531836]", "anything\n"));
        assert!(sees_all_processes("pid:[4026532201]", "systemd\n"));
        assert!(!sees_all_processes("pid:[4026532201]", "lb-agent\n"));
    }

    #[test]
    fn missing_capabilities_are_named() {
        let with = |hex: &str| missing_capabilities(&format!("Name:\tx\nCapEff:\t{hex}\n"));
        assert_eq!(with("000001ffffffffff"), Vec::<&str>::new());
        assert_eq!(with("0000000000001000"), ["CAP_SYS_ADMIN"]);
        assert_eq!(with("0000000000000000"), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }
}
