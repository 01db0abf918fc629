//! The files of a folder: read again only where they changed, parsed again only where their text
//! did.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::{
    objects::ParsedFile,
    read::{file_problem, parse},
};
use crate::model::Problem;

/// What tells that a file was touched: device, inode, size, and times of change in nanoseconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp([i128; 5]);

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        let nanoseconds = |s: i64, ns: i64| i128::from(s) * 1_000_000_000 + i128::from(ns);
        Self([
            metadata.dev().into(),
            metadata.ino().into(),
            metadata.size().into(),
            nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        ])
    }
}

/// A file and the last good state of it.
#[derive(Debug)]
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
        faults.filter(|fault| fault.confirmed).map(|fault| fault.problem.clone())
    }

    /// Whether some file does not say what it should.
    pub(super) fn has_faults(&self) -> bool {
        self.files.values().any(|f| f.fault.is_some() || !f.parsed.unreadable.is_empty())
    }

    /// Looks at every file but those in `held`, which are being written.
    pub(super) fn scan(&mut self, held: &BTreeSet<PathBuf>) -> io::Result<Scan> {
        let mut found = BTreeSet::new();
        let mut scan = Scan::default();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            if !is_manifest(&path) {
                continue;
            }
            let name = path.display().to_string();
            if held.contains(&path) || self.scan_file(&name, &path, &mut scan) {
                found.insert(name);
            }
        }
        let before = self.files.len();
        self.files.retain(|name, _| found.contains(name));
        scan.changed |= self.files.len() != before;
        Ok(scan)
    }

    /// Says whether the file is there.
    fn scan_file(&mut self, name: &str, path: &Path, scan: &mut Scan) -> bool {
        let metadata = match fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => return false,
            Ok(metadata) => metadata,
            Err(_) => return false,
        };
        let stamp = Stamp::of(&metadata);
        match self.files.get_mut(name) {
            Some(file) if file.stamp == stamp => file.confirm(scan),
            Some(file) => {
                file.stamp = stamp;
                scan.changed |= file.load(name, path);
            }
            None => {
                let mut file =
                    File { stamp, text: None, parsed: ParsedFile::default(), fault: None };
                file.load(name, path);
                self.files.insert(name.to_owned(), file);
                scan.changed = true;
            }
        }
        let faulty = self.files.get(name).and_then(|file| file.fault.as_ref());
        scan.unsettled |= faulty.is_some_and(|fault| !fault.confirmed);
        true
    }
}

impl File {
    fn confirm(&mut self, scan: &mut Scan) {
        if let Some(fault) = self.fault.as_mut().filter(|fault| !fault.confirmed) {
            fault.confirmed = true;
            scan.changed = true;
        }
    }

    /// Reads the text and parses it if it is another; says whether anything changed.
    fn load(&mut self, name: &str, path: &Path) -> bool {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let problem = file_problem(name, error.to_string());
                self.fault = Some(Fault { problem, confirmed: false });
                self.text = None;
                return true;
            }
        };
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let hash = Some(hasher.finish());
        if std::mem::replace(&mut self.text, hash) == hash {
            return false;
        }
        self.fault = None;
        match parse(name, &text) {
            Ok(mut parsed) => {
                parsed.keep_last_good(&self.parsed);
                tell_skipped(name, &parsed);
                self.parsed = parsed;
            }
            Err(problem) => self.fault = Some(Fault { problem, confirmed: false }),
        }
        true
    }
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
