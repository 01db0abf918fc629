//! How a source is doing, for `status` to show.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

/// A look at a source's health.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Health {
    /// What the source is: an address or a folder.
    pub name: String,
    /// Whether every kind has been listed completely once (S16).
    pub listed: bool,
    /// When the source last answered.
    pub last_contact: Option<SystemTime>,
    /// What went wrong last, while it is still wrong.
    pub last_error: Option<String>,
}

/// Health that the source keeps and others read.
#[derive(Debug, Default)]
pub struct SourceHealth(Mutex<Health>);

impl SourceHealth {
    /// Makes the health of a source that has not run yet.
    pub(super) fn named(name: String) -> Self {
        Self(Mutex::new(Health { name, ..Health::default() }))
    }

    /// How it is at this moment.
    pub fn look(&self) -> Health {
        self.lock().clone()
    }

    pub(super) fn rename(&self, name: String) {
        self.lock().name = name;
    }

    pub(super) fn contact(&self) {
        self.lock().last_contact = Some(SystemTime::now());
    }

    pub(super) fn listed(&self) {
        self.lock().listed = true;
    }

    pub(super) fn error(&self, error: Option<String>) {
        self.lock().last_error = error;
    }

    fn lock(&self) -> MutexGuard<'_, Health> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
