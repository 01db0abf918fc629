//! How packets of clients outside come to endpoints on other nodes.

use lb_common::carrier::Kind;

use super::Protocol;

/// How packets of clients outside come to endpoints on other nodes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum Forwarding {
    /// By SNAT, and back by this node.
    #[default]
    Snat,
    /// Carried to the endpoint's node, which answers the client itself.
    Dsr,
    /// TCP as by dsr, all else as by snat.
    Hybrid,
}

impl Forwarding {
    /// Is a protocol's traffic carried?
    pub const fn carries(self, protocol: Protocol) -> bool {
        match self {
            Self::Dsr => true,
            Self::Hybrid => matches!(protocol, Protocol::Tcp),
            Self::Snat => false,
        }
    }
}

/// What packets are carried in.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum DsrDispatch {
    /// UDP, to one port: any two backends differ.
    #[default]
    Gue,
    /// IP alone, with more room for the packet.
    Ipip,
}

impl DsrDispatch {
    /// The same as programs know it.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Gue => Kind::Gue,
            Self::Ipip => Kind::Ipip,
        }
    }
}
