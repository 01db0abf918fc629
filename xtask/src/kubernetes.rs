//! Builds the parts of Kubernetes that tests run against, and keeps them outside `target`.
//!
//! What is built, and in which version, stands in `lb-test/kubernetes/go.mod`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command;

/// The environment variable that names a folder with the programs, as other tools use it too.
pub(crate) const VARIABLE: &str = "KUBEBUILDER_ASSETS";

/// A program and its Go package.
const PROGRAMS: [(&str, &str); 4] = [
    ("etcd", "./etcd"),
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
];
/// The file that says which versions a folder holds; written last.
const STAMP: &str = "versions";

/// Builds what is missing and prints the folder.
pub(crate) fn run() -> Result<()> {
    println!("{VARIABLE}={}", provide()?.display());
    Ok(())
}

/// Returns the folder with the programs, after building them if need be.
pub(crate) fn provide() -> Result<PathBuf> {
    if let Some(folder) = ready()? {
        return Ok(folder);
    }
    let versions = Versions::pinned()?;
    let folder = versions.folder();
    if command::find("go").is_none() {
        bail!("go is missing; install Go 1.21 or newer, or set {VARIABLE} to a folder of programs");
    }
    println!("{versions}: building into {}, once; takes minutes", folder.display());
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let is_right =
        fs::read_to_string(folder.join(STAMP)).is_ok_and(|of| of == versions.to_string());
    let is_there = |name: &str| is_right && folder.join(name).is_file();
    for (name, package) in PROGRAMS.into_iter().filter(|(name, _)| !is_there(name)) {
        build(name, package, &versions)?;
    }
    fs::write(folder.join(STAMP), versions.to_string()).context("write the versions built")?;
    Ok(folder)
}

/// Returns the folder with the programs if nothing has to be built.
pub(crate) fn ready() -> Result<Option<PathBuf>> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        let folder = PathBuf::from(named);
        if let Some((name, _)) = PROGRAMS.iter().find(|(name, _)| !folder.join(name).is_file()) {
            bail!("{VARIABLE}={} holds no {name}", folder.display());
        }
        return Ok(Some(folder));
    }
    let versions = Versions::pinned()?;
    let folder = versions.folder();
    let stamp = fs::read_to_string(folder.join(STAMP)).unwrap_or_default();
    let complete = PROGRAMS.iter().all(|(name, _)| folder.join(name).is_file());
    Ok((complete && stamp == versions.to_string()).then_some(folder))
}

/// Builds one program beside its place, then moves it there: a broken build leaves nothing behind.
fn build(name: &str, package: &str, versions: &Versions) -> Result<()> {
    let place = versions.folder().join(name);
    let unfinished = place.with_extension(format!("{}.new", std::process::id()));
    println!("building {name}");
    let mut go = command::program("nice");
    go.args(["-n", "10", "go", "build", "-trimpath", "-buildvcs=false", "-ldflags"])
        .arg(versions.link_flags())
        .arg("-o")
        .arg(&unfinished)
        .arg(package)
        .env("CGO_ENABLED", "1")
        .current_dir(module());
    command::run(&mut go)?;
    fs::rename(&unfinished, &place).with_context(|| format!("create {}", place.display()))
}

fn module() -> PathBuf {
    command::top().join("lb-test/kubernetes")
}

/// The releases that go.mod pins, without the leading `v`.
#[derive(Debug, PartialEq, Eq)]
struct Versions {
    kubernetes: String,
    etcd: String,
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kubernetes {}, etcd {}", self.kubernetes, self.etcd)
    }
}

impl Versions {
    fn pinned() -> Result<Self> {
        let path = module().join("go.mod");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("{} pins no release", path.display()))
    }

    fn parse(go_mod: &str) -> Option<Self> {
        let version = |module: &str| {
            go_mod.lines().find_map(|line| {
                let mut words = line.split_whitespace();
                let version = (words.next() == Some(module)).then(|| words.next())??;
                version.strip_prefix('v').map(str::to_owned)
            })
        };
        Some(Self {
            kubernetes: version("k8s.io/kubernetes")?,
            etcd: version("go.etcd.io/etcd/server/v3")?,
        })
    }

    fn folder(&self) -> PathBuf {
        let cache = command::home_folder("XDG_CACHE_HOME", ".cache");
        cache.join("lb").join(Path::new(&format!("kubernetes-{}", self.kubernetes)))
    }

    /// Tells the programs their release: the API server refuses to start without one.
    fn link_flags(&self) -> String {
        let mut numbers = self.kubernetes.split('.');
        let (major, minor) = (numbers.next().unwrap_or("0"), numbers.next().unwrap_or("0"));
        let package = "k8s.io/component-base/version";
        format!(
            "-s -w -X {package}.gitVersion=v{} -X {package}.gitMajor={major} \
             -X {package}.gitMinor={minor}",
            self.kubernetes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_require_lines() {
        let go_mod =
            "require (\n\tgo.etcd.io/etcd/server/v3 v3.6.8\n\tk8s.io/kubernetes v1.36.3\n)\n";
        let versions = Versions::parse(go_mod).unwrap();
        assert_eq!(versions.to_string(), "Kubernetes 1.36.3, etcd 3.6.8");
        assert!(versions.link_flags().contains("gitMinor=36"), "{}", versions.link_flags());
    }

    #[test]
    fn the_module_of_this_project_pins_both() {
        assert!(Versions::pinned().is_ok());
    }
}
