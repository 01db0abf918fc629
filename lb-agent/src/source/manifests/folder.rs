//! The files of a folder: read again only where they changed, parsed again only where their text
//! did.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    num::NonZero,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    objects::ParsedFile,
    read::{file_problem, parse},
};
use crate::model::Problem;

/// Files that are not worth a thread of their own.
const FEW_FILES: usize = 64;

/// Nanoseconds in which a file system's clock has surely moved on.
const TICKS: i128 = 50_000_000;

/// What tells that a file was touched: device, inode, size, and times of change in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Stamp([i128; 5]);

impl Stamp {
    /// None for what is no file.
    fn of_file(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok().filter(|metadata| !metadata.is_dir())?;
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Some(Self([
            metadata.dev().into(),
            metadata.ino().into(),
            metadata.size().into(),
            nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        ]))
    }

    /// Itself, unless the file was touched so lately that another write could leave the same
    /// stamp: file systems count in ticks of some milliseconds.
    fn if_settled(self) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let age = i128::try_from(now.as_nanos()).unwrap_or_default() - self.0[4];
        if age > TICKS { self } else { Self::default() }
    }
}

/// A file and the last good state of it.
#[derive(Debug, Default)]
struct File {
    stamp: Stamp,
    /// Hash of the text that was read last.
    text: Option<u64>,
    parsed: ParsedFile,
    fault: Option<Fault>,
}

/// Why the file's text as it is does not hold.
#[derive(Debug)]
struct Fault {
    problem: Problem,
    /// The next scan found it unchanged, so nobody is in the middle of writing it.
    confirmed: bool,
    /// What is told of until then: the fault before.
    told: Option<Problem>,
}

impl Fault {
    fn to_tell(&self) -> Option<&Problem> {
        if self.confirmed { Some(&self.problem) } else { self.told.as_ref() }
    }
}

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Scan {
    /// The folder says something else than before.
    pub(super) changed: bool,
    /// A file cannot be parsed, and may be in the middle of being written: scan again soon.
    pub(super) unsettled: bool,
}

/// The files of a folder.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    files: BTreeMap<String, File>,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, files: BTreeMap::new() }
    }

    /// Each file's path and the last good state of it, in the order of their names.
    pub(super) fn files(&self) -> impl Iterator<Item = (&str, &ParsedFile)> {
        self.files.iter().map(|(path, file)| (path.as_str(), &file.parsed))
    }

    /// What is wrong with whole files.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let faults = self.files.values().filter_map(|file| file.fault.as_ref());
        faults.filter_map(Fault::to_tell).cloned()
    }

    /// Whether some file does not say what it should.
    pub(super) fn has_faults(&self) -> bool {
        self.files.values().any(|f| f.fault.is_some() || !f.parsed.unreadable.is_empty())
    }

    /// Looks at every file but those in `held`, which are being written.
    pub(super) fn scan(&mut self, held: &BTreeSet<PathBuf>) -> io::Result<Scan> {
        let mut scan = Scan::default();
        let (mut found, mut touched) = (BTreeSet::new(), Vec::new());
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if !is_manifest(&path) {
                continue;
            }
            let name = path.display().to_string();
            if !held.contains(&path) {
                let Some(stamp) = Stamp::of_file(&path) else { continue };
                match self.files.get_mut(&name) {
                    Some(file) if file.stamp == stamp => scan.changed |= file.confirm(),
                    file => touched.push((name.clone(), stamp, file.and_then(|file| file.text))),
                }
            }
            found.insert(name);
        }
        for ((name, stamp, _), text) in touched.iter().zip(read_all(&touched)) {
            let file = self.files.entry(name.clone()).or_default();
            file.stamp = stamp.if_settled();
            scan.changed |= file.take(name, text);
        }
        let before = self.files.len();
        self.files.retain(|name, _| found.contains(name));
        scan.changed |= self.files.len() != before;
        let mut faults = self.files.values().filter_map(|file| file.fault.as_ref());
        scan.unsettled = faults.any(|fault| !fault.confirmed);
        Ok(scan)
    }
}

