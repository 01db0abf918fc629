use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::{
    EndpointSlice, Family, Protocol, Service, ServicePort, ServiceType, TrafficPolicy,
};

/// The Service `default/web` with `spec` laid over a plain one.
fn converted(spec: Value) -> Converted<Service> {
    let mut object = json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "ports": [{"name": "http", "port": 80}]},
    });
    merge(&mut object["spec"], spec);
    convert_service(object)
}

fn convert_service(object: Value) -> Converted<Service> {
    service(&serde_json::from_value::<core::Service>(object).unwrap())
}

fn merge(base: &mut Value, over: Value) {
    let Value::Object(over) = over else { panic!("an object") };
    for (key, value) in over {
        base[key] = value;
    }
}

fn good(spec: Value) -> Service {
    let Converted { object, problems } = converted(spec);
    assert_eq!(problems, []);
    object.unwrap()
}

/// What is left of a Service with one fault, and the fault as it is printed.
fn faulty(spec: Value) -> (Service, String) {
    let Converted { object, problems } = converted(spec);
    assert_eq!(problems.len(), 1, "{problems:?}");
    (object.unwrap(), problems[0].to_string())
}

fn converted_slice(over: Value) -> Converted<EndpointSlice> {
    let mut object = json!({
        "metadata": {
            "namespace": "default", "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.244.1.2"]}],
    });
    merge(&mut object, over);
    slice(&serde_json::from_value::<discovery::EndpointSlice>(object).unwrap())
}

fn addresses(slice: &EndpointSlice) -> Vec<String> {
    slice.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

#[test]
fn a_plain_service_has_the_apis_defaults() {
    let service = good(json!({}));
    assert_eq!(service.name.to_string(), "default/web");
    assert_eq!(service.service_type, ServiceType::ClusterIp);
    assert_eq!(service.cluster_ips, ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]);
    let port = ServicePort {
        name: "http".into(),
        port: 80.try_into().unwrap(),
        protocol: Protocol::Tcp,
        node_port: None,
    };
    assert_eq!(service.ports, [port]);
    assert_eq!(service.internal_policy, TrafficPolicy::Cluster);
    assert_eq!(service.external_policy, TrafficPolicy::Cluster);
    assert_eq!(service.affinity_timeout, None);
    assert_eq!(service.created, 0);
}

#[test]
fn s13_services_without_a_cluster_ip_are_ignored() {
    for spec in [
        json!({"clusterIP": ""}),
        json!({"clusterIP": null}),
        json!({"clusterIP": "None"}),
        json!({"clusterIP": "None", "clusterIPs": ["None"]}),
        json!({"type": "ExternalName", "externalName": "example.org"}),
    ] {
        assert_eq!(converted(spec.clone()), Converted::ignored(), "{spec}");
    }
}

#[test]
fn s13_labels_exclude_services_and_slices_whatever_their_value() {
    for label in [SERVICE_PROXY_NAME, HEADLESS] {
        for value in ["", "false", "other"] {
            let object = json!({
                "metadata": {"namespace": "a", "name": "b", "labels": {label: value}},
                "spec": {"clusterIP": "10.96.0.10"},
            });
            assert_eq!(convert_service(object).object, None);
            let labels = json!({label: value, "kubernetes.io/service-name": "web"});
            let metadata = json!({"namespace": "a", "name": "b", "labels": labels});
            assert_eq!(converted_slice(json!({ "metadata": metadata })).object, None);
        }
    }
}

#[test]
fn s13_slices_of_host_names_are_ignored() {
    let slice = converted_slice(json!({"addressType": "FQDN"}));
    assert_eq!(slice, Converted { object: None, problems: vec![] });
}

#[test]
fn a_slice_without_a_service_name_is_ignored() {
    let metadata = json!({"namespace": "default", "name": "other"});
    assert_eq!(converted_slice(json!({ "metadata": metadata })).object, None);
}

#[test]
fn leading_zeros_are_decimal() {
    let read = |text: &str| parse_address(text).map(|address| address.to_string());
    assert_eq!(read("10.96.0.011"), Some("10.96.0.11".into()));
    assert_eq!(read("010.096.000.0099"), Some("10.96.0.99".into()));
    assert_eq!(read("0.0.0.00"), Some("0.0.0.0".into()));
    assert_eq!(good(json!({"clusterIP": "10.96.0.011"})).cluster_ips[0].to_string(), "10.96.0.11");
}

#[test]
fn what_is_no_address_is_none() {
    for text in [
        "",
        "10.96.0",
        "10.96.0.1.2",
        "10.96.0.256",
        "0x0a.0.0.1",
        "+1.2.3.4",
        "1..2.3",
        "10.96.0.1 ",
        "fd00::%eth0",
        "fd00:::1",
        "99999999999999999999.0.0.1",
    ] {
        assert_eq!(parse_address(text), None, "{text}");
    }
}

