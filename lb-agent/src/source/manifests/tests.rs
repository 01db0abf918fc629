//! The folder's pure part: text of files in, model out.

use std::collections::BTreeMap;

use super::{
    allocate::Allocations, objects::ParsedFile, ranges::Ranges, read::parse, world::events, *,
};
use crate::model::{EndpointSlice, ObjectName, Service};

const WEB: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

fn files(texts: &[(&str, &str)]) -> BTreeMap<String, ParsedFile> {
    texts.iter().map(|(path, text)| ((*path).to_owned(), parse(path, text).unwrap())).collect()
}

fn world_of(texts: &[(&str, &str)], kept: &Allocations) -> World {
    let files = files(texts);
    let files = files.iter().map(|(path, file)| (path.as_str(), file));
    world(files, "node-1", kept, &Ranges::default())
}

fn one(text: &str) -> World {
    world_of(&[("a.yaml", text)], &Allocations::default())
}

fn service<'a>(world: &'a World, name: &str) -> &'a Service {
    &world.services[&ObjectName::new("default", name)]
}

fn slices<'a>(world: &'a World, name: &str) -> Vec<&'a EndpointSlice> {
    let of = |slice: &&EndpointSlice| &*slice.service.name == name;
    world.slices.values().map(|slice| &**slice).filter(of).collect()
}

fn faults(world: &World) -> Vec<String> {
    world.problems.values().flatten().map(ToString::to_string).collect()
}

fn pod(name: &str, ip: &str, rest: &str) -> String {
    format!(
        "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\n\
         status: {{podIP: {ip}}}\n{rest}\n"
    )
}

fn node_port(world: &World, name: &str) -> Option<u16> {
    service(world, name).ports[0].node_port.map(std::num::NonZero::get)
}

#[test]
fn a_service_gets_an_address_and_its_pods() {
    let world = one(&(WEB.to_owned() + &pod("web-0", "10.244.1.2", "")));
    assert_eq!(faults(&world), Vec::<String>::new());
    let ip = service(&world, "web").cluster_ips[0];
    assert!(Ranges::default().contains(ip), "{ip}");
    let slices = slices(&world, "web");
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].ports[0].port.get(), 8080);
    assert_eq!(slices[0].endpoints[0].address.to_string(), "10.244.1.2");
    assert!(slices[0].endpoints[0].ready);
}

#[test]
fn lists_json_and_many_documents_are_read() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: \
                {name: a}, spec: {ports: [{port: 1}]}}\n- {apiVersion: v1, kind: List, items: \
                [{apiVersion: v1, kind: Service, metadata: {name: b}}]}\n---\n---\n";
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"}}
                  {"apiVersion":"v1","kind":"Service","metadata":{"name":"d"}}"#;
    let world = world_of(&[("a.yml", list), ("b.json", json)], &Allocations::default());
    assert_eq!(faults(&world), Vec::<String>::new());
    assert_eq!(world.services.len(), 4);
}

#[test]
fn other_kinds_are_skipped_and_named() {
    let text = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {}";
    let file = parse("a.yaml", text).unwrap();
    assert_eq!(file.skipped, ["Deployment default/web"]);
    assert!(file.problems.is_empty());
}

#[test]
fn a_syntax_error_names_line_and_column() {
    let problem = parse("a.yaml", "kind: Service\nmetadata: {name: web\nspec: 1\n").unwrap_err();
    assert_eq!((problem.key.kind, &*problem.key.name), ("file", "a.yaml"));
    assert!(problem.message.starts_with("line "), "{problem}");
    assert!(problem.message.contains(" column "), "{problem}");
    assert!(!problem.message.contains('\n'), "{problem}");
    let problem = parse("a.json", "{\"kind\": \n}").unwrap_err();
    assert!(problem.message.contains("line 2 column 1"), "{problem}");
}

#[test]
fn an_object_that_does_not_fit_its_kind_is_named_with_its_field() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: \
                eighty}]}\n---\napiVersion: v1\nkind: Service\nmetadata: {name: good}";
    let world = one(text);
    assert_eq!(world.services.len(), 1);
    let faults = faults(&world);
    assert!(faults[0].starts_with("Service default/web: spec.ports[0].port: "), "{faults:?}");
}

