//! A folder of manifests on a real file system: what is read, what is seen to change, what holds.

#![allow(clippy::unwrap_used, reason = "a step that fails is a test that fails")]

mod source_listener;

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lb_agent::{
    model::Event,
    source::{
        Options,
        manifests::{self, Ranges},
    },
};
use source_listener::Listener;
use tempfile::TempDir;

struct Folder {
    root: TempDir,
    ranges: Ranges,
}

impl Folder {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("manifests")).unwrap();
        Self { root, ranges: Ranges::default() }
    }

    fn path(&self) -> PathBuf {
        self.root.path().join("manifests")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    fn options(&self) -> Options {
        Options::Manifests(manifests::Options {
            folder: self.path(),
            node_name: "node-1".into(),
            state_file: Some(self.root.path().join("run/allocations.json")),
            ranges: self.ranges.clone(),
        })
    }

    async fn listen(&self) -> Listener {
        let mut listener = Listener::start(self.options());
        listener.until_listed().await;
        listener
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{type: NodePort, selector: {{app: {name}}}, ports: [{{port: {port}}}]}}\n---\n"
    )
}

fn pod(name: &str, app: &str, ip: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n\
         status: {{podIP: {ip}}}\n---\n"
    )
}

fn port(listener: &Listener, name: &str) -> Option<u16> {
    listener.service(name).map(|service| service.ports[0].port.get())
}

