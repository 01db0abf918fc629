//! Finds the programs of Kubernetes: `cargo xtask kubernetes` builds them.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The environment variable that names a folder with the programs, as other tools use it too.
const VARIABLE: &str = "KUBEBUILDER_ASSETS";
/// Pins the release that is built.
const GO_MOD: &str = include_str!("../../kubernetes/go.mod");

/// The programs of a control plane, and kube-proxy.
#[derive(Clone, Debug)]
pub struct Programs {
    pub(super) api_server: PathBuf,
    pub(super) controller_manager: PathBuf,
    pub(super) etcd: PathBuf,
    pub(super) kube_proxy: PathBuf,
}

impl Programs {
    /// Finds them in the folder that `KUBEBUILDER_ASSETS` names, else in the cache folder of
    /// `cargo xtask kubernetes`.
    ///
    /// # Errors
    /// Which one is missing where, and what mends it.
    pub fn find() -> Result<Self> {
        let named = env::var_os(VARIABLE).filter(|named| !named.is_empty()).map(PathBuf::from);
        let folder = named.map_or_else(cache, Ok)?;
        Self::inside(&folder)
    }

    fn inside(folder: &Path) -> Result<Self> {
        let program = |name: &str| {
            let path = folder.join(name);
            ensure!(
                path.is_file(),
                "needs {name} in {}: run cargo xtask kubernetes, or set {VARIABLE}",
                folder.display()
            );
            Ok(path)
        };
        Ok(Self {
            api_server: program("kube-apiserver")?,
            controller_manager: program("kube-controller-manager")?,
            etcd: program("etcd")?,
            kube_proxy: program("kube-proxy")?,
        })
    }
}

fn cache() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    let cache = cache.with_context(|| format!("set {VARIABLE}, or HOME for the cache folder"))?;
    let release = release(GO_MOD).context("go.mod pins no release of k8s.io/kubernetes")?;
    Ok(cache.join("lb").join(format!("kubernetes-{release}")))
}

fn release(go_mod: &str) -> Option<&str> {
    let mut lines = go_mod.lines().map(str::trim);
    lines.find_map(|line| line.strip_prefix("k8s.io/kubernetes v")?.split_whitespace().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_one_that_is_built() {
        let go_mod = "require (\n\tk8s.io/kubectl v0.36.3\n\tk8s.io/kubernetes v1.36.3 // x\n)";
        assert_eq!(release(go_mod), Some("1.36.3"));
        assert!(release(GO_MOD).is_some());
    }

    #[test]
    fn a_missing_program_is_named_with_its_folder_and_the_mend() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("kube-apiserver"), "").unwrap();
        let error = Programs::inside(folder.path()).unwrap_err().to_string();
        for part in ["kube-controller-manager", "cargo xtask kubernetes", VARIABLE] {
            assert!(error.contains(part), "{error}");
        }
        assert!(error.contains(&*folder.path().to_string_lossy()), "{error}");
    }
}
