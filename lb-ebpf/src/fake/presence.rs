//! The marks of flows that may have an entry, and walks that renew them.

use std::{cell::RefCell, collections::HashMap};

use lb_common::{
    abi::{Abi, CtKey},
    cache, presence,
};

use super::{FakeBench, FakeTables, FromIp, ODD};

/// Marks by place; the walk before the first round is over.
pub(super) struct Marks {
    round: u32,
    marks: RefCell<HashMap<(u32, usize), u8>>,
}

impl Marks {
    pub(super) fn new() -> Self {
        Self { round: 1, marks: RefCell::default() }
    }
}

fn place<A: FromIp>(flow: &CtKey<A>) -> (u32, usize) {
    let hash = cache::hash(&ODD, flow);
    (presence::table(flow.dst_port), presence::place(hash))
}

impl<A: FromIp> FakeTables<A> {
    pub(super) fn mark(&self, flow: &CtKey<A>) {
        let mark = presence::mark(self.presence.round);
        self.presence.marks.borrow_mut().insert(place(flow), mark);
    }

    pub(super) fn may_be_there(&self, flow: &CtKey<A>) -> bool {
        let mark = self.presence.marks.borrow().get(&place(flow)).copied();
        presence::may_be_there(mark.unwrap_or_default(), self.presence.round)
    }

    /// Marks the places of all entries.
    fn walk(&mut self) {
        for table in [&self.conntrack, &self.half_open] {
            for flow in table.borrow().keys() {
                self.mark(&CtKey::from_bytes(flow).expect("a flow"));
            }
        }
        self.presence.round = presence::next(self.presence.round);
    }
}

impl FakeBench {
    pub(super) fn walk_over_all(&mut self, times: u32) {
        for _ in 0..times {
            self.v4.walk();
            self.v6.walk();
        }
    }

    /// Lets so many walks go by that find nothing.
    pub(crate) fn walk_past(&mut self, times: u32) {
        for _ in 0..times {
            for marks in [&mut self.v4.presence, &mut self.v6.presence] {
                marks.round = presence::next(marks.round);
            }
        }
    }
}
