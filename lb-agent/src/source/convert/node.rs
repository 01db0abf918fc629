//! Nodes.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use super::{Converted, Faults, parse_cidr, shared};
use crate::model::{Node, ObjectName};

const ZONE: &str = "topology.kubernetes.io/zone";
/// Taint of a node that the cluster's autoscaler is about to delete.
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

/// Reads a node; a prefix that makes no sense is left out.
#[must_use]
pub fn node(object: &core::Node) -> Converted<Node> {
    let name: Arc<str> = object.metadata.name.as_deref().unwrap_or_default().into();
    let mut faults = Faults::new("Node", &ObjectName::new("", &name));
    let zone = shared(object.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)));
    let mut pod_cidrs = Vec::new();
    for (field, text) in pod_cidr_texts(object) {
        match parse_cidr(text) {
            Some(cidr) => pod_cidrs.push(cidr),
            None => faults.add(
                field,
                format!("\"{text}\" is not a prefix"),
                "write address/length, as 10.244.1.0/24",
            ),
        }
    }
    let node = Node { name, zone, pod_cidrs, is_leaving: is_leaving(object) };
    Converted { object: Some(node), problems: faults.into_problems() }
}

fn is_leaving(object: &core::Node) -> bool {
    let taints = object.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    object.metadata.deletion_timestamp.is_some()
        || taints.iter().any(|taint| taint.key == TO_BE_DELETED)
}

/// `podCIDRs`, or the older `podCIDR` where that is all there is.
fn pod_cidr_texts(object: &core::Node) -> Vec<(String, &str)> {
    let Some(spec) = &object.spec else { return Vec::new() };
    match spec.pod_cidrs.as_deref() {
        None | Some([]) => {
            let single = spec.pod_cidr.as_deref().filter(|text| !text.is_empty());
            single.map(|text| ("spec.podCIDR".into(), text)).into_iter().collect()
        }
        Some(texts) => texts
            .iter()
            .enumerate()
            .map(|(index, text)| (format!("spec.podCIDRs[{index}]"), text.as_str()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_node_has_its_zone_and_pod_prefixes() {
        let object = json!({
            "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64", "x"]},
        });
        let Converted { object, problems } = node(&serde_json::from_value(object).unwrap());
        let Node { name, zone, pod_cidrs, is_leaving } = object.unwrap();
        assert_eq!((&*name, zone.as_deref(), pod_cidrs.len()), ("node-1", Some("a"), 2));
        assert!(!is_leaving);
        assert_eq!(problems[0].field, "spec.podCIDRs[2]");
    }

    #[test]
    fn s4_a_node_leaves_by_deletion_or_by_the_autoscalers_taint() {
        let leaving = |metadata: Value, taints: Value| {
            let object = json!({"metadata": metadata, "spec": {"taints": taints}});
            node(&serde_json::from_value(object).unwrap()).object.unwrap().is_leaving
        };
        let taint = |key: &str| json!([{"key": key, "effect": "NoSchedule"}]);
        assert!(leaving(json!({}), taint("ToBeDeletedByClusterAutoscaler")));
        assert!(leaving(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!(null)));
        for key in ["node.kubernetes.io/unschedulable", "DeletionCandidateOfClusterAutoscaler"] {
            assert!(!leaving(json!({}), taint(key)), "{key}");
        }
    }
}
