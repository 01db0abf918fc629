//! The servers of Services' health check ports (S3): a load balancer in front learns of each node
//! whether it has endpoints of its own.
//!
//! A port is closed, its connections with it, before any is opened; each connection is for one
//! answer. Not for: which ports there are and what they count (`desired`).

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr, SocketAddr},
    num::NonZeroU16,
    time::Duration,
};

use tokio::{net::TcpListener, time::Instant};

use super::{Health, listen::listener, served::Served};
use crate::{
    desired::HealthCheck,
    model::{ObjectName, Problem, ProblemKey},
};

/// All health check ports of this node.
#[derive(Debug)]
pub struct HealthPorts {
    health: Health,
    addresses: BTreeSet<IpAddr>,
    wanted: BTreeMap<ObjectName, HealthCheck>,
    open: BTreeMap<ObjectName, Open>,
    /// Those to look at, because something changed or failed.
    dirty: BTreeSet<ObjectName>,
    failed_at: Option<Instant>,
}

/// A port that is open, and where.
#[derive(Debug)]
struct Open {
    port: NonZeroU16,
    addresses: BTreeSet<IpAddr>,
    served: Served,
}

impl HealthPorts {
    /// No ports yet; they will be on all addresses.
    pub fn new(health: Health) -> Self {
        Self {
            health,
            addresses: BTreeSet::from([Ipv6Addr::UNSPECIFIED.into()]),
            wanted: BTreeMap::new(),
            open: BTreeMap::new(),
            dirty: BTreeSet::new(),
            failed_at: None,
        }
    }

    /// Has all ports on these addresses alone; the unspecified one of IPv6 is all of both families.
    pub fn listen_at(&mut self, addresses: BTreeSet<IpAddr>) {
        if self.addresses != addresses {
            self.addresses = addresses;
            self.dirty.extend(self.wanted.keys().cloned());
        }
    }

    /// What a Service has is another one now, and the tables say so too.
    pub fn want(&mut self, service: ObjectName, check: Option<HealthCheck>) {
        match check {
            Some(check) => self.wanted.insert(service.clone(), check),
            None => self.wanted.remove(&service),
        };
        self.dirty.insert(service);
    }

    /// Endpoints of a Service have gone, though the tables do not say so yet.
    pub fn lower(&mut self, service: &ObjectName, check: &HealthCheck) {
        if let Some(open) = self.open.get(service) {
            open.served.lower(check);
        }
    }

    /// When what failed is to be tried again.
    pub fn retry_at(&self, after: Duration) -> Option<Instant> {
        self.failed_at.map(|failed_at| failed_at + after)
    }

    /// Closes and opens what is to be; gives what is wrong with each Service that it looked at.
    pub async fn settle(&mut self) -> Vec<(ObjectName, Option<Problem>)> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.is_empty() {
            return Vec::new();
        }
        for service in &dirty {
            self.close_unless_right(service).await;
        }
        dirty.into_iter().map(|service| (service.clone(), self.open(service))).collect()
    }

    /// Marks what failed, to be looked at again.
    pub fn retry(&mut self) {
        self.failed_at = None;
        let open = &self.open;
        let missing = self.wanted.keys().filter(|service| !open.contains_key(*service));
        self.dirty.extend(missing.cloned());
    }

    async fn close_unless_right(&mut self, service: &ObjectName) {
        let port = self.wanted.get(service).map(|check| check.port);
        let is_right = |open: &Open| Some(open.port) == port && open.addresses == self.addresses;
        if !self.open.get(service).is_some_and(is_right)
            && let Some(open) = self.open.remove(service)
        {
            open.served.close().await;
            tracing::debug!(%service, port = open.port, "health check port closed");
        }
    }

    fn open(&mut self, service: ObjectName) -> Option<Problem> {
        let check = self.wanted.get(&service)?;
        if let Some(open) = self.open.get(&service) {
            open.served.set(check);
            return None;
        }
        match self.listen(check.port) {
            Ok(listeners) => {
                let served = Served::start(&service, check, &self.health, listeners);
                tracing::debug!(%service, port = check.port, "health check port opened");
                let addresses = self.addresses.clone();
                self.open.insert(service, Open { port: check.port, addresses, served });
                None
            }
            Err(message) => {
                self.failed_at = Some(Instant::now());
                Some(problem(&service, message))
            }
        }
    }

    /// Listens on all addresses, or on none.
    fn listen(&self, port: NonZeroU16) -> Result<Vec<TcpListener>, String> {
        if let Some((owner, _)) = self.open.iter().find(|(_, open)| open.port == port) {
            return Err(format!("{port} is served for Service {owner} already"));
        }
        let listen = |address: &IpAddr| {
            let address = SocketAddr::new(*address, port.get());
            listener(address).map_err(|error| format!("listen on {address}: {error}"))
        };
        self.addresses.iter().map(listen).collect()
    }
}

