//! Random clusters, against a second, plain writing of kube-proxy's rules.
//!
//! Each case is a cluster that changes, on a node whose writes fail and whose agent dies now and
//! then. Whenever the tables are in step they must answer every question as [`oracle`] does; after
//! each single write, as it did before the change or does after it. `PROPTEST_CASES` sets how many
//! cases are tried.

#![allow(clippy::unwrap_used, reason = "a test ends where it panics")]

mod cluster;
mod node;
mod oracle;
#[path = "../pipeline/mod.rs"]
mod pipeline;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    net::SocketAddr,
};

use lb_agent::{
    dataplane::{
        BackendEntry, FrontendAddress, FrontendEntry, Snapshot, Tables, fake::FrontendMeaning,
    },
    desired::PortKey,
    model::{Family, Protocol},
};
use lb_common::abi::{BackendFlags, FrontendFlags};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};

use cluster::{Change, Objects, any_change};
use node::{Node, any_node};
use oracle::{Answer, At, Client, Owner, Truth};
use pipeline::{
    Pipeline,
    trial::{Fault, Script},
};

const CLIENTS: [Client; 3] = [Client::Host, Client::Outside, Client::Pod];

/// What happens to a node, one after the other.
#[derive(Clone, Debug)]
enum Happening {
    /// Changes that the agent hears of together.
    Changes(Vec<Change>),
    /// Another agent takes over; this has changed meanwhile.
    Restart(Vec<Change>),
    /// The tables are compared with what should be in them.
    Resync,
}

fn any_happening() -> BoxedStrategy<Happening> {
    let changes = || prop::collection::vec(any_change(), 1..8);
    prop_oneof![
        10 => changes().prop_map(Happening::Changes),
        1 => changes().prop_map(Happening::Restart),
        1 => Just(Happening::Resync),
    ]
    .boxed()
}

/// Some writes fail, at some the agent dies.
fn any_script() -> impl Strategy<Value = Script> {
    let fault = prop_oneof![Just(Fault::Fails), Just(Fault::Kills)];
    prop::collection::btree_map(0..150_usize, fault, 0..6)
}

/// A node that is told of a cluster, and what should be true of it.
struct World {
    objects: Objects,
    node: Node,
    pipeline: Pipeline,
    /// All that may be found since the tables were last in step, the newest last.
    truths: Vec<Truth>,
}

impl World {
    fn new(node: Node, script: Script) -> Self {
        let objects = Objects::default();
        let mut pipeline = Pipeline::new(script);
        pipeline.take([Change::Node(node.clone()).event()]);
        pipeline.see(node.facts());
        let truths = vec![Truth::of(&objects, &node)];
        Self { objects, node, pipeline, truths }
    }

    fn meet(&mut self, happening: Happening) {
        let is_restart = matches!(happening, Happening::Restart(_)) || self.pipeline.is_dead();
        match happening {
            Happening::Changes(changes) | Happening::Restart(changes) => {
                if is_restart {
                    self.pipeline.kill();
                }
                self.change(&changes);
            }
            Happening::Resync => self.pipeline.resync(),
        }
        if is_restart {
            self.pipeline.restart();
        }
        self.pipeline.settle();
        self.check();
    }

    /// The agent hears of objects together, then of each picture of the node.
    fn change(&mut self, changes: &[Change]) {
        for change in changes {
            self.objects.apply(change);
        }
        self.expect();
        let (nodes, objects): (Vec<_>, Vec<_>) =
            changes.iter().partition(|change| matches!(change, Change::Node(_)));
        self.pipeline.take(objects.into_iter().map(Change::event));
        for change in nodes {
            if let Change::Node(node) = change {
                self.node.zone.clone_from(&node.zone);
                self.expect();
                self.pipeline.take([change.event()]);
                self.node = node.clone();
                self.expect();
                self.pipeline.see(node.facts());
            }
        }
    }

    fn expect(&mut self) {
        self.truths.push(Truth::of(&self.objects, &self.node));
    }

    fn check(&mut self) {
        for (at, meaning) in self.pipeline.tables().take_sights() {
            self.check_sight(&at, meaning.as_ref());
        }
        if self.pipeline.is_dead() {
            return;
        }
        self.truths.drain(..self.truths.len() - 1);
        self.check_tables();
    }

    /// A program has met this: it was right before the change, or is right after it.
    fn check_sight(&self, at: &FrontendAddress, meaning: Option<&FrontendMeaning>) {
        for client in CLIENTS {
            let found = answer(client, meaning);
            let may_be: BTreeSet<Answer> =
                self.truths.iter().map(|truth| truth.answer(client, &question(at))).collect();
            assert!(may_be.contains(&found), "{client:?} to {at} met {found:?}, not {may_be:?}");
        }
    }

