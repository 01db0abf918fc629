//! The defaults that an API server gives a Service, so that a manifest written by hand means here
//! what it means there.

use k8s_openapi::{api::core::v1 as core, apimachinery::pkg::util::intstr::IntOrString};

use crate::{
    model::Family,
    source::convert::{annotation::is_ours, family_name, parse_address},
};

const AFFINITY_TIMEOUT: i32 = 10_800;

/// Fills in what the manifest leaves out, and drops what nothing here reads.
pub(super) fn apply(service: &mut core::Service) {
    service.metadata.annotations.iter_mut().for_each(|all| all.retain(|key, _| is_ours(key)));
    service.metadata.managed_fields = None;
    let spec = service.spec.get_or_insert_default();
    default_text(&mut spec.type_, "ClusterIP");
    default_text(&mut spec.internal_traffic_policy, "Cluster");
    default_text(&mut spec.session_affinity, "None");
    for port in spec.ports.iter_mut().flatten() {
        default_text(&mut port.protocol, "TCP");
        if matches!(&port.target_port, None | Some(IntOrString::Int(0))) {
            port.target_port = Some(IntOrString::Int(port.port));
        }
    }
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let config = spec.session_affinity_config.get_or_insert_default();
        let client = config.client_ip.get_or_insert_default();
        client.timeout_seconds.get_or_insert(AFFINITY_TIMEOUT);
    }
    if matches!(spec.type_.as_deref(), Some("LoadBalancer" | "NodePort")) {
        default_text(&mut spec.external_traffic_policy, "Cluster");
    }
    if spec.type_.as_deref() != Some("ExternalName") {
        join_cluster_ips(spec);
        spec.ip_families = Some(families(spec));
    }
}

fn default_text(field: &mut Option<String>, default: &str) {
    if field.as_deref().is_none_or(str::is_empty) {
        *field = Some(default.to_owned());
    }
}

/// Leaves the given cluster IPs in `clusterIPs` alone.
fn join_cluster_ips(spec: &mut core::ServiceSpec) {
    let single = spec.cluster_ip.take().filter(|text| !text.is_empty());
    let many = spec.cluster_ips.get_or_insert_default();
    many.retain(|text| !text.is_empty());
    if many.is_empty() {
        many.extend(single);
    }
}

/// Families that are given, by name or by address, and the one that a dual-stack policy adds.
fn families(spec: &core::ServiceSpec) -> Vec<String> {
    let mut families: Vec<String> = spec.ip_families.clone().unwrap_or_default();
    if families.is_empty() {
        let addresses = spec.cluster_ips.iter().flatten().filter_map(|text| parse_address(text));
        families = addresses.map(|address| family_name(Family::of(address)).to_owned()).collect();
        families.dedup();
    }
    if families.is_empty() {
        families.push("IPv4".to_owned());
    }
    let dual = ["PreferDualStack", "RequireDualStack"];
    let wants_both = spec.ip_family_policy.as_deref().is_some_and(|policy| dual.contains(&policy));
    if wants_both && families.len() == 1 {
        let other = if families.iter().any(|family| family == "IPv4") { "IPv6" } else { "IPv4" };
        families.push(other.to_owned());
    }
    families
}
