//! The cluster source follows what objects and controllers do.

use lb_agent::model::{Event, Family};
use lb_test::kubernetes::{Listener, Objects, Shared};
use lb_test::require_kubernetes;
use serde_json::json;

use crate::manifests::{NODE, binding, labels, pod, service};

const FIRST: &str = "10.248.1.21";
const SECOND: &str = "10.248.2.50";

/// Runs a test with a client for a namespace of its own and a source that has listed everything.
fn scenario(test: impl AsyncFnOnce(&Objects, &mut Listener) + Send) {
    let plane = Shared::join().unwrap();
    let work = async |objects: Objects| {
        objects.apply(NODE).await.unwrap();
        let kubeconfig = plane.control_plane().kubeconfig();
        let mut listener = Listener::cluster(kubeconfig, "node-1", objects.namespace());
        listener.until_listed().await;
        test(&objects, &mut listener).await;
        listener.stop().await;
    };
    plane.run(work).unwrap();
}

#[test]
fn pods_of_a_selector_become_endpoints_as_they_become_ready() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        objects.apply(&service("web", "type: ClusterIP")).await.unwrap();
        objects.apply(&pod("web-1", "web", &[FIRST], true)).await.unwrap();
        objects.apply(&pod("web-2", "web", &[SECOND], false)).await.unwrap();
        objects.apply(&pod("other-1", "other", &["10.248.1.22"], true)).await.unwrap();
        listener.until("two endpoints", |l| l.endpoints("web").len() == 2).await;
        assert_eq!(listener.ready("web"), [FIRST]);
        assert_eq!(listener.slices("web")[0].ports[0].port.get(), 8080);
        let endpoint = listener.endpoints("web")[FIRST].clone();
        assert_eq!(endpoint.node.as_deref(), Some("node-1"));
        assert_eq!(&*endpoint.pod.unwrap().name, "web-1");
        objects.apply(&pod("web-2", "web", &[SECOND], true)).await.unwrap();
        listener.until("both ready", |l| l.ready("web").len() == 2).await;
        objects.apply(&pod("web-1", "web", &[FIRST], false)).await.unwrap();
        listener.until("one ready", |l| l.ready("web") == [SECOND]).await;
        assert!(!listener.endpoints("web")[FIRST].serving);
    });
}

#[test]
fn a_dual_stack_service_has_slices_of_both_families() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        let policy = "ipFamilyPolicy: RequireDualStack";
        objects.apply(&service("web", policy)).await.unwrap();
        objects.apply(&pod("web-1", "web", &[FIRST, "fd00:248:1::21"], true)).await.unwrap();
        listener.until("both families", |l| l.ready("web") == [FIRST, "fd00:248:1::21"]).await;
        let mut slices: Vec<_> = listener.slices("web").iter().map(|s| s.family).collect();
        slices.sort();
        assert_eq!(slices, [Family::V4, Family::V6]);
        let cluster_ips = &listener.service("web").unwrap().cluster_ips;
        let families: Vec<_> = cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
        assert_eq!(families, [Family::V4, Family::V6]);
        let change = json!({"spec": {"ipFamilyPolicy": "SingleStack"}});
        objects.merge("Service", "web", &change).await.unwrap();
        listener.until("one family", |l| l.endpoints("web").len() == 1).await;
        listener.until("one address", |l| l.service("web").unwrap().cluster_ips.len() == 1).await;
    });
}

#[test]
fn a_pod_that_ends_serves_until_it_is_gone() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        objects.apply(&service("web", "type: ClusterIP")).await.unwrap();
        objects.apply(&pod("web-1", "web", &[FIRST], true)).await.unwrap();
        listener.until("ready", |l| l.ready("web") == [FIRST]).await;
        objects.delete("Pod", "web-1").await.unwrap();
        let states = |l: &Listener| {
            let endpoints = l.endpoints("web");
            endpoints.get(FIRST).map(|e| (e.ready, e.serving, e.terminating))
        };
        listener.until("terminating", |l| states(l) == Some((false, true, true))).await;
        let unready = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        objects.merge_status("Pod", "web-1", &unready).await.unwrap();
        listener.until("not serving", |l| states(l) == Some((false, false, true))).await;
        objects.finish_pod("web-1").await.unwrap();
        listener.until("gone", |l| states(l).is_none()).await;
    });
}

