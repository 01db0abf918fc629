//! From what the API server sends to Kubernetes' own types, object by object.
//!
//! An object that does not fit its type must not end the watch that it came by, or nothing that
//! follows would ever be heard of.

use kube::core::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Kind, key};
use crate::{
    model::{Event, ObjectName, Problem},
    source::convert::{self, Converted},
};

/// What became of one object.
#[derive(Debug)]
pub(super) enum Read {
    /// The state to program.
    Applied(Event),
    /// It is not one to program.
    Ignored,
    /// It cannot be read: its last good state stays.
    Unreadable,
}

/// Turns objects of one kind into events.
pub(super) type Convert = Box<dyn Fn(DynamicObject) -> (Read, Vec<Problem>) + Send + Sync>;

/// Reads objects as `K`, and turns what `convert` makes of them into events.
pub(super) fn reads<K: DeserializeOwned + 'static, T: 'static>(
    kind: Kind,
    convert: fn(&K) -> Converted<T>,
    event: fn(T) -> Event,
) -> Convert {
    Box::new(move |object| match parse(kind, object) {
        Ok(object) => {
            let Converted { object, problems } = convert(&object);
            (object.map_or(Read::Ignored, |object| Read::Applied(event(object))), problems)
        }
        Err(problem) => (Read::Unreadable, vec![problem]),
    })
}

/// The name of an object.
pub(super) fn name(object: &DynamicObject) -> ObjectName {
    let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
    ObjectName::new(namespace, object.metadata.name.as_deref().unwrap_or_default())
}

fn parse<K: DeserializeOwned>(kind: Kind, object: DynamicObject) -> Result<K, Problem> {
    let key = key(kind, &name(&object));
    let DynamicObject { metadata, data, .. } = object;
    let mut whole = data;
    whole["metadata"] = json!(metadata);
    convert::typed(key, whole)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use serde_json::Value;

    use super::*;

    fn read(service: Value) -> (Read, Vec<Problem>) {
        let object = serde_json::from_value(service).unwrap();
        reads::<core::Service, _>(Kind::Service, convert::service, Event::ServiceApplied)(object)
    }

    fn service(port: &Value, status: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "a", "name": "b"},
            "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "ports": [port]},
            "status": status,
        })
    }

    #[test]
    fn a_condition_without_a_time_costs_nothing() {
        let status = json!({"conditions": [{"type": "X", "status": "True", "reason": "Y",
            "message": "", "lastTransitionTime": null}]});
        let (read, problems) = read(service(&json!({"port": 80}), &status));
        assert!(matches!(read, Read::Applied(_)), "{read:?}");
        assert_eq!(problems, []);
    }

    #[test]
    fn an_object_that_does_not_fit_its_type_is_named_with_the_field() {
        let (read, problems) = read(service(&json!({"port": "eighty"}), &json!({})));
        assert!(matches!(read, Read::Unreadable));
        let sentence = problems[0].to_string();
        assert!(sentence.starts_with("Service a/b: spec.ports[0].port: "), "{sentence}");
    }
}
