//! Datagrams whose fragments overtake each other on their way to a node, as on links that spread packets by
//! ports, which only the first one has: they arrive whole.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};

use lb_ebpf::cases::frame::{Frame, Transport, fragments};
use lb_test::manifests::cluster_ips;
use lb_test::{Family, Host, PATIENT, SocketLb, eventually};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::wire::{Wire, mac};
use crate::{BACKENDS, Cluster, echo_services, with_xdp};

/// Bytes behind the IP header of a fragment: as many as fit a carrier.
const PIECE: usize = 1200;
const PORT: u16 = 43000;
/// Datagrams whose fragments are sent at once.
const AT_ONCE: usize = 2000;

/// Agents on both nodes.
fn cluster(arguments: &[&str]) -> Cluster {
    let cluster = Cluster::without_agents(SocketLb::Off, &echo_services());
    let cluster = cluster.with_agents(&["node1", "node2"], arguments);
    cluster.route_services();
    for name in BACKENDS {
        cluster.pod(name).complete_checksums("eth0").unwrap();
    }
    cluster
}

/// Sends datagrams to node1 in fragments, as if from the hosts that they name.
struct Sender {
    wire: Wire,
    macs: [[u8; 6]; 2],
    id: u16,
}

impl Sender {
    fn new(cluster: &Cluster) -> Self {
        let fabric = cluster.fabric();
        let macs = [mac(cluster.node("node1"), "eth0"), mac(fabric, "br0")];
        Self { wire: Wire::open(fabric, "br0"), macs, id: 0x4000 }
    }

    /// The fragments of one, which has an identification of its own.
    fn pieces(&mut self, [src, dst]: [SocketAddr; 2], payload: &[u8]) -> Vec<Vec<u8>> {
        let (options, payload) = (Vec::new(), payload.to_vec());
        let (macs, transport) = (self.macs, Transport::Udp);
        self.id += 1;
        let frame = Frame { macs, src, dst, class: 0, ttl: 64, options, transport, payload };
        fragments(&frame, self.id, PIECE)
    }

    /// Sends one; `order` makes the order of its fragments another one.
    fn send(&mut self, ends: [SocketAddr; 2], payload: &[u8], order: fn(&mut [Vec<u8>])) {
        let mut pieces = self.pieces(ends, payload);
        order(&mut pieces);
        for piece in pieces {
            self.wire.send(&piece);
        }
    }
}

/// Sends datagrams to node1, the first fragment of each and the others from two CPUs at the same moment; the
/// next one after `answered`.
fn send_at_once(fabric: &Host, datagrams: &[Vec<Vec<u8>>], mut answered: impl FnMut(usize)) {
    // One more with each datagram that is asked for, and that the other is ready to send.
    let (asked, ready) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _end = End(&ready);
            let wire = Wire::open(fabric, "br0");
            stay_on(1);
            for (number, pieces) in datagrams.iter().enumerate() {
                ready.fetch_add(1, Ordering::Relaxed);
                wait_for(&asked, number + 1);
                pieces[1..].iter().for_each(|piece| wire.send(piece));
            }
        });
        let _end = End(&asked);
        let wire = Wire::open(fabric, "br0");
        let cpus = sched_getaffinity(Pid::from_raw(0)).unwrap();
        stay_on(0);
        for (number, pieces) in datagrams.iter().enumerate() {
            wait_for(&ready, number + 1);
            asked.fetch_add(1, Ordering::Relaxed);
            wire.send(&pieces[0]);
            answered(number);
        }
        sched_setaffinity(Pid::from_raw(0), &cpus).unwrap();
    });
}

/// Lets who waits for a counter go on when its owner ends, or fails.
struct End<'a>(&'a AtomicUsize);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(usize::MAX / 2, Ordering::Relaxed);
    }
}

fn wait_for(counter: &AtomicUsize, number: usize) {
    while counter.load(Ordering::Relaxed) < number {
        std::hint::spin_loop();
    }
}

/// Has this thread run on one of the CPUs that it may run on; what it sends is received there, too.
fn stay_on(number: usize) {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this).unwrap();
    let mut cpus = (0..CpuSet::count()).filter(|cpu| all.is_set(*cpu).unwrap());
    let mut one = CpuSet::new();
    one.set(cpus.nth(number).expect("two CPUs")).unwrap();
    sched_setaffinity(this, &one).unwrap();
}

/// The first one last, and behind one other.
const ORDERS: [fn(&mut [Vec<u8>]); 2] = [|pieces| pieces.reverse(), |pieces| pieces.swap(0, 1)];

fn payload(size: usize) -> Vec<u8> {
    (0..size).map(|at| b'a' + u8::try_from(at % 26).unwrap()).collect()
}

