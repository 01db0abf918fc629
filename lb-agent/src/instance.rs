//! One agent's place below `/run/lb`: its lock, its status file and its other files.
//!
//! The name follows from `--bpffs`, so one set of pins has one place. Not for: the pins.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use jiff::Timestamp;
use nix::fcntl::{FcntlArg, fcntl};
use serde::{Deserialize, Serialize};

mod status;

pub use status::{DeviceStatus, LeftAlone, SourceStatus, StaleStatus, Status};

/// Where all instances have their folders.
const RUN: &str = "/run/lb";

/// The files of one instance. Having it does not mean holding the lock.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Instance {
    folder: PathBuf,
}

/// Who holds the lock.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Holder {
    /// Its process id.
    pub pid: u32,
    /// Its command line.
    pub command: String,
    /// When it took the lock.
    pub since: Timestamp,
}

/// The lock of an instance, held until this is dropped or the process ends in any way.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough while a child between fork and exec has the file open, too.
        let _ = fcntl(&self.file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_UNLCK)));
    }
}

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "another agent holds {}: pid {}, since {}, command {}",
        path.display(), holder.pid, holder.since, holder.command
    )]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who.
        holder: Holder,
    },
    /// A file operation failed.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

impl Instance {
    /// The instance of the pins below `bpffs`.
    pub fn of(bpffs: &Path) -> Self {
        Self::below(Path::new(RUN), bpffs)
    }

    fn below(run: &Path, bpffs: &Path) -> Self {
        let name: Vec<_> = resolved(bpffs)
            .components()
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name.to_string_lossy().replace('-', "--")),
                _ => None,
            })
            .collect();
        Self { folder: run.join(name.join("-")) }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the manifest source keeps the addresses and ports that it allocated.
    pub fn allocations(&self) -> PathBuf {
        self.folder.join("allocations.json")
    }

    /// Where [`Names`](crate::names::Names) are kept.
    pub fn names(&self) -> PathBuf {
        self.folder.join("names.jsonl")
    }

    /// Where it is kept which settings of the node the agent has changed.
    pub fn node_settings(&self) -> PathBuf {
        self.folder.join("node-settings.json")
    }

    /// Where the running agent tells of itself.
    pub fn status(&self) -> PathBuf {
        self.folder.join("status.json")
    }

    fn lock_path(&self) -> PathBuf {
        self.folder.join("lock")
    }

    /// Takes the lock, making the folder if it is not there.
    ///
    /// # Errors
    ///
    /// Another process has it, or the file can't be made.
    pub fn lock(&self) -> Result<Lock, LockError> {
        let path = self.lock_path();
        let fail = |source| LockError::Io { path: path.clone(), source };
        loop {
            fs::create_dir_all(&self.folder).map_err(fail)?;
            let mut file = match open(&path) {
                // A cleanup removed the folder meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(fail)?,
            };
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&whole_file(libc::F_WRLCK))) {
                Ok(_) if is_still(&path, &file) => {
                    write_holder(&mut file).map_err(fail)?;
                    return Ok(Lock { file });
                }
                // A cleanup removed the file between opening and locking.
                Ok(_) => {}
                Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                    let holder = read_holder(&mut file);
                    return Err(LockError::Held { path, holder });
                }
                Err(errno) => return Err(fail(errno.into())),
            }
        }
    }

    /// Who holds the lock; asking takes nothing from anybody.
    ///
    /// # Errors
    ///
    /// The lock file can't be read.
    pub fn holder(&self) -> io::Result<Option<Holder>> {
        let mut file = match OpenOptions::new().read(true).write(true).open(self.lock_path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut lock = whole_file(libc::F_WRLCK);
        fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        let is_free = i32::from(lock.l_type) == libc::F_UNLCK;
        Ok((!is_free).then(|| read_holder(&mut file)))
    }

    /// Removes the folder, and the one of all instances if this was the last.
    ///
    /// # Errors
    ///
    /// A file that can't be removed.
    pub fn remove(&self, _lock: Lock) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)?;
        if let Some(run) = self.folder.parent() {
            // Fails while another instance has its folder there, as it should.
            let _ = fs::remove_dir(run);
        }
        Ok(())
    }
}

/// The path without links as far as it exists, so that one folder has one name.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().find_map(|known| Some((known, known.canonicalize().ok()?)));
    match existing {
        Some((known, real)) => match absolute.strip_prefix(known) {
            Ok(rest) => real.join(rest),
            Err(_) => absolute,
        },
        None => absolute,
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

fn is_still(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => (named.dev(), named.ino()) == (open.dev(), open.ino()),
        _ => false,
    }
}

/// A lock of the open file description: it ends with the process, and can be asked for.
fn whole_file(kind: i32) -> libc::flock {
    #[allow(clippy::cast_possible_truncation, reason = "all constants are below 4")]
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn write_holder(file: &mut File) -> io::Result<()> {
    let command: Vec<_> = std::env::args().collect();
    let (pid, since) = (std::process::id(), Timestamp::now());
    let text = serde_json::to_string(&Holder { pid, command: command.join(" "), since })?;
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text.as_bytes())
}

/// The holder as it described itself; unknown for the moment between locking and writing.
fn read_holder(file: &mut File) -> Holder {
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    serde_json::from_str(&text).unwrap_or_else(|_| Holder {
        pid: 0,
        command: "unknown".to_owned(),
        since: Timestamp::now(),
    })
}

/// Writes a file whole: a reader sees the old text or the new one.
///
/// # Errors
///
/// The folder can't be written.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    fs::write(&part, bytes)?;
    fs::rename(&part, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_follows_from_the_pins_and_tells_them_apart() {
        let name = |bpffs: &str| Instance::below(Path::new("/run/lb"), Path::new(bpffs)).folder;
        assert_eq!(name("/sys/fs/bpf/lb"), Path::new("/run/lb/sys-fs-bpf-lb"));
        assert_eq!(name("/sys/fs/bpf/lb/"), name("/sys/fs/bpf/lb"));
        assert_ne!(name("/no/a-b"), name("/no/a/b"));
    }

    #[test]
    fn a_link_to_the_pins_is_the_same_instance() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("real")).unwrap();
        std::os::unix::fs::symlink("real", folder.path().join("link")).unwrap();
        let of = |name: &str| Instance::of(&folder.path().join(name).join("lb"));
        assert_eq!(of("link"), of("real"));
    }

    #[test]
    fn a_second_holder_is_told_who_was_first_and_asking_disturbs_nobody() {
        let run = tempfile::tempdir().unwrap();
        let instance = Instance::below(run.path(), Path::new("/x"));
        assert_eq!(instance.holder().unwrap(), None);
        let lock = instance.lock().unwrap();
        assert_eq!(instance.holder().unwrap().unwrap().pid, std::process::id());
        match instance.lock() {
            Err(LockError::Held { holder, .. }) => assert_eq!(holder.pid, std::process::id()),
            other => panic!("not refused: {other:?}"),
        }
        drop(lock);
        assert_eq!(instance.holder().unwrap(), None);
        let lock = instance.lock().unwrap();
        instance.remove(lock).unwrap();
        assert!(!instance.folder().exists());
        instance.lock().unwrap();
    }
}
