//! Tests against a real Kubernetes API server, whose own controllers make the slices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod follow;
mod health;
mod manifests;
mod migrate;
mod nodes;
mod plan;
mod restart;
