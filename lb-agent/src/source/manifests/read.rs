//! From a file's text to its objects.
//!
//! Any number of documents, `kind: List` too. A syntax error costs the file, named with line and
//! column; an object that does not fit its kind costs only itself.

use std::{ffi::OsStr, path::Path};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    defaults,
    objects::{Object, ObjectKey, ParsedFile},
    pod,
};
use crate::{
    model::{ObjectName, Problem, ProblemKey},
    source::convert,
};

/// Parses a file; the name's ending tells JSON from YAML.
pub(super) fn parse(path: &str, text: &str) -> Result<ParsedFile, Problem> {
    let documents = match Path::new(path).extension().and_then(OsStr::to_str) {
        Some("json") => json(text),
        _ => yaml(text),
    };
    let documents = documents.map_err(|message| file_problem(path, message))?;
    let mut file = ParsedFile::default();
    for document in documents {
        add(&mut file, path, document);
    }
    Ok(file)
}

/// A problem with a whole file.
pub(super) fn file_problem(path: &str, message: impl Into<String>) -> Problem {
    Problem {
        key: ProblemKey { kind: "file", name: path.into() },
        field: String::new(),
        message: message.into(),
        mend: "mend the file; what it held before stays in force".into(),
    }
}

fn json(text: &str) -> Result<Vec<Value>, String> {
    let documents = serde_json::Deserializer::from_str(text).into_iter();
    documents.collect::<Result<_, serde_json::Error>>().map_err(|error| error.to_string())
}

fn yaml(text: &str) -> Result<Vec<Value>, String> {
    // A folder may hold a whole cluster in one file: the parser's limits against hostile input
    // are lifted where they count objects, and stay where they stop aliases from exploding.
    let mut budget = serde_saphyr::budget::Budget::default();
    budget.max_documents = 1_000_000;
    budget.max_nodes = 200_000_000;
    budget.max_events = 400_000_000;
    let options = serde_saphyr::options! { budget: Some(budget) };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| yaml_message(&error))
}

fn yaml_message(error: &serde_saphyr::Error) -> String {
    let error = error.without_snippet();
    match error.location() {
        Some(at) => {
            let text = error.to_string();
            let text = text.lines().next().unwrap_or_default();
            let text = text.split(" at line ").next().unwrap_or_default();
            format!("line {} column {}: {text}", at.line(), at.column())
        }
        None => error.to_string(),
    }
}

fn add(file: &mut ParsedFile, path: &str, document: Value) {
    let Value::Object(mut fields) = document else {
        if !document.is_null() {
            file.problems.push(file_problem(path, "a document that is no Kubernetes object"));
        }
        return;
    };
    let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    if kind == "List" {
        if let Some(Value::Array(items)) = fields.remove("items") {
            for item in items {
                add(file, path, item);
            }
        }
        return;
    }
    let api = fields.get("apiVersion").and_then(Value::as_str).unwrap_or_default().to_owned();
    let document = Value::Object(fields);
    let name = name(&document, &kind);
    let Some(known) = known_kind(&api, &kind) else {
        file.skipped.push(format!("{kind} {name}"));
        return;
    };
    if name.name.is_empty() {
        file.problems.push(file_problem(path, format!("a {kind} without metadata.name")));
        return;
    }
    let key = ObjectKey { kind: known, name };
    match object(&key, document) {
        Ok(object) => file.objects.push((key, object)),
        Err(problem) => {
            file.problems.push(problem);
            file.unreadable.push(key);
        }
    }
}

fn known_kind(api: &str, kind: &str) -> Option<&'static str> {
    match (api, kind) {
        ("v1", "Node") => Some("Node"),
        ("v1", "Pod") => Some("Pod"),
        ("v1", "Service") => Some("Service"),
        ("discovery.k8s.io/v1", "EndpointSlice") => Some("EndpointSlice"),
        _ => None,
    }
}

fn name(document: &Value, kind: &str) -> ObjectName {
    let text = |field| document.pointer(field).and_then(Value::as_str).filter(|t| !t.is_empty());
    let namespace = match kind {
        "Node" => "",
        _ => text("/metadata/namespace").unwrap_or("default"),
    };
    ObjectName::new(namespace, text("/metadata/name").unwrap_or_default())
}

fn object(key: &ObjectKey, document: Value) -> Result<Object, Problem> {
    let namespace = Some(key.name.namespace.to_string());
    Ok(match key.kind {
        "Node" => Object::Node(convert::node(&typed::<core::Node>(key, document)?).into()),
        "Pod" => Object::Pod(pod::slim(&key.name, &typed(key, document)?).into()),
        "EndpointSlice" => {
            let mut slice: discovery::EndpointSlice = typed(key, document)?;
            slice.metadata.namespace = namespace;
            Object::Slice(convert::slice(&slice).into())
        }
        _ => {
            let mut service: core::Service = typed(key, document)?;
            service.metadata.namespace = namespace;
            defaults::apply(&mut service);
            Object::Service(service.into())
        }
    })
}

fn typed<T: DeserializeOwned>(key: &ObjectKey, document: Value) -> Result<T, Problem> {
    convert::typed(ProblemKey { kind: key.kind, name: key.name.to_string().into() }, document)
}
