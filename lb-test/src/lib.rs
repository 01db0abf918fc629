//! Topologies of network namespaces and real programs in them.
