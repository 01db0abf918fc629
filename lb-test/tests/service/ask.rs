//! Questions to a Service, and what should come of them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use lb_test::{Host, hold_once, programs};
use serde_json::Value;

/// New connections for each backend, which find all for certain: one of three is missed in 10^7 runs.
const MANY: usize = 15;
/// New connections that find one of three backends that should not be there, but for 1 % of runs.
const SOME: usize = 12;

/// Which pods answer HTTP on many new connections, without one failure.
#[track_caller]
pub(crate) fn answering(from: &Host, to: SocketAddr) -> BTreeSet<String> {
    tries(from, to, 3 * MANY)
}

#[track_caller]
fn tries(from: &Host, to: SocketAddr, count: usize) -> BTreeSet<String> {
    let lines = probe(from, &["tcp-get", &to.to_string(), "--count", &count.to_string()]);
    let summary = lines.last().unwrap();
    assert_eq!(summary["failures"], 0, "{} to {to}: {lines:?}", from.name());
    summary["bodies"].as_object().unwrap().keys().cloned().collect()
}

/// The one pod that answers HTTP on several new connections.
#[track_caller]
pub(crate) fn answering_one(from: &Host, to: SocketAddr) -> String {
    let mut pods = tries(from, to, SOME);
    assert_eq!(pods.len(), 1, "{} to {to}", from.name());
    pods.pop_first().unwrap()
}

/// Asserts that exactly these pods answer HTTP.
#[track_caller]
pub(crate) fn assert_answering(from: &Host, to: SocketAddr, pods: &[&str]) {
    let expected: BTreeSet<_> = pods.iter().map(|pod| (*pod).to_owned()).collect();
    let count = if pods.len() == 1 { SOME } else { MANY * pods.len() };
    assert_eq!(tries(from, to, count), expected, "{} to {to}", from.name());
}

/// Which pod answers a datagram, after the answer was seen to come from where it was sent to.
#[track_caller]
pub(crate) fn echoing(from: &Host, to: SocketAddr, options: &[&str]) -> String {
    let lines = probe(from, &[&["udp", &to.to_string()], options].concat());
    let mut pods = BTreeSet::new();
    for line in &lines {
        assert_eq!(line["source"], to.to_string(), "{} to {to}: {lines:?}", from.name());
        let (pod, _) = line["payload"].as_str().unwrap().split_once(':').unwrap();
        pods.insert(pod.to_owned());
    }
    assert_eq!(pods.len(), 1, "one socket stays with one backend: {lines:?}");
    pods.pop_first().unwrap()
}

/// Asserts that a connection, and a connected datagram socket, are refused at once.
#[track_caller]
pub(crate) fn assert_refused(from: &Host, to: SocketAddr) {
    for kind in [&["tcp-get"][..], &["udp", "--connected"]] {
        // Less than a lost first segment takes to be sent again.
        hold_once(|| {
            let began = Instant::now();
            let lines = ask_once(from, kind, to, "5000");
            let took = began.elapsed().as_secs_f64();
            let error = lines[0]["error"].as_str().unwrap_or_else(|| panic!("{lines:?}"));
            let asked = format!("{} to {to} by {}", from.name(), kind[0]);
            assert!(error.to_lowercase().contains("refused"), "{asked}: {error}");
            assert!(took < 1.0, "{asked}: refused after {took} s");
        });
    }
}

/// Asserts that nothing at all comes back, by TCP and UDP.
#[track_caller]
pub(crate) fn assert_silent(from: &Host, to: SocketAddr) {
    for kind in [&["tcp-get"][..], &["udp", "--connected"]] {
        let lines = ask_once(from, kind, to, "150");
        let error = lines[0]["error"].as_str().unwrap_or_else(|| panic!("{lines:?}"));
        let asked = format!("{} to {to} by {}", from.name(), kind[0]);
        let silent = error.contains("timed out") || error.contains("temporarily unavailable");
        assert!(silent, "{asked}: {error}");
    }
}

/// The address and port of the client, as nginx saw them.
#[track_caller]
pub(crate) fn client_seen(from: &Host, to: SocketAddr) -> (IpAddr, u16) {
    let url = format!("http://{to}/");
    let answer = programs::curl(from, &url, &["-i"]).unwrap();
    let seen = answer.lines().find_map(|line| line.strip_prefix("X-Client: ")).unwrap();
    let (ip, port) = seen.rsplit_once(':').unwrap();
    (ip.parse().unwrap(), port.parse().unwrap())
}

/// The client's address as the echo server saw it.
#[track_caller]
pub(crate) fn echoed_client(from: &Host, to: SocketAddr) -> IpAddr {
    let lines = probe(from, &["udp", &to.to_string()]);
    let payload = lines[0]["payload"].as_str().unwrap_or_else(|| panic!("{lines:?}"));
    let (_, rest) = payload.split_once(':').unwrap();
    let (client, _) = rest.rsplit_once(':').unwrap();
    client.parse::<SocketAddr>().unwrap().ip()
}

/// Runs the probe and returns its lines.
#[track_caller]
pub(crate) fn probe(from: &Host, arguments: &[&str]) -> Vec<Value> {
    programs::probe(from, arguments).unwrap()
}

#[track_caller]
fn ask_once(from: &Host, kind: &[&str], to: SocketAddr, timeout: &str) -> Vec<Value> {
    let to = to.to_string();
    probe(from, &[&kind[..1], &[&to, "--timeout", timeout], &kind[1..]].concat())
}