#[test]
fn s14_only_load_balancer_ips_of_mode_vip_are_taken() {
    let object = json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "type": "LoadBalancer"},
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"},
            {"ip": "203.0.113.2", "ipMode": "VIP"},
            {"ip": "203.0.113.3", "ipMode": "Proxy"},
            {"hostname": "lb.example.org"},
        ]}},
    });
    let ips = convert_service(object).object.unwrap().load_balancer_ips;
    let ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
    assert_eq!(ips, ["203.0.113.1", "203.0.113.2"]);
}

#[test]
fn s9_source_ranges_are_trimmed_and_both_families_kept() {
    let service = good(json!({
        "loadBalancerSourceRanges": [" 10.1.2.3/8 ", "fd00::/8\n"], "type": "LoadBalancer",
    }));
    let ranges: Vec<_> = service.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "fd00::/8"]);
}

#[test]
fn s9_a_bad_range_is_told_and_the_good_ones_hold() {
    let (service, fault) =
        faulty(json!({"loadBalancerSourceRanges": ["10.0.0.0/33", "192.0.2.0/24"]}));
    assert_eq!(service.source_ranges.len(), 1);
    assert_eq!(
        fault,
        "Service default/web: spec.loadBalancerSourceRanges[0]: \"10.0.0.0/33\" is not a prefix; \
         write address/length, as 203.0.113.0/24"
    );
}

#[test]
fn s9_a_service_of_which_no_range_can_be_read_is_not_open_to_all() {
    let object = json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.96.0.10", "type": "LoadBalancer",
            "loadBalancerSourceRanges": ["everyone", "fd00::/8"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
    });
    let Converted { object, problems } = convert_service(object);
    assert_eq!(object.unwrap().load_balancer_ips, Vec::<std::net::IpAddr>::new());
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    let wanted = [
        "Service default/web: spec.loadBalancerSourceRanges[0]: \"everyone\" is not a prefix; \
         write address/length, as 203.0.113.0/24",
        "Service default/web: spec.loadBalancerSourceRanges: no range for 203.0.113.1 can be read, \
         so it is not served; mend one, or remove all",
    ];
    assert_eq!(told, wanted);
}

#[test]
fn s10_affinity_has_a_default_timeout_and_bounds() {
    assert_eq!(good(json!({"sessionAffinity": "ClientIP"})).affinity_timeout, Some(10_800));
    let timeout = |seconds: i32| {
        json!({
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        })
    };
    assert_eq!(good(timeout(5)).affinity_timeout, Some(5));
    for seconds in [0, -1, 86_401] {
        let (service, fault) = faulty(timeout(seconds));
        assert_eq!(service.affinity_timeout, Some(10_800));
        assert!(fault.contains("timeoutSeconds") && fault.contains(&seconds.to_string()));
    }
}

#[test]
fn s3_a_health_check_port_needs_a_load_balancer_with_policy_local() {
    let port = |service_type: &str, policy: &str| {
        good(json!({"type": service_type, "externalTrafficPolicy": policy,
            "healthCheckNodePort": 31_000}))
        .health_check_node_port
    };
    assert_eq!(port("LoadBalancer", "Local").map(std::num::NonZero::get), Some(31_000));
    assert_eq!(port("LoadBalancer", "Cluster"), None);
    assert_eq!(port("NodePort", "Local"), None);
}

#[test]
fn a_service_with_one_bad_port_keeps_its_good_ones() {
    for (bad, field, value) in [
        (json!({"name": "bad", "port": 81, "protocol": "DCCP"}), "protocol", "\"DCCP\""),
        (json!({"name": "bad", "port": 0}), "port", "port 0 "),
        (json!({"name": "bad", "port": 65_536}), "port", "65536"),
        (json!({"name": "bad", "port": -1}), "port", "-1"),
        (json!({"name": "bad", "port": 80}), "port", "80/TCP"),
        (json!({"name": "http", "port": 81}), "name", "\"http\""),
    ] {
        let (service, fault) = faulty(json!({"ports": [{"name": "http", "port": 80}, bad]}));
        assert_eq!(service.ports.len(), 1, "{fault}");
        let start = format!("Service default/web: spec.ports[1].{field}: ");
        assert!(fault.starts_with(&start) && fault.contains(value), "{fault}");
    }
}

#[test]
fn the_same_port_may_serve_two_protocols() {
    let service = good(json!({"ports": [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]}));
    assert_eq!(service.ports.len(), 2);
}