#[test]
fn s17_published_endpoints_are_ready_whatever_their_pods_say() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        let spec = "publishNotReadyAddresses: true";
        objects.apply(&service("web", spec)).await.unwrap();
        objects.apply(&pod("web-1", "web", &[FIRST], false)).await.unwrap();
        listener.until("ready", |l| l.ready("web") == [FIRST]).await;
        assert!(!listener.endpoints("web")[FIRST].serving);
        objects.delete("Pod", "web-1").await.unwrap();
        listener.until("terminating", |l| l.endpoints("web")[FIRST].terminating).await;
        assert_eq!(listener.ready("web"), [FIRST]);
        let change = json!({"spec": {"publishNotReadyAddresses": false}});
        objects.merge("Service", "web", &change).await.unwrap();
        listener.until("not ready", |l| l.ready("web").is_empty()).await;
        assert_eq!(listener.endpoints("web").len(), 1);
    });
}

#[test]
fn s13_labels_take_a_service_away_and_give_it_back() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        objects.apply(&service("web", "type: ClusterIP")).await.unwrap();
        objects.apply(&pod("web-1", "web", &[FIRST], true)).await.unwrap();
        listener.until("served", |l| l.service("web").is_some() && l.ready("web") == [FIRST]).await;
        for label in ["service-proxy-name", "headless"] {
            let change = |value| labels(&format!("service.kubernetes.io/{label}"), value);
            objects.merge("Service", "web", &change(json!("any"))).await.unwrap();
            listener.until(label, |l| l.service("web").is_none()).await;
            objects.merge("Service", "web", &change(json!(null))).await.unwrap();
            listener.until("back", |l| l.service("web").is_some()).await;
            listener.until("endpoints back", |l| l.ready("web") == [FIRST]).await;
        }
    });
}

#[test]
fn s13_slices_of_another_proxy_are_not_heard_of() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        objects.apply(&service("web", "type: ClusterIP")).await.unwrap();
        objects.apply(&pod("web-1", "web", &[FIRST], true)).await.unwrap();
        listener.until("endpoint", |l| l.ready("web") == [FIRST]).await;
        let slice = listener.slices("web")[0].name.name.to_string();
        // The controller gives a slice the labels of its Service.
        let change = labels("service.kubernetes.io/service-proxy-name", json!("mesh"));
        objects.merge("Service", "web", &change).await.unwrap();
        listener.until("no slice", |l| l.slices("web").is_empty()).await;
        let gone =
            |event: &Event| matches!(event, Event::SliceDeleted(name) if *name.name == slice);
        assert!(listener.heard().iter().any(gone), "{listener}");
    });
}

#[test]
fn headless_services_and_aliases_are_not_programmed_until_they_have_an_address() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        let alias = service("web", "type: ExternalName\n  externalName: example.com");
        objects.apply(&service("web", "type: ClusterIP")).await.unwrap();
        objects.apply(&service("direct", "clusterIP: None")).await.unwrap();
        listener.until("Service", |l| l.service("web").is_some()).await;
        objects.apply(&alias).await.unwrap();
        listener.until("alias", |l| l.service("web").is_none()).await;
        objects.apply(&service("web", "type: ClusterIP")).await.unwrap();
        listener.until("Service again", |l| l.service("web").is_some()).await;
        let direct =
            |event: &Event| matches!(event, Event::ServiceApplied(s) if &*s.name.name == "direct");
        assert!(!listener.heard().iter().any(direct), "{listener}");
    });
}

