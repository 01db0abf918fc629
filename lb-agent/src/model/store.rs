//! The model as a whole, kept by taking in one event after another.

use std::collections::{BTreeMap, HashMap};

use super::{EndpointSlice, Event, Node, ObjectName, Service};

/// All that a node's tables follow from, but for the facts of the node itself.
#[derive(Clone, Debug, Default)]
pub struct Model {
    services: HashMap<ObjectName, Service>,
    slices: HashMap<ObjectName, BTreeMap<ObjectName, EndpointSlice>>,
    slice_owners: HashMap<ObjectName, ObjectName>,
    node: Option<Node>,
    /// This node's object was there once, and is not any more.
    node_deleted: bool,
}

/// What an [`Event`] makes necessary.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// These Services must be worked out again (at most two: a slice may change its owner).
    Services(Vec<ObjectName>),
    /// The node's zone or name changed: everything must be worked out again.
    Node,
    /// Nothing that the tables depend on.
    Nothing,
}

impl Model {
    /// Takes in one event and says what follows from it.
    pub fn apply(&mut self, event: Event) -> Change {
        match event {
            Event::ServiceApplied(service) => {
                let name = service.name.clone();
                match self.services.insert(name.clone(), service) {
                    Some(old) if self.services.get(&name) == Some(&old) => Change::Nothing,
                    _ => Change::Services(vec![name]),
                }
            }
            Event::ServiceDeleted(name) => match self.services.remove(&name) {
                Some(_) => Change::Services(vec![name]),
                None => Change::Nothing,
            },
            Event::SliceApplied(slice) => self.apply_slice(slice),
            Event::SliceDeleted(name) => self.delete_slice(&name),
            Event::NodeApplied(node) => self.set_node(Some(node)),
            Event::NodeDeleted => self.set_node(None),
            Event::Listed | Event::Problem(_) | Event::ProblemSolved(_) => Change::Nothing,
        }
    }

    /// The Services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// The Service of that name.
    #[must_use]
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// The slices of a Service, in order of their names.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// This node's own object, where the source has it.
    #[must_use]
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    /// May a load balancer in front send traffic to this node (S4)? A node whose object was never
    /// seen is not leaving.
    #[must_use]
    pub fn is_node_eligible(&self) -> bool {
        self.node.as_ref().map_or(!self.node_deleted, |node| !node.is_leaving)
    }

    fn apply_slice(&mut self, slice: EndpointSlice) -> Change {
        let (name, owner) = (slice.name.clone(), slice.service.clone());
        let mut touched = Vec::new();
        if let Some(old_owner) = self.slice_owners.insert(name.clone(), owner.clone())
            && old_owner != owner
        {
            self.forget_slice(&old_owner, &name);
            touched.push(old_owner);
        }
        let slices = self.slices.entry(owner.clone()).or_default();
        if slices.get(&name) != Some(&slice) {
            slices.insert(name, slice);
            touched.push(owner);
        }
        if touched.is_empty() { Change::Nothing } else { Change::Services(touched) }
    }

    fn delete_slice(&mut self, name: &ObjectName) -> Change {
        let Some(owner) = self.slice_owners.remove(name) else {
            return Change::Nothing;
        };
        self.forget_slice(&owner, name);
        Change::Services(vec![owner])
    }

    fn forget_slice(&mut self, owner: &ObjectName, name: &ObjectName) {
        if let Some(slices) = self.slices.get_mut(owner) {
            slices.remove(name);
            if slices.is_empty() {
                self.slices.remove(owner);
            }
        }
    }

    fn set_node(&mut self, node: Option<Node>) -> Change {
        if self.node == node {
            return Change::Nothing;
        }
        self.node_deleted = node.is_none();
        self.node = node;
        Change::Node
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Family, Problem, ProblemKey, ServiceType, TrafficPolicy};

    fn name(name: &str) -> ObjectName {
        ObjectName::new("default", name)
    }

