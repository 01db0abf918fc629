//! What fakes remember of flows that are proven, and of those that are not.

use std::cell::Cell;

use super::{FakeBench, FakeTables};

impl<A> FakeTables<A> {
    /// Entries of flows that are kept apart, and of those that are proven.
    fn remembered(&self) -> [usize; 2] {
        [&self.half_open, &self.conntrack].map(|table| table.borrow().len())
    }

    /// Flows with an entry in both tables, one of which hides the other.
    fn remembered_twice(&self) -> usize {
        let conntrack = self.conntrack.borrow();
        self.half_open.borrow().keys().filter(|flow| conntrack.contains_key(*flow)).count()
    }
}

impl FakeBench {
    /// Takes all frontends away, as `cleanup --drain` does.
    pub(crate) fn take_frontends(&mut self) {
        self.v4.frontends.clear();
        self.v6.frontends.clear();
    }

    /// Remembers no flow before it is proven.
    pub(crate) fn remember_none(&mut self) {
        self.remember_at_most(0);
    }

    /// Remembers so many more flows before they are proven.
    pub(crate) fn remember_at_most(&mut self, count: u32) {
        (self.v4.rememberable, self.v6.rememberable) = (Cell::new(count), Cell::new(count));
    }

    /// Entries of flows.
    pub(crate) fn remembered(&self) -> usize {
        self.v4.remembered().iter().chain(&self.v6.remembered()).sum()
    }

    /// Entries of flows that are proven.
    pub(crate) fn proven(&self) -> usize {
        self.v4.remembered()[1] + self.v6.remembered()[1]
    }

    /// First packets whose flows were not remembered.
    pub(crate) fn unremembered(&self) -> u32 {
        self.v4.unremembered.get() + self.v6.unremembered.get()
    }

    /// Flows with an entry among those that are proven and one among those that are not.
    pub(crate) fn remembered_twice(&self) -> usize {
        self.v4.remembered_twice() + self.v6.remembered_twice()
    }
}
