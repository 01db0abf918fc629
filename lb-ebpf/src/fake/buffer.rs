//! A packet in memory.

use lb_common::{
    abi::{Abi, Address, Counter, L4Proto},
    carrier::{Kind, WORDS},
    checksum::{Difference, fold, sum},
    crc32c,
};

use crate::packet::{Bytes, ETHERNET_HEADER, L4Checksum, Packet};

/// A frame that can be rewritten.
pub(super) struct Buffer(pub(super) Vec<u8>);

impl Buffer {
    fn change_checksum(&mut self, checksum: &L4Checksum, change: Difference) -> Option<()> {
        let old = self.read::<u16>(checksum.offset)?;
        let is_udp = checksum.protocol == L4Proto::UDP;
        if is_udp && old == 0 {
            return Some(());
        }
        let new = change.apply(old);
        let new = if is_udp && new == 0 { 0xffff } else { new };
        self.write(checksum.offset, &new).ok()
    }
}

impl Bytes for Buffer {
    fn read<T: Abi>(&self, offset: usize) -> Option<T> {
        T::from_bytes(self.0.get(offset..offset + size_of::<T>())?)
    }

    fn pull(&mut self, _headers: u32) {}
}

impl Packet for Buffer {
    fn write<T: Abi>(&mut self, offset: usize, value: &T) -> Result<(), Counter> {
        let place = self.0.get_mut(offset..offset + size_of::<T>());
        place.ok_or(Counter::RewriteFailed)?.copy_from_slice(value.as_bytes());
        Ok(())
    }

    fn write_addresses<A: Address>(
        &mut self,
        offset: usize,
        source_and_destination: [A; 2],
    ) -> Result<(), Counter> {
        self.write(offset, &source_and_destination)
    }

    fn repair_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), Counter> {
        [checksum.addresses, checksum.ports]
            .into_iter()
            .try_for_each(|change| self.change_checksum(&checksum, change))
            .ok_or(Counter::RewriteFailed)
    }

    fn crc_change(first_word: u32, length: u16) -> u32 {
        crc32c::change(first_word, length)
    }

    fn fits(&self, mtu: u16) -> bool {
        self.0.len() <= usize::from(mtu) + ETHERNET_HEADER
    }

    fn put_before<A: Address>(
        &mut self,
        headers: &[u32; WORDS],
        kind: Kind,
        _mtu: u16,
    ) -> Result<(), Counter> {
        let headers = headers.as_bytes()[..kind.overhead::<A>()].iter().copied();
        self.0.splice(ETHERNET_HEADER..ETHERNET_HEADER, headers);
        Ok(())
    }

    fn remove_before(&mut self, length: usize) -> Result<(), Counter> {
        self.0.drain(ETHERNET_HEADER..ETHERNET_HEADER + length);
        Ok(())
    }

    fn mark_congested(&mut self) -> bool {
        let packet = &mut self.0[ETHERNET_HEADER..];
        let is_v4 = packet[0] >> 4 == 4;
        let mark = if is_v4 { 3 } else { 3 << 4 };
        if packet[1] & mark == 0 {
            return false;
        }
        packet[1] |= mark;
        if is_v4 {
            packet[10..12].fill(0);
            let length = usize::from(packet[0] & 15) * 4;
            let sum = !fold(sum(&packet[..length]));
            packet[10..12].copy_from_slice(&sum.to_ne_bytes());
        }
        true
    }

    fn resize(&mut self, length: usize) -> Result<(), Counter> {
        self.0.resize(length, 0);
        Ok(())
    }
}
