//! A file of scenarios, read: what happens chapter by chapter, as a source would tell it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use lb_agent::{
    desired::NodeFacts,
    model::{Event, ObjectName, Problem},
    source::convert::{self, Converted},
};
use serde::Deserialize;

use crate::objects::{self, Form, split};

/// One document of a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    /// What it is about, for the reader.
    #[serde(rename = "story")]
    _story: String,
    /// Another agent takes over before anything else happens.
    #[serde(default)]
    restart: bool,
    /// The node that the tables are for.
    node: Option<NodeForm>,
    /// Services to apply, by `namespace/name`.
    #[serde(default)]
    services: BTreeMap<String, Form>,
    /// Slices to apply, by `namespace/name`.
    #[serde(default)]
    slices: BTreeMap<String, Form>,
    /// Fields of known objects that change, by `service namespace/name`, `slice namespace/name`;
    /// null removes a field.
    #[serde(default)]
    modify: BTreeMap<String, Form>,
    /// Objects to delete: `service namespace/name`, `slice namespace/name`.
    #[serde(default)]
    delete: Vec<String>,
    /// Compared as text.
    #[serde(default, rename = "expect")]
    _expect: String,
}

/// The node that the tables are for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NodeForm {
    name: String,
    zone: Option<String>,
    /// As `--nodeport-addresses all` finds them.
    addresses: Vec<IpAddr>,
    /// Addresses that local devices hold besides.
    #[serde(default)]
    local_addresses: BTreeSet<IpAddr>,
    /// Where clients count as local, as `--cluster-cidr` says.
    #[serde(default)]
    local_sources: BTreeSet<IpNet>,
    #[serde(default)]
    masquerade_all: bool,
}

/// What happens before the tables are looked at.
pub(crate) struct Chapter {
    pub(crate) restart: bool,
    pub(crate) facts: Option<NodeFacts>,
    /// In the order of the file; each is of another object.
    pub(crate) events: Vec<Event>,
    /// All problems that the source has told of and that are not solved.
    pub(crate) problems: Vec<Problem>,
}

/// Objects by kind and name, as `service namespace/name`, and what is wrong with them.
#[derive(Default)]
struct Objects {
    forms: BTreeMap<String, Form>,
    problems: BTreeMap<String, Vec<Problem>>,
}

/// Reads the documents of a file.
pub(crate) fn chapters(texts: &[&str]) -> Vec<Chapter> {
    let mut objects = Objects::default();
    let document = |text: &&str| -> Document {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    };
    texts.iter().map(document).map(|document| objects.chapter(document)).collect()
}

impl Objects {
    fn chapter(&mut self, document: Document) -> Chapter {
        let mut events = Vec::new();
        let mut named = BTreeSet::new();
        let kinds = [("service", document.services), ("slice", document.slices)];
        let applied = kinds.into_iter().flat_map(|(kind, forms)| {
            forms.into_iter().map(move |(name, form)| (format!("{kind} {name}"), form))
        });
        for (key, form) in applied {
            self.forms.insert(key.clone(), form);
            named.insert(key);
        }
        for (key, changes) in document.modify {
            let form = self.forms.get_mut(&key).unwrap_or_else(|| panic!("{key} is not there"));
            form.extend(changes);
            form.retain(|_, value| !value.is_null());
            assert!(named.insert(key.clone()), "{key} is there twice");
        }
        events.extend(named.iter().map(|key| self.event(key)));
        for key in document.delete {
            assert!(self.forms.remove(&key).is_some(), "{key} is not there");
            self.problems.remove(&key);
            events.push(deletion(&key));
        }
        let (facts, node) = document.node.map(|node| (node.facts(), node.event())).unzip();
        Chapter {
            restart: document.restart,
            facts,
            events: node.into_iter().chain(events).collect(),
            problems: self.problems.values().flatten().cloned().collect(),
        }
    }

    fn event(&mut self, key: &str) -> Event {
        let (form, name) = (&self.forms[key], name(key));
        if key.starts_with("service ") {
            let converted = convert::service(&objects::service(name, form));
            self.told(key, converted, Event::ServiceApplied)
        } else {
            let converted = convert::slice(&objects::slice(name, form));
            self.told(key, converted, Event::SliceApplied)
        }
    }

    fn told<T>(&mut self, key: &str, converted: Converted<T>, event: fn(T) -> Event) -> Event {
        self.problems.insert(key.to_owned(), converted.problems);
        converted.object.map_or_else(|| deletion(key), event)
    }
}

fn name(key: &str) -> &str {
    key.split_once(' ').unwrap_or_else(|| panic!("{key}: write service or slice before it")).1
}

fn deletion(key: &str) -> Event {
    let (namespace, short) = split(name(key));
    let name = ObjectName::new(namespace, short);
    match key.split(' ').next() {
        Some("service") => Event::ServiceDeleted(name),
        Some("slice") => Event::SliceDeleted(name),
        _ => panic!("{key}: write service or slice before it"),
    }
}

impl NodeForm {
    fn facts(&self) -> NodeFacts {
        let loopback = [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()];
        NodeFacts {
            name: self.name.as_str().into(),
            node_port_addresses: self.addresses.iter().copied().chain(loopback).collect(),
            local_addresses: self.local_addresses.clone(),
            primary_addresses: self.addresses.iter().copied().take(1).collect(),
            local_sources: self.local_sources.iter().copied().collect(),
            masquerade_all: self.masquerade_all,
            ..NodeFacts::default()
        }
    }

    fn event(&self) -> Event {
        let converted = convert::node(&objects::node(&self.name, self.zone.as_deref()));
        converted.object.map(Event::NodeApplied).expect("a node has no faults")
    }
}
