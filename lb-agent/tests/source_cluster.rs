//! The cluster source against a server that lists, watches, refuses, forgets and goes away.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod source_api;
mod source_listener;

use std::{fs, time::Duration};

use lb_agent::{
    model::Event,
    source::{Options, cluster},
};
use serde_json::{Value, json};
use source_api::{Api, NODES, SERVICES, SLICES};
use source_listener::Listener;

fn options(api: &Api) -> Options {
    Options::Cluster(cluster::Options {
        kubeconfig: None,
        master: Some(format!("http://{}", api.address)),
        node_name: "node-1".into(),
        retry: (Duration::from_millis(20), Duration::from_millis(100)),
    })
}

fn service(name: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": port}]},
    })
}

fn slice(service: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": format!("{service}-1"),
            "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"port": 8080}], "endpoints": [{"addresses": [ip]}],
    })
}

fn node(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}})
}

/// A server with one Service, its slice and two nodes.
fn api() -> Api {
    let api = Api::new();
    api.apply(SERVICES, service("web", 80));
    api.apply(SLICES, slice("web", "10.244.1.2"));
    api.apply(NODES, node("node-1"));
    api.apply(NODES, node("node-2"));
    api
}

async fn listen(api: &Api) -> Listener {
    let mut listener = Listener::start(options(api));
    listener.until_listed().await;
    listener
}

fn port(listener: &Listener, name: &str) -> Option<u16> {
    listener.service(name).map(|service| service.ports[0].port.get())
}

fn deletions(listener: &Listener) -> usize {
    listener.heard.iter().filter(|event| matches!(event, Event::ServiceDeleted(_))).count()
}

