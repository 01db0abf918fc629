//! The same objects mean the same, whether they come from a folder or from an API server.

use std::collections::{BTreeMap, BTreeSet};

use lb_agent::desired::{NodeFacts, service};
use lb_agent::model::{EndpointSlice, Model, Service};
use lb_agent::source::Options;
use lb_agent::source::manifests::{self, Ranges};
use lb_test::kubernetes::{Listener, Objects, Shared};
use lb_test::require_kubernetes;

const OBJECTS: &str = include_str!("cluster.yaml");
/// Where a manifest that says none belongs, in a folder too.
const NAMESPACE: &str = "default";
const NODE: &str = "node-a";

/// What a model comes to, one text a thing, without what no plan depends on: the names of slices,
/// how endpoints are spread over them, and when a Service was made.
type Meaning = BTreeMap<String, String>;

fn meaning(model: &Model) -> Meaning {
    let mut meaning = Meaning::new();
    meaning.insert("node".into(), format!("{:#?}", model.node()));
    for found in model.services().filter(|found| is_ours(found)) {
        let found = Service { created: 0, ..found.clone() };
        let slices: Vec<_> = model.slices(&found.name).cloned().collect();
        let mut tables = service(&found, &slices, &facts(model));
        // In words: they differ with the order of slices.
        let problems: BTreeSet<_> = tables.problems.drain(..).map(|p| p.to_string()).collect();
        let name = &found.name.name;
        meaning.insert(format!("{name}: endpoints"), format!("{:#?}", endpoints(&slices)));
        meaning.insert(format!("{name}: tables"), format!("{tables:#?}{problems:#?}"));
        meaning.insert(format!("{name}: Service"), format!("{found:#?}"));
    }
    meaning
}

/// The API server's own Service is in no folder.
fn is_ours(service: &Service) -> bool {
    *service.name.namespace == *NAMESPACE && &*service.name.name != "kubernetes"
}

fn endpoints(slices: &[EndpointSlice]) -> BTreeSet<String> {
    let mut endpoints = BTreeSet::new();
    for slice in slices {
        let ports: BTreeSet<_> = slice.ports.iter().map(|port| format!("{port:?}")).collect();
        let lines = slice.endpoints.iter().map(|endpoint| format!("{endpoint:?} {ports:?}"));
        endpoints.extend(lines);
    }
    endpoints
}

fn facts(model: &Model) -> NodeFacts {
    let addresses = ["172.20.0.11", "fd00:20::11"].map(|text| text.parse().unwrap());
    NodeFacts {
        name: NODE.into(),
        zone: model.node().and_then(|node| node.zone.clone()),
        node_port_addresses: addresses.into(),
        local_addresses: addresses.into(),
        ..NodeFacts::default()
    }
}

async fn meaning_of_folder() -> Meaning {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("cluster.yaml"), OBJECTS).unwrap();
    let options = manifests::Options {
        folder: folder.path().to_owned(),
        node_name: NODE.into(),
        state_file: None,
        ranges: Ranges::default(),
    };
    let mut listener = Listener::start(Options::Manifests(options), NAMESPACE);
    listener.until_listed().await;
    let meaning = meaning(listener.model());
    listener.stop().await;
    meaning
}

/// Fails with the first thing that differs.
#[track_caller]
fn assert_same(folder: &Meaning, server: &Meaning) {
    let keys: BTreeSet<_> = folder.keys().chain(server.keys()).collect();
    for key in keys {
        let (folder, server) = (folder.get(key), server.get(key));
        assert!(
            folder == server,
            "{key} differs\nfrom the folder: {}\nfrom the server: {}",
            folder.map_or("none", String::as_str),
            server.map_or("none", String::as_str)
        );
    }
}

#[test]
fn a_folder_and_an_api_server_with_the_same_objects_give_the_same_plan() {
    require_kubernetes!();
    let plane = Shared::join().unwrap();
    let work = async |_: Objects| {
        let folder = meaning_of_folder().await;
        let names: Vec<_> = folder.keys().filter(|key| key.ends_with(": tables")).collect();
        assert_eq!(names.len(), 5, "{names:?}");
        let objects = plane.control_plane().objects(NAMESPACE).await.unwrap();
        objects.apply(OBJECTS).await.unwrap();
        let kubeconfig = plane.control_plane().kubeconfig();
        let mut listener = Listener::cluster(kubeconfig, NODE, NAMESPACE);
        listener.comes(|listener| meaning(listener.model()) == folder).await;
        assert_same(&folder, &meaning(listener.model()));
        listener.stop().await;
    };
    plane.run(work).unwrap();
}
