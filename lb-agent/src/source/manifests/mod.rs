//! A folder of manifests in place of a cluster: it plays the whole control plane.
//!
//! ```text
//! files ─► objects (API defaults) ─► addresses and node ports ─► endpoints ─► model ─► events
//! folder   read, defaults            allocate, claims, ranges    endpoints    world
//! ```
//!
//! Everything but `folder`, `state` and `watch` is pure. Only real differences become events.

mod allocate;
mod claims;
mod defaults;
mod endpoints;
mod folder;
mod objects;
mod pod;
mod ranges;
mod read;
mod state;
mod watch;
mod world;

use std::{collections::BTreeSet, io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::sleep};
use tokio_util::sync::CancellationToken;

pub use self::ranges::Ranges;
use self::{
    folder::{Folder, Scan},
    state::StateFile,
    watch::FolderWatch,
    world::{World, events, world},
};
use super::{
    SourceError, SourceHealth,
    emit::{Emitter, Stopped},
    standing::Standing,
};
use crate::model::{Event, Problem, ProblemKey};

/// How soon a folder is looked at again while a file is being written.
const SOON: Duration = Duration::from_millis(150);
/// How soon it is looked at again if nothing is heard: not every file system tells.
const LATER: Duration = Duration::from_secs(10);

/// Which folder, and what is handed out.
#[derive(Clone, Debug)]
pub struct Options {
    /// The folder.
    pub folder: PathBuf,
    /// The name of this node.
    pub node_name: String,
    /// The file that remembers cluster IPs and node ports that were handed out; without one they
    /// follow from the Services' names alone.
    pub state_file: Option<PathBuf>,
    /// Where cluster IPs and node ports come from.
    pub ranges: Ranges,
}

/// The source.
#[derive(Debug)]
pub struct Manifests {
    options: Options,
    health: Arc<SourceHealth>,
}

impl Manifests {
    /// Makes the source; nothing is read yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let name = format!("manifests {}", options.folder.display());
        Self { options, health: Arc::new(SourceHealth::named(name)) }
    }

    /// How the source is doing.
    #[must_use]
    pub fn health(&self) -> Arc<SourceHealth> {
        Arc::clone(&self.health)
    }

    /// Sends events until `stop` is cancelled or nobody listens any more.
    ///
    /// # Errors
    ///
    /// The folder cannot be read or watched at the start. One that goes away later is a problem,
    /// and what it said stays in force.
    pub async fn run(
        mut self,
        events: mpsc::Sender<Event>,
        stop: CancellationToken,
    ) -> Result<(), SourceError> {
        let given = self.options.folder.clone();
        let folder_error = |error| SourceError::Folder { path: given.clone(), error };
        self.options.folder = std::path::absolute(&given).map_err(folder_error)?;
        std::fs::read_dir(&self.options.folder).map_err(folder_error)?;
        let watch = FolderWatch::new(&self.options.folder)
            .map_err(|error| SourceError::Watch { path: given, reason: error.to_string() })?;
        let emitter = Emitter { events, stop };
        let reader = Reader::new(self.options);
        // Stopping is how a run ends.
        let Err(Stopped) = follow(watch, reader, &self.health, &emitter).await;
        Ok(())
    }
}

async fn follow(
    mut watch: FolderWatch,
    mut reader: Reader,
    health: &SourceHealth,
    emitter: &Emitter,
) -> Result<std::convert::Infallible, Stopped> {
    loop {
        watch.follow();
        let held = watch.held();
        let wait = if held.is_empty() { LATER } else { SOON };
        let (events, unsettled);
        // Parsing a large folder takes a while and must not keep other tasks waiting.
        (reader, (events, unsettled)) = tokio::task::spawn_blocking(move || {
            let outcome = reader.read(&held);
            (reader, outcome)
        })
        .await
        .expect("invariant: reading a folder does not panic");
        reader.tell(health);
        emitter.send_all(events).await?;
        health.listed();
        tokio::select! {
            () = emitter.stop.cancelled() => return Err(Stopped),
            () = emitter.events.closed() => return Err(Stopped),
            () = watch.changed() => {}
            () = sleep(if unsettled { SOON } else { wait }) => {}
        }
    }
}

/// Reads the folder again and again, and knows what it has told.
#[derive(Debug)]
struct Reader {
    options: Options,
    folder: Folder,
    state: StateFile,
    state_problem: Option<Problem>,
    folder_problem: Option<Problem>,
    world: World,
    standing: Standing,
    listed: bool,
}

impl Reader {
    fn new(options: Options) -> Self {
        let (state, state_problem) = StateFile::open(options.state_file.clone());
        Self {
            folder: Folder::new(options.folder.clone()),
            options,
            state,
            state_problem,
            folder_problem: None,
            world: World::default(),
            standing: Standing::default(),
            listed: false,
        }
    }

    /// One look at the folder: what happened, and whether to look again soon.
    fn read(&mut self, held: &BTreeSet<PathBuf>) -> (Vec<Event>, bool) {
        let before = self.folder_problem.take();
        let scan = self.folder.scan(held).unwrap_or_else(|error| {
            self.folder_problem = Some(self.gone(&error));
            Scan::default()
        });
        let changed = scan.changed || !self.listed || before != self.folder_problem;
        let mut told = if changed { self.differences() } else { Vec::new() };
        if !self.listed {
            self.listed = true;
            told.push(Event::Listed);
        }
        (told, scan.unsettled)
    }

    fn differences(&mut self) -> Vec<Event> {
        let Options { node_name, ranges, .. } = &self.options;
        let mut new = world(self.folder.files(), node_name, self.state.allocations(), ranges);
        let mut allocations = std::mem::take(&mut new.allocations);
        if self.folder.has_faults() {
            // A file that cannot be read may name Services whose addresses must not go to others.
            for (name, record) in &self.state.allocations().services {
                allocations.services.entry(name.clone()).or_insert_with(|| record.clone());
            }
        }
        self.state_problem = self.state.keep(allocations);
        new.tell(self.folder.problems());
        new.tell(self.folder_problem.clone());
        new.tell(self.state_problem.clone());
        let mut told = events(&self.world, &new);
        told.extend(self.standing.replace(std::mem::take(&mut new.problems)));
        self.world = new;
        told
    }

    fn gone(&self, error: &io::Error) -> Problem {
        let path = self.options.folder.display().to_string();
        Problem {
            key: ProblemKey { kind: "file", name: path.into() },
            field: String::new(),
            message: format!("the manifest folder cannot be read: {error}"),
            mend: "make it again; what it held before stays in force".into(),
        }
    }

    fn tell(&self, health: &SourceHealth) {
        if self.folder_problem.is_none() {
            health.contact();
        }
        health.error(self.folder_problem.as_ref().map(ToString::to_string));
    }
}

#[cfg(test)]
mod tests;
