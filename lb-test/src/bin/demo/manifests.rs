//! The manifests of `deploy/examples` that the story applies.

/// Where they are in the repository.
pub(crate) const FOLDER: &str = "deploy/examples/web";
/// Where the Service with a `NodePort` is in the repository.
pub(crate) const NODE_PORT_FOLDER: &str = "deploy/examples/web-nodeport";

/// The Service with a `ClusterIP` alone.
pub(crate) const SERVICE: &str = include_str!("../../../../deploy/examples/web/service.yaml");
/// The same Service with a `NodePort`.
pub(crate) const NODE_PORT_SERVICE: &str =
    include_str!("../../../../deploy/examples/web-nodeport/service.yaml");

/// The Pods that answer for the Service: name, node, last part of the address, manifest.
pub(crate) const PODS: [(&str, &str, u8, &str); 3] = [
    ("web-1", "node1", 21, include_str!("../../../../deploy/examples/web/web-1.yaml")),
    ("web-2", "node2", 50, include_str!("../../../../deploy/examples/web/web-2.yaml")),
    ("web-3", "node1", 20, include_str!("../../../../deploy/examples/web/web-3.yaml")),
];

/// The Service's port, and the pods'.
pub(crate) const PORT: u16 = 80;
/// The Service's port on every node's addresses.
pub(crate) const NODE_PORT: u16 = 30080;
/// The Service's addresses.
pub(crate) const CLUSTER_IPS: [&str; 2] = ["10.96.100.100", "fd00:10:96::6464"];

/// The lines that only one of two texts has, as `diff` marks them.
pub(crate) fn changed_lines(before: &str, after: &str) -> String {
    let only = |text: &str, other: &str, mark: char| -> Vec<String> {
        let lines = text.lines().filter(|line| !other.lines().any(|known| known == *line));
        lines.map(|line| format!("{mark} {line}")).collect()
    };
    [only(before, after, '<'), only(after, before, '>')].concat().join("\n")
}
