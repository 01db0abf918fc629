//! Session affinity (S10): the backend that a client was given before. For both paths.
//!
//! Only a connection that begins asks and renews; frontends without affinity never come here. What
//! is remembered counts while its backend is in the list that the client chooses from: one that is
//! terminating still serves the flows that it has, and gets no others.

use lb_common::abi::{
    Address, Affinity, AffinityKey, Backend, BackendFlags, Frontend, FrontendFlags,
};

use crate::tables::Backends;

const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;

/// The flag of the backends that a client may be given again.
///
/// `local` says which of the frontend's two regions the client chooses from.
#[inline(always)]
pub fn list(frontend: &Frontend, local: FrontendFlags) -> BackendFlags {
    if frontend.flags.has(local) {
        BackendFlags::AFFINE_LOCAL
    } else {
        BackendFlags::AFFINE_CLUSTER
    }
}

/// Id and backend that a client was given before, if it may be given it again.
#[inline(always)]
pub fn recall<A: Address>(
    backends: &impl Backends<A>,
    frontend: &Frontend,
    client: &AffinityKey,
    list: BackendFlags,
) -> Option<(u32, Backend<A>)> {
    let kept = backends.affinity(client)?.get();
    let timeout = u64::from(frontend.affinity_timeout) * NANOSECONDS_PER_SECOND;
    if backends.nanoseconds() >= kept.last_used.wrapping_add(timeout) {
        return None;
    }
    let backend = backends.backend(kept.backend)?;
    // The Service port is compared, too: the kernel may give the entry to another client meanwhile.
    let is_it = backend.generation == kept.generation
        && backend.service == frontend.service
        && backend.flags.has(list);
    is_it.then_some((kept.backend, backend))
}

/// Notes that a connection of the client has begun with the backend of this id and generation.
#[inline(always)]
pub fn remember<A: Address>(
    backends: &impl Backends<A>,
    client: &AffinityKey,
    (backend, generation): (u32, u32),
) {
    let last_used = backends.nanoseconds();
    if let Some(kept) = backends.affinity(client)
        && (kept.get().backend, kept.get().generation) == (backend, generation)
    {
        return kept.renew(last_used);
    }
    backends.keep(client, &Affinity { backend, generation, last_used });
}

#[cfg(test)]
mod tests {
    use std::{cell::UnsafeCell, ptr::NonNull};

    use lb_common::abi::{Abi, Ipv4};

    use super::*;
    use crate::tables::Ref;

    /// One client's entry, and a backend of Service port 8 under every id.
    struct OneEntry(UnsafeCell<Affinity>);

    impl Backends<Ipv4> for OneEntry {
        fn backend(&self, _id: u32) -> Option<Backend<Ipv4>> {
            let flags = BackendFlags::AFFINE_CLUSTER;
            Some(Backend { service: 8, generation: 1, flags, ..Backend::zeroed() })
        }

        fn affinity(&self, _client: &AffinityKey) -> Option<Ref<Affinity>> {
            // SAFETY: the entry lives as long as the value, which outlives the reference.
            NonNull::new(self.0.get()).map(|entry| unsafe { Ref::new(entry) })
        }

        fn keep(&self, _client: &AffinityKey, _affinity: &Affinity) {}

        fn nanoseconds(&self) -> u64 {
            1
        }
    }

    #[test]
    fn s10_an_entry_that_the_kernel_gave_to_another_client_leads_to_no_other_service() {
        let entry = Affinity { backend: 1, generation: 1, last_used: 1 };
        let entry = OneEntry(UnsafeCell::new(entry));
        for (service, is_kept) in [(7, false), (8, true)] {
            let frontend = Frontend { service, affinity_timeout: 1, ..Frontend::zeroed() };
            let client = AffinityKey::of_netns(service, 5);
            let list = list(&frontend, FrontendFlags::INTERNAL_LOCAL);
            assert_eq!(recall(&entry, &frontend, &client, list).is_some(), is_kept);
        }
    }
}
