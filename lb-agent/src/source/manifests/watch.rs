//! Says when a folder may have changed: by inotify on the folder and on the one above it, so that
//! a folder which is removed, made again or swapped (a symbolic link) is seen too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

/// How long a folder must be quiet before it is read, and how long that is waited for at most.
const QUIET: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_millis(500);
/// How long after a write a file that its writer has not closed is left alone.
const HELD: Duration = Duration::from_secs(2);

/// A watch over one folder.
pub(super) struct FolderWatch {
    path: PathBuf,
    inotify: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<notify::Event>,
    /// Device and inode of the folder that is watched.
    watched: Option<(u64, u64)>,
    /// Files that were written to and not closed, and when they were written to.
    open: BTreeMap<PathBuf, Instant>,
}

impl FolderWatch {
    /// Begins to watch.
    pub(super) fn new(path: &Path) -> notify::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let folder = path.to_owned();
        let tell = move |event: notify::Result<notify::Event>| {
            if let Ok(event) = event
                && matters(&event, &folder)
            {
                // Nobody listens any more once the source has stopped.
                let _ = sender.send(event);
            }
        };
        let mut inotify = notify::recommended_watcher(tell)?;
        if let Some(above) = path.parent() {
            inotify.watch(above, RecursiveMode::NonRecursive)?;
        }
        let open = BTreeMap::new();
        let mut watch = Self { path: path.to_owned(), inotify, events, watched: None, open };
        watch.follow();
        Ok(watch)
    }

    /// Watches the folder that the path leads to, if it is another than before; says whether it is.
    pub(super) fn follow(&mut self) -> bool {
        let there = fs::metadata(&self.path).ok().map(|data| (data.dev(), data.ino()));
        if there == self.watched {
            return false;
        }
        // A folder that is gone has taken its watch with it.
        let _ = self.inotify.unwatch(&self.path);
        let watched = self.inotify.watch(&self.path, RecursiveMode::NonRecursive);
        self.watched = there.filter(|_| watched.is_ok());
        true
    }

    /// Waits until something happened, and then until it is quiet again.
    pub(super) async fn changed(&mut self) {
        let Some(event) = self.events.recv().await else {
            return std::future::pending().await;
        };
        self.note(&event);
        let end = Instant::now() + LONGEST_WAIT;
        while let Ok(Some(event)) = {
            let quiet = (Instant::now() + QUIET).min(end);
            timeout_at(quiet, self.events.recv()).await
        } {
            self.note(&event);
        }
    }

    /// The files that are being written at this moment.
    pub(super) fn held(&mut self) -> BTreeSet<PathBuf> {
        self.open.retain(|_, written| written.elapsed() < HELD);
        self.open.keys().cloned().collect()
    }

    fn note(&mut self, event: &notify::Event) {
        for path in &event.paths {
            if matches!(event.kind, EventKind::Modify(ModifyKind::Data(_))) {
                self.open.insert(path.clone(), Instant::now());
            } else {
                self.open.remove(path);
            }
        }
    }
}

/// Reading a folder makes events too, which must not lead to reading it again.
fn matters(event: &notify::Event, folder: &Path) -> bool {
    let is_read = matches!(event.kind, EventKind::Access(kind)
        if kind != AccessKind::Close(AccessMode::Write));
    let ours = |path: &PathBuf| path == folder || path.parent() == Some(folder);
    !is_read && (event.paths.is_empty() || event.paths.iter().any(ours))
}