#[tokio::test]
async fn a_change_is_seen_and_nothing_else_is_told_again() {
    let folder = Folder::new();
    folder.write("web.yaml", &(service("web", 80) + &pod("web-0", "web", "10.244.1.2")));
    folder.write("api.yaml", &service("api", 80));
    let mut listener = folder.listen().await;
    assert_eq!(listener.endpoints("web"), ["10.244.1.2"]);
    let before = listener.heard.len();
    folder.write("web.yaml", &(service("web", 80) + &pod("web-0", "web", "10.244.1.3")));
    listener.until("new endpoint", |l| l.endpoints("web") == ["10.244.1.3"]).await;
    fs::remove_file(folder.path().join("api.yaml")).unwrap();
    listener.until("api gone", |l| l.service("api").is_none()).await;
    assert_eq!(listener.heard.len(), before + 2, "{listener}");
    assert_eq!(listener.listed, 1);
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_bad_file_keeps_its_last_good_state_and_stops_no_other() {
    let folder = Folder::new();
    folder.write("web.yaml", &service("web", 80));
    folder.write("api.yaml", &service("api", 80));
    let mut listener = folder.listen().await;
    folder.write("web.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web\n");
    folder.write("api.yaml", &service("api", 81));
    listener.until("other file", |l| port(l, "api") == Some(81)).await;
    listener.until("problem", |l| l.complains(&["file", "web.yaml", "line ", "column "])).await;
    assert_eq!(port(&listener, "web"), Some(80));
    folder.write("web.yaml", "kind: {");
    listener.until("other fault", |l| l.complains(&["web.yaml", "line 1 "])).await;
    let solved = |event: &&Event| matches!(event, Event::ProblemSolved(_));
    assert_eq!(listener.heard.iter().filter(solved).count(), 1, "{listener}");
    folder.write("web.yaml", &service("web", 82));
    listener.until("mended", |l| port(l, "web") == Some(82) && l.problems.is_empty()).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_bad_file_at_the_start_is_told_and_the_others_are_listed() {
    let folder = Folder::new();
    folder.write("bad.json", "{\"kind\": ");
    folder.write("web.yaml", &service("web", 80));
    let mut listener = folder.listen().await;
    assert_eq!(port(&listener, "web"), Some(80));
    listener.until("problem", |l| l.complains(&["bad.json", "line 1 column 9"])).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_half_written_file_is_not_applied() {
    let folder = Folder::new();
    folder.write("web.yaml", &(service("web", 80) + &service("api", 80)));
    folder.write("tick.yaml", &service("tick", 80));
    let mut listener = folder.listen().await;
    let mut file = fs::File::create(folder.path().join("web.yaml")).unwrap();
    file.write_all(service("web", 81).as_bytes()).unwrap();
    folder.write("tick.yaml", &service("tick", 81));
    listener.until("other file", |l| port(l, "tick") == Some(81)).await;
    assert!(port(&listener, "web") == Some(80) && listener.service("api").is_some(), "{listener}");
    file.write_all(service("api", 81).as_bytes()).unwrap();
    drop(file);
    listener.until("whole file", |l| port(l, "web") == Some(81)).await;
    listener.until("whole file", |l| port(l, "api") == Some(81)).await;
    assert!(!listener.heard.iter().any(|e| matches!(e, Event::ServiceDeleted(_))), "{listener}");
    assert!(!listener.heard.iter().any(|e| matches!(e, Event::Problem(_))), "{listener}");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn rename_over_as_editors_do_is_seen() {
    let folder = Folder::new();
    folder.write("web.yaml", &service("web", 80));
    let mut listener = folder.listen().await;
    folder.write(".web.yaml.swp", &service("web", 81));
    fs::rename(folder.path().join(".web.yaml.swp"), folder.path().join("web.yaml")).unwrap();
    listener.until("new port", |l| port(l, "web") == Some(81)).await;
    assert!(!listener.heard.iter().any(|e| matches!(e, Event::ServiceDeleted(_))), "{listener}");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn hidden_files_backups_and_subfolders_are_skipped() {
    let folder = Folder::new();
    for name in [".hidden.yaml", "web.yaml~", "web.yaml.bak", "#web.yaml#", "notes.txt"] {
        folder.write(name, &service("web", 80));
    }
    fs::create_dir(folder.path().join("sub.yaml")).unwrap();
    fs::write(folder.path().join("sub.yaml/web.yaml"), service("web", 80)).unwrap();
    let listener = folder.listen().await;
    assert_eq!(listener.heard, [Event::Listed]);
    listener.stop().await.unwrap();
}

/// As kubelet mounts a `ConfigMap`: files are links through `..data`, which is swapped at once.
#[tokio::test]
async fn a_config_map_mount_is_followed() {
    let folder = Folder::new();
    let version = |name: &str, port: u16| {
        fs::create_dir(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name).join("web.yaml"), service("web", port)).unwrap();
    };
    version("..1", 80);
    symlink("..1", folder.path().join("..data")).unwrap();
    symlink("..data/web.yaml", folder.path().join("web.yaml")).unwrap();
    let mut listener = folder.listen().await;
    version("..2", 81);
    symlink("..2", folder.path().join("..data_tmp")).unwrap();
    fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    fs::remove_dir_all(folder.path().join("..1")).unwrap();
    listener.until("new version", |l| port(l, "web") == Some(81)).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_folder_that_goes_keeps_its_last_state_and_is_followed_when_it_is_back() {
    let folder = Folder::new();
    folder.write("web.yaml", &service("web", 80));
    let mut listener = folder.listen().await;
    fs::remove_dir_all(folder.path()).unwrap();
    listener.until("problem", |l| l.complains(&["file", "/manifests:", "make it again"])).await;
    assert_eq!(port(&listener, "web"), Some(80));
    assert!(listener.health.look().last_error.is_some());
    let begun = Instant::now();
    fs::create_dir(folder.path()).unwrap();
    folder.write("web.yaml", &service("web", 81));
    listener.until("new port", |l| port(l, "web") == Some(81) && l.problems.is_empty()).await;
    folder.write("web.yaml", &service("web", 82));
    listener.until("still followed", |l| port(l, "web") == Some(82)).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "seen by inotify, not by the slow look");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_folder_that_is_a_link_is_followed_when_it_is_swapped() {
    let folder = Folder::new();
    let root = folder.root.path();
    fs::remove_dir(folder.path()).unwrap();
    for (name, number) in [("one", 80), ("two", 81)] {
        fs::create_dir(root.join(name)).unwrap();
        fs::write(root.join(name).join("web.yaml"), service("web", number)).unwrap();
    }
    symlink("one", folder.path()).unwrap();
    let mut listener = folder.listen().await;
    symlink("two", root.join("link")).unwrap();
    let begun = Instant::now();
    fs::rename(root.join("link"), folder.path()).unwrap();
    listener.until("new version", |l| port(l, "web") == Some(81)).await;
    folder.write("web.yaml", &service("web", 82));
    listener.until("still followed", |l| port(l, "web") == Some(82)).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "seen by inotify, not by the slow look");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_missing_folder_is_named_with_the_mend() {
    let folder = Folder::new();
    fs::remove_dir(folder.path()).unwrap();
    let error = Listener::start(folder.options()).outcome().await.unwrap_err().to_string();
    assert!(error.contains(&folder.path().display().to_string()), "{error}");
    assert!(error.contains("--manifests"), "{error}");
}

#[tokio::test]
async fn what_was_handed_out_is_kept_over_restarts() {
    let folder = Folder::new();
    folder.write("b.yaml", &service("web", 80));
    let listener = folder.listen().await;
    let before = listener.service("web").unwrap().clone();
    listener.stop().await.unwrap();
    // Of names that come first and would take the same number, there is none to be had.
    let others: String = (0..500).fold(String::new(), |mut all, number| {
        write!(all, "{}", service(&format!("a{number}"), 80)).unwrap();
        all
    });
    folder.write("a.yaml", &others);
    let listener = folder.listen().await;
    assert_eq!(listener.service("web"), Some(&before));
    assert!(listener.problems.is_empty(), "{listener}");
    listener.stop().await.unwrap();
    let record = fs::read_to_string(folder.root.path().join("run/allocations.json")).unwrap();
    assert!(record.contains("default/web"), "{record}");
}

#[tokio::test]
async fn what_a_file_that_cannot_be_read_was_given_goes_to_no_other() {
    let mut folder = Folder::new();
    folder.ranges.node_ports = 30_000..=30_000;
    folder.write("web.yaml", &service("web", 80));
    let listener = folder.listen().await;
    assert!(listener.service("web").unwrap().ports[0].node_port.is_some());
    listener.stop().await.unwrap();
    folder.write("web.yaml", "kind: [");
    folder.write("api.yaml", &service("api", 80));
    // The second time nothing but the record remembers the first.
    for _ in 0..2 {
        let listener = folder.listen().await;
        assert!(listener.service("api").unwrap().ports[0].node_port.is_none(), "{listener}");
        listener.stop().await.unwrap();
    }
    folder.write("web.yaml", &service("web", 80));
    let listener = folder.listen().await;
    assert!(listener.service("web").unwrap().ports[0].node_port.is_some(), "{listener}");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn a_record_that_cannot_be_read_is_told_and_written_anew() {
    let folder = Folder::new();
    folder.write("web.yaml", &service("web", 80));
    let record = folder.root.path().join("run/allocations.json");
    fs::create_dir(record.parent().unwrap()).unwrap();
    fs::write(&record, "not a record").unwrap();
    let listener = folder.listen().await;
    assert!(listener.service("web").is_some());
    listener.stop().await.unwrap();
    assert!(fs::read_to_string(&record).unwrap().contains("default/web"));
}

#[tokio::test]
async fn a_loser_takes_over_when_the_winner_goes() {
    let folder = Folder::new();
    let named = |name: &str| service(name, 80).replace("port: 80", "port: 80, nodePort: 30080");
    folder.write("a.yaml", &named("a"));
    folder.write("b.yaml", &named("b"));
    let mut listener = folder.listen().await;
    assert!(listener.service("b").unwrap().ports[0].node_port.is_none());
    listener.until("problem", |l| l.complains(&["Service default/b", "30080"])).await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    let holds = |l: &Listener| l.service("b").unwrap().ports[0].node_port.is_some();
    listener.until("takes over", |l| holds(l) && l.problems.is_empty()).await;
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn health_tells_of_the_folder() {
    let folder = Folder::new();
    let listener = folder.listen().await;
    let look = listener.health.look();
    assert!(look.name.contains("manifests") && look.last_contact.is_some());
    assert_eq!(look.last_error, None);
    listener.stop().await.unwrap();
}

/// One large folder at a time: their loading is timed.
static TIMED: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn load(folder: &Folder, services: usize) -> (Listener, Duration) {
    let begun = Instant::now();
    let listener = folder.listen().await;
    let took = begun.elapsed();
    assert_eq!(listener.model.services().count(), services);
    (listener, took)
}

/// A second or so on an idle machine; tests must not fail because others keep it busy.
const SANE: Duration = Duration::from_secs(60);

fn ten_thousand(folder: &Path, each_file: usize) {
    let named = |number: usize| service(&format!("s{number}"), 80).replace("NodePort", "ClusterIP");
    for first in (0..10_000).step_by(each_file) {
        let text: String = (first..first + each_file).map(named).collect();
        fs::write(folder.join(format!("{first:05}.yaml")), text).unwrap();
    }
}

#[tokio::test]
async fn ten_thousand_services_in_one_file_load_in_seconds() {
    let _alone = TIMED.lock().await;
    let folder = Folder::new();
    ten_thousand(&folder.path(), 10_000);
    let (listener, took) = load(&folder, 10_000).await;
    assert!(took < SANE, "{took:?}");
    listener.stop().await.unwrap();
}

#[tokio::test]
async fn of_ten_thousand_files_only_the_changed_one_is_parsed_again() {
    let _alone = TIMED.lock().await;
    let folder = Folder::new();
    ten_thousand(&folder.path(), 1);
    let (mut listener, took) = load(&folder, 10_000).await;
    assert!(took < SANE, "{took:?}");
    let before = listener.heard.len();
    let begun = Instant::now();
    folder.write("00007.yaml", &service("s7", 81).replace("NodePort", "ClusterIP"));
    listener.until("one change", |l| port(l, "s7") == Some(81)).await;
    let change = begun.elapsed();
    assert_eq!(listener.heard.len(), before + 1);
    assert!(change * 2 < took, "one change took {change:?}, all files took {took:?}");
    listener.stop().await.unwrap();
}
