//! The file named by `--config`: YAML whose keys are the flags' names in camelCase.
//!
//! It becomes flags that are added behind the given ones, so that a value is checked and explained
//! in the same way wherever it comes from.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::kube_proxy;

/// What a file sets.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct FileSettings {
    /// Long names of flags, without dashes, and the values for each; in the file's order of names.
    pub flags: Vec<(String, Vec<String>)>,
    /// Fields of a `KubeProxyConfiguration` that mean nothing here.
    pub ignored: Vec<String>,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It can't be read.
    #[error("config file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// It is no YAML.
    #[error("config file {path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and column.
        message: String,
    },
    /// A key is no setting.
    #[error("config file {path}: unknown key {key}; known keys are {}", known.join(", "))]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// Keys that could be meant.
        known: Vec<String>,
    },
    /// A value has an impossible shape.
    #[error("config file {path}: {key} must be one value or a list of values")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its key.
        key: String,
    },
}

/// Reads a file; `flags` are the long names that it may set.
///
/// # Errors
///
/// The file can't be read, is no YAML, or sets what is no setting.
pub fn read(path: &Path, flags: &[String]) -> Result<FileSettings, FileError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| FileError::Read { path: path.to_owned(), source })?;
    parse(path, &text, flags)
}

fn parse(path: &Path, text: &str, flags: &[String]) -> Result<FileSettings, FileError> {
    let Some(fields) = mapping(path, text)? else {
        return Ok(FileSettings::default());
    };
    if fields.get("kind").and_then(Value::as_str) == Some(kube_proxy::KIND) {
        return Ok(kube_proxy::settings(&fields));
    }
    let mut settings = FileSettings::default();
    for (key, value) in &fields {
        let flag = flags.iter().find(|flag| camel_case(flag) == *key).ok_or_else(|| {
            let known = flags.iter().map(|flag| camel_case(flag)).collect();
            FileError::UnknownKey { path: path.to_owned(), key: key.clone(), known }
        })?;
        let values = values(value)
            .ok_or_else(|| FileError::Shape { path: path.to_owned(), key: key.clone() })?;
        if !values.is_empty() {
            settings.flags.push((flag.clone(), values));
        }
    }
    Ok(settings)
}

/// The top of the document; none if it is empty.
fn mapping(path: &Path, text: &str) -> Result<Option<Map<String, Value>>, FileError> {
    let syntax = |message: String| FileError::Syntax { path: path.to_owned(), message };
    // `socketLb: off` is a word, not a truth value.
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    let value: Option<Value> = serde_saphyr::from_str_with_options(text, options)
        .map_err(|error| syntax(error.to_string().lines().next().unwrap_or_default().to_owned()))?;
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields)),
        Some(_) => Err(syntax("expected key: value lines".to_owned())),
    }
}

/// The texts of a value: none for null, one for a scalar.
pub(super) fn values(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(list) => list.iter().map(scalar).collect(),
        Value::Null => Some(Vec::new()),
        Value::Object(_) => None,
        one => Some(vec![scalar(one)?]),
    }
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(value) => Some(value.to_string()),
        Value::String(value) => Some(value.clone()),
        Value::Array(_) | Value::Null | Value::Object(_) => None,
    }
}

/// `node-port` becomes `nodePort`.
fn camel_case(flag: &str) -> String {
    let mut words = flag.split('-');
    let first = words.next().unwrap_or_default().to_owned();
    words.fold(first, |mut key, word| {
        let mut letters = word.chars();
        key.extend(letters.next().map(|letter| letter.to_ascii_uppercase()));
        key.push_str(letters.as_str());
        key
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<FileSettings, FileError> {
        let flags = ["conntrack-max", "device", "socket-lb"].map(str::to_owned);
        parse(Path::new("/x.yaml"), text, &flags)
    }

    fn flag(name: &str, values: &[&str]) -> (String, Vec<String>) {
        (name.to_owned(), values.iter().map(|&value| value.to_owned()).collect())
    }

    #[test]
    fn scalars_lists_and_words_become_flags() {
        let settings = parsed("conntrackMax: 1000\ndevice: [eth0, eth1]\nsocketLb: off\n").unwrap();
        let expected = [
            flag("conntrack-max", &["1000"]),
            flag("device", &["eth0", "eth1"]),
            flag("socket-lb", &["off"]),
        ];
        assert_eq!(settings.flags, expected);
    }

    #[test]
    fn an_empty_file_sets_nothing() {
        assert_eq!(parsed("").unwrap(), FileSettings::default());
        assert_eq!(parsed("# nothing\n").unwrap(), FileSettings::default());
        assert_eq!(parsed("device: null\n").unwrap(), FileSettings::default());
    }

    #[test]
    fn an_unknown_key_is_named() {
        let error = parsed("socketLB: off\n").unwrap_err().to_string();
        assert!(error.starts_with("config file /x.yaml: unknown key socketLB;"), "{error}");
        assert!(error.contains("socketLb"), "{error}");
    }

    #[test]
    fn a_wrong_shape_and_a_wrong_syntax_are_told_apart() {
        assert!(matches!(parsed("device: {a: b}\n"), Err(FileError::Shape { .. })));
        let error = parsed("device: [a\n").unwrap_err();
        assert!(matches!(error, FileError::Syntax { .. }), "{error}");
        assert!(matches!(parsed("- a\n"), Err(FileError::Syntax { .. })));
    }

    #[test]
    fn a_kube_proxy_configuration_is_read_for_what_it_shares() {
        let settings = parsed(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
             mode: ipvs\nbindAddress: 0.0.0.0\nclientConnection:\n  kubeconfig: /k\n  qps: 5\n\
             hostnameOverride: ''\nhealthzBindAddress: 0.0.0.0:10256\nnodePortAddresses: null\n\
             ipvs: {}\n",
        )
        .unwrap();
        let expected =
            [flag("kubeconfig", &["/k"]), flag("healthz-bind-address", &["0.0.0.0:10256"])];
        assert_eq!(settings.flags, expected);
        assert_eq!(settings.ignored, ["bindAddress", "clientConnection.qps", "mode"]);
    }

    #[test]
    fn who_is_local_is_read_from_a_kube_proxy_configuration() {
        let text = "kind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16,fd00:244::/56\n\
             detectLocalMode: InterfaceNamePrefix\ndetectLocal:\n  bridgeInterface: ''\n  \
             interfaceNamePrefix: cali\niptables:\n  masqueradeAll: true\nnftables:\n  \
             masqueradeAll: false\n";
        let settings = parsed(text).unwrap();
        let expected = |all| {
            [
                flag("cluster-cidr", &["10.244.0.0/16,fd00:244::/56"]),
                flag("pod-interface-name-prefix", &["cali"]),
                flag("detect-local-mode", &["InterfaceNamePrefix"]),
                flag("masquerade-all", &[all]),
            ]
        };
        assert_eq!(settings.flags, expected("true"));
        assert_eq!(settings.ignored, [""; 0]);
        let nftables = parsed(&format!("{text}mode: nftables\n")).unwrap();
        assert_eq!(nftables.flags, expected("false"));
    }
}
