//! Applies, changes and deletes objects of one namespace through an API server.

use std::path::Path;

use anyhow::{Context, Result};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::Value;

/// The name under which fields are owned.
const MANAGER: &str = "lb-test";
/// Kinds that no namespace holds.
const CLUSTER_KINDS: [&str; 4] = ["ClusterRole", "ClusterRoleBinding", "Namespace", "Node"];

/// A client for the objects of one namespace.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    namespace: String,
}

impl Objects {
    /// Makes a client with a kubeconfig; it works on runtimes that can reach the server.
    ///
    /// # Errors
    /// When the kubeconfig can't be read.
    pub async fn connect(kubeconfig: &Path, namespace: &str) -> Result<Self> {
        let file = Kubeconfig::read_from(kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(file, &options).await?;
        Ok(Self { client: Client::try_from(config)?, namespace: namespace.to_owned() })
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Applies each document of a manifest, with its status; an object whose `deletionTimestamp`
    /// is set is deleted then, and stays as terminating where something holds it.
    ///
    /// # Errors
    /// With the first object that the server refuses.
    pub async fn apply(&self, manifest: &str) -> Result<()> {
        let documents: Vec<Value> = serde_saphyr::from_multiple(manifest).context("manifest")?;
        for document in documents {
            self.apply_document(document).await?;
        }
        Ok(())
    }

    /// The Events about an object of the namespace, as `events.k8s.io/v1` has them.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn events(&self, kind: &str, name: &str) -> Result<Vec<Value>> {
        let list = self.api("events.k8s.io/v1", "Event").list(&ListParams::default()).await?;
        let events = list.items.into_iter().map(|event| event.data);
        let about = |event: &Value| {
            let regarding = &event["regarding"];
            regarding["kind"] == kind && regarding["name"] == name
        };
        Ok(events.filter(about).collect())
    }

    /// Deletes an object: at once, or a Pod of a node as a kubelet that never answers does it,
    /// which leaves it terminating.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.delete_with(kind, name, &DeleteParams::background()).await
    }

    /// Deletes a Pod as its kubelet does when the last process has ended.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn finish_pod(&self, name: &str) -> Result<()> {
        self.delete_with("Pod", name, &DeleteParams::background().grace_period(0)).await
    }

    /// Merges `change` into an object.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn merge(&self, kind: &str, name: &str, change: &Value) -> Result<()> {
        let api = self.api(api_version(kind), kind);
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(change)).await;
        patched.map(drop).with_context(|| format!("change {kind} {name}"))
    }

    /// Merges `change` into the status of an object.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn merge_status(&self, kind: &str, name: &str, change: &Value) -> Result<()> {
        let api = self.api(api_version(kind), kind);
        let change = Patch::Merge(serde_json::json!({ "status": change }));
        let patched = api.patch_status(name, &PatchParams::default(), &change).await;
        patched.map(drop).with_context(|| format!("change status of {kind} {name}"))
    }

    async fn apply_document(&self, mut document: Value) -> Result<()> {
        let text = |pointer: &str| {
            let value = document.pointer(pointer).and_then(Value::as_str);
            value.map(str::to_owned).with_context(|| format!("no {pointer} in {document}"))
        };
        let (version, kind) = (text("/apiVersion")?, text("/kind")?);
        let name = text("/metadata/name")?;
        let metadata = document.get_mut("metadata").and_then(Value::as_object_mut);
        let ends = metadata.is_some_and(|fields| fields.remove("deletionTimestamp").is_some());
        let status = document.as_object_mut().and_then(|fields| fields.remove("status"));
        let api = self.api(&version, &kind);
        let parameters = PatchParams::apply(MANAGER).force();
        let applied = api.patch(&name, &parameters, &Patch::Apply(&document)).await;
        applied.with_context(|| format!("apply {kind} {name}"))?;
        if let Some(status) = status {
            self.merge_status(&kind, &name, &status).await?;
        }
        if ends {
            self.delete(&kind, &name).await?;
        }
        Ok(())
    }

    async fn delete_with(&self, kind: &str, name: &str, how: &DeleteParams) -> Result<()> {
        let api = self.api(api_version(kind), kind);
        let deleted = api.delete(name, how).await;
        deleted.map(drop).with_context(|| format!("delete {kind} {name}"))
    }

    fn api(&self, api_version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let client = self.client.clone();
        if CLUSTER_KINDS.contains(&kind) {
            Api::all_with(client, &resource)
        } else {
            Api::namespaced_with(client, &self.namespace, &resource)
        }
    }
}

fn api_version(kind: &str) -> &'static str {
    match kind {
        "ClusterRole" | "ClusterRoleBinding" => "rbac.authorization.k8s.io/v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        _ => "v1",
    }
}
