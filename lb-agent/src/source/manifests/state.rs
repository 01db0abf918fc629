//! The file that remembers what was handed out, so that a restart changes no address.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use super::{allocate::Allocations, read::file_problem};
use crate::model::Problem;

/// The record on disk and what it holds.
#[derive(Debug)]
pub(super) struct StateFile {
    path: Option<PathBuf>,
    kept: Allocations,
    /// What is kept has not been written down.
    unwritten: bool,
}

impl StateFile {
    /// Reads the record; one that is not there, or that cannot be read, is empty.
    pub(super) fn open(path: Option<PathBuf>) -> (Self, Option<Problem>) {
        let read = path.as_deref().map_or(Ok(Allocations::default()), read);
        let (kept, problem): (_, Option<Problem>) = match read {
            Ok(kept) => (kept, None),
            Err(message) => (Allocations::default(), path.as_deref().map(|p| problem(p, &message))),
        };
        (Self { path, kept, unwritten: problem.is_some() }, problem)
    }

    /// What was handed out last.
    pub(super) fn allocations(&self) -> &Allocations {
        &self.kept
    }

    /// Remembers `allocations`; says so if they could not be written down.
    pub(super) fn keep(&mut self, allocations: Allocations) -> Option<Problem> {
        self.unwritten |= self.kept != allocations;
        self.kept = allocations;
        let path = self.path.as_deref().filter(|_| self.unwritten)?;
        match write(path, &self.kept) {
            Ok(()) => self.unwritten = false,
            Err(error) => return Some(problem(path, &error.to_string())),
        }
        None
    }
}

fn problem(path: &Path, message: &str) -> Problem {
    let mut problem = file_problem(&path.display().to_string(), message);
    problem.mend = "make the file writable; until then a restart may change addresses and node \
                    ports that were handed out"
        .into();
    problem
}

fn read(path: &Path) -> Result<Allocations, String> {
    match fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Allocations::default()),
        Err(error) => Err(error.to_string()),
    }
}

/// Readers see the old record or the new one, whole.
fn write(path: &Path, allocations: &Allocations) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let mut file = fs::File::create(&name)?;
    serde_json::to_writer_pretty(&mut file, allocations)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&name, path)
}
