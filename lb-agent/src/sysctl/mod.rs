//! Settings of the node's kernel that a Service proxy owns (S16), and ports that nobody is to be
//! given by chance (S8): set by the agent, recorded, and taken back by `cleanup`.
//!
//! [`netfilter`], [`ports`] and [`value`] decide and are pure; this file reads and writes. Not for:
//! settings that are only looked at (`check`).

use std::{collections::BTreeMap, fs, io, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{config::PortRange, instance};

mod netfilter;
mod ports;
mod value;

pub use netfilter::NetfilterSettings;
use ports::{Ports, reserve};
pub use value::Goal;
use value::{Change, plan};

/// Where the kernel shows its settings.
const SETTINGS: &str = "/proc/sys";
/// The list of ports that no process is given by chance, in both families.
const RESERVED: &str = "net/ipv4/ip_local_reserved_ports";
/// First and last port that a process can be given by chance.
const GIVEN: &str = "net/ipv4/ip_local_port_range";
/// CPUs that run.
const CPUS: &str = "/sys/devices/system/cpu/online";

/// Why ports are not reserved.
#[derive(Debug, thiserror::Error)]
pub enum ReserveError {
    /// The list or the record can't be read or written.
    #[error("{0}; run the agent privileged, or set it on the host")]
    Io(#[from] io::Error),
    /// Processes would have too few ports left.
    #[error(
        "that would leave {left} of the {of} ports of net.ipv4.ip_local_port_range; move that range, \
         or --service-node-port-range and --snat-port-range"
    )]
    TooMany {
        /// Ports that are left to be given.
        left: usize,
        /// Ports that there are to be given without the agent.
        of: usize,
    },
}

/// What the agent has changed.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
struct Record {
    values: BTreeMap<String, Change>,
    reserved_ports: String,
}

/// The settings of one node, as one agent changes them.
#[derive(Debug)]
pub struct NodeSettings {
    settings: PathBuf,
    record: PathBuf,
}

/// What came of applying.
#[derive(Debug, Default)]
pub struct Applied {
    /// Settings that are not there, because a module of the kernel is not loaded.
    pub missing: Vec<(&'static str, Goal)>,
    /// Settings that could not be written, one sentence each.
    pub failed: Vec<String>,
}

impl NodeSettings {
    /// Those of this node, with the changes kept in the file `record`.
    pub fn new(record: PathBuf) -> Self {
        Self { settings: SETTINGS.into(), record }
    }

    /// Brings each setting to its goal and remembers what it was.
    ///
    /// # Errors
    ///
    /// The record can't be read or written; then nothing is changed.
    pub fn apply(&self, goals: &[(&'static str, Goal)]) -> io::Result<Applied> {
        let mut record = self.read()?;
        let mut applied = Applied::default();
        for (name, goal) in goals {
            match self.apply_one(name, *goal, &mut record) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    applied.missing.push((name, *goal));
                }
                Err(error) => applied.failed.push(failure(name, *goal, &error)),
            }
        }
        self.write(&record)?;
        Ok(applied)
    }

    /// Adds ports to those that no process is given by chance.
    ///
    /// # Errors
    ///
    /// The list can't be read or written, or takes more than half of the ports from everybody else;
    /// then it stays as it is.
    pub fn reserve(&self, ranges: impl IntoIterator<Item = PortRange>) -> Result<(), ReserveError> {
        let mut record = self.read()?;
        let path = self.settings.join(RESERVED);
        let current = parse(&fs::read_to_string(&path)?)?;
        let ours = parse(&record.reserved_ports)?;
        let (list, added) = reserve(&current, &ours, &ranges.into_iter().collect());
        self.leave_some(&current.without(&ours), &list)?;
        // Recorded before it is true: what is recorded and not there costs nothing.
        record.reserved_ports = added.with(&ours).to_string();
        self.write(&record)?;
        if list != current {
            fs::write(&path, format!("{list}\n"))?;
            tracing::info!(ports = %list, "ports that no process is given by chance");
        }
        record.reserved_ports = added.to_string();
        Ok(self.write(&record)?)
    }