#[test]
fn an_object_that_cannot_be_read_any_more_keeps_its_last_good_state() {
    let before = parse("a.yaml", WEB).unwrap();
    let mut after = parse("a.yaml", &WEB.replace("port: 80,", "port: eighty,")).unwrap();
    assert!(after.objects.is_empty());
    after.keep_last_good(&before);
    assert_eq!(after.objects.len(), 1);
}

#[test]
fn of_two_objects_of_one_name_the_first_file_wins() {
    let other = WEB.replace("port: 80", "port: 81");
    let world = world_of(&[("b.yaml", &other), ("a.yaml", WEB)], &Allocations::default());
    assert_eq!(service(&world, "web").ports[0].port.get(), 80);
    let faults = faults(&world);
    assert!(faults[0].contains("defined in a.yaml and in b.yaml"), "{faults:?}");
}

#[test]
fn defaults_are_the_apis() {
    let text = "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {sessionAffinity: \
                ClientIP, type: NodePort, ports: [{port: 80}], ipFamilyPolicy: PreferDualStack}}";
    let world = one(text);
    let web = service(&world, "web");
    assert_eq!(web.affinity_timeout, Some(10_800));
    assert_eq!(web.ports[0].protocol, crate::model::Protocol::Tcp);
    assert_eq!(web.cluster_ips.len(), 2);
    assert!(web.cluster_ips[0].is_ipv4() && web.cluster_ips[1].is_ipv6());
    assert!((30_000..=32_767).contains(&node_port(&world, "web").unwrap()));
}

#[test]
fn families_follow_from_given_addresses() {
    let six = WEB.replace("selector:", "clusterIP: 'fd00:10:96::7'\n  selector:");
    let world = one(&six);
    assert_eq!(service(&world, "web").cluster_ips.len(), 1);
    let both = six.replace("selector:", "ipFamilyPolicy: RequireDualStack\n  selector:");
    let world = one(&both);
    let ips = &service(&world, "web").cluster_ips;
    assert!(ips.len() == 2 && ips[0].is_ipv6() && ips[1].is_ipv4(), "{ips:?}");
}

#[test]
fn a_named_target_port_is_resolved_pod_by_pod() {
    let web = WEB.replace("8080", "http");
    let container = |port: u16| {
        format!(
            "spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]}}"
        )
    };
    let sidecar = "spec: {containers: [{name: c}], initContainers: [{name: s, restartPolicy: \
                   Always, ports: [{name: http, containerPort: 82}]}, {name: t, ports: [{name: \
                   http, containerPort: 83}]}]}";
    let text = web
        + &pod("a", "10.244.1.1", &container(80))
        + &pod("b", "10.244.1.2", &container(81))
        + &pod("c", "10.244.1.3", &container(80))
        + &pod("d", "10.244.1.4", sidecar)
        + &pod("e", "10.244.1.5", "spec: {containers: [{name: c}]}");
    let world = one(&text);
    let found: Vec<_> = slices(&world, "web")
        .iter()
        .map(|slice| (slice.ports[0].port.get(), slice.endpoints.len()))
        .collect();
    assert_eq!(found, [(80, 2), (81, 1), (82, 1)]);
    let faults = faults(&world);
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("spec.ports[0].targetPort: Pod default/e has no TCP port \"http\""));
}

#[test]
fn readiness_deletion_and_phase_of_pods_are_followed() {
    let conditions = |ready: &str| format!("  conditions: [{{type: Ready, status: '{ready}'}}]");
    let with = |name: &str, ip: &str, meta: &str, status: &str| {
        format!(
            "\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}{meta}}}\
             \nstatus:\n  podIPs: [{{ip: {ip}}}]\n{status}\n"
        )
    };
    let going = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let text = WEB.to_owned()
        + &with("a", "10.244.1.1", "", &conditions("True"))
        + &with("b", "10.244.1.2", "", &conditions("False"))
        + &with("c", "10.244.1.3", going, &conditions("True"))
        + &with("d", "10.244.1.4", "", "  phase: Succeeded")
        + &with("e", "10.244.1.5", "", "  phase: Failed");
    let states = |text: &str| {
        let world = one(text);
        let slice = slices(&world, "web")[0].clone();
        let state = |e: crate::model::Endpoint| (e.ready, e.serving, e.terminating);
        slice.endpoints.into_iter().map(state).collect::<Vec<_>>()
    };
    assert_eq!(states(&text), [(true, true, false), (false, false, false), (false, true, true)]);
    // S17.
    let published = text.replace("selector:", "publishNotReadyAddresses: true\n  selector:");
    assert_eq!(states(&published), [(true, true, false), (true, false, false), (true, true, true)]);
}