#[test]
fn a_bad_node_port_costs_only_itself() {
    let port = json!([{"port": 80, "nodePort": 70_000}]);
    let (service, fault) = faulty(json!({"type": "NodePort", "ports": port}));
    assert_eq!(service.ports[0].node_port, None);
    assert!(fault.contains("spec.ports[0].nodePort: port 70000 is out of range"), "{fault}");
    let port = json!([{"port": 80, "nodePort": 30_080}]);
    let (service, fault) = faulty(json!({ "ports": port }));
    assert_eq!(service.ports[0].node_port, None);
    assert!(fault.contains("type ClusterIP"), "{fault}");
}

#[test]
fn an_address_of_the_wrong_family_is_left_out() {
    let (service, fault) = faulty(json!({"ipFamilies": ["IPv4"], "externalIPs": ["fd00::1"]}));
    assert!(service.external_ips.is_empty());
    assert!(fault.contains("spec.externalIPs[0]: fd00::1 is not an IPv4 address"), "{fault}");
    let (service, _) = faulty(json!({"ipFamilies": ["IPv6"]}));
    assert!(service.cluster_ips.is_empty());
    let (service, _) = faulty(json!({"clusterIPs": ["10.96.0.10", "10.96.0.11"]}));
    assert_eq!(service.cluster_ips.len(), 1);
}

#[test]
fn dual_stack_keeps_the_apis_order() {
    let service = good(json!({
        "clusterIP": "fd00:10:96::a", "clusterIPs": ["fd00:10:96::a", "10.96.0.10"],
        "ipFamilies": ["IPv6", "IPv4"], "externalIPs": ["192.0.2.1", "2001:db8::1"],
    }));
    let families: Vec<_> = service.cluster_ips.iter().map(|ip| Family::of(*ip)).collect();
    assert_eq!(families, [Family::V6, Family::V4]);
    assert_eq!(service.external_ips.len(), 2);
}

#[test]
fn unknown_words_are_told_and_read_as_the_default() {
    for (spec, field) in [
        (json!({"externalTrafficPolicy": "Nearby"}), "spec.externalTrafficPolicy"),
        (json!({"internalTrafficPolicy": "local"}), "spec.internalTrafficPolicy"),
        (json!({"sessionAffinity": "Cookie"}), "spec.sessionAffinity"),
        (json!({"type": "Tunnel"}), "spec.type"),
    ] {
        let (service, fault) = faulty(spec);
        assert_eq!(service, good(json!({})));
        assert!(fault.contains(field), "{fault}");
    }
}

#[test]
fn s1_missing_conditions_mean_ready_serving_and_not_terminating() {
    let slice = converted_slice(json!({})).object.unwrap();
    let endpoint = &slice.endpoints[0];
    assert!(endpoint.ready && endpoint.serving && !endpoint.terminating);
    let conditions = json!({"ready": false, "serving": false, "terminating": true});
    let endpoints = json!([{"addresses": ["10.244.1.2"], "conditions": conditions}]);
    let slice = converted_slice(json!({ "endpoints": endpoints })).object.unwrap();
    let endpoint = &slice.endpoints[0];
    assert!(!endpoint.ready && !endpoint.serving && endpoint.terminating);
}

#[test]
fn s1_only_the_first_address_of_an_endpoint_counts() {
    let endpoints = json!([{"addresses": ["10.244.1.2", "10.244.1.3"]}]);
    let slice = converted_slice(json!({ "endpoints": endpoints })).object.unwrap();
    assert_eq!(addresses(&slice), ["10.244.1.2"]);
}

#[test]
fn s1_slice_ports_without_a_number_are_ignored() {
    let ports = json!([{"name": "a"}, {"name": "b", "port": 0}, {"name": "c", "port": 80}]);
    let Converted { object, problems } = converted_slice(json!({ "ports": ports }));
    assert_eq!(problems, []);
    assert_eq!(object.unwrap().ports.len(), 1);
}

#[test]
fn a_bad_endpoint_is_left_out_and_the_rest_used() {
    for bad in [
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "0.0.0.0",
        "255.255.255.255",
        "fd00::1",
        "::1",
        "web.example.org",
        "10.0.0.300",
        "",
    ] {
        let endpoints = json!([{"addresses": [bad]}, {"addresses": ["10.244.1.3"]}]);
        let Converted { object, problems } = converted_slice(json!({ "endpoints": endpoints }));
        assert_eq!(addresses(&object.unwrap()), ["10.244.1.3"], "{bad}");
        assert_eq!(problems.len(), 1);
        let fault = problems[0].to_string();
        let start = "EndpointSlice default/web-1: endpoints[0].addresses[0]: ";
        assert!(fault.starts_with(start) && fault.contains(bad), "{fault}");
    }
}

