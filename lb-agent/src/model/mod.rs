//! Services, endpoints and nodes as this program means them: parsed, so no invalid state is left.
//!
//! The sources (a cluster, a folder) turn Kubernetes objects into these types; `desired` reads
//! nothing else. Not for: anything that decides what the kernel holds.

mod endpoints;
mod event;
mod forwarding;
mod name;
mod service;
mod store;

pub use self::{
    endpoints::{Endpoint, EndpointSlice, Node, SlicePort},
    event::{Event, Problem, ProblemKey},
    forwarding::{DsrDispatch, Forwarding},
    name::{Family, ObjectName, Protocol, is_routable},
    service::{Service, ServicePort, ServiceType, TrafficPolicy},
    store::{Change, Model},
};