#[test]
fn slices_of_the_folder_stand_in_for_pods() {
    let slice = "\n---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: \
                 web-1, labels: {kubernetes.io/service-name: web}}\naddressType: IPv4\nports: \
                 [{name: http, port: 9090}]\nendpoints: [{addresses: [10.244.9.9]}]\n";
    let world = one(&(WEB.to_owned() + &pod("web-0", "10.244.1.2", "") + slice));
    let slices = slices(&world, "web");
    assert_eq!(slices.len(), 1);
    assert_eq!(&*slices[0].name.name, "web-1");
}

#[test]
fn pods_of_other_namespaces_and_labels_are_not_selected() {
    let other = pod("a", "10.244.1.1", "").replace("name: a,", "name: a, namespace: other,");
    let unlabelled = pod("b", "10.244.1.2", "").replace("app: web", "app: api");
    let world = one(&(WEB.to_owned() + &other + &unlabelled));
    assert!(slices(&world, "web").is_empty());
}

#[test]
fn a_pod_on_a_loopback_address_is_told_and_left_out() {
    let world = one(&(WEB.to_owned() + &pod("a", "127.0.0.1", "") + &pod("b", "10.244.1.2", "")));
    assert_eq!(slices(&world, "web")[0].endpoints.len(), 1);
    assert!(faults(&world)[0].starts_with("Pod default/a: status.podIP: 127.0.0.1"));
}

#[test]
fn only_this_nodes_own_object_is_told_of() {
    let world = one("{apiVersion: v1, kind: Node, metadata: {name: node-2}}\n---\n{apiVersion: \
                     v1, kind: Node, metadata: {name: node-1, labels: \
                     {topology.kubernetes.io/zone: a}}}");
    assert_eq!(world.node.unwrap().zone.as_deref(), Some("a"));
}

fn typed(name: &str, kind: &str, ports: &str, more: &str) -> String {
    format!(
        "\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: {kind}, \
         ports: [{ports}]{more}}}\n"
    )
}

#[test]
fn a_node_port_taken_twice_goes_to_the_first_and_then_to_the_other() {
    let a = typed("a", "NodePort", "{port: 80, nodePort: 30080}", "");
    let b = typed("b", "NodePort", "{port: 80, nodePort: 30080}", "");
    let world = one(&format!("{b}{a}"));
    assert_eq!((node_port(&world, "a"), node_port(&world, "b")), (Some(30_080), None));
    assert_eq!(service(&world, "b").cluster_ips.len(), 1);
    let fault = "Service default/b: spec.ports[0].nodePort: node port 30080/TCP belongs to \
                 Service default/a";
    assert!(faults(&world)[0].starts_with(fault), "{:?}", faults(&world));
    let world = one(&b);
    assert_eq!(node_port(&world, "b"), Some(30_080));
}

#[test]
fn the_elder_service_wins_a_clash_whatever_its_name() {
    let aged = |name: &str, year: u16| {
        typed(name, "ClusterIP", "{port: 80}", ", clusterIP: 10.96.0.77")
            .replace("{name", &format!("{{creationTimestamp: '{year}-01-01T00:00:00Z', name"))
    };
    let world = one(&(aged("a", 2026) + &aged("b", 2025)));
    assert_eq!(service(&world, "b").cluster_ips.len(), 1);
    assert_eq!(service(&world, "a").cluster_ips.len(), 0);
    assert!(faults(&world)[0].contains("Service default/a: spec.clusterIPs[0]: cluster IP"));
}

#[test]
fn one_number_may_serve_two_protocols() {
    let a = typed("a", "NodePort", "{port: 53, nodePort: 30053, protocol: UDP}", "");
    let b = typed("b", "NodePort", "{port: 53, nodePort: 30053, protocol: TCP}", "");
    assert_eq!(faults(&one(&(a + &b))), Vec::<String>::new());
}

