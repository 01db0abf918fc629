//! The two file systems that programs are bound to: cgroup v2 and bpffs.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::Finding;
use crate::dataplane::{PinsError, check_version};

/// Inode of the one cgroup that holds all others.
const ROOT_CGROUP: u64 = 1;

/// Where cgroup v2 is mounted, if it is; not always at `/sys/fs/cgroup`.
pub fn cgroup2_mount() -> Option<PathBuf> {
    mount_of(&fs::read_to_string("/proc/self/mounts").ok()?, "cgroup2")
}

pub(super) fn cgroup(named: Option<&Path>) -> Finding {
    let mend = "mount it (mount -t cgroup2 none /sys/fs/cgroup/unified) and name it with --cgroup, \
                or set --socket-lb=off";
    let Some(path) = named.map(Path::to_owned).or_else(cgroup2_mount) else {
        return Finding::fail("cgroup", "cgroup v2 is mounted nowhere", mend);
    };
    let shown = path.display();
    if !is_on(&path, CGROUP2_SUPER_MAGIC) {
        return Finding::fail("cgroup", format!("{shown} is no cgroup v2 folder"), mend);
    }
    let inode = fs::metadata(&path).map(|metadata| metadata.ino());
    if named.is_none() && inode.is_ok_and(|inode| inode != ROOT_CGROUP) {
        return Finding::warn(
            "cgroup",
            format!("{shown} is this container's own cgroup: no other pod's socket is in it"),
            "mount the host's cgroup v2 into the container and name it with --cgroup",
        );
    }
    Finding::ok("cgroup", shown.to_string())
}

pub(super) fn bpffs(path: &Path) -> Finding {
    let shown = path.display();
    if let Err(error @ PinsError::Version { .. }) = check_version(path) {
        let mend = "or name another folder with --bpffs";
        return Finding::fail("bpffs", error.to_string(), mend);
    }
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    if existing.is_some_and(|existing| is_on(existing, BPF_FS_MAGIC)) {
        return Finding::ok("bpffs", format!("{shown} is on a bpffs"));
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        return Finding::ok("bpffs", format!("{shown} is on no bpffs: run mounts one there"));
    }
    Finding::fail(
        "bpffs",
        format!("{shown} is on no bpffs, and this kernel has none"),
        "use a kernel with CONFIG_BPF_SYSCALL=y",
    )
}

fn is_on(path: &Path, wanted: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == wanted)
}

/// The first mount point of a type; the kernel writes a space in it as `\040`.
fn mount_of(mounts: &str, wanted: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == wanted).then(|| point.replace("\\040", " ").into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Outcome;

    #[test]
    fn the_mount_is_found_by_its_type_and_not_by_its_place() {
        let mounts = "cgroup /sys/fs/cgroup/net_cls cgroup rw 0 0\n\
                      cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw,relatime 0 0\n";
        let expected = Path::new("/sys/fs/cgroup/uni fied");
        assert_eq!(mount_of(mounts, "cgroup2").as_deref(), Some(expected));
        assert_eq!(mount_of("tmpfs /cgroup2 tmpfs rw 0 0\n", "cgroup2"), None);
    }

    #[test]
    fn a_folder_that_is_no_cgroup_fails_and_says_so() {
        let finding = cgroup(Some(Path::new("/proc")));
        assert_eq!(finding.outcome, Outcome::Fail);
        assert!(finding.detail.contains("/proc is no cgroup v2 folder"), "{}", finding.detail);
        assert!(finding.mend.contains("--cgroup"), "{}", finding.mend);
    }
}
