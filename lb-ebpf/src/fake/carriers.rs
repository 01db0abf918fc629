//! What carriers ask of fakes: backends of this node, and what packets are carried in.

use lb_common::{
    abi::{Backend, BackendFlags, BePort, Target},
    carrier::Kind,
};

use super::{FakeBench, FakeTables, FromIp};
use crate::path::carrier::Targets;

impl FakeBench {
    /// Has packets carried by IPIP.
    pub(crate) fn carry_by_ipip(&mut self) {
        (self.v4.carrier_kind, self.v6.carrier_kind) = (Kind::Ipip, Kind::Ipip);
    }
}

impl<A: FromIp> Targets<A> for FakeTables<A> {
    fn target(&self, target: &Target<A>) -> Option<u32> {
        let is_it = |backend: &Backend<A>| {
            (target.port == BePort(0) || target.port == backend.port)
                && (target.address, target.service) == (backend.address, backend.service)
                && backend.flags.has(BackendFlags::LOCAL)
        };
        self.backends.iter().filter(|(_, backend)| is_it(backend)).map(|(id, _)| *id).min()
    }
}
