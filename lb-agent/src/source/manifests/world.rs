//! From the files of a folder to the model, and from one state of it to the next. Pure.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::Arc,
};

use k8s_openapi::api::core::v1 as core;

use super::{
    allocate::{self, Allocations, Assigned},
    endpoints::{self, PodIndex},
    objects::{Object, ObjectKey, ParsedFile, Pod},
    ranges::Ranges,
};
use crate::{
    model::{EndpointSlice, Event, Node, ObjectName, Problem, ProblemKey, Service},
    source::{convert, standing::ProblemsByKey},
};

/// All that a folder says.
#[derive(Debug, Default)]
pub(super) struct World {
    pub(super) services: BTreeMap<ObjectName, Service>,
    pub(super) slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    pub(super) node: Option<Arc<Node>>,
    pub(super) problems: ProblemsByKey,
    /// What must be remembered, so that addresses and ports stay the same.
    pub(super) allocations: Allocations,
}

/// Works out what the files say: objects of all files, in the order of the files' names, with
/// addresses, node ports and endpoints as a control plane gives them.
pub(super) fn world<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a ParsedFile)>,
    node_name: &str,
    kept: &Allocations,
    ranges: &Ranges,
) -> World {
    let mut world = World::default();
    let objects = Objects::gather(files, &mut world);
    let node = objects.nodes.get(node_name);
    world.node = node.and_then(|node| node.object.clone()).map(Arc::new);
    let services = objects.services.iter().map(|(name, service)| (*name, &***service)).collect();
    let mut assigned = allocate::assign(&services, kept, ranges);
    for (_, problems) in std::mem::take(&mut assigned.problems) {
        world.tell(problems);
    }
    world.add_slices(&objects);
    let pods = PodIndex::new(objects.pods.iter().copied());
    for (name, service) in &services {
        world.add_service(name, service, &assigned);
        if !objects.sliced.contains(*name) && world.services.contains_key(*name) {
            let (slices, problems) = endpoints::slices(name, service, &pods);
            let slices = slices.into_iter().map(|slice| (slice.name.clone(), Arc::new(slice)));
            world.slices.extend(slices);
            world.tell(problems);
        }
    }
    world.allocations = assigned.allocations;
    world
}

impl World {
    fn add_service(&mut self, name: &ObjectName, service: &core::Service, assigned: &Assigned) {
        let given = assigned.allocations.services.get(&name.to_string());
        let mut service = Cow::Borrowed(service);
        if let Some(given) = given {
            given.fill_in(service.to_mut());
        }
        let converted = convert::service(&service);
        self.tell(converted.problems);
        if let Some(mut service) = converted.object {
            take_away_lost(&mut service, assigned);
            self.services.insert(name.clone(), service);
        }
    }

    fn add_slices(&mut self, objects: &Objects) {
        for converted in &objects.slices {
            self.tell(converted.problems.iter().cloned());
            if let Some(slice) = &converted.object {
                self.slices.insert(slice.name.clone(), Arc::new(slice.clone()));
            }
        }
        for pod in &objects.pods {
            self.tell(pod.problems.iter().cloned());
        }
        for node in objects.nodes.values() {
            self.tell(node.problems.iter().cloned());
        }
    }

    pub(super) fn tell(&mut self, problems: impl IntoIterator<Item = Problem>) {
        for problem in problems {
            self.problems.entry(problem.key.clone()).or_default().push(problem);
        }
    }
}

fn take_away_lost(service: &mut Service, assigned: &Assigned) {
    let name = service.name.clone();
    let lost_ip = |ip| assigned.lost_addresses.contains(&(name.clone(), ip));
    service.cluster_ips.retain(|ip| !lost_ip(*ip));
    let lost_port = |protocol, number: std::num::NonZeroU16| {
        assigned.lost_ports.contains(&(name.clone(), protocol, number.get()))
    };
    for port in &mut service.ports {
        port.node_port = port.node_port.filter(|number| !lost_port(port.protocol, *number));
    }
    let health = service.health_check_node_port;
    let tcp = crate::model::Protocol::Tcp;
    service.health_check_node_port = health.filter(|number| !lost_port(tcp, *number));
}

/// The objects of all files, each once.
#[derive(Default)]
struct Objects<'a> {
    services: BTreeMap<&'a ObjectName, &'a Arc<core::Service>>,
    slices: Vec<&'a convert::Converted<EndpointSlice>>,
    /// Services that a slice of the folder belongs to.
    sliced: BTreeSet<&'a ObjectName>,
    pods: Vec<&'a Pod>,
    nodes: BTreeMap<&'a str, &'a convert::Converted<Node>>,
}

impl<'a> Objects<'a> {
    fn gather(
        files: impl IntoIterator<Item = (&'a str, &'a ParsedFile)>,
        world: &mut World,
    ) -> Self {
        let mut objects = Self::default();
        let mut found: BTreeMap<&ObjectKey, &str> = BTreeMap::new();
        for (path, file) in files {
            world.tell(file.problems.iter().cloned());
            for (key, object) in &file.objects {
                match found.entry(key) {
                    Entry::Vacant(entry) => {
                        entry.insert(path);
                        objects.add(key, object);
                    }
                    Entry::Occupied(entry) => world.tell([twice(key, entry.get(), path)]),
                }
            }
        }
        objects
    }

    fn add(&mut self, key: &'a ObjectKey, object: &'a Object) {
        match object {
            Object::Node(node) => {
                self.nodes.insert(&key.name.name, node);
            }
            Object::Pod(pod) => self.pods.push(pod),
            Object::Service(service) => {
                self.services.insert(&key.name, service);
            }
            Object::Slice(slice) => {
                self.sliced.extend(slice.object.iter().map(|slice| &slice.service));
                self.slices.push(slice);
            }
        }
    }
}

fn twice(key: &ObjectKey, first: &str, second: &str) -> Problem {
    let place = if first == second {
        format!("twice in {first}")
    } else {
        format!("in {first} and in {second}")
    };
    Problem {
        key: ProblemKey { kind: key.kind, name: key.name.to_string().into() },
        field: String::new(),
        message: format!("defined {place}; the first one holds"),
        mend: "remove one of them".into(),
    }
}

/// What happened between two states, without their problems: endpoints come before the Services
/// that need them and go after them.
pub(super) fn events(old: &World, new: &World) -> Vec<Event> {
    let mut events = Vec::new();
    if old.node != new.node {
        let applied = new.node.as_deref().cloned().map(Event::NodeApplied);
        events.push(applied.unwrap_or(Event::NodeDeleted));
    }
    let (slices, old_slices) = changed(&old.slices, &new.slices);
    let (services, old_services) = changed(&old.services, &new.services);
    events.extend(slices.map(|slice| Event::SliceApplied((**slice).clone())));
    events.extend(services.cloned().map(Event::ServiceApplied));
    events.extend(old_services.cloned().map(Event::ServiceDeleted));
    events.extend(old_slices.cloned().map(Event::SliceDeleted));
    events
}

/// What is new or different, and the names of what is gone.
fn changed<'a, T: PartialEq>(
    old: &'a BTreeMap<ObjectName, T>,
    new: &'a BTreeMap<ObjectName, T>,
) -> (impl Iterator<Item = &'a T>, impl Iterator<Item = &'a ObjectName>) {
    let applied = new.iter().filter(|(name, object)| old.get(name) != Some(object));
    let gone = old.keys().filter(|name| !new.contains_key(name));
    (applied.map(|(_, object)| object), gone)
}