    fn service(created: i64) -> Service {
        Service {
            name: name("web"),
            service_type: ServiceType::ClusterIp,
            created,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            ports: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_timeout: None,
            source_ranges: Vec::new(),
            forwarding: None,
            health_check_node_port: None,
        }
    }

    fn slice(owner: &str) -> EndpointSlice {
        EndpointSlice {
            name: name("web-1"),
            service: name(owner),
            family: Family::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
            last_change: None,
        }
    }

    #[test]
    fn the_same_object_again_changes_nothing() {
        let mut model = Model::default();
        let web = Change::Services(vec![name("web")]);
        assert_eq!(model.apply(Event::ServiceApplied(service(1))), web);
        assert_eq!(model.apply(Event::ServiceApplied(service(1))), Change::Nothing);
        assert_eq!(model.apply(Event::ServiceApplied(service(2))), web);
        assert_eq!(model.apply(Event::SliceApplied(slice("web"))), web);
        assert_eq!(model.apply(Event::SliceApplied(slice("web"))), Change::Nothing);
    }

    #[test]
    fn a_slice_that_changes_its_owner_concerns_both() {
        let mut model = Model::default();
        model.apply(Event::SliceApplied(slice("web")));
        let change = model.apply(Event::SliceApplied(slice("api")));
        assert_eq!(change, Change::Services(vec![name("web"), name("api")]));
        assert_eq!(model.slices(&name("web")).count(), 0);
        assert_eq!(model.slices(&name("api")).count(), 1);
    }

    #[test]
    fn what_is_deleted_is_gone_once() {
        let mut model = Model::default();
        model.apply(Event::ServiceApplied(service(1)));
        model.apply(Event::SliceApplied(slice("web")));
        let web = Change::Services(vec![name("web")]);
        assert_eq!(model.apply(Event::SliceDeleted(name("web-1"))), web);
        assert_eq!(model.apply(Event::SliceDeleted(name("web-1"))), Change::Nothing);
        assert_eq!(model.apply(Event::ServiceDeleted(name("web"))), web);
        assert_eq!(model.apply(Event::ServiceDeleted(name("web"))), Change::Nothing);
        assert_eq!(model.services().count(), 0);
    }

    #[test]
    fn only_another_node_concerns_everything() {
        let mut model = Model::default();
        let node = Node { name: "node-1".into(), ..Node::default() };
        assert_eq!(model.apply(Event::NodeApplied(node.clone())), Change::Node);
        assert_eq!(model.apply(Event::NodeApplied(node)), Change::Nothing);
        assert_eq!(model.apply(Event::NodeDeleted), Change::Node);
        assert_eq!(model.node(), None);
    }

    #[test]
    fn s4_a_node_is_eligible_until_it_leaves_or_is_gone() {
        let mut model = Model::default();
        assert!(model.is_node_eligible(), "never seen");
        let node = Node { name: "node-1".into(), ..Node::default() };
        model.apply(Event::NodeApplied(node.clone()));
        assert!(model.is_node_eligible());
        model.apply(Event::NodeApplied(Node { is_leaving: true, ..node.clone() }));
        assert!(!model.is_node_eligible());
        model.apply(Event::NodeDeleted);
        assert!(!model.is_node_eligible());
        model.apply(Event::NodeApplied(node));
        assert!(model.is_node_eligible());
    }

    #[test]
    fn faults_leave_the_last_good_state() {
        let mut model = Model::default();
        model.apply(Event::ServiceApplied(service(1)));
        let key = ProblemKey { kind: "Service", name: "default/web".into() };
        let (field, message, mend) = (String::new(), "bad".into(), "mend it".into());
        let problem = Problem { key: key.clone(), field, message, mend };
        assert_eq!(problem.to_string(), "Service default/web: bad; mend it");
        assert_eq!(model.apply(Event::Problem(problem)), Change::Nothing);
        assert_eq!(model.apply(Event::ProblemSolved(key)), Change::Nothing);
        assert_eq!(model.service(&name("web")), Some(&service(1)));
    }
}
