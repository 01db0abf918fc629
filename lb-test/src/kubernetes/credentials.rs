//! Who may talk to the API server, and how they know it: tokens, certificates, kubeconfigs.

use std::fs::{self, File};
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::address::Family;
use crate::host::Host;
use crate::wait::try_eventually;

/// The user who may do everything.
pub(super) const ADMIN: &str = "admin";
/// A user who is known and may do nothing.
const LIMITED: &str = "limited";
/// How long the API server takes to write its certificate.
const CERTIFICATE: Duration = Duration::from_secs(30);

/// A folder of files.
#[derive(Debug)]
pub(super) struct Credentials {
    folder: PathBuf,
    server: SocketAddr,
}

impl Credentials {
    /// Makes the folder, with an administrator and the key that signs service accounts' tokens.
    pub(super) fn create(host: &Host, port: u16) -> Result<Self> {
        let folder = host.directory().join("kubernetes");
        fs::create_dir(&folder).with_context(|| format!("create {}", folder.display()))?;
        let credentials = Self { folder, server: host.socket(Family::V4, port) };
        let key = credentials.account_key();
        let curve = ["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"];
        host.run("openssl", &[&curve[..], &[&key.to_string_lossy()]].concat())?;
        credentials.add_line(&format!("{0},{ADMIN},{ADMIN},system:masters", token(ADMIN)))?;
        credentials.add_user(LIMITED)?;
        credentials.kubeconfig(ADMIN, port)?;
        Ok(credentials)
    }

    /// Gives `user` a token and no rights; the server reads it when it starts.
    pub(super) fn add_user(&self, user: &str) -> Result<()> {
        self.add_line(&format!("{},{user},{user}", token(user)))
    }

    /// The file of tokens and their users.
    pub(super) fn tokens(&self) -> PathBuf {
        self.folder.join("tokens.csv")
    }

    /// The key that signs service accounts' tokens.
    pub(super) fn account_key(&self) -> PathBuf {
        self.folder.join("account.key")
    }

    /// The folder where the API server makes its certificate.
    pub(super) fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    pub(super) fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig_path(ADMIN, self.server.port())
    }

    /// Writes the kubeconfig of `user`, known or not, for the server at `port`.
    pub(super) fn kubeconfig(&self, user: &str, port: u16) -> Result<PathBuf> {
        let path = self.kubeconfig_path(user, port);
        let server = format!("https://{}", SocketAddr::new(self.server.ip(), port));
        let cluster = json!({"server": server, "certificate-authority": self.certificate()});
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token(user)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        });
        fs::write(&path, config.to_string())
            .with_context(|| format!("write {}", path.display()))?;
        Ok(path)
    }

    /// Waits until the certificate that the kubeconfigs name is there, whole.
    pub(super) fn trust_server(&self) -> Result<()> {
        let path = self.certificate();
        try_eventually(CERTIFICATE, "certificate of the API server", || {
            let text = fs::read_to_string(&path)?;
            text.trim_end().ends_with("-----END CERTIFICATE-----").then_some(()).context("half")
        })
    }

    fn kubeconfig_path(&self, user: &str, port: u16) -> PathBuf {
        self.folder.join(format!("{user}-{port}.kubeconfig"))
    }

    fn certificate(&self) -> PathBuf {
        self.certificates().join("apiserver.crt")
    }

    fn add_line(&self, line: &str) -> Result<()> {
        let path = self.tokens();
        let append = |path: &Path| File::options().create(true).append(true).open(path);
        let written = append(&path).and_then(|mut file| writeln!(file, "{line}"));
        written.with_context(|| format!("write {}", path.display()))
    }
}

/// The HTTP header of an administrator's request.
pub(super) fn admin_header() -> String {
    format!("Authorization: Bearer {}", token(ADMIN))
}

fn token(user: &str) -> String {
    format!("token-of-{user}")
}