fn problem(service: &ObjectName, message: String) -> Problem {
    Problem {
        key: ProblemKey { kind: "Service", name: service.to_string().into() },
        field: "spec.healthCheckNodePort".to_owned(),
        message,
        mend: "stop what uses the port, or make the Service anew with another; load balancers \
               take this node for one without endpoints until then"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::request, *};
    use crate::model::Family;

    fn name(name: &str) -> ObjectName {
        ObjectName::new("shop", name)
    }

    fn check(port: u16, v4: usize, v6: usize) -> HealthCheck {
        let local_endpoints = BTreeMap::from([(Family::V4, v4), (Family::V6, v6)]);
        HealthCheck { port: port.try_into().unwrap(), local_endpoints }
    }

    fn ports() -> HealthPorts {
        let health = Health::default();
        health.updated();
        HealthPorts::new(health)
    }

    /// A port that nothing uses at this moment.
    fn free_port() -> u16 {
        std::net::TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
    }

    fn v4(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn v6(port: u16) -> SocketAddr {
        (Ipv6Addr::LOCALHOST, port).into()
    }

    async fn settle(ports: &mut HealthPorts) -> Vec<String> {
        let found = ports.settle().await.into_iter();
        found.filter_map(|(_, problem)| Some(problem?.to_string())).collect()
    }

    #[tokio::test]
    async fn s3_the_answer_is_kube_proxys_to_the_letter() {
        let (mut ports, port) = (ports(), free_port());
        ports.want(name("web"), Some(check(port, 2, 0)));
        assert_eq!(settle(&mut ports).await, [""; 0]);
        let answer = request(v4(port), "/any/path").await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        for line in [
            "Content-Type: application/json",
            "X-Content-Type-Options: nosniff",
            "X-Load-Balancing-Endpoint-Weight: 2",
        ] {
            assert!(head.lines().any(|found| found == line), "{line} is not in\n{head}");
        }
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(body, expected);
        let answer = request(v6(port), "/").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "no endpoint of this family: {answer}");
        assert!(answer.contains("\"localEndpoints\": 0,"), "{answer}");
    }

    #[tokio::test]
    async fn s3_an_agent_that_is_stuck_fails_each_check() {
        // Its first sync is never done.
        let health = Health::stuck_since(Duration::from_secs(61));
        let (mut ports, port) = (HealthPorts::new(health), free_port());
        ports.want(name("web"), Some(check(port, 2, 2)));
        settle(&mut ports).await;
        let answer = request(v4(port), "/").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(
            answer.contains("\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": false"),
            "{answer}"
        );
    }

    #[tokio::test]
    async fn s3_a_node_that_leaves_is_no_matter_of_a_health_check() {
        let (mut ports, port) = (ports(), free_port());
        ports.health.set_node_eligible(false);
        ports.want(name("web"), Some(check(port, 1, 1)));
        settle(&mut ports).await;
        assert!(request(v4(port), "/").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn s3_ports_change_and_go_and_leave_no_listener() {
        let (mut ports, first, second) = (ports(), free_port(), free_port());
        ports.want(name("a"), Some(check(first, 1, 1)));
        settle(&mut ports).await;
        // The two swap what they hold: each must be closed before the other is opened.
        ports.want(name("b"), Some(check(second, 1, 1)));
        settle(&mut ports).await;
        ports.want(name("a"), Some(check(second, 1, 1)));
        ports.want(name("b"), Some(check(first, 1, 1)));
        assert_eq!(settle(&mut ports).await, [""; 0]);
        assert!(request(v4(first), "/").await.contains("\"name\": \"b\""));
        assert!(request(v4(second), "/").await.contains("\"name\": \"a\""));
        ports.want(name("a"), None);
        ports.want(name("b"), None);
        settle(&mut ports).await;
        for port in [first, second] {
            assert!(std::net::TcpStream::connect(v4(port)).is_err(), "closed");
            assert!(std::net::TcpListener::bind(v6(port)).is_ok(), "free");
        }
    }

    #[tokio::test]
    async fn s3_a_count_goes_down_before_the_tables_are_written_but_not_up() {
        let (mut ports, port) = (ports(), free_port());
        ports.want(name("web"), Some(check(port, 2, 2)));
        settle(&mut ports).await;
        ports.lower(&name("web"), &check(port, 1, 3));
        let both = [request(v4(port), "/").await, request(v6(port), "/").await];
        assert!(both[0].contains("\"localEndpoints\": 1"), "{}", both[0]);
        assert!(both[1].contains("\"localEndpoints\": 2"), "{}", both[1]);
    }

    #[tokio::test]
    async fn s3_a_taken_port_is_a_problem_until_it_is_free() {
        let holder = std::net::TcpListener::bind("[::]:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        let mut ports = ports();
        ports.want(name("web"), Some(check(port, 1, 1)));
        let told = settle(&mut ports).await;
        let start = format!(
            "Service shop/web: spec.healthCheckNodePort: listen on [::]:{port}: Address already in use"
        );
        assert!(told.len() == 1 && told[0].starts_with(&start), "{told:?}");
        drop(holder);
        assert!(ports.retry_at(Duration::ZERO).is_some());
        ports.retry();
        assert_eq!(settle(&mut ports).await, [""; 0]);
        assert!(ports.retry_at(Duration::ZERO).is_none());
        assert!(request(v4(port), "/").await.contains("200 OK"));
    }

    #[tokio::test]
    async fn s3_a_port_that_failed_is_tried_again_whatever_changes_elsewhere() {
        let holder = std::net::TcpListener::bind("[::]:0").unwrap();
        let (mut ports, other) = (ports(), free_port());
        let port = holder.local_addr().unwrap().port();
        ports.want(name("web"), Some(check(port, 1, 1)));
        assert_eq!(settle(&mut ports).await.len(), 1);
        ports.want(name("other"), Some(check(other, 1, 1)));
        assert_eq!(settle(&mut ports).await, [""; 0]);
        assert!(ports.retry_at(Duration::ZERO).is_some(), "nobody would come back to it");
        ports.want(name("web"), None);
        ports.retry();
        assert_eq!(settle(&mut ports).await, [""; 0]);
        assert!(ports.retry_at(Duration::ZERO).is_none());
    }

    #[tokio::test]
    async fn s3_of_two_services_with_one_port_the_second_waits_for_the_first() {
        let (mut ports, port) = (ports(), free_port());
        ports.want(name("b"), Some(check(port, 1, 1)));
        settle(&mut ports).await;
        ports.want(name("a"), Some(check(port, 1, 1)));
        let told = settle(&mut ports).await;
        assert!(
            told[0].contains(&format!("{port} is served for Service shop/b already")),
            "{told:?}"
        );
        ports.want(name("b"), None);
        settle(&mut ports).await;
        ports.retry();
        assert_eq!(settle(&mut ports).await, [""; 0]);
        assert!(request(v4(port), "/").await.contains("\"name\": \"a\""));
    }

    #[tokio::test]
    async fn s3_named_addresses_alone_answer() {
        let (mut ports, port) = (ports(), free_port());
        ports.want(name("web"), Some(check(port, 1, 1)));
        settle(&mut ports).await;
        ports.listen_at(BTreeSet::from(["127.0.0.7".parse().unwrap()]));
        settle(&mut ports).await;
        assert!(request(([127, 0, 0, 7], port).into(), "/").await.contains("200 OK"));
        for address in [v4(port), v6(port)] {
            assert!(std::net::TcpStream::connect(address).is_err(), "{address}");
        }
    }
}
