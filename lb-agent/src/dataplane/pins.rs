//! Where everything that outlives the agent is pinned.
//!
//! ```text
//! BPFFS/abi-N/           which layouts the maps have
//! BPFFS/maps/NAME        BPFFS/programs/NAME
//! BPFFS/links/NAME       cgroup hooks, by program
//! BPFFS/links/IFINDEX-{ingress,egress,xdp,xdp-generic}
//! ```

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use lb_common::abi::ABI_VERSION;
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS: FsType = FsType(0xcafe_4a11);

/// Why the folder of pins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinsError {
    /// The folder cannot be made or read.
    #[error("{path}: {source}; name another folder with --bpffs")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The folder is on another file system, and none could be mounted there.
    #[error("mount a BPF file system at {path}: {source}; it needs CAP_SYS_ADMIN")]
    Mount {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another version's maps are there.
    #[error(
        "{path} holds maps of layout {found}, this program has layout {ABI_VERSION}; \
         run the `lb-agent cleanup` of the version that made them"
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// Layout that is there.
        found: String,
    },
}

/// The folder of pins, by its parts.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    /// Pinned maps.
    pub(super) maps: PathBuf,
    /// Pinned programs.
    pub(super) programs: PathBuf,
    /// Pinned links.
    pub(super) links: PathBuf,
}

impl Pins {
    /// Names the parts of a folder.
    pub(super) fn at(bpffs: &Path) -> Self {
        Self {
            maps: bpffs.join("maps"),
            programs: bpffs.join("programs"),
            links: bpffs.join("links"),
        }
    }

    /// Makes the folder ready, with a BPF file system if it has none.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or holds maps of another version.
    pub(super) fn prepare(bpffs: &Path) -> Result<Self, PinsError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| PinsError::Folder { path, source }
        };
        if !is_bpffs(bpffs) {
            let place = mount_place(bpffs);
            fs::create_dir_all(place).map_err(fail(place))?;
            mount_bpffs(place)?;
        }
        fs::create_dir_all(bpffs).map_err(fail(bpffs))?;
        check_version(bpffs)?;
        let pins = Self::at(bpffs);
        let version = bpffs.join(format!("abi-{ABI_VERSION}"));
        for folder in [&pins.maps, &pins.programs, &pins.links, &version] {
            fs::create_dir_all(folder).map_err(fail(folder))?;
        }
        Ok(pins)
    }
}

/// Is the folder, or the nearest one above it that exists, on a BPF file system?
fn is_bpffs(path: &Path) -> bool {
    path.ancestors()
        .find(|ancestor| ancestor.exists())
        .and_then(|ancestor| statfs(ancestor).ok())
        .is_some_and(|fs| fs.filesystem_type() == BPF_FS)
}

/// Where a BPF file system for the folder belongs: the kernel's own place for one, which no folder
/// can be made in before, or the folder itself.
fn mount_place(bpffs: &Path) -> &Path {
    let usual = Path::new("/sys/fs/bpf");
    if bpffs.starts_with(usual) { usual } else { bpffs }
}

fn mount_bpffs(path: &Path) -> Result<(), PinsError> {
    mount(Some("bpf"), path, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
        .map_err(|errno| PinsError::Mount { path: path.to_owned(), source: errno.into() })
}

/// Are the maps in the folder, if there are any, of this program's layout?
///
/// # Errors
///
/// They are of another one, or the folder cannot be read.
pub fn check_version(bpffs: &Path) -> Result<(), PinsError> {
    let entries = match fs::read_dir(bpffs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(PinsError::Folder { path: bpffs.to_owned(), source }),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let versions = names.filter_map(|name| name.strip_prefix("abi-").map(str::to_owned));
    match versions.into_iter().find(|version| *version != ABI_VERSION.to_string()) {
        Some(found) => Err(PinsError::Version { path: bpffs.to_owned(), found }),
        None => Ok(()),
    }
}

/// What could not be removed.
#[derive(Debug, thiserror::Error)]
#[error("not removed: {}", .0.iter().map(|(path, error)| format!("{} ({error})", path.display()))
    .collect::<Vec<_>>().join(", "))]
pub struct CleanupError(pub Vec<(PathBuf, io::Error)>);

/// Removes all pins below a folder, and so detaches all programs and frees all maps.
///
/// Links go first, so that no program runs on tables that are gone. Returns what was removed; a
/// folder that is not there is nothing.
///
/// # Errors
///
/// All that could not be removed; the rest is gone.
pub fn cleanup(bpffs: &Path) -> Result<Vec<PathBuf>, CleanupError> {
    let (mut removed, mut failed) = (Vec::new(), Vec::new());
    if let Err(error) = super::clsact::detach_all(&Pins::at(bpffs)) {
        failed.push((bpffs.join("links"), error));
    }
    for part in ["links", "programs", "maps"] {
        remove_files(&bpffs.join(part), &mut removed, &mut failed);
    }
    if bpffs.exists() && failed.is_empty() {
        remove_folders(bpffs, &mut failed);
    }
    if failed.is_empty() { Ok(removed) } else { Err(CleanupError(failed)) }
}

fn remove_files(folder: &Path, removed: &mut Vec<PathBuf>, failed: &mut Vec<(PathBuf, io::Error)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) => failed.push((path, error)),
        }
    }
}

fn remove_folders(bpffs: &Path, failed: &mut Vec<(PathBuf, io::Error)>) {
    let Ok(entries) = fs::read_dir(bpffs) else { return };
    let ours = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ["links", "programs", "maps"].contains(&name) || name.starts_with("abi-")
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())).filter(ours) {
        if let Err(error) = fs::remove_dir(&path) {
            failed.push((path, error));
        }
    }
    // The folder itself stays if it is a mount point or holds something else.
    let _ = fs::remove_dir(bpffs);
}
