//! Names of what the tables hold by number, kept in a file so that commands can print them with
//! the agent dead.
//!
//! A journal of JSON lines: the last line about a Service port wins, a torn last line (the agent
//! was killed) is dropped. It is written anew, in one piece, when it holds more than twice what
//! lives. Not for: anything that the data path depends on.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{
    dataplane::{BackendId, ServiceId},
    instance::replace_file,
    model::Family,
};

/// Below this size, in bytes, a journal is not worth writing anew.
const SMALL: u64 = 64 * 1024;

/// The names of one Service port.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ServiceNames {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Name of the port; empty where the Service has one unnamed port.
    pub port: String,
    /// Its backends of IPv4, by index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub v4: BTreeMap<u32, BackendNames>,
    /// Its backends of IPv6, by index.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub v6: BTreeMap<u32, BackendNames>,
}

/// The names of one backend.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct BackendNames {
    /// Its pod, as namespace/name; empty if no slice names one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod: String,
    /// The node it runs on; empty if no slice names one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub node: String,
}

impl ServiceNames {
    /// The names of a backend of this port.
    pub fn backend(&self, id: BackendId) -> Option<&BackendNames> {
        let backends = match id.family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        backends.get(&id.index)
    }

    /// `namespace/name`, and `:port` where the port has a name.
    pub fn label(&self) -> String {
        let Self { namespace, name, port, .. } = self;
        let colon = if port.is_empty() { "" } else { ":" };
        format!("{namespace}/{name}{colon}{port}")
    }
}

/// What a journal says, by Service port.
pub type NameTable = BTreeMap<ServiceId, ServiceNames>;

/// One line: without names, the port is gone.
#[derive(Deserialize, Serialize)]
struct Line {
    service: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    names: Option<ServiceNames>,
}

/// The journal, open for writing by the one agent that holds the lock.
#[derive(Debug)]
pub struct Names {
    path: PathBuf,
    file: File,
    table: NameTable,
    written: u64,
    live: u64,
}

impl Names {
    /// Opens a journal, or begins one; what was torn is cut off.
    ///
    /// # Errors
    ///
    /// The file can't be read or written.
    pub fn open(path: &Path) -> io::Result<Self> {
        let table = read(path)?;
        let (file, written) = rewrite(path, &table)?;
        Ok(Self { path: path.to_owned(), file, table, written, live: written })
    }

    /// What it says.
    pub fn table(&self) -> &NameTable {
        &self.table
    }

    /// Notes the names of Service ports, or with none that they are gone.
    ///
    /// # Errors
    ///
    /// The file can't be written; what it said before still counts.
    pub fn record(
        &mut self,
        changes: impl IntoIterator<Item = (ServiceId, Option<ServiceNames>)>,
    ) -> io::Result<()> {
        let mut lines = Vec::new();
        for (service, names) in changes {
            if self.table.get(&service) == names.as_ref() {
                continue;
            }
            write_line(&mut lines, service, names.clone())?;
            match names {
                Some(names) => self.table.insert(service, names),
                None => self.table.remove(&service),
            };
        }
        self.file.write_all(&lines)?;
        self.written += lines.len() as u64;
        if self.written > SMALL && self.written > 2 * self.live {
            (self.file, self.live) = rewrite(&self.path, &self.table)?;
            self.written = self.live;
        }
        Ok(())
    }
}

/// Reads a journal; empty if there is none.
///
/// # Errors
///
/// The file can't be read.
pub fn read(path: &Path) -> io::Result<NameTable> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(NameTable::new()),
        bytes => bytes?,
    };
    let mut table = NameTable::new();
    // A line that can't be read is one that a kill tore: it says nothing, and hides nothing else.
    for line in bytes.split(|&byte| byte == b'\n') {
        let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
        match line.names {
            Some(names) => table.insert(ServiceId(line.service), names),
            None => table.remove(&ServiceId(line.service)),
        };
    }
    Ok(table)
}

fn rewrite(path: &Path, table: &NameTable) -> io::Result<(File, u64)> {
    let mut lines = Vec::new();
    for (&service, names) in table {
        write_line(&mut lines, service, Some(names.clone()))?;
    }
    replace_file(path, &lines)?;
    Ok((OpenOptions::new().append(true).open(path)?, lines.len() as u64))
}

fn write_line(
    lines: &mut Vec<u8>,
    ServiceId(service): ServiceId,
    names: Option<ServiceNames>,
) -> io::Result<()> {
    serde_json::to_writer(&mut *lines, &Line { service, names })?;
    lines.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str, backends: u32) -> ServiceNames {
        let backend = |index| {
            (index, BackendNames { pod: format!("default/{name}-{index}"), node: "a".into() })
        };
        ServiceNames {
            namespace: "default".into(),
            name: name.into(),
            port: "http".into(),
            v4: (1..=backends).map(backend).collect(),
            v6: BTreeMap::new(),
        }
    }

    fn journal() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.jsonl");
        (folder, path)
    }

    #[test]
    fn the_last_line_about_a_service_wins() {
        let (_folder, path) = journal();
        let mut journal = Names::open(&path).unwrap();
        journal.record([(ServiceId(1), Some(names("a", 1)))]).unwrap();
        journal.record([(ServiceId(2), Some(names("b", 1)))]).unwrap();
        journal.record([(ServiceId(1), Some(names("a", 3))), (ServiceId(2), None)]).unwrap();
        let expected = NameTable::from([(ServiceId(1), names("a", 3))]);
        assert_eq!(read(&path).unwrap(), expected);
        assert_eq!(journal.table(), &expected);
        let id = BackendId { family: Family::V4, index: 3 };
        assert_eq!(expected[&ServiceId(1)].backend(id).unwrap().pod, "default/a-3");
    }

    #[test]
    fn a_torn_last_line_costs_that_line_alone() {
        let (_folder, path) = journal();
        let mut journal = Names::open(&path).unwrap();
        journal.record([(ServiceId(1), Some(names("a", 1)))]).unwrap();
        journal.record([(ServiceId(2), Some(names("b", 1)))]).unwrap();
        drop(journal);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 10);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path).unwrap().keys().collect::<Vec<_>>(), [&ServiceId(1)]);
        let mut journal = Names::open(&path).unwrap();
        journal.record([(ServiceId(3), Some(names("c", 1)))]).unwrap();
        let found: Vec<_> = read(&path).unwrap().into_keys().collect();
        assert_eq!(found, [ServiceId(1), ServiceId(3)]);
    }

    #[test]
    fn a_journal_stays_within_twice_what_lives() {
        let (_folder, path) = journal();
        let mut journal = Names::open(&path).unwrap();
        for backends in (0..2000).map(|round| 10 + round % 2) {
            journal.record([(ServiceId(1), Some(names("a", backends)))]).unwrap();
        }
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size < SMALL + 4096, "{size} bytes");
        journal.record([(ServiceId(2), Some(names("b", 1)))]).unwrap();
        assert_eq!(read(&path).unwrap(), *journal.table());
    }

    #[test]
    fn what_is_known_already_is_not_written() {
        let (_folder, path) = journal();
        let mut journal = Names::open(&path).unwrap();
        journal.record([(ServiceId(1), Some(names("a", 1)))]).unwrap();
        let before = std::fs::metadata(&path).unwrap().len();
        journal.record([(ServiceId(1), Some(names("a", 1))), (ServiceId(9), None)]).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), before);
    }
}
