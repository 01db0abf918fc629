//! Real programs as one-liners: web, DNS, UDP and throughput servers and their clients.
//!
//! Every function that starts a server returns when the server answers.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::address::{DualStack, Family};
use crate::host::Host;
use crate::process::Process;
use crate::wait::{PATIENT, try_eventually};

/// How an iperf3 server refuses a client while it has another one.
const BUSY: &str = "the server is busy running a test";

/// Starts nginx, which answers on `ports` of both families with the host's name and a newline.
///
/// The header `X-Client` of an answer has the client's address and port as nginx saw them.
///
/// # Errors
/// When nginx does not listen within half a minute.
pub fn nginx(host: &Host, ports: &[u16]) -> Result<Process> {
    nginx_with_body(host, ports, &format!("{}\n", host.name()))
}

/// Starts nginx as [`nginx`] does, with another body.
///
/// # Errors
/// When nginx does not listen within half a minute.
pub fn nginx_with_body(host: &Host, ports: &[u16], body: &str) -> Result<Process> {
    let folder = host.directory().join(format!("nginx-{}", joined(ports)));
    fs::create_dir_all(&folder)?;
    let file = folder.join("nginx.conf");
    fs::write(&file, nginx_configuration(&folder, ports, body))?;
    let arguments = ["-e", "stderr", "-c", &file.to_string_lossy()];
    let process = host.start("nginx", "nginx", &arguments)?;
    for port in ports {
        wait_listening(host, &process, *port)?;
    }
    Ok(process)
}

/// One process, so that killing it kills all of it.
fn nginx_configuration(folder: &Path, ports: &[u16], body: &str) -> String {
    let folder = folder.display();
    let listen = |port| format!("listen 0.0.0.0:{port}; listen [::]:{port} ipv6only=on;");
    let listens = ports.iter().map(listen).collect::<Vec<_>>().join(" ");
    let body = body.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!(
        r#"daemon off; master_process off; user root; pid {folder}/pid;
error_log stderr;
events {{ worker_connections 8192; }}
http {{
  access_log off; default_type text/plain;
  keepalive_timeout 3600; keepalive_requests 1000000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    {listens}
    add_header X-Client $remote_addr:$remote_port;
    location / {{ return 200 "{body}"; }}
  }}
}}
"#
    )
}

/// Fetches `url` and returns the body; `options` are more arguments of curl.
///
/// # Errors
/// When there is no answer within 20 seconds or its status is 400 or above.
pub fn curl(from: &Host, url: &str, options: &[&str]) -> Result<String> {
    let mut arguments = vec!["-sS", "--fail", "--noproxy", "*", "--globoff", "--max-time", "20"];
    arguments.extend(options);
    arguments.push(url);
    from.run("curl", &arguments)
}

/// Starts the probe's UDP echo server, which answers `<host>:<client address>:<payload>`.
///
/// # Errors
/// When it does not listen within half a minute.
pub fn udp_echo(host: &Host, port: u16) -> Result<Process> {
    let mut command = host.command(&probe_binary()?.to_string_lossy())?;
    command.args(["udp-server", &port.to_string(), "--name", host.name()]);
    let mut process = host.spawn("udp-echo", command)?;
    process.wait_line("\"event\":\"listening\"", PATIENT)?;
    Ok(process)
}

/// Runs a probe subcommand to its end and returns the JSON object of each line it printed.
///
/// # Errors
/// When it can't run; failures of what it probes are in the lines.
pub fn probe(from: &Host, arguments: &[&str]) -> Result<Vec<Value>> {
    let output = from.run(&probe_binary()?.to_string_lossy(), arguments)?;
    json_lines(&output)
}

/// Starts a probe subcommand that stays, as `tcp-keepalive`; [`json_lines`] reads its log.
///
/// # Errors
/// When it can't start.
pub fn start_probe(from: &Host, name: &str, arguments: &[&str]) -> Result<Process> {
    from.start(name, &probe_binary()?.to_string_lossy(), arguments)
}

