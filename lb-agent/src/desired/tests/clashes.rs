//! Who has an address that several ask for (S21), and what an update tells.

use super::*;
use crate::model::Event;

/// A model and what follows from it.
struct World {
    model: Model,
    desired: Desired,
}

impl Default for World {
    fn default() -> Self {
        Self { model: Model::default(), desired: Desired::new(facts()) }
    }
}

impl World {
    fn set(&mut self, service: Service) {
        self.model.apply(Event::ServiceApplied(service));
    }

    fn delete(&mut self, name: &str) -> Delta {
        self.model.apply(Event::ServiceDeleted(ObjectName::new("default", name)));
        self.update(name)
    }

    fn update(&mut self, name: &str) -> Delta {
        self.desired.update(&self.model, &[ObjectName::new("default", name)])
    }
}

fn owners(delta: &Delta, address: FrontendAddress) -> Vec<&str> {
    let having = delta.ports.iter().filter(|(_, tables)| {
        tables.as_ref().is_some_and(|tables| tables.frontend(&address).is_some())
    });
    having.map(|(key, _)| &*key.service.name).collect()
}

fn problems(delta: &Delta) -> Vec<String> {
    delta.problems.values().flatten().map(ToString::to_string).collect()
}

#[test]
fn s21_the_elder_of_two_services_has_an_external_address_and_the_other_takes_over() {
    for family in FAMILIES {
        let shared = ip(family, OUTSIDE, 6);
        let make = |name, n, created| Service {
            external_ips: vec![shared],
            created,
            ..service(family, name, n)
        };
        let mut world = World::default();
        world.set(make("child", 1, 20));
        assert_eq!(owners(&world.update("child"), tcp(shared, 80)), ["child"]);
        world.set(make("elder", 2, 10));
        let clash = world.update("elder");
        assert_eq!(owners(&clash, tcp(shared, 80)), ["elder"]);
        assert_eq!(clash.ports.len(), 2, "the loser is told");
        let own = tcp(ip(family, CLUSTER, 1), 80);
        assert_eq!(owners(&clash, own), ["child"], "what is its own it keeps");
        let told = format!(
            "Service default/child: spec.externalIPs: {} is taken by Service default/elder; \
             change the address or the port of one of them",
            tcp(shared, 80)
        );
        assert_eq!(problems(&clash), [told]);
        let after = world.delete("elder");
        assert_eq!(owners(&after, tcp(shared, 80)), ["child"]);
        assert_eq!(after.problems[&ObjectName::new("default", "child")], []);
    }
}

#[test]
fn s21_among_services_of_one_age_the_name_decides() {
    let mut world = World::default();
    for name in ["b", "a", "c"] {
        world.set(service(Family::V4, name, 7));
        world.update(name);
    }
    let names = ["a", "b", "c"].map(|name| ObjectName::new("default", name));
    let delta = world.desired.update(&world.model, &names);
    assert!(delta.ports.is_empty(), "nothing changed: {delta:?}");
    let after = world.delete("a");
    assert_eq!(owners(&after, tcp(ip(Family::V4, CLUSTER, 7), 80)), ["b"]);
    assert_eq!(
        problems(&after),
        ["Service default/c: spec.clusterIPs: 10.96.0.7:80/TCP is taken by Service default/b; \
          change the address or the port of one of them"]
    );
}

#[test]
fn s21_a_cluster_ip_beats_the_external_address_of_an_elder_service() {
    let shared = ip(Family::V4, CLUSTER, 1);
    let mut world = World::default();
    world.set(Service { external_ips: vec![shared], created: 1, ..service(Family::V4, "old", 2) });
    world.update("old");
    world.set(service(Family::V4, "young", 1));
    assert_eq!(owners(&world.update("young"), tcp(shared, 80)), ["young"]);
}

#[test]
fn s21_a_load_balancer_address_taken_twice_is_a_problem_of_the_status() {
    let load_balancer_ips = vec![ip(Family::V4, OUTSIDE, 5)];
    let make = |name, n| Service {
        load_balancer_ips: load_balancer_ips.clone(),
        ..service(Family::V4, name, n)
    };
    let mut world = World::default();
    world.set(make("a", 1));
    world.set(make("b", 2));
    world.update("a");
    assert_eq!(
        problems(&world.update("b")),
        ["Service default/b: status.loadBalancer.ingress: 10.9.0.5:80/TCP is taken by Service \
          default/a; change the address or the port of one of them"]
    );
}

#[test]
fn s21_a_node_port_taken_twice_is_one_problem_however_many_addresses_the_node_has() {
    let make = |name, n, created| {
        let mut service = service(Family::V4, name, n);
        service.created = created;
        service.ports.insert(0, port("metrics", 9100));
        service.ports[1].node_port = Some(30080.try_into().unwrap());
        service
    };
    let mut world = World::default();
    world.set(make("old", 1, 1));
    world.set(make("young", 2, 2));
    world.update("old");
    let delta = world.update("young");
    assert_eq!(
        problems(&delta),
        ["Service default/young: spec.ports[1].nodePort: 10.1.0.1:30080/TCP is taken by \
          Service default/old; change the address or the port of one of them"]
    );
}

