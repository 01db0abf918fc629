//! Which fields of a `KubeProxyConfiguration` (`kubeproxy.config.k8s.io/v1alpha1`) mean a setting
//! of this agent.

use serde_json::{Map, Value};

use super::file::{FileSettings, values};

/// `kind` of the object.
pub(super) const KIND: &str = "KubeProxyConfiguration";

/// Path of a field, and the flag of equal meaning.
const FIELDS: &[(&str, &str)] = &[
    ("clientConnection.kubeconfig", "kubeconfig"),
    ("conntrack.maxPerCore", "conntrack-max-per-core"),
    ("conntrack.min", "conntrack-min"),
    ("conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal"),
    ("conntrack.tcpCloseWaitTimeout", "conntrack-tcp-timeout-close-wait"),
    ("conntrack.tcpEstablishedTimeout", "conntrack-tcp-timeout-established"),
    ("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream"),
    ("conntrack.udpTimeout", "conntrack-udp-timeout"),
    ("clusterCIDR", "cluster-cidr"),
    ("detectLocal.bridgeInterface", "pod-bridge-interface"),
    ("detectLocal.interfaceNamePrefix", "pod-interface-name-prefix"),
    ("detectLocalMode", "detect-local-mode"),
    ("healthzBindAddress", "healthz-bind-address"),
    ("hostnameOverride", "hostname-override"),
    ("iptables.masqueradeAll", "masquerade-all"),
    ("logging.format", "log-format"),
    ("metricsBindAddress", "metrics-bind-address"),
    ("nftables.masqueradeAll", "masquerade-all"),
    ("nodePortAddresses", "nodeport-addresses"),
];

/// Takes the fields of equal meaning and lists the others that hold something.
///
/// An empty text or list means "default" there, so it sets nothing.
pub(super) fn settings(fields: &Map<String, Value>) -> FileSettings {
    let is_nftables = fields.get("mode").and_then(Value::as_str) == Some("nftables");
    // Each of kube-proxy's modes has its own section, and looks at no other.
    let unread = if is_nftables { "iptables." } else { "nftables." };
    let read = FIELDS.iter().filter(|(path, _)| !path.starts_with(unread));
    let flags = read.filter_map(|(path, flag)| {
        let values: Vec<_> = values(field(fields, path)?)?;
        let set: Vec<_> = values.into_iter().filter(|value| !value.is_empty()).collect();
        (!set.is_empty()).then(|| ((*flag).to_owned(), set))
    });
    let mut ignored = Vec::new();
    for (name, value) in fields {
        list_ignored(name, value, &mut ignored);
    }
    FileSettings { flags: flags.collect(), ignored }
}

fn field<'a>(fields: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let value = fields.get(first)?;
    if rest.is_empty() { Some(value) } else { field(value.as_object()?, rest) }
}

fn list_ignored(path: &str, value: &Value, ignored: &mut Vec<String>) {
    let is_taken = FIELDS.iter().any(|(known, _)| *known == path);
    match value {
        _ if is_taken || path == "apiVersion" || path == "kind" => {}
        Value::Null => {}
        Value::Array(list) if list.is_empty() => {}
        Value::String(text) if text.is_empty() => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                list_ignored(&format!("{path}.{name}"), value, ignored);
            }
        }
        _ => ignored.push(path.to_owned()),
    }
}
