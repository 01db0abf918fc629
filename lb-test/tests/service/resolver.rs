//! A resolver that keeps its socket connected to the DNS Service: nginx's, which elsewhere stays
//! with a dead server until it is restarted (S11).

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use lb_test::PATIENT;
use lb_test::address::DualStack;
use lb_test::manifests::{Condition, Service, cluster_ips, list, pod};
use lb_test::programs::{curl, dnsmasq};
use lb_test::{Family, Host, Process, SocketLb, eventually};
use nix::sys::signal::Signal;

use crate::{Cluster, WEB, on_both_paths};

on_both_paths! {
    resolver => s11_a_resolver_finds_the_new_dns_server_by_the_socket_path, s11_a_resolver_finds_the_new_dns_server_by_the_packet_path;
}

/// kube-dns.
const DNS: u8 = 10;
/// Where nginx proxies from.
const PROXY: u16 = 8081;

/// The two servers name different pods, so that an answer tells which of them was asked.
fn resolver(path: SocketLb) {
    let service = Service::new("kube-dns", DNS).select(WEB).udp(53, 53);
    let cluster = Cluster::start(path, &[service.object()]);
    let start = |server: &str, web: &str| {
        let v4 = cluster.pod(web).addresses().v4;
        dnsmasq(cluster.pod(server), "web.test", DualStack { v4, ..ANY }).unwrap()
    };
    let (first, _second) = (start("web-1", "web-3"), start("web-2", "web-1"));
    for (family, from) in Family::BOTH.map(|family| (family, cluster.pod("shell"))) {
        put_only(&cluster, "web-1");
        let _proxy = proxy(from, family).unwrap();
        wait_for(from, "web-3");
        // It does not answer any more, nor does its host say so.
        first.signal(Signal::SIGSTOP).unwrap();
        put_only(&cluster, "web-2");
        wait_for(from, "web-1");
        first.signal(Signal::SIGCONT).unwrap();
    }
}

const ANY: DualStack = DualStack { v4: Ipv4Addr::UNSPECIFIED, v6: Ipv6Addr::UNSPECIFIED };

fn put_only(cluster: &Cluster, name: &str) {
    let object = pod(name, cluster.pod(name), &[WEB], Condition::Ready);
    cluster.apply("pods.yaml", &list(&[object])).unwrap();
}

/// nginx, which looks web.test up by the Service of one family, again each second.
fn proxy(host: &Host, family: Family) -> Result<Process> {
    let folder = host.directory().join(format!("proxy-{family:?}"));
    fs::create_dir_all(&folder)?;
    let (server, folder_name) = (cluster_ips(DNS).socket(family, 53), folder.display());
    let file = folder.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; user root; pid {folder_name}/pid; error_log stderr info;
events {{}}
http {{
  access_log off; resolver {server} valid=1s ipv6=off; resolver_timeout 1s;
  client_body_temp_path {folder_name}/body; proxy_temp_path {folder_name}/proxy;
  fastcgi_temp_path {folder_name}/fastcgi; uwsgi_temp_path {folder_name}/uwsgi;
  scgi_temp_path {folder_name}/scgi;
  server {{
    listen {PROXY};
    location / {{ set $web web.test; proxy_pass http://$web:8080; }}
  }}
}}
"
    );
    fs::write(&file, text)?;
    host.start("proxy", "nginx", &["-e", "stderr", "-c", &file.to_string_lossy()])
}

#[track_caller]
fn wait_for(from: &Host, web: &str) {
    let url = format!("http://127.0.0.1:{PROXY}/");
    eventually(PATIENT, &format!("{web} by its name"), || {
        let answer = curl(from, &url, &["--max-time", "2"])?;
        ensure!(answer.trim() == web, "{answer}");
        Ok(())
    });
}
