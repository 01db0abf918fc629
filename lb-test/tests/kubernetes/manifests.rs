//! Manifests that these tests have in common.

use serde_json::{Value, json};

/// The node that Pods run on.
pub(crate) const NODE: &str = "apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {topology.kubernetes.io/zone: zone-a}}
";

/// A change that sets one label of an object, or with null removes it.
pub(crate) fn labels(name: &str, value: Value) -> Value {
    let mut labels = serde_json::Map::new();
    labels.insert(name.to_owned(), value);
    json!({"metadata": {"labels": labels}})
}

/// A Service of port 80 for Pods with label `app: NAME`; `more` are further fields of its spec.
pub(crate) fn service(name: &str, more: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  selector: {{app: {name}}}
  ports: [{{name: http, port: 80, targetPort: 8080}}]
  {more}
"
    )
}

/// The dual-stack Service `web` with its addresses; `ports` is a list in YAML.
pub(crate) fn web_service(ports: &str) -> String {
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  selector: {{app: web}}
  ipFamilyPolicy: RequireDualStack
  clusterIP: 10.96.100.100
  clusterIPs: [10.96.100.100, 'fd00:10:96::6464']
  ports: {ports}
"
    )
}

/// A running Pod with label `app: APP` on node `node-1`, with addresses `ips`.
pub(crate) fn pod(name: &str, app: &str, ips: &[&str], is_ready: bool) -> String {
    pod_on("node-1", name, app, ips, is_ready)
}

/// A running Pod with label `app: APP` on a node, with addresses `ips`.
pub(crate) fn pod_on(node: &str, name: &str, app: &str, ips: &[&str], is_ready: bool) -> String {
    let ready = if is_ready { "True" } else { "False" };
    let list: Vec<_> = ips.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect();
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec: {{nodeName: {node}, containers: [{{name: main, image: none}}]}}
status:
  phase: Running
  conditions: [{{type: Ready, status: '{ready}'}}]
  podIP: '{}'
  podIPs: [{}]
",
        ips[0],
        list.join(", ")
    )
}

/// Gives a user the rights that kube-proxy has.
pub(crate) fn binding(user: &str) -> String {
    binding_of(user, "system:node-proxier")
}

/// Gives a user the rights of a `ClusterRole`.
pub(crate) fn binding_of(user: &str, role: &str) -> String {
    format!(
        "apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {user}}}
subjects: [{{kind: User, name: {user}}}]
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: '{role}'}}
"
    )
}
