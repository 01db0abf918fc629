//! The demo as its users run it: its story comes true on each path, it can be kept, and it goes.

#![allow(clippy::unwrap_used, reason = "a failed step of a test ends the test")]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};

use lb_test::{require, require_topology, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(arguments);
    command
}

/// Runs the demo to its end, which must be 0, and returns what it printed.
#[track_caller]
fn printed(arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = demo(arguments).output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{arguments:?}: {status}\n{stdout}\n{stderr}");
    stdout
}

/// The name of the run that a story is about.
fn run_of(text: &str) -> &str {
    let (_, rest) = text.split_once("of this machine: run ").expect(text);
    rest.split_once('.').unwrap().0
}

#[track_caller]
fn assert_came_true(story: &str, socket_lb: &str, path: &str) {
    for line in [
        &format!("--socket-lb {socket_lb}"),
        path,
        "ClusterIP  10.96.100.100:80/TCP       3: 10.248.1.20:80, 10.248.1.21:80, 10.248.2.50:80",
        "shell $ curl -sS --fail 'http://[fd00:10:96::6464]/'",
        ">     nodePort: 30080",
        "client $ curl -sS --fail 'http://172.20.0.11:30080/'",
        "ClusterIP  10.96.100.100:80/TCP       1: 10.248.1.21:80",
        "All of them printed nothing",
    ] {
        assert!(story.contains(line), "{line:?} is not in\n{story}");
    }
    let (_, sum) = story.rsplit_once("requests, 0 lost\n").expect(story);
    assert!(!sum.contains(" lost"), "{story}");
    let requests = story.lines().find_map(|line| line.trim().strip_suffix(" requests, 0 lost"));
    assert!(requests.unwrap().parse::<u64>().unwrap() > 3000, "{story}");
    assert!(!story.contains('\u{1b}'), "colours without a terminal\n{story}");
}

#[test]
fn the_story_comes_true_by_the_socket_path() {
    require_topology!();
    let story = printed(&["--socket-lb", "all"]);
    assert_came_true(&story, "all", "Socket path: connect() goes to the pod at once");
    assert!(!run::directory(run_of(&story)).exists());
}

#[test]
fn the_story_comes_true_by_the_packet_path_and_can_be_kept() {
    require_topology!();
    let story = printed(&["--socket-lb", "off", "--keep"]);
    let run = Kept(run_of(&story).to_owned());
    assert_came_true(&story, "off", "Packet path: the TC programs at the pod's device");
    let answer = printed(&["shell", "--run", &run.0, "shell", "curl", "-sS", "10.96.100.100"]);
    assert!(answer.starts_with("web-"), "{answer}");
    let services = printed(&["shell", "--run", &run.0, "node2", "lb-agent", "services"]);
    assert!(services.contains("172.20.0.12:30080/TCP"), "{services}");
    assert_eq!(printed(&["down", &run.0]), format!("demo {} is down\n", run.0));
    assert!(!run::directory(&run.0).exists());
}

/// A kept demo, which goes even if its test fails.
struct Kept(String);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = run::remove(&self.0);
    }
}

#[test]
fn an_interrupted_demo_leaves_nothing() {
    require_topology!();
    let mut command = demo(&[]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let story = read_until(&mut child, "3. From a pod");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{stderr}");
    assert_eq!(stderr, "", "an interrupt is no failure");
    assert!(!run::directory(run_of(&story)).exists());
}

/// Reads the story up to a line, and leaves the rest to be read by nobody: the pipe holds it.
fn read_until(child: &mut Child, wanted: &str) -> String {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines().map(Result::unwrap);
    let mut story = String::new();
    while !story.lines().any(|line| line.starts_with(wanted)) {
        story += &lines.next().expect(&story);
        story.push('\n');
    }
    story
}

#[test]
fn only_root_may_run_it() {
    require!(require::root(), "needs root to become another user");
    // Copied out, because another user may not enter the folder that it was built in.
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("demo");
    fs::copy(env!("CARGO_BIN_EXE_demo"), &copy).unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let output = Command::new(copy).uid(65534).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("needs root; run: sudo"), "{stderr}");
}
