//! Fragments that wait, and packets that are sent in again.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
};

use lb_common::abi::{Abi as _, Fragment, FragmentAction, FragmentKey};

use super::{Buffer, FakeBench, FakeTables, FromIp};
use crate::{
    packet::{ETHERNET_HEADER, Packet as _},
    path::{
        fragment::Fragments as _,
        hold::{LARGEST, Slot, Waiting},
    },
    tables::Tables as _,
};

/// When a fragment came, and its bytes from the IP header on.
type Held = (u32, Vec<u8>);

/// By packet and number.
#[derive(Default)]
pub(super) struct HeldFragments {
    slots: RefCell<HashMap<(Vec<u8>, u32), Held>>,
    given: RefCell<HashMap<Vec<u8>, u32>>,
    sent_in: RefCell<Vec<Vec<u8>>>,
    /// How many of them waited, not counted yet.
    pub(super) released: Cell<usize>,
    meanwhile: Cell<Meanwhile>,
}

/// What another CPU does with the first fragment as soon as a later one has begun to wait.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Meanwhile {
    /// Nothing.
    #[default]
    Nothing,
    /// Notes it, having looked for those that wait too soon.
    Noted,
    /// Notes it, and sends in what waits.
    Woken,
}

fn key<A: FromIp>(slot: &Slot<A>) -> (Vec<u8>, u32) {
    (slot.packet.as_bytes().to_vec(), slot.number)
}

impl<A: FromIp> FakeTables<A> {
    fn held(&self, slot: &Slot<A>) -> Option<Held> {
        self.held.slots.borrow().get(&key(slot)).cloned()
    }
}

impl FakeBench {
    /// What was sent in again since this was asked last, in its order.
    pub(crate) fn sent_in(&mut self) -> Vec<Vec<u8>> {
        let mut sent = self.v4.held.sent_in.take();
        sent.append(self.v6.held.sent_in.get_mut());
        sent
    }

    /// Has another CPU do this as soon as the next fragment waits.
    pub(crate) fn meanwhile(&mut self, meanwhile: Meanwhile) {
        self.v4.held.meanwhile.set(meanwhile);
        self.v6.held.meanwhile.set(meanwhile);
    }

    /// How many have stopped waiting since this was asked last.
    pub(super) fn released(&self) -> usize {
        self.v4.held.released.take() + self.v6.held.released.take()
    }

    /// How many fragments wait.
    pub(crate) fn waiting(&self) -> usize {
        self.v4.held.slots.borrow().len() + self.v6.held.slots.borrow().len()
    }
}

impl<A: FromIp> Waiting<A, Buffer> for FakeTables<A> {
    fn waits_since(&self, slot: &Slot<A>) -> Option<u32> {
        self.held(slot).map(|(since, _)| since)
    }

    fn given(&self, first: &Slot<A>) -> u32 {
        let given = self.held.given.borrow();
        self.held(first).map_or(0, |_| given[first.packet.as_bytes()])
    }

    fn give(&self, first: &Slot<A>) -> u32 {
        let mut all = self.held.given.borrow_mut();
        let given = all.get_mut(first.packet.as_bytes()).expect("its first slot is taken");
        *given += 1;
        *given - 1
    }

    fn let_wait(&self, packet: &Buffer, slot: &Slot<A>) -> bool {
        let rest = packet.0[ETHERNET_HEADER..].to_vec();
        let has_room = rest.len() <= LARGEST && self.held(slot).is_none();
        if has_room && slot.number == 0 {
            self.held.given.borrow_mut().insert(slot.packet.as_bytes().to_vec(), 1);
        }
        if has_room {
            self.held.slots.borrow_mut().insert(key(slot), (self.now(), rest));
        }
        has_room
    }

    fn fence(&self, slot: &Slot<A>) {
        let meanwhile = self.held.meanwhile.take();
        if matches!(meanwhile, Meanwhile::Noted | Meanwhile::Woken) {
            let FragmentKey { src, dst, .. } = slot.packet;
            let (action, seen) = (FragmentAction::CONTINUE, self.now());
            self.keep_fragment(&slot.packet, &Fragment { src, dst, action, detail: 0, seen });
        }
        if matches!(meanwhile, Meanwhile::Woken) {
            assert!(self.empty(slot), "it waits by now");
        }
    }

    fn fill(&self, packet: &mut Buffer, slot: &Slot<A>) -> bool {
        let Some((_, rest)) = self.held(slot) else { return false };
        let is_long = packet.resize(ETHERNET_HEADER + rest.len()).is_ok();
        packet.0[ETHERNET_HEADER..].copy_from_slice(&rest);
        is_long
    }

    fn empty(&self, slot: &Slot<A>) -> bool {
        self.held.slots.borrow_mut().remove(&key(slot)).is_some()
    }

    fn send_in(&self, packet: &mut Buffer) -> bool {
        self.held.sent_in.borrow_mut().push(packet.0.clone());
        true
    }
}
