//! Which backends a client may be given again, at each step of a plan.

use lb_common::abi::BackendFlags;

use super::*;

/// Even if nothing but the first steps comes through, no client is sent back to a pod that leaves.
#[test]
fn s10_a_backend_ends_its_affinity_before_a_frontend_leaves_it() {
    for family in FAMILIES {
        let tables = Recording { tables: FakeTables::default(), steps: Vec::new() };
        let mut world = World::new(tables).listed();
        world.slice(web(family, &[1, 2, 3]));
        world.service(Service { affinity_timeout: Some(10), ..service(family, "web", 1) });
        world.reconciler.tables().steps.clear();
        // Pod 1 is terminating, pod 2 is gone.
        let mut changed = web(family, &[1, 3]);
        changed.endpoints[0] = leaving(changed.endpoints[0].clone());
        world.slice(changed);
        let steps = &world.reconciler.tables().steps;
        let frontend = steps.iter().position(|step| matches!(step, Step::PutFrontend(..))).unwrap();
        let ended = steps[..frontend].iter().filter_map(|step| match step {
            Step::PutBackend(_, entry) => Some((entry.address, entry.flags)),
            _ => None,
        });
        let flags = BackendFlags::SERVING.with(BackendFlags::LOCAL);
        let expected = [1, 2].map(|n| (pod(family, n), flags));
        assert_eq!(ended.collect::<BTreeMap<_, _>>(), expected.into());
        let goes = steps.iter().filter(|step| matches!(step, Step::RemoveBackend(_)));
        assert_eq!(goes.count(), 1);
    }
}