async fn lists_and_follows(api: Api) {
    let mut listener = listen(&api).await;
    assert_eq!(port(&listener, "web"), Some(80));
    assert_eq!(listener.endpoints("web"), ["10.244.1.2"]);
    assert_eq!(&*listener.model.node().unwrap().name, "node-1");
    api.apply(SERVICES, service("web", 81));
    api.apply(SLICES, slice("web", "10.244.1.3"));
    listener.until("changes", |l| port(l, "web") == Some(81)).await;
    listener.until("changes", |l| l.endpoints("web") == ["10.244.1.3"]).await;
    api.delete(SERVICES, "web");
    api.delete(SLICES, "web-1");
    api.delete(NODES, "node-1");
    listener.until("deleted", |l| l.service("web").is_none() && l.model.node().is_none()).await;
    listener.until("deleted", |l| l.endpoints("web").is_empty()).await;
    assert_eq!((listener.listed, listener.problems.len()), (1, 0));
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_streamed_list_and_its_changes_are_told() {
    let api = api();
    lists_and_follows(api).await;
}

#[tokio::test]
async fn a_paged_list_and_its_changes_are_told() {
    let api = api();
    api.refuse_streamed_lists();
    lists_and_follows(api).await;
}

#[tokio::test]
async fn the_selectors_of_s13_are_asked_for() {
    let api = api();
    let listener = listen(&api).await;
    let selector = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless";
    for kind in [SERVICES, SLICES] {
        let asked = api.requests(kind, "labelSelector");
        assert!(asked.iter().all(|query| query["labelSelector"] == selector), "{asked:?}");
        assert!(!asked.is_empty());
    }
    assert_eq!(api.requests(NODES, "fieldSelector")[0]["fieldSelector"], "metadata.name=node-1");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_without_streamed_lists_is_read_page_by_page() {
    let api = api();
    api.refuse_streamed_lists();
    for number in 0..1200 {
        api.apply(SERVICES, service(&format!("s{number}"), 80));
    }
    let listener = listen(&api).await;
    assert_eq!(listener.model.services().count(), 1201);
    let pages = api.requests(SERVICES, "limit");
    assert_eq!(pages.len(), 3);
    assert!(listener.problems.is_empty(), "{listener}");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn s16_nothing_is_listed_before_every_kind_is() {
    for kind in [SERVICES, SLICES, NODES] {
        let api = api();
        api.fail(kind, 500);
        let mut listener = Listener::start(options(&api));
        listener.until("problem", |l| l.complains(&["500", kind])).await;
        let two_others = |l: &Listener| {
            usize::from(l.service("web").is_some())
                + l.endpoints("web").len()
                + usize::from(l.model.node().is_some())
        };
        listener.until("the others", |l| two_others(l) == 2).await;
        assert_eq!(listener.listed, 0);
        assert!(!listener.health.look().listed);
        api.mend();
        listener.until("all", |l| l.listed == 1 && l.problems.is_empty()).await;
        assert_eq!(two_others(&listener), 3);
        assert!(listener.health.look().listed);
        listener.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_missing_permission_is_named_with_the_rule_to_add() {
    let api = api();
    api.fail(SLICES, 403);
    let mut listener = Listener::start(options(&api));
    let parts = ["source", "403", "endpointslices", "discovery.k8s.io", "\"list\", \"watch\""];
    listener.until("problem", |l| l.complains(&parts)).await;
    assert!(listener.health.look().last_error.is_some());
    api.mend();
    listener.until("solved", |l| l.problems.is_empty() && l.listed == 1).await;
    assert_eq!(listener.health.look().last_error, None);
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn one_refusal_of_all_kinds_is_one_problem() {
    let api = api();
    for kind in [SERVICES, SLICES, NODES] {
        api.fail(kind, 401);
    }
    let mut listener = Listener::start(options(&api));
    listener.until("problem", |l| l.complains(&["401", "credentials"])).await;
    let tries = |kind: &str| api.requests(kind, "watch").len();
    let all = [SERVICES, SLICES, NODES];
    while all.iter().any(|kind| tries(kind) < 3) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    api.mend();
    listener.until("solved", |l| l.problems.is_empty() && l.listed == 1).await;
    let told = listener.heard.iter().filter(|event| matches!(event, Event::Problem(_))).count();
    assert_eq!(told, 1, "{listener}");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn an_unreachable_server_is_told_and_found_when_it_comes() {
    let mut api = api();
    api.stop();
    let mut listener = Listener::start(options(&api));
    let address = api.address.to_string();
    listener.until("problem", |l| l.complains(&["source", &address, "refused"])).await;
    assert_eq!(listener.health.look().last_contact, None);
    api.start();
    listener.until("listed", |l| l.listed == 1 && l.problems.is_empty()).await;
    assert_eq!(port(&listener, "web"), Some(80));
    assert!(listener.health.look().last_contact.is_some());
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_restart_of_the_server_loses_nothing() {
    let mut api = api();
    let mut listener = listen(&api).await;
    api.stop();
    listener.until("problem", |l| !l.problems.is_empty()).await;
    api.apply(SERVICES, service("web", 81));
    api.apply(SERVICES, service("api", 80));
    api.start();
    listener.until("changes", |l| port(l, "web") == Some(81)).await;
    listener.until("changes", |l| l.service("api").is_some()).await;
    listener.until("solved although nothing more happens", |l| l.problems.is_empty()).await;
    assert_eq!((listener.listed, deletions(&listener)), (1, 0));
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let api = api();
    let mut listener = listen(&api).await;
    let before = listener.heard.len();
    api.end_watches();
    api.apply(SERVICES, service("web", 81));
    listener.until("change", |l| port(l, "web") == Some(81)).await;
    assert_eq!(api.requests(SERVICES, "sendInitialEvents").len(), 1);
    let applied = |event: &&Event| matches!(event, Event::ServiceApplied(_));
    assert_eq!(listener.heard[before..].iter().filter(applied).count(), 1, "{listener}");
    listener.stop().await.unwrap();
}

async fn forgotten_changes_are_found(api: Api) {
    api.apply(SERVICES, service("old", 80));
    let mut listener = listen(&api).await;
    api.end_watches();
    api.delete(SERVICES, "old");
    api.apply(SERVICES, service("web", 81));
    api.apply(SERVICES, service("new", 80));
    api.forget();
    // A watch may have come back in between, and told of some of it.
    listener.until("deleted", |l| l.service("old").is_none()).await;
    listener.until("changed", |l| port(l, "web") == Some(81)).await;
    listener.until("added", |l| l.service("new").is_some()).await;
    assert_eq!((listener.listed, deletions(&listener)), (1, 1));
    api.apply(SERVICES, service("new", 81));
    listener.until("still followed", |l| port(l, "new") == Some(81)).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn what_happened_while_the_server_forgot_is_found_by_a_streamed_list() {
    forgotten_changes_are_found(api()).await;
}

#[tokio::test]
async fn what_happened_while_the_server_forgot_is_found_by_a_paged_list() {
    let api = api();
    api.refuse_streamed_lists();
    forgotten_changes_are_found(api).await;
}

#[tokio::test]
async fn s13_a_label_that_comes_and_goes_takes_the_service_out_and_back() {
    let api = api();
    let mut listener = listen(&api).await;
    let mut labelled = service("web", 80);
    labelled["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": "x"});
    api.apply(SERVICES, labelled);
    listener.until("out", |l| l.service("web").is_none()).await;
    api.apply(SERVICES, service("web", 80));
    listener.until("back", |l| l.service("web").is_some()).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_service_that_becomes_an_alias_or_headless_is_deleted() {
    let api = api();
    let mut listener = listen(&api).await;
    let mut alias = service("web", 80);
    alias["spec"] = json!({"type": "ExternalName", "externalName": "example.org"});
    api.apply(SERVICES, alias);
    listener.until("out", |l| l.service("web").is_none()).await;
    api.apply(SERVICES, service("web", 80));
    listener.until("back", |l| l.service("web").is_some()).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_bad_object_is_told_until_it_is_mended_or_gone() {
    let api = api();
    let mut listener = listen(&api).await;
    let mut bad = service("bad", 80);
    bad["spec"]["ports"][0]["protocol"] = json!("DCCP");
    api.apply(SERVICES, bad.clone());
    let parts = ["Service default/bad", "spec.ports[0].protocol", "DCCP"];
    listener.until("problem", |l| l.complains(&parts)).await;
    api.apply(SERVICES, service("bad", 80));
    listener.until("solved", |l| l.problems.is_empty()).await;
    api.apply(SERVICES, bad);
    listener.until("problem", |l| l.complains(&parts)).await;
    api.delete(SERVICES, "bad");
    listener.until("solved", |l| l.problems.is_empty()).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn an_error_within_a_watch_is_told_and_got_over() {
    let api = api();
    let mut listener = listen(&api).await;
    let status = json!({"kind": "Status", "apiVersion": "v1", "code": 500, "message": "boom"});
    api.say(SERVICES, &json!({"type": "ERROR", "object": status}));
    listener.until("problem", |l| l.complains(&["500", "services", "boom"])).await;
    api.apply(SERVICES, service("web", 81));
    listener.until("change", |l| port(l, "web") == Some(81) && l.problems.is_empty()).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_that_ends_each_watch_at_once_is_told_and_not_stormed() {
    let api = api();
    let mut listener = listen(&api).await;
    api.cut_watches(true);
    api.end_watches();
    listener.until("problem", |l| l.complains(&["ends each watch", "services"])).await;
    let first = api.requests(SERVICES, "watch").len();
    let begun = std::time::Instant::now();
    while api.requests(SERVICES, "watch").len() < first + 5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(begun.elapsed() > Duration::from_millis(150), "waits between tries");
    api.cut_watches(false);
    listener.until("solved", |l| l.problems.is_empty()).await;
    listener.stop().await.unwrap();
}

async fn refusal(kubeconfig: Option<&std::path::Path>, master: Option<&str>) -> String {
    let options = cluster::Options {
        kubeconfig: kubeconfig.map(Into::into),
        master: master.map(Into::into),
        node_name: "node-1".into(),
        retry: cluster::Options::RETRY,
    };
    Listener::start(Options::Cluster(options)).outcome().await.unwrap_err().to_string()
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named_with_the_mend() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let error = refusal(Some(&path), None).await;
    assert!(error.contains(&path.display().to_string()), "{error}");
    assert!(error.contains("No such file") && error.contains("--kubeconfig"), "{error}");
    fs::write(&path, "kind: [").unwrap();
    let error = refusal(Some(&path), None).await;
    assert!(error.contains(&path.display().to_string()), "{error}");
}

#[tokio::test]
async fn an_address_that_is_none_is_named_with_the_mend() {
    for address in ["not an address", "10.0.0.1:6443", "ftp://10.0.0.1"] {
        let error = refusal(None, Some(address)).await;
        assert!(error.contains(address) && error.contains("https://HOST:PORT"), "{error}");
    }
}

#[tokio::test]
async fn a_kubeconfig_leads_to_the_server_and_its_credentials_are_used() {
    let api = api();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config");
    let server = format!("http://{}", api.address);
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": "secret"}}],
    });
    fs::write(&path, text.to_string()).unwrap();
    let options = cluster::Options {
        kubeconfig: Some(path),
        master: None,
        node_name: "node-1".into(),
        retry: cluster::Options::RETRY,
    };
    let mut listener = Listener::start(Options::Cluster(options));
    listener.until_listed().await;
    assert_eq!(listener.health.look().name, format!("cluster {server}"));
    assert_eq!(api.requests(SERVICES, "watch")[0]["authorization"], "Bearer secret");
    listener.stop().await.unwrap();
}