/// The JSON object of each line.
///
/// # Errors
/// With the first line that is not JSON.
pub fn json_lines(text: &str) -> Result<Vec<Value>> {
    let parse = |line| serde_json::from_str(line).with_context(|| format!("no JSON: {line}"));
    text.lines().map(parse).collect()
}

/// Starts dnsmasq, which knows `name` by both addresses and nothing else.
///
/// # Errors
/// When it does not answer within half a minute.
pub fn dnsmasq(host: &Host, name: &str, addresses: DualStack) -> Result<Process> {
    let record = format!("--host-record={name},{},{}", addresses.v4, addresses.v6);
    let fixed = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"];
    let mut arguments = fixed.to_vec();
    arguments.extend(["--user=root", "--log-facility=-", "--pid-file=", &record]);
    let process = host.start("dnsmasq", "dnsmasq", &arguments)?;
    wait_listening(host, &process, 53)?;
    Ok(process)
}

/// Asks `server` for `name` once, waits 10 seconds, and returns the answer of `dig +short`.
///
/// # Errors
/// When there is no answer.
pub fn dig(from: &Host, server: SocketAddr, name: &str, record: &str) -> Result<String> {
    let (at, port) = (format!("@{}", server.ip()), server.port().to_string());
    let arguments = ["+short", "+time=10", "+tries=1", "-p", &port, &at, name, record];
    let answer = from.run("dig", &arguments)?;
    Ok(answer.trim_end().to_owned())
}

/// Starts an iperf3 server.
///
/// # Errors
/// When it does not listen within half a minute.
pub fn iperf3_server(host: &Host) -> Result<Process> {
    let mut process = host.start("iperf3", "iperf3", &["-s", "--forceflush"])?;
    // Its log, because a connection to see whether it listens would be its one client.
    process.wait_line("Server listening", PATIENT)?;
    Ok(process)
}

/// Runs an iperf3 client against `server`, once that is done with its last client, and returns the client's JSON
/// report.
///
/// # Errors
/// When the measurement fails, or the server stays busy for half a minute.
pub fn iperf3(from: &Host, server: SocketAddr, options: &[&str]) -> Result<Value> {
    let (address, port) = (server.ip().to_string(), server.port().to_string());
    let mut arguments = vec!["-c", &address, "-p", &port, "--json"];
    arguments.extend(options);
    let measure = || -> Result<Value> {
        let report: Value = serde_json::from_str(&from.run("iperf3", &arguments)?)?;
        // A client that is refused ends well all the same.
        match report["error"].as_str() {
            Some(error) => bail!("iperf3 from {} to {server}: {error}", from.name()),
            None => Ok(report),
        }
    };
    try_eventually(PATIENT, "idle iperf3 server", || match measure() {
        Err(error) if error.to_string().contains(BUSY) => Err(error),
        result => Ok(result),
    })?
}

/// The probe's binary: `LB_PROBE_BIN`, else beside the running program.
///
/// # Errors
/// When it is not there.
pub fn probe_binary() -> Result<PathBuf> {
    built_binary("LB_PROBE_BIN", "probe")
}

/// A binary of this workspace: what `variable` names, else `name` beside the running program, or
/// beside the `deps` folder that test programs are in.
pub(crate) fn built_binary(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let program = std::env::current_exe().context("path of the running program")?;
    let folders = program.ancestors().skip(1).take(2);
    let mut candidates = folders.map(|folder| folder.join(name));
    let found = candidates.find(|path| path.is_file());
    found.with_context(|| {
        format!("no {name} beside {}: build it, or set {variable}", program.display())
    })
}

/// Waits until a TCP port of both families takes connections.
fn wait_listening(host: &Host, process: &Process, port: u16) -> Result<()> {
    let what = format!("listener on port {port} of {}", host.name());
    host.enter(|| {
        try_eventually(PATIENT, &what, || {
            for family in Family::BOTH {
                TcpStream::connect_timeout(&host.socket(family, port), PATIENT)?;
            }
            Ok(())
        })
    })?
    .with_context(|| process.log())
}

fn joined(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join("-")
}