#[test]
fn a_node_port_outside_its_range_is_refused() {
    let world = one(&typed("a", "NodePort", "{port: 80, nodePort: 22}", ""));
    assert_eq!(node_port(&world, "a"), None);
    assert!(faults(&world)[0].contains("node port 22 is outside 30000-32767"));
}

#[test]
fn a_load_balancer_may_do_without_node_ports() {
    let with = one(&typed("a", "LoadBalancer", "{port: 80}", ", externalTrafficPolicy: Local"));
    assert!(node_port(&with, "a").is_some());
    assert!(service(&with, "a").health_check_node_port.is_some());
    let more = ", allocateLoadBalancerNodePorts: false";
    let without = one(&typed("a", "LoadBalancer", "{port: 80}", more));
    assert_eq!(node_port(&without, "a"), None);
}

#[test]
fn what_was_handed_out_stays_whatever_comes_or_goes() {
    let ours = typed("a", "NodePort", "{port: 80}", "");
    let first = one(&ours);
    let kept = &first.allocations;
    let many: String =
        (0..300).map(|n| typed(&format!("a{n}"), "NodePort", "{port: 80}", "")).collect();
    let second = world_of(&[("0.yaml", &many), ("1.yaml", &ours)], kept);
    assert_eq!(service(&first, "a"), service(&second, "a"));
    assert_eq!(faults(&second), Vec::<String>::new());
}

#[test]
fn what_a_manifest_names_wins_over_what_was_handed_out() {
    let first = one(&typed("b", "NodePort", "{port: 80}", ""));
    let (ip, port) = (service(&first, "b").cluster_ips[0], node_port(&first, "b").unwrap());
    let named = typed(
        "a",
        "NodePort",
        &format!("{{port: 80, nodePort: {port}}}"),
        &format!(", clusterIP: {ip}"),
    );
    let text = typed("b", "NodePort", "{port: 80}", "") + &named;
    let second = world_of(&[("a.yaml", &text)], &first.allocations);
    assert_eq!(service(&second, "a").cluster_ips, [ip]);
    assert_ne!(service(&second, "b").cluster_ips, [ip]);
    assert_ne!(node_port(&second, "b"), Some(port));
    assert_eq!(faults(&second), Vec::<String>::new());
}

#[test]
fn no_two_services_are_handed_the_same() {
    let text: String =
        (0..2500).map(|n| typed(&format!("s{n}"), "NodePort", "{port: 80}", "")).collect();
    let world = one(&text);
    let ips: BTreeSet<_> = world.services.values().map(|s| s.cluster_ips[0]).collect();
    let ports: BTreeSet<_> = world.services.values().map(|s| s.ports[0].node_port).collect();
    assert_eq!((ips.len(), ports.len()), (2500, 2500));
}

#[test]
fn a_range_that_is_used_up_is_told() {
    let files = files(&[(
        "a.yaml",
        &(typed("a", "NodePort", "{port: 80}", "") + &typed("b", "NodePort", "{port: 80}", "")),
    )]);
    let files = files.iter().map(|(path, file)| (path.as_str(), file));
    let ranges = Ranges { node_ports: 30_000..=30_000, ..Ranges::default() };
    let world = world(files, "", &Allocations::default(), &ranges);
    assert_eq!(node_port(&world, "b"), None);
    assert!(faults(&world)[0].contains("no node port is free for TCP/80"));
}

#[test]
fn headless_and_external_name_services_get_nothing() {
    let text = typed("a", "ClusterIP", "{port: 80}", ", clusterIP: None")
        + &typed("b", "ExternalName", "{port: 80}", ", externalName: example.org");
    let world = one(&text);
    assert!(world.services.is_empty() && world.allocations == Allocations::default());
}

#[test]
fn only_differences_become_events() {
    let pods = pod("web-0", "10.244.1.2", "");
    let other = typed("other", "ClusterIP", "{port: 80}", "");
    let old = one(&format!("{WEB}{pods}{other}"));
    let same = one(&format!("{other}---{WEB}{pods}"));
    assert_eq!(events(&old, &same), []);
    let moved = one(&format!("{WEB}{}", pods.replace("10.244.1.2", "10.244.1.3")));
    let told = events(&old, &moved);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(matches!(&told[0], Event::SliceApplied(_)));
    assert!(matches!(&told[1], Event::ServiceDeleted(name) if &*name.name == "other"));
}