#[test]
fn addresses_and_ports_that_the_server_gives_are_followed_and_deletions_too() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        objects.apply(&service("web", "type: LoadBalancer")).await.unwrap();
        objects.apply(&pod("web-1", "web", &[FIRST], true)).await.unwrap();
        let node_port = |l: &Listener| l.service("web").and_then(|s| s.ports[0].node_port);
        listener.until("node port", |l| node_port(l).is_some() && l.ready("web") == [FIRST]).await;
        let ingress = json!([{"ip": "172.21.0.80"}, {"ip": "172.21.0.81", "ipMode": "Proxy"}]);
        let status = json!({"loadBalancer": {"ingress": ingress}});
        objects.merge_status("Service", "web", &status).await.unwrap();
        let ingress = |l: &Listener| l.service("web").unwrap().load_balancer_ips.clone();
        let address: std::net::IpAddr = "172.21.0.80".parse().unwrap();
        listener.until("load balancer address", |l| ingress(l) == [address]).await;
        objects.delete("Service", "web").await.unwrap();
        listener.until("Service gone", |l| l.service("web").is_none()).await;
        listener.until("slices gone", |l| l.slices("web").is_empty()).await;
    });
}

#[test]
fn endpoints_written_by_hand_are_mirrored_into_slices() {
    require_kubernetes!();
    scenario(async |objects, listener| {
        let manifest = "{apiVersion: v1, kind: Service, metadata: {name: db}, \
                        spec: {ports: [{name: sql, port: 5432}]}}\n---\n\
                        {apiVersion: v1, kind: Endpoints, metadata: {name: db}, subsets: \
                        [{addresses: [{ip: 172.21.0.9}], ports: [{name: sql, port: 15432}]}]}";
        objects.apply(manifest).await.unwrap();
        listener.until("mirrored", |l| l.ready("db") == ["172.21.0.9"]).await;
        let port = listener.slices("db")[0].ports[0].clone();
        assert_eq!((&*port.name, port.port.get()), ("sql", 15432));
    });
}

#[test]
fn this_nodes_own_object_is_followed_and_no_other() {
    require_kubernetes!();
    let plane = Shared::join().unwrap();
    let work = async |objects: Objects| {
        let name = format!("node-of-{}", objects.namespace());
        let kubeconfig = plane.control_plane().kubeconfig();
        let mut listener = Listener::cluster(kubeconfig, &name, objects.namespace());
        listener.until_listed().await;
        let node = |name: &str| NODE.replace("node-1", name);
        objects.apply(&node(&format!("{name}-other"))).await.unwrap();
        objects.apply(&node(&name)).await.unwrap();
        let zone = |l: &Listener| l.model().node().and_then(|node| node.zone.clone());
        listener.until("zone", |l| zone(l).as_deref() == Some("zone-a")).await;
        assert_eq!(*listener.model().node().unwrap().name, *name);
        let change = labels("topology.kubernetes.io/zone", json!("zone-b"));
        objects.merge("Node", &name, &change).await.unwrap();
        listener.until("new zone", |l| zone(l).as_deref() == Some("zone-b")).await;
        objects.delete("Node", &name).await.unwrap();
        listener.until("node gone", |l| l.model().node().is_none()).await;
        listener.stop().await;
    };
    plane.run(work).unwrap();
}

#[test]
fn an_account_without_rights_is_told_the_rules_it_lacks_and_works_once_it_has_them() {
    require_kubernetes!();
    let plane = Shared::join().unwrap();
    let work = async |objects: Objects| {
        let kubeconfig = plane.control_plane().kubeconfig_of("limited").unwrap();
        let mut listener = Listener::cluster(kubeconfig, "node-1", objects.namespace());
        listener.until("three problems", |l| l.problems().len() == 3).await;
        for resource in ["nodes", "services", "endpointslices"] {
            let texts: Vec<_> = listener.problems().iter().map(ToString::to_string).collect();
            let names = |text: &&String| text.contains(&format!("resources [\"{resource}\"]"));
            let told = texts.iter().find(names).unwrap_or_else(|| panic!("{texts:?}"));
            assert!(told.contains("403") && told.contains("ClusterRole"), "{told}");
        }
        objects.apply(&binding("limited")).await.unwrap();
        listener.until_listed().await;
        listener.until("no problem", |l| l.problems().is_empty()).await;
        listener.stop().await;
    };
    plane.run(work).unwrap();
}
