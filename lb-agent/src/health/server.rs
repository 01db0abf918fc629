//! The two HTTP servers: health for load balancers and the kubelet, metrics for people.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing,
};
use jiff::{Timestamp, fmt::temporal::DateTimePrinter};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::{Health, Metrics, Probe, listen::listener};
use crate::config::BindAddress;

/// The running servers; they end when this is dropped.
#[derive(Debug, Default)]
pub struct Servers {
    tasks: Vec<JoinHandle<()>>,
    /// Where `/healthz` is served, if it is.
    pub healthz: Option<SocketAddr>,
    /// Where `/metrics` is served, if it is.
    pub metrics: Option<SocketAddr>,
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Begins to serve. A port that can't be had is logged, and the agent goes on without.
pub fn serve(
    healthz: BindAddress,
    metrics: BindAddress,
    health: &Health,
    numbers: &Arc<Metrics>,
) -> Servers {
    let health_routes = Router::new()
        .route("/healthz", routing::get(healthz_answer))
        .route("/livez", routing::get(livez_answer))
        .with_state((health.clone(), Arc::clone(numbers)));
    let metric_routes = Router::new()
        .route("/proxyMode", routing::get(|| async { "ebpf" }))
        .route("/healthz", routing::get(|| async { "ok" }))
        .route("/metrics", routing::get(metrics_answer))
        .with_state(Arc::clone(numbers));
    let mut servers = Servers::default();
    servers.healthz = servers.start("healthz-bind-address", healthz, health_routes);
    servers.metrics = servers.start("metrics-bind-address", metrics, metric_routes);
    servers
}

impl Servers {
    fn start(&mut self, flag: &str, wanted: BindAddress, routes: Router) -> Option<SocketAddr> {
        let BindAddress::Listen(address) = wanted else { return None };
        let listening = listener(address).and_then(|listener| {
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
        match listening {
            Ok((listener, address)) => {
                self.tasks.push(tokio::spawn(async move {
                    if let Err(error) = axum::serve(listener, routes).await {
                        tracing::error!(%error, %address, "serve HTTP");
                    }
                }));
                Some(address)
            }
            Err(error) => {
                tracing::error!(
                    "listen on {address}: {error}; going on without it: stop what uses the port \
                     (kube-proxy?) or set --{flag}"
                );
                None
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
}

type Probed = State<(Health, Arc<Metrics>)>;

async fn healthz_answer(State((health, metrics)): Probed) -> impl IntoResponse {
    let verdict = health.verdict(Timestamp::now());
    let status = status(verdict.live && verdict.node_eligible);
    metrics.answered(Probe::Healthz, status.as_u16());
    answer(status, verdict.last_updated, Some(verdict.node_eligible))
}

async fn livez_answer(State((health, metrics)): Probed) -> impl IntoResponse {
    let verdict = health.verdict(Timestamp::now());
    let status = status(verdict.live);
    metrics.answered(Probe::Livez, status.as_u16());
    answer(status, verdict.last_updated, None)
}

fn status(is_well: bool) -> StatusCode {
    if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn answer(
    status: StatusCode,
    last_updated: Timestamp,
    node_eligible: Option<bool>,
) -> impl IntoResponse {
    let time = |time: Timestamp| DateTimePrinter::new().timestamp_to_string(&time);
    let body = Answer {
        last_updated: time(last_updated),
        current_time: time(Timestamp::now()),
        node_eligible,
    };
    let headers = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, headers, axum::Json(body))
}

async fn metrics_answer(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], metrics.text())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::{super::tests::request, *};

    const ANY: &str = "127.0.0.1:0";

    fn started(health: &Health) -> Servers {
        let any = BindAddress::parse(ANY).unwrap();
        serve(any, any, health, &Arc::new(Metrics::default()))
    }

    #[tokio::test]
    async fn a_node_that_leaves_fails_healthz_and_not_livez() {
        let health = Health::default();
        health.updated();
        let servers = started(&health);
        let address = servers.healthz.unwrap();
        let answer = request(address, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("\"nodeEligible\":true"), "{answer}");
        health.set_node_eligible(false);
        assert!(request(address, "/healthz").await.starts_with("HTTP/1.1 503"));
        let answer = request(address, "/livez").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("lastUpdated") && !answer.contains("nodeEligible"), "{answer}");
        let metrics = request(servers.metrics.unwrap(), "/metrics").await;
        for line in [
            "lb_proxy_healthz_total{code=\"200\"} 1\n",
            "lb_proxy_healthz_total{code=\"503\"} 1\n",
            "lb_proxy_livez_total{code=\"200\"} 1\n",
        ] {
            assert!(metrics.contains(line), "{line} is not in\n{metrics}");
        }
    }

    #[tokio::test]
    async fn metrics_and_the_proxy_mode_are_served() {
        let servers = started(&Health::default());
        let address = servers.metrics.unwrap();
        assert!(request(address, "/metrics").await.contains("lb_problems 0"));
        assert!(request(address, "/proxyMode").await.ends_with("ebpf"));
    }

    #[tokio::test]
    async fn a_taken_port_costs_that_server_alone() {
        let holder = TcpListener::bind(ANY).await.unwrap();
        let taken = BindAddress::Listen(holder.local_addr().unwrap());
        let any = BindAddress::parse(ANY).unwrap();
        let servers = serve(taken, any, &Health::default(), &Arc::new(Metrics::default()));
        assert_eq!(servers.healthz, None);
        assert!(request(servers.metrics.unwrap(), "/proxyMode").await.contains("200 OK"));
    }

    #[tokio::test]
    async fn the_unspecified_address_serves_both_families() {
        let both = BindAddress::parse(":0").unwrap();
        let servers = serve(both, BindAddress::Off, &Health::default(), &Arc::default());
        let port = servers.healthz.unwrap().port();
        for address in
            [SocketAddr::from(([127, 0, 0, 1], port)), format!("[::1]:{port}").parse().unwrap()]
        {
            assert!(request(address, "/livez").await.contains("200 OK"), "{address}");
        }
    }
}