/// A socket of the client's, on the port that the last one may still have in a process that is just being
/// started.
fn listen(client: &Host, family: Family) -> UdpSocket {
    let bind = || Ok(UdpSocket::bind(client.socket(family, PORT))?);
    let socket = client.enter(|| eventually(PATIENT, "free port", bind)).unwrap();
    socket.set_read_timeout(Some(PATIENT)).unwrap();
    socket
}

/// The next datagram: from whom, and what it says.
#[track_caller]
fn next(socket: &UdpSocket) -> (SocketAddr, String) {
    let mut buffer = [0; 1 << 14];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    (from, String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// Asks by datagrams of two and three fragments; each is answered whole.
#[track_caller]
fn ask_all(cluster: &Cluster, sender: &mut Sender, names: &[(u8, &str)]) {
    let client = cluster.outside();
    for family in Family::BOTH {
        let socket = listen(client, family);
        for (number, name) in names {
            let node_port = cluster.node("node1").socket(family, 30000 + u16::from(*number));
            for to in [node_port, cluster_ips(*number).socket(family, 80)] {
                for (size, order) in
                    [2000, 4000].into_iter().flat_map(|size| ORDERS.map(|order| (size, order)))
                {
                    let asked = payload(size);
                    sender.send([client.socket(family, PORT), to], &asked, order);
                    let (from, answer) = next(&socket);
                    assert_eq!(from, to);
                    assert!(answer.starts_with(name), "{to}: {answer}");
                    assert!(answer.as_bytes().ends_with(&asked), "{to}: {answer}");
                }
            }
        }
    }
}

/// All that waited at a node went on, and more did not than could.
#[track_caller]
fn assert_none_lost(cluster: &Cluster) {
    assert!(cluster.counted("fragment_held") > 0);
    assert_eq!(cluster.counted("fragment_held"), cluster.counted("fragment_released"));
    for agent in &cluster.agents {
        let counters = agent.status().unwrap()["counters"].clone();
        assert_eq!(counters["fragment_out_of_order"], 0);
    }
}

fn near_and_far(_: SocketLb) {
    let cluster = cluster(&[]);
    let (node, client) = (cluster.node("node1"), cluster.outside());
    let mut sender = Sender::new(&cluster);
    ask_all(&cluster, &mut sender, &[(1, "web-1"), (2, "web-2"), (3, "web-3")]);
    // Under SNAT also the answers of another node.
    for family in Family::BOTH {
        let (socket, to) = (listen(client, family), node.socket(family, 30002));
        socket.send_to(b"?", to).unwrap();
        let (_, answer) = next(&socket);
        let (_, rest) = answer.split_once(':').unwrap();
        let (seen, _) = rest.rsplit_once(':').unwrap();
        let seen = seen.parse::<SocketAddr>().unwrap();
        assert_eq!(seen.ip(), node.ip(family));
        for order in ORDERS {
            sender.send([cluster.pod("web-2").socket(family, 5353), seen], &payload(4000), order);
            let (from, answer) = next(&socket);
            assert_eq!((from, answer.as_bytes()), (to, &payload(4000)[..]));
        }
        // And what is the node's own, by its stack.
        let own = node.enter(|| UdpSocket::bind(node.socket(family, PORT)).unwrap()).unwrap();
        own.set_read_timeout(Some(PATIENT)).unwrap();
        for order in ORDERS {
            let ends = [client.socket(family, PORT), node.socket(family, PORT)];
            sender.send(ends, &payload(4000), order);
            assert_eq!(next(&own).1.as_bytes(), payload(4000));
        }
    }
    for family in Family::BOTH {
        let (socket, to) = (listen(client, family), node.socket(family, 30001));
        let ends = [client.socket(family, PORT), to];
        let asked = |number| [format!("{number} ").into_bytes(), payload(2000)].concat();
        let datagrams: Vec<_> =
            (0..AT_ONCE).map(|number| sender.pieces(ends, &asked(number))).collect();
        send_at_once(cluster.fabric(), &datagrams, |number| {
            let (_, answer) = next(&socket);
            assert!(answer.as_bytes().ends_with(&asked(number)), "{number}: {answer}");
        });
    }
    assert_none_lost(&cluster);
}

#[test]
fn datagrams_out_of_order_arrive_whole_by_the_packet_path() {
    lb_test::require_topology!();
    near_and_far(SocketLb::Off);
}

#[test]
fn datagrams_out_of_order_arrive_whole_with_xdp() {
    lb_test::require_topology!();
    with_xdp(near_and_far);
}

#[test]
fn datagrams_out_of_order_arrive_whole_by_direct_server_return() {
    lb_test::require_topology!();
    let cluster = cluster(&["--forwarding=dsr"]);
    ask_all(&cluster, &mut Sender::new(&cluster), &[(2, "web-2")]);
    assert_none_lost(&cluster);
}
