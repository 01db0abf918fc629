//! A packet as bytes that can be read, written, and repaired.

use lb_common::{
    abi::{Abi, Address, Counter, L4Proto},
    carrier::{Kind, WORDS},
    checksum::Difference,
};

/// Bytes of an Ethernet header.
pub const ETHERNET_HEADER: usize = 14;
/// Offset of the EtherType.
pub const ETHERTYPE_OFFSET: usize = 12;
/// Bytes of a UDP header.
pub const UDP_HEADER: usize = 8;

/// What headers are read from.
pub trait Bytes {
    /// Reads a value at `offset`; `None` beyond the end.
    fn read<T: Abi>(&self, offset: usize) -> Option<T>;

    /// Makes the first bytes readable, as many of these as there are.
    fn pull(&mut self, headers: u32);
}

/// A packet at a hook, from its Ethernet header on.
pub trait Packet: Bytes {
    /// Writes a value at `offset`.
    ///
    /// # Errors
    ///
    /// [`Counter::RewriteFailed`] beyond the end.
    fn write<T: Abi>(&mut self, offset: usize, value: &T) -> Result<(), Counter>;

    /// Writes source and destination address at `offset`, and repairs what the device summed.
    ///
    /// # Errors
    ///
    /// [`Counter::RewriteFailed`] beyond the end.
    fn write_addresses<A: Address>(
        &mut self,
        offset: usize,
        source_and_destination: [A; 2],
    ) -> Result<(), Counter>;

    /// Repairs the checksum of a TCP or UDP header.
    ///
    /// # Errors
    ///
    /// [`Counter::RewriteFailed`] beyond the end.
    fn repair_l4_checksum(&mut self, checksum: L4Checksum) -> Result<(), Counter>;

    /// As [`lb_common::crc32c::change`]: a long piece of work, which programs keep in a function of its own.
    fn crc_change(first_word: u32, length: u16) -> u32;

    /// May it be sent by a device that takes so many bytes from the IP header on?
    fn fits(&self, mtu: u16) -> bool;

    /// Puts the headers of a carrier, of the packet's own family, before its IP header; TCP that is cut later
    /// is cut into shorter pieces for that. Link-layer addresses may be lost.
    ///
    /// # Errors
    ///
    /// [`Counter::PacketTooBig`] for datagrams that are cut later, and each is longer than `mtu`;
    /// [`Counter::RewriteFailed`] if the kernel refuses.
    fn put_before<A: Address>(
        &mut self,
        headers: &[u32; WORDS],
        kind: Kind,
        mtu: u16,
    ) -> Result<(), Counter>;

    /// Removes `length` bytes behind the Ethernet header.
    ///
    /// # Errors
    ///
    /// [`Counter::RewriteFailed`] if the kernel refuses.
    fn remove_before(&mut self, length: usize) -> Result<(), Counter>;

    /// Marks a packet as one that met congestion (RFC 3168, section 5); false if its ends know no such mark.
    fn mark_congested(&mut self) -> bool;

    /// Makes the packet `length` bytes long, from the Ethernet header on.
    ///
    /// # Errors
    ///
    /// [`Counter::RewriteFailed`] if the kernel refuses.
    fn resize(&mut self, length: usize) -> Result<(), Counter>;
}

/// A change to be made to the checksum of a TCP or UDP header.
#[derive(Clone, Copy, Debug)]
pub struct L4Checksum {
    /// Where the checksum stands.
    pub offset: usize,
    /// TCP or UDP; a UDP checksum of zero means none (RFC 768) and stays.
    pub protocol: L4Proto,
    /// Change of the addresses: part of the pseudo-header.
    pub addresses: Difference,
    /// Change of the ports: part of the header itself.
    pub ports: Difference,
}
