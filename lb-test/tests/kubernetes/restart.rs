//! The cluster source while its API server goes away and comes back. Each test has a control
//! plane of its own, which it restarts.

use lb_agent::model::Event;
use lb_test::kubernetes::{ControlPlane, Listener, Objects, run_inside};
use lb_test::{Topology, require_kubernetes};

use crate::manifests::{NODE, binding, pod, service};

const NAMESPACE: &str = "restart";
/// The node of the agent; the Pods are on another.
const OURS: &str = "node-2";
const FIRST: &str = "10.248.1.21";
const SECOND: &str = "10.248.2.50";

/// Runs a test on a control plane of its own.
fn scenario(test: impl AsyncFnOnce(&mut ControlPlane) + Send) {
    let topology = Topology::builder().client("control").build().unwrap();
    let mut plane = ControlPlane::start(topology.client("control")).unwrap();
    let host = plane.host().clone();
    let work = async || {
        test(&mut plane).await;
    };
    run_inside(&host, work).unwrap();
}

/// A client; nodes and Services `web` and `old` with an endpoint each stand.
async fn populate(plane: &ControlPlane) -> Objects {
    let objects = plane.objects(NAMESPACE).await.unwrap();
    objects.apply(NODE).await.unwrap();
    objects.apply(&NODE.replace("node-1", OURS)).await.unwrap();
    for (name, address) in [("web", FIRST), ("old", "10.248.1.30")] {
        objects.apply(&service(name, "type: ClusterIP")).await.unwrap();
        objects.apply(&pod(&format!("{name}-1"), name, &[address], true)).await.unwrap();
    }
    objects
}

/// A source that knows all of [`populate`].
async fn listen(plane: &ControlPlane) -> Listener {
    let mut listener = Listener::cluster(plane.kubeconfig(), OURS, NAMESPACE);
    listener.until_listed().await;
    let all = |l: &Listener| l.ready("web").len() == 1 && l.ready("old").len() == 1;
    listener.until("all that stands", all).await;
    listener
}

fn deletions(listener: &Listener) -> Vec<String> {
    let names = listener.heard().iter().filter_map(|event| match event {
        Event::ServiceDeleted(name) | Event::SliceDeleted(name) => Some(name.name.to_string()),
        Event::NodeDeleted => Some("this node".into()),
        _ => None,
    });
    names.collect()
}

#[test]
fn a_restart_of_the_api_server_deletes_nothing_and_changes_go_on() {
    require_kubernetes!();
    scenario(async |plane| {
        let objects = populate(plane).await;
        let mut listener = listen(plane).await;
        let before = listener.service("web").cloned();
        listener.forget();
        plane.kill_api().unwrap();
        listener.until("problem", |l| !l.problems().is_empty()).await;
        assert_eq!(listener.service("web").cloned(), before);
        assert_eq!(listener.ready("web"), [FIRST]);
        plane.restart_api().unwrap();
        objects.apply(&pod("web-2", "web", &[SECOND], true)).await.unwrap();
        objects.apply(&service("new", "type: NodePort")).await.unwrap();
        listener.until("new Service", |l| l.service("new").is_some()).await;
        listener.until("new endpoint", |l| l.ready("web") == [FIRST, SECOND]).await;
        listener.until("no problem", |l| l.problems().is_empty()).await;
        assert_eq!(deletions(&listener), [""; 0], "{listener}");
        assert_eq!(listener.service("web").cloned(), before);
        listener.stop().await;
    });
}

#[test]
fn what_was_deleted_while_the_api_server_was_away_goes_when_it_is_back() {
    require_kubernetes!();
    scenario(async |plane| {
        populate(plane).await;
        let mut listener = listen(plane).await;
        listener.forget();
        let hidden = plane.hide_api().unwrap();
        let objects = Objects::connect(&hidden, NAMESPACE).await.unwrap();
        let slice = listener.slices("old")[0].name.name.to_string();
        objects.delete("Service", "old").await.unwrap();
        objects.delete("EndpointSlice", &slice).await.unwrap();
        objects.delete("Node", OURS).await.unwrap();
        listener.until("problem", |l| !l.problems().is_empty()).await;
        assert!(listener.service("old").is_some() && listener.model().node().is_some());
        plane.restart_api().unwrap();
        listener.until("Service gone", |l| l.service("old").is_none()).await;
        listener.until("node gone", |l| l.model().node().is_none()).await;
        listener.until("slices gone", |l| l.slices("old").is_empty()).await;
        listener.until("no problem", |l| l.problems().is_empty()).await;
        let is_old = |name: &String| name.starts_with("old") || name == "this node";
        assert!(deletions(&listener).iter().all(is_old), "{listener}");
        assert_eq!(listener.ready("web"), [FIRST]);
        listener.stop().await;
    });
}

#[test]
fn an_unknown_token_is_one_problem_until_the_server_knows_it() {
    require_kubernetes!();
    scenario(async |plane| {
        populate(plane).await;
        let kubeconfig = plane.kubeconfig_of("newcomer").unwrap();
        let mut listener = Listener::cluster(kubeconfig, OURS, NAMESPACE);
        listener.until("problem", |l| !l.problems().is_empty()).await;
        let told: Vec<_> = listener.problems().iter().map(ToString::to_string).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].contains("401") && told[0].contains("credentials"), "{told:?}");
        plane.add_user("newcomer").unwrap();
        plane.restart_api().unwrap();
        let forbidden = |l: &Listener| l.problems().iter().any(|p| p.message.contains("403"));
        listener.until("known, but without rights", forbidden).await;
        let objects = plane.objects(NAMESPACE).await.unwrap();
        objects.apply(&binding("newcomer")).await.unwrap();
        listener.until_listed().await;
        listener.until("no problem", |l| l.problems().is_empty()).await;
        assert!(listener.service("web").is_some());
        listener.stop().await;
    });
}
