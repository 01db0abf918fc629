//! What is printed when a test fails: the state of every node, the ends of all logs, and the
//! captured packets.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::agent;
use crate::host::Host;
use crate::process::{Process, tail};
use crate::topology::{Node, Topology};
use crate::wait::PATIENT;

/// How many lines of each log are shown.
const LOG_LINES: usize = 40;
/// How many packets of each capture are shown.
const PACKETS: usize = 200;

/// A running tcpdump and the file it writes.
#[derive(Debug)]
pub(crate) struct Capture {
    process: Process,
    title: String,
    file: PathBuf,
}

impl Capture {
    pub(crate) fn start(host: &Host, device: &str) -> Result<Self> {
        let name = format!("tcpdump-{device}");
        let file = host.directory().join(format!("{name}.pcap"));
        let path = file.to_string_lossy();
        let arguments = ["-U", "-Z", "root", "-s", "0", "-i", device, "-w", &path];
        let mut process = host.start(&name, "tcpdump", &arguments)?;
        process.wait_line("listening on", PATIENT)?;
        let title = format!("{} {device}", host.name());
        Ok(Self { process, title, file })
    }

    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// Ends the capture and returns its packets as text.
    fn decode(mut self) -> String {
        // SIGTERM lets tcpdump write what it holds; if it can't, what is written is shown.
        let _ = self.process.stop();
        let path = self.file.to_string_lossy();
        let output = Command::new("tcpdump").args(["-nn", "-v", "-e", "-r", &path]).output();
        let output = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        tail(&output.unwrap_or_else(|error| error.to_string()), PACKETS)
    }
}

/// Describes the whole topology, node by node.
pub(crate) fn describe(topology: &Topology, captures: Vec<Capture>) -> String {
    let mut text = format!("\n=== the world of run {} ===\n", topology.run_name());
    for node in topology.nodes() {
        describe_node(&mut text, node);
    }
    for host in topology.hosts() {
        describe_logs(&mut text, host);
    }
    for capture in captures {
        let title = format!("packets at {}", capture.title);
        section(&mut text, &title, &capture.decode());
    }
    text
}

fn describe_node(text: &mut String, node: &Node) {
    let calls: [&[&str]; 4] =
        [&["ip", "-br", "addr"], &["ip", "route"], &["ip", "-6", "route"], &["ip", "neigh"]];
    for call in calls {
        show(text, node, call);
    }
    let bpffs = node.bpffs().join("lb");
    let pinned = fs::read_dir(&bpffs).is_ok_and(|mut entries| entries.next().is_some());
    if let (true, Ok(binary)) = (pinned, agent::binary()) {
        let (binary, bpffs) = (binary.to_string_lossy(), bpffs.to_string_lossy());
        show(text, node, &[&binary, "status", "--bpffs", &bpffs, "-o", "json"]);
        show(text, node, &[&binary, "services", "--bpffs", &bpffs, "-o", "wide"]);
    }
}

fn show(text: &mut String, host: &Host, call: &[&str]) {
    let Some((program, arguments)) = call.split_first() else { return };
    let output = host.run(program, arguments).unwrap_or_else(|error| format!("{error:#}"));
    section(text, &format!("{}: {}", host.name(), call.join(" ")), &output);
}

fn describe_logs(text: &mut String, host: &Host) {
    let entries = fs::read_dir(host.directory()).into_iter().flatten().flatten();
    let mut logs: Vec<_> = entries.map(|entry| entry.path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    for log in logs {
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        let end = tail(&fs::read_to_string(&log).unwrap_or_default(), LOG_LINES);
        section(text, &format!("{}: {name}", host.name()), &end);
    }
}

fn section(text: &mut String, title: &str, content: &str) {
    if !content.trim().is_empty() {
        // Writing to a String can't fail.
        let _ = writeln!(text, "--- {title}\n{}", content.trim_end());
    }
}
