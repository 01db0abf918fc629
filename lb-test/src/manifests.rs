//! Kubernetes objects for tests: Services by a few words, and the Pods and slices behind them.
//!
//! They are written as JSON, which every reader of YAML takes. A Service selects Pods by a group:
//! a label of that name.

use serde_json::{Value, json};

use crate::address::{DualStack, Family};
use crate::topology::Pod;

/// The cluster IPs of the Service with this number (below 256): 10.96.0.7 and `fd00:10:96::7`.
#[must_use]
pub fn cluster_ips(number: u8) -> DualStack {
    let v6 = [0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(number)];
    DualStack { v4: [10, 96, 0, number].into(), v6: v6.into() }
}

/// External addresses for tests (RFC 5737, RFC 3849): 192.0.2.7 and `2001:db8::7`.
#[must_use]
pub fn external_ips(number: u8) -> DualStack {
    let v6 = [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)];
    DualStack { v4: [192, 0, 2, number].into(), v6: v6.into() }
}

/// The text of a manifest with all `objects`.
#[must_use]
pub fn list(objects: &[Value]) -> String {
    format!("{:#}\n", json!({"apiVersion": "v1", "kind": "List", "items": objects}))
}

/// A dual-stack Service in the making.
#[derive(Clone, Debug)]
pub struct Service(Value);

impl Service {
    /// A Service with the cluster IPs that [`cluster_ips`] gives for `number`.
    #[must_use]
    pub fn new(name: &str, number: u8) -> Self {
        let ips = cluster_ips(number);
        Self(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name},
            "spec": {
                "ipFamilies": ["IPv4", "IPv6"],
                "clusterIP": ips.v4, "clusterIPs": [ips.v4.to_string(), ips.v6.to_string()],
                "ports": [],
            },
        }))
    }

    /// Selects the Pods of a group.
    #[must_use]
    pub fn select(self, group: &str) -> Self {
        self.spec("selector", json!({group: "yes"}))
    }

    /// Sets any field of the spec.
    #[must_use]
    pub fn spec(mut self, field: &str, value: Value) -> Self {
        self.0["spec"][field] = value;
        self
    }

    /// Sets a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["labels"][key] = value.into();
        self
    }

    /// Sets an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.0["metadata"]["annotations"][key] = value.into();
        self
    }

    /// Adds a TCP port that leads to `target`, a number or the name of a container port.
    #[must_use]
    pub fn tcp(self, port: u16, target: impl Into<Value>) -> Self {
        self.port("TCP", port, &target.into())
    }

    /// Adds an SCTP port that leads to `target`.
    #[must_use]
    pub fn sctp(self, port: u16, target: impl Into<Value>) -> Self {
        self.port("SCTP", port, &target.into())
    }

    /// Adds a UDP port that leads to `target`.
    #[must_use]
    pub fn udp(self, port: u16, target: impl Into<Value>) -> Self {
        self.port("UDP", port, &target.into())
    }

    /// Opens the port added last on every node, under the number `port`.
    #[must_use]
    pub fn node_port(mut self, port: u16) -> Self {
        if let Some(last) = self.0["spec"]["ports"].as_array_mut().and_then(|all| all.last_mut()) {
            last["nodePort"] = port.into();
        }
        self.spec("type", json!("NodePort"))
    }

    /// Answers at external IPs, too.
    #[must_use]
    pub fn external_ips(self, ips: DualStack) -> Self {
        self.spec("externalIPs", json!([ips.v4.to_string(), ips.v6.to_string()]))
    }

    /// Makes it a load balancer's, with `ips` in its status under `mode` (`VIP` or `Proxy`).
    #[must_use]
    pub fn ingress(mut self, ips: DualStack, mode: &str) -> Self {
        let entry = |ip: String| json!({"ip": ip, "ipMode": mode});
        let entries = json!([entry(ips.v4.to_string()), entry(ips.v6.to_string())]);
        self.0["status"]["loadBalancer"]["ingress"] = entries;
        self.spec("type", json!("LoadBalancer"))
    }

    /// Sets `externalTrafficPolicy: Local`.
    #[must_use]
    pub fn external_local(self) -> Self {
        self.spec("externalTrafficPolicy", json!("Local"))
    }

    /// Sets `internalTrafficPolicy: Local`.
    #[must_use]
    pub fn internal_local(self) -> Self {
        self.spec("internalTrafficPolicy", json!("Local"))
    }

    /// The object.
    #[must_use]
    pub fn object(self) -> Value {
        self.0
    }

    fn port(mut self, protocol: &str, port: u16, target: &Value) -> Self {
        let name = format!("{}-{port}", protocol.to_lowercase());
        let entry = json!({"name": name, "protocol": protocol, "port": port, "targetPort": target});
        if let Some(ports) = self.0["spec"]["ports"].as_array_mut() {
            ports.push(entry);
        }
        self
    }
}

/// What a Pod's conditions say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It is being deleted, and its readiness probe fails.
    Failing,
    /// It is being deleted, and serves until then.
    Leaving,
    /// Its readiness probe fails.
    NotReady,
    /// All is well.
    Ready,
}

/// The object of a Pod: called `name`, at the place of `pod`, in some groups.
#[must_use]
pub fn pod(name: &str, pod: &Pod, groups: &[&str], condition: Condition) -> Value {
    let labels: serde_json::Map<_, _> =
        groups.iter().map(|group| ((*group).to_owned(), json!("yes"))).collect();
    let ready = matches!(condition, Condition::Leaving | Condition::Ready);
    let ready = if ready { "True" } else { "False" };
    let ips = Family::BOTH.map(|family| json!({"ip": pod.ip(family).to_string()}));
    let mut object = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"nodeName": pod.node(), "containers": [{"name": "main"}]},
        "status": {
            "phase": "Running", "podIPs": ips,
            "conditions": [{"type": "Ready", "status": ready}],
        },
    });
    if matches!(condition, Condition::Failing | Condition::Leaving) {
        object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    object
}

/// Gives a Pod's container a named TCP port.
#[must_use]
pub fn with_port(mut pod: Value, name: &str, port: u16) -> Value {
    pod["spec"]["containers"][0]["ports"] = json!([{"name": name, "containerPort": port}]);
    pod
}

/// The slices, one a family, that lead the Service port `port` (by name) of `service` to TCP port
/// `target` of `pods`; `labels` are added to theirs.
#[must_use]
pub fn slices(
    name: &str,
    service: &str,
    (port, target): (&str, u16),
    pods: &[&Pod],
    labels: &[(&str, &str)],
) -> Vec<Value> {
    let slice = |family: Family| {
        let endpoint = |pod: &&Pod| json!({"addresses": [pod.ip(family)], "nodeName": pod.node()});
        let endpoints: Vec<_> = pods.iter().map(endpoint).collect();
        let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let mut object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{}", kind.to_lowercase()),
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": kind,
            "ports": [{"name": port, "protocol": "TCP", "port": target}],
            "endpoints": endpoints,
        });
        for (key, value) in labels {
            object["metadata"]["labels"][*key] = json!(value);
        }
        object
    };
    Family::BOTH.map(slice).into()
}