#[test]
fn an_update_without_effect_changes_nothing_and_one_port_changed_is_one_port_told() {
    let mut world = World::default();
    let mut web = service(Family::V4, "web", 1);
    web.ports.push(port("metrics", 9100));
    world.set(web);
    assert_eq!(world.update("web").ports.len(), 2);
    assert_eq!(world.update("web"), Delta::default());
    let slice = slice(Family::V4, "web-1", "web", vec![endpoint(Family::V4, 1, "here")]);
    world.model.apply(Event::SliceApplied(slice));
    let delta = world.update("web");
    let ports: Vec<&str> = delta.ports.keys().map(|key| &*key.port).collect();
    assert_eq!(ports, ["http"]);
    assert!(world.delete("web").ports.values().all(Option::is_none));
}

#[test]
fn a_node_address_that_appears_gets_the_node_ports() {
    let mut world = World::default();
    world.set(exposed(Family::V4, CLUSTER_POLICY, CLUSTER_POLICY));
    world.update("web");
    let mut facts = facts();
    facts.node_port_addresses.insert(ip(Family::V4, NODES, 9));
    let delta = world.desired.set_facts(&world.model, facts.clone());
    assert_eq!(owners(&delta, tcp(ip(Family::V4, NODES, 9), 30080)), ["web"]);
    assert_eq!(world.desired.set_facts(&world.model, facts), Delta::default());
}

#[test]
fn more_endpoints_than_slots_are_a_problem_and_the_first_are_used() {
    let many = (0..70_000_u32).map(|n| Endpoint {
        address: std::net::Ipv4Addr::from(0x0a00_0001 + n).into(),
        ..endpoint(Family::V4, 1, "there")
    });
    let mut slices = [slice(Family::V4, "web-1", "web", many.collect())];
    let tables = tables_of(&service(Family::V4, "web", 1), &slices, &facts());
    let port: &Arc<PortTables> = tables.ports.first_key_value().unwrap().1;
    assert_eq!(port.families[&Family::V4].cluster.len(), MAX_ENDPOINTS);
    assert_eq!(
        tables.problems[0].to_string(),
        "Service default/web: port 80 has 70000 endpoints, and only the first 65521 are used; \
         split the Service"
    );
    slices[0].endpoints.truncate(MAX_ENDPOINTS);
    let tables = tables_of(&service(Family::V4, "web", 1), &slices, &facts());
    assert_eq!(tables.problems, [], "as many as there are slots");
}

#[test]
fn s8_one_number_may_be_a_node_port_of_each_protocol() {
    let mut service = exposed(Family::V4, CLUSTER_POLICY, CLUSTER_POLICY);
    for (name, protocol) in [("dns", Protocol::Udp), ("s1ap", Protocol::Sctp)] {
        let port =
            crate::model::ServicePort { name: name.into(), protocol, ..service.ports[0].clone() };
        service.ports.push(port);
    }
    let mut world = World::default();
    world.set(service);
    let delta = world.update("web");
    assert!(delta.problems.is_empty(), "{:?}", delta.problems);
    let frontends = delta.ports.values().flatten().map(|tables| tables.frontends().count());
    assert_eq!(frontends.collect::<Vec<_>>(), [6, 6, 6]);
}

#[test]
fn s22_nobody_else_gets_a_cluster_ip_that_is_left_alone() {
    for family in FAMILIES {
        let mut world = World::default();
        let held_ip = ip(family, CLUSTER, 10);
        let held = NodeFacts { local_addresses: [held_ip].into(), ..facts() };
        world.desired = Desired::new(held);
        world.set(service(family, "dns", 10));
        world.update("dns");
        assert_eq!(left_alone(&world), [format!("{} default/dns", tcp(held_ip, 80))]);
        let external_ips = vec![ip(family, CLUSTER, 10)];
        world.set(Service { external_ips, created: 1, ..service(family, "thief", 1) });
        let delta = world.update("thief");
        let address = tcp(ip(family, CLUSTER, 10), 80);
        assert!(owners(&delta, address).is_empty());
        assert!(problems(&delta)[0].contains("is taken by Service default/dns"));
        assert_eq!(owners(&world.delete("dns"), address), ["thief"]);
        assert_eq!(left_alone(&world), [""; 0]);
    }
}

fn left_alone(world: &World) -> Vec<String> {
    let shown =
        |(address, port): &(FrontendAddress, PortKey)| format!("{address} {}", port.service);
    world.desired.left_alone().iter().map(shown).collect()
}