    /// Refuses a list that would keep processes from connecting anywhere.
    fn leave_some(&self, others: &Ports, list: &Ports) -> Result<(), ReserveError> {
        let range = fs::read_to_string(self.settings.join(GIVEN)).unwrap_or_default();
        let given = parse(&range.split_whitespace().collect::<Vec<_>>().join("-"))?;
        let (left, of) = (given.without(list).count(), given.without(others).count());
        if left * 2 < of { Err(ReserveError::TooMany { left, of }) } else { Ok(()) }
    }

    /// Takes back all that was changed and that nobody has changed since; one line for each.
    ///
    /// # Errors
    ///
    /// A setting that can't be written.
    pub fn restore(&self) -> io::Result<Vec<String>> {
        let mut record = self.read()?;
        let mut restored = Vec::new();
        for (name, change) in record.values.clone() {
            match self.apply_one(&name, Goal::Untouched, &mut record) {
                Ok(true) => restored.push(format!("setting {} = {}", dotted(&name), change.set)),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let ours = parse(&record.reserved_ports)?;
        if !ours.is_empty() {
            self.reserve([]).map_err(io::Error::other)?;
            restored.push(format!("ports {ours} from {}", dotted(RESERVED)));
            record.reserved_ports = String::new();
        }
        self.write(&record)?;
        Ok(restored)
    }

    /// Records a change before it is made, and forgets it if that fails; false if there is none.
    fn apply_one(&self, name: &str, goal: Goal, record: &mut Record) -> io::Result<bool> {
        let last = record.values.get(name).copied();
        if goal == Goal::Untouched && last.is_none() {
            return Ok(false);
        }
        let path = self.settings.join(name);
        let current = fs::read_to_string(&path)?.trim().parse().map_err(io::Error::other)?;
        let plan = plan(current, goal, last);
        let Some(value) = plan.write else {
            remember(record, name, plan.change);
            return Ok(false);
        };
        remember(record, name, plan.change.or(last));
        self.write(record)?;
        let written = fs::write(&path, format!("{value}\n"));
        remember(record, name, if written.is_ok() { plan.change } else { last });
        if written.is_ok() {
            tracing::info!(setting = dotted(name), from = current, to = value, "set");
        }
        written.map(|()| true)
    }

    fn read(&self) -> io::Result<Record> {
        match fs::read(&self.record) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            bytes => Ok(serde_json::from_slice(&bytes?)?),
        }
    }

    fn write(&self, record: &Record) -> io::Result<()> {
        if self.read()? == *record {
            return Ok(());
        }
        instance::replace_file(&self.record, &serde_json::to_vec_pretty(record)?)
    }
}

/// What the settings should be on this node.
pub fn goals(netfilter: &NetfilterSettings) -> Vec<(&'static str, Goal)> {
    netfilter.goals(cpus()).into()
}

/// CPUs that run.
pub fn cpus() -> u32 {
    let cpus = fs::read_to_string(CPUS).ok().and_then(|list| netfilter::count_cpus(&list));
    cpus.unwrap_or(1)
}

fn remember(record: &mut Record, name: &str, change: Option<Change>) {
    match change {
        Some(change) => drop(record.values.insert(name.to_owned(), change)),
        None => drop(record.values.remove(name)),
    }
}

fn failure(name: &str, goal: Goal, error: &io::Error) -> String {
    let (Goal::AtLeast(value) | Goal::Exactly(value)) = goal else {
        return format!("{}: {error}", dotted(name));
    };
    format!("{} = {value}: {error}", dotted(name))
}

fn parse(list: &str) -> io::Result<Ports> {
    list.parse().map_err(io::Error::other)
}

/// As `sysctl` writes it.
fn dotted(name: &str) -> String {
    name.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSE_WAIT: &str = "net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    const MAX: &str = "net/netfilter/nf_conntrack_max";

    struct Node {
        folder: tempfile::TempDir,
        settings: NodeSettings,
    }

    impl Node {
        fn new(values: &[(&str, &str)]) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (name, value) in values {
                let path = folder.path().join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{value}\n")).unwrap();
            }
            let record = folder.path().join("record.json");
            let settings = NodeSettings { settings: folder.path().to_owned(), record };
            Self { folder, settings }
        }

        fn value(&self, name: &str) -> String {
            fs::read_to_string(self.folder.path().join(name)).unwrap().trim().to_owned()
        }
    }

