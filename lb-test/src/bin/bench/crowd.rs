//! Many known flows, sent in turn: none is seen twice within the reach of the processor's caches.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use lb_test::Family;

use crate::cases::{Case, family_name};
use crate::cluster::CROWD;
use crate::frame::{ACK, Flow};
use crate::harness::Input;
use crate::lab::{Hook, Lab};

/// The number of the last one.
const LAST: u16 = u16::MAX;
/// Odd numbers, whose multiples pass all flows in an order that no prefetcher guesses.
const STEP: u16 = 40_503;
const OTHER_STEP: u16 = 25_717;

/// Opens the flows, and ages the tables: entries that were written in the order in which they are read
/// would flatter them.
pub(crate) fn open(lab: &Lab<'_>, family: Family) -> Result<Case> {
    let base = lab.connection(family, CROWD);
    let flow = |port| Flow { src: (client(base.src.0), port), ..base };
    for number in 0..=LAST {
        let flow = flow(number.wrapping_mul(STEP));
        let inside = lab.open_flow(flow)?;
        ensure!(inside.src.0 != flow.src.0, "{flow:?} becomes {inside:?}");
    }
    for number in 0..=LAST {
        lab.go_on(flow(number.wrapping_mul(OTHER_STEP)))?;
    }
    let input = Input { flows: u32::from(LAST) + 1, ..lab.input(base.frame(ACK)) };
    let name = format!("XDP, 65,536 known flows in turn, SNAT {}", family_name(family));
    Ok(Case::new(name, Hook::Xdp, input, (None, 3.6)))
}

/// The address that the harness makes of a client's.
fn client(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let [a, b, _, d] = address.octets();
            [a, b, 0, d].into()
        }
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[14] = 0;
            octets.into()
        }
    }
}