#[test]
fn a_thousand_bad_endpoints_are_counted_not_told_one_by_one() {
    let endpoints: Vec<_> = (0..1000).map(|_| json!({"addresses": ["127.0.0.1"]})).collect();
    let problems = converted_slice(json!({ "endpoints": endpoints })).problems;
    assert_eq!(problems.len(), FAULTS_SHOWN + 1);
    assert!(problems[FAULTS_SHOWN].message.starts_with("990 more"));
}

#[test]
fn hints_node_and_pod_are_kept() {
    let endpoints = json!([{
        "addresses": ["10.244.1.2"], "nodeName": "node-1",
        "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node-1"}]},
        "targetRef": {"kind": "Pod", "namespace": "default", "name": "web-0"},
    }]);
    let slice = converted_slice(json!({ "endpoints": endpoints })).object.unwrap();
    let endpoint = &slice.endpoints[0];
    assert_eq!(endpoint.node.as_deref(), Some("node-1"));
    assert_eq!(endpoint.zone_hints, ["a".into()]);
    assert_eq!(endpoint.node_hints, ["node-1".into()]);
    assert_eq!(endpoint.pod.as_ref().unwrap().to_string(), "default/web-0");
}

#[test]
fn s20_a_slice_has_the_time_of_its_change() {
    let annotated = |time: &str| {
        let key = "endpoints.kubernetes.io/last-change-trigger-time";
        let metadata = json!({
            "namespace": "default", "name": "web-1", "annotations": {key: time},
            "labels": {"kubernetes.io/service-name": "web"},
        });
        let Converted { object, problems } = converted_slice(json!({"metadata": metadata}));
        assert_eq!(problems, []);
        object.unwrap().last_change
    };
    let time = annotated("2026-03-01T12:00:00.25Z").unwrap();
    assert_eq!(time.as_millisecond(), 1_772_366_400_250);
    assert_eq!(annotated("yesterday"), None);
}

fn word() -> impl Strategy<Value = Value> {
    let words = prop::sample::select(vec![
        "",
        "None",
        "TCP",
        "UDP",
        "SCTP",
        "Local",
        "Cluster",
        "ClientIP",
        "IPv4",
        "IPv6",
        "FQDN",
        "NodePort",
        "LoadBalancer",
        "ExternalName",
        "10.0.0.1",
        "10.0.0.1/8",
        "fd00::1",
        "::/0",
        "127.0.0.1",
        "VIP",
        "é",
    ]);
    prop_oneof![
        3 => words.prop_map(Value::from),
        1 => ".{0,20}".prop_map(Value::from),
        1 => Just(Value::Null),
    ]
}

fn words() -> impl Strategy<Value = Value> {
    prop::collection::vec(word().prop_filter("no null", |w| !w.is_null()), 0..4)
        .prop_map(Value::from)
}

prop_compose! {
    fn any_spec()(
        texts in prop::collection::vec(word(), 6),
        lists in prop::collection::vec(words(), 4),
        ports in prop::collection::vec((word(), word(), any::<i32>(), any::<Option<i32>>()), 0..4),
        number in any::<Option<i32>>(),
    ) -> Value {
        let ports: Vec<_> = ports.into_iter().map(|(name, protocol, port, node_port)| {
            json!({"name": name, "protocol": protocol, "port": port, "nodePort": node_port})
        }).collect();
        json!({
            "type": texts[0], "clusterIP": texts[1], "sessionAffinity": texts[2],
            "internalTrafficPolicy": texts[3], "externalTrafficPolicy": texts[4],
            "clusterIPs": lists[0], "externalIPs": lists[1], "ipFamilies": lists[2],
            "loadBalancerSourceRanges": lists[3], "ports": ports, "healthCheckNodePort": number,
            "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": number}},
        })
    }
}

proptest! {
    #[test]
    fn no_service_panics_and_what_is_left_is_usable(spec in any_spec(), ip in word()) {
        let Converted { object, .. } = convert_service(json!({
            "metadata": {"name": "a"}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": ip, "ipMode": ip}]}},
        }));
        if let Some(service) = object {
            let ips = service.cluster_ips.iter().chain(&service.external_ips);
            let mut ips = ips.chain(&service.load_balancer_ips);
            prop_assert!(ips.all(|ip| crate::model::is_routable(*ip)));
        }
    }

    #[test]
    fn no_slice_panics_and_its_addresses_are_of_its_family(
        kind in word(), texts in words(), port in any::<Option<i32>>(), protocol in word(),
    ) {
        let kind = if kind.is_null() { json!("") } else { kind };
        let over = json!({
            "addressType": kind, "ports": [{"port": port, "protocol": protocol}],
            "endpoints": [{"addresses": texts}, {"addresses": []}],
        });
        if let Some(slice) = converted_slice(over).object {
            prop_assert!(slice.endpoints.iter().all(|e| Family::of(e.address) == slice.family));
        }
    }
}
