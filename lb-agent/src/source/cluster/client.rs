//! The client of the API server.

use std::path::Path;

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Options;
use crate::source::SourceError;

/// Makes the client; gives the server's address too. Nothing is sent yet.
pub(super) async fn connect(options: &Options) -> Result<(Client, String), SourceError> {
    let mut config = match (&options.kubeconfig, &options.master) {
        (Some(path), _) => from_file(path).await?,
        (None, Some(address)) => at(address)?,
        (None, None) => {
            Config::incluster().map_err(|error| SourceError::InCluster { reason: chain(&error) })?
        }
    };
    if let Some(address) = &options.master {
        config.cluster_url = at(address)?.cluster_url;
    }
    // Failures are told of at once and tried again here, with waits of our own.
    config.default_retry = false;
    let server = config.cluster_url.to_string();
    let server = server.trim_end_matches('/').to_owned();
    let client =
        Client::try_from(config).map_err(|error| SourceError::Client { reason: chain(&error) })?;
    Ok((client, server))
}

async fn from_file(path: &Path) -> Result<Config, SourceError> {
    let unusable = |reason: String| SourceError::Kubeconfig { path: path.to_owned(), reason };
    let file = Kubeconfig::read_from(path).map_err(|error| unusable(chain(&error)))?;
    let options = KubeConfigOptions::default();
    Config::from_custom_kubeconfig(file, &options).await.map_err(|error| unusable(chain(&error)))
}

/// A client's settings for the server at `address`, without credentials.
fn at(address: &str) -> Result<Config, SourceError> {
    let bad = |reason: String| SourceError::Master { address: address.to_owned(), reason };
    let config = Config::new(address.parse().map_err(|error| bad(format!("{error}")))?);
    match config.cluster_url.scheme_str() {
        Some("http" | "https") => Ok(config),
        _ => Err(bad("neither http nor https".into())),
    }
}

/// An error and what it came from.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}