impl File {
    /// The file is as it was; says whether that changes anything.
    fn confirm(&mut self) -> bool {
        let fault = self.fault.as_mut().filter(|fault| !fault.confirmed);
        fault.map(|fault| fault.confirmed = true).is_some()
    }

    /// Takes over what was read; says whether anything changed.
    fn take(&mut self, name: &str, text: Text) -> bool {
        let (hash, parsed) = match text {
            Text::Same => return self.confirm(),
            Text::Unreadable(problem) => (None, Err(problem)),
            Text::New { hash, parsed } => (Some(hash), parsed),
        };
        self.text = hash;
        let before = self.fault.take();
        match parsed {
            Ok(mut parsed) => {
                parsed.keep_last_good(&self.parsed);
                tell_skipped(name, &parsed);
                self.parsed = parsed;
            }
            Err(problem) => {
                let told = before.and_then(|fault| fault.to_tell().cloned());
                self.fault = Some(Fault { problem, confirmed: false, told });
            }
        }
        true
    }
}

/// What reading a touched file gave.
enum Text {
    New { hash: u64, parsed: Result<ParsedFile, Problem> },
    Same,
    Unreadable(Problem),
}

/// Path, stamp, and hash of the text before.
type Touched = (String, Stamp, Option<u64>);

/// Reads files, a large number of them on all processors.
fn read_all(touched: &[Touched]) -> Vec<Text> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let share = touched.len().div_ceil(threads).max(FEW_FILES);
    let read_share = |share: &[Touched]| {
        share.iter().map(|(name, _, before)| read(name, *before)).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let shares = touched.chunks(share).map(|share| scope.spawn(move || read_share(share)));
        let shares: Vec<_> = shares.collect();
        let join = |share: std::thread::ScopedJoinHandle<'_, _>| {
            share.join().expect("invariant: reading a file does not panic")
        };
        shares.into_iter().flat_map(join).collect()
    })
}

fn read(name: &str, before: Option<u64>) -> Text {
    let text = match fs::read_to_string(name) {
        Ok(text) => text,
        Err(error) => return Text::Unreadable(file_problem(name, error.to_string())),
    };
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let hash = hasher.finish();
    if before == Some(hash) { Text::Same } else { Text::New { hash, parsed: parse(name, &text) } }
}

fn tell_skipped(path: &str, file: &ParsedFile) {
    for object in &file.skipped {
        tracing::info!(path, object, "skipped: not a Service, EndpointSlice, Node or Pod");
    }
}

/// Editors' backups and hidden files (a `ConfigMap` mount has `..data`) are no manifests.
fn is_manifest(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    !name.starts_with('.') && matches!(ending, "json" | "yaml" | "yml")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_again_as_it_was_has_not_changed() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        let mut folder = Folder::new(root.path().into());
        let mut scan = |text: &str| {
            fs::write(&path, text).unwrap();
            folder.scan(&BTreeSet::new()).unwrap().changed
        };
        assert!(scan("kind: Deployment"));
        assert!(!scan("kind: Deployment"));
        assert!(scan("kind: DaemonSet"));
        assert!(scan("kind: ReplicaSet"));
        assert!(scan("kind: ReplicaJob"), "of one size, within one tick of the clock");
    }

    #[test]
    fn a_fault_is_told_once_a_second_look_finds_it_again() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.yaml"), "kind: [").unwrap();
        let mut folder = Folder::new(root.path().into());
        assert!(folder.scan(&BTreeSet::new()).unwrap().unsettled);
        assert_eq!(folder.problems().count(), 0);
        let scan = folder.scan(&BTreeSet::new()).unwrap();
        assert_eq!(scan, Scan { changed: true, unsettled: false });
        assert_eq!(folder.problems().count(), 1);
    }

    #[test]
    fn a_file_that_is_being_written_keeps_what_it_said() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a.yaml");
        fs::write(&path, "kind: Deployment").unwrap();
        let mut folder = Folder::new(root.path().into());
        folder.scan(&BTreeSet::new()).unwrap();
        fs::write(&path, "kind: [").unwrap();
        let scan = folder.scan(&BTreeSet::from([path])).unwrap();
        assert_eq!((scan, folder.files().count()), (Scan::default(), 1));
    }
}