    #[test]
    fn s16_settings_are_set_and_taken_back_once() {
        let node = Node::new(&[(CLOSE_WAIT, "60"), (MAX, "262144")]);
        let goals = [(CLOSE_WAIT, Goal::Exactly(3600)), (MAX, Goal::AtLeast(131_072))];
        for _ in 0..2 {
            let applied = node.settings.apply(&goals).unwrap();
            assert!(applied.missing.is_empty() && applied.failed.is_empty(), "{applied:?}");
            assert_eq!((&*node.value(CLOSE_WAIT), &*node.value(MAX)), ("3600", "262144"));
        }
        let restored = node.settings.restore().unwrap();
        let line = "setting net.netfilter.nf_conntrack_tcp_timeout_close_wait = 3600";
        assert_eq!(restored, [line]);
        assert_eq!((&*node.value(CLOSE_WAIT), &*node.value(MAX)), ("60", "262144"));
        assert!(node.settings.restore().unwrap().is_empty());
    }

    #[test]
    fn s16_what_others_have_set_since_is_not_taken_back() {
        let node = Node::new(&[(CLOSE_WAIT, "60")]);
        node.settings.apply(&[(CLOSE_WAIT, Goal::Exactly(3600))]).unwrap();
        fs::write(node.folder.path().join(CLOSE_WAIT), "100\n").unwrap();
        node.settings.restore().unwrap();
        assert_eq!(node.value(CLOSE_WAIT), "100");
    }

    #[test]
    fn s16_without_the_module_nothing_is_made() {
        let node = Node::new(&[]);
        let goal = (CLOSE_WAIT, Goal::Exactly(3600));
        let applied = node.settings.apply(&[goal]).unwrap();
        assert_eq!((applied.missing, applied.failed), (vec![goal], Vec::new()));
        assert!(!node.folder.path().join(CLOSE_WAIT).exists());
    }

    #[test]
    fn s16_a_setting_that_cannot_be_written_is_named_and_not_recorded() {
        // A number that nobody may write, root neither.
        let node = Node::new(&[]);
        let link = node.folder.path().join(CLOSE_WAIT);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/proc/sys/kernel/ngroups_max", link).unwrap();
        let applied = node.settings.apply(&[(CLOSE_WAIT, Goal::Exactly(3600))]).unwrap();
        let [sentence] = &applied.failed[..] else { panic!("{applied:?}") };
        assert!(sentence.contains("nf_conntrack_tcp_timeout_close_wait = 3600: "), "{sentence}");
        assert_eq!(node.settings.restore().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn s8_ports_are_left_for_everybody_else() {
        let node = Node::new(&[(RESERVED, "8080"), (GIVEN, "30000\t30199")]);
        let reserve = |range: &str| node.settings.reserve([range.parse().unwrap()]);
        reserve("30000-30099").unwrap();
        let error = reserve("30000-30100").unwrap_err().to_string();
        assert!(error.contains("would leave 99 of the 200 ports"), "{error}");
        assert_eq!(node.value(RESERVED), "8080,30000-30099");
    }

    #[test]
    fn s8_reserved_ports_are_merged_and_taken_back_exactly() {
        let node = Node::new(&[(RESERVED, "8080,30005-30010")]);
        let ranges = || ["30000-30009", "61000-61001"].map(|range| range.parse().unwrap());
        for _ in 0..2 {
            node.settings.reserve(ranges()).unwrap();
            assert_eq!(node.value(RESERVED), "8080,30000-30010,61000-61001");
        }
        node.settings.reserve([ranges()[1]]).unwrap();
        assert_eq!(node.value(RESERVED), "8080,30005-30010,61000-61001");
        let line = "ports 61000-61001 from net.ipv4.ip_local_reserved_ports";
        assert_eq!(node.settings.restore().unwrap(), [line]);
        assert_eq!(node.value(RESERVED), "8080,30005-30010");
    }
}