    fn check_tables(&mut self) {
        let truth = &self.truths[self.truths.len() - 1];
        let reconciler = self.pipeline.reconciler();
        let snapshot = reconciler.tables().inner().snapshot().unwrap();
        let claimed = truth.addresses().map(frontend_address);
        let all: BTreeSet<_> = snapshot.frontends.keys().copied().chain(claimed).collect();
        for at in all {
            let meaning = reconciler.tables().inner().meaning_at(&at);
            let entry = snapshot.frontends.get(&at);
            for client in CLIENTS {
                let (found, right) =
                    (answer(client, meaning.as_ref()), truth.answer(client, &question(&at)));
                assert_eq!(found, right, "{client:?} to {at}: found, and right");
                if let (Answer::OneOf(list, 1..), Some(entry)) = (found, entry) {
                    let mut kept = kept(client, entry, &snapshot);
                    kept.retain(|backend| backend.is_ipv4() == at.ip.is_ipv4());
                    assert_eq!(kept, list, "{client:?} of {at} is kept");
                }
            }
            let found = entry.map(|entry| {
                let names = reconciler.names(entry.service).unwrap().port;
                owner(&names, Family::of(at.ip), entry, &snapshot)
            });
            assert_eq!(found, truth.owner(&question(&at)), "owner of {at}: found, and right");
        }
    }
}

/// The backends of a Service port.
fn backends_of(entry: &FrontendEntry, snapshot: &Snapshot) -> impl Iterator<Item = BackendEntry> {
    let own = snapshot.backends.values().filter(|backend| backend.service == entry.service);
    own.copied().collect::<Vec<_>>().into_iter()
}

fn owner(port: &PortKey, family: Family, entry: &FrontendEntry, snapshot: &Snapshot) -> Owner {
    let own = backends_of(entry, snapshot).filter(|own| Family::of(own.address.ip()) == family);
    Owner {
        service: (port.service.namespace.to_string(), port.service.name.to_string()),
        port: port.port.to_string(),
        serving: own.map(|own| (own.address, own.flags.has(BackendFlags::LOCAL))).collect(),
    }
}

/// The backends that a client may be kept with (S10): those of the list in use.
fn kept(client: Client, entry: &FrontendEntry, snapshot: &Snapshot) -> BTreeSet<SocketAddr> {
    let is_local = match client {
        Client::Outside => entry.flags.has(FrontendFlags::EXTERNAL_LOCAL),
        Client::Host | Client::Pod => entry.flags.has(FrontendFlags::INTERNAL_LOCAL),
    };
    let flag = if is_local { BackendFlags::AFFINE_LOCAL } else { BackendFlags::AFFINE_CLUSTER };
    let kept = backends_of(entry, snapshot).filter(|backend| backend.flags.has(flag));
    kept.map(|backend| backend.address).collect()
}

fn question(at: &FrontendAddress) -> At {
    (at.ip, at.port, at.protocol.to_string())
}

fn frontend_address((ip, port, protocol): &At) -> FrontendAddress {
    let protocol = match protocol.as_str() {
        "SCTP" => Protocol::Sctp,
        "TCP" => Protocol::Tcp,
        _ => Protocol::Udp,
    };
    FrontendAddress { ip: *ip, port: *port, protocol }
}

/// What the programs make of a frontend.
fn answer(client: Client, meaning: Option<&FrontendMeaning>) -> Answer {
    let Some(meaning) = meaning else { return Answer::NotOurs };
    let is_for_the_host = meaning.flags.has(FrontendFlags::HOST_ONLY);
    if is_for_the_host && client != Client::Host || meaning.flags.has(FrontendFlags::BIND_ONLY) {
        return Answer::NotOurs;
    }
    let (list, drops) = match client {
        Client::Outside => (&meaning.external, FrontendFlags::DROP_EXTERNAL),
        Client::Host | Client::Pod => (&meaning.internal, FrontendFlags::DROP_INTERNAL),
    };
    match list.as_slice() {
        [] if meaning.flags.has(drops) => Answer::Drop,
        [] => Answer::Reject,
        list => Answer::OneOf(list.iter().copied().collect(), meaning.affinity_timeout.into()),
    }
}

/// A random cluster: a node, and what becomes of it.
fn any_story() -> impl Strategy<Value = (Node, Vec<Happening>, Script)> {
    (any_node(), prop::collection::vec(any_happening(), 1..10), any_script())
}

/// How many clusters are tried.
fn cases() -> u32 {
    env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn random_clusters_are_answered_as_kube_proxy_answers(
        (node, happenings, script) in any_story(),
    ) {
        let mut world = World::new(node, script);
        for happening in happenings {
            world.meet(happening);
        }
        world.meet(Happening::Restart(Vec::new()));
    }
}

/// A comparison of nothing with nothing would prove nothing.
#[test]
fn random_clusters_give_every_client_every_answer() {
    let mut runner = TestRunner::deterministic();
    let mut seen = BTreeMap::<(Client, &str), usize>::new();
    for _ in 0..100 {
        let (node, happenings, _) = any_story().new_tree(&mut runner).unwrap().current();
        let mut objects = Objects::default();
        for happening in happenings {
            if let Happening::Changes(changes) = happening {
                for change in &changes {
                    objects.apply(change);
                }
            }
        }
        let truth = Truth::of(&objects, &node);
        for (client, at) in CLIENTS.iter().flat_map(|c| truth.addresses().map(|at| (*c, at))) {
            *seen.entry((client, kind(&truth.answer(client, at)))).or_default() += 1;
        }
    }
    assert_eq!(seen.len(), 5 * CLIENTS.len(), "{seen:?}");
    assert!(seen.values().all(|times| *times > 2), "{seen:?}");
}

fn kind(answer: &Answer) -> &'static str {
    match answer {
        Answer::Drop => "drop",
        Answer::NotOurs => "not ours",
        Answer::OneOf(_, 0) => "one of",
        Answer::OneOf(..) => "the same of",
        Answer::Reject => "reject",
    }
}
