//! The `bpf` system calls that the loader library lacks: batches, links by index, link updates.
//!
//! The only unsafe code of the agent. Layouts follow `union bpf_attr` of `include/uapi/linux/bpf.h`.
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes of types and of small buffers")]

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use lb_common::abi::Abi;

const MAP_CREATE: u32 = 0;
const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const MAP_GET_FD_BY_ID: u32 = 14;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_UPDATE_BATCH: u32 = 26;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const ITER_CREATE: u32 = 33;

const MAP_TYPE_ARRAY: u32 = 2;
/// `BPF_F_BEFORE`: ahead of every program that is attached already.
const BEFORE: u32 = 1 << 3;

/// Where a link attaches a program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub(super) enum AttachType {
    /// `BPF_CGROUP_INET4_BIND`.
    Bind4 = 8,
    /// `BPF_CGROUP_INET6_BIND`.
    Bind6 = 9,
    /// `BPF_CGROUP_INET4_CONNECT`.
    Connect4 = 10,
    /// `BPF_CGROUP_INET6_CONNECT`.
    Connect6 = 11,
    /// `BPF_CGROUP_UDP4_SENDMSG`.
    SendMsg4 = 14,
    /// `BPF_CGROUP_UDP6_SENDMSG`.
    SendMsg6 = 15,
    /// `BPF_CGROUP_UDP4_RECVMSG`.
    RecvMsg4 = 19,
    /// `BPF_CGROUP_UDP6_RECVMSG`.
    RecvMsg6 = 20,
    /// `BPF_TRACE_ITER`.
    TraceIter = 28,
    /// `BPF_CGROUP_INET4_GETPEERNAME`.
    GetPeerName4 = 29,
    /// `BPF_CGROUP_INET6_GETPEERNAME`.
    GetPeerName6 = 30,
    /// `BPF_XDP`.
    Xdp = 37,
    /// `BPF_TCX_INGRESS`.
    TcxIngress = 46,
    /// `BPF_TCX_EGRESS`.
    TcxEgress = 47,
}

/// What the kernel says of a map.
#[derive(Clone, Copy, Debug)]
pub(super) struct MapInfo {
    /// Bytes of a key.
    pub(super) key_size: u32,
    /// Bytes of a value.
    pub(super) value_size: u32,
    /// Room for so many entries.
    pub(super) max_entries: u32,
}

/// What the kernel says of a link.
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkInfo {
    /// Interface index of a tcx or XDP link; zero once the device is gone.
    pub(super) ifindex: u32,
    /// Inode of a cgroup link's cgroup; zero once it is gone.
    pub(super) cgroup: u64,
}

#[repr(C, align(8))]
struct Attr([u8; 144]);

impl Attr {
    fn new() -> Self {
        Self([0; 144])
    }

    fn put<T: Abi>(mut self, offset: usize, value: T) -> Self {
        self.0[offset..offset + size_of::<T>()].copy_from_slice(value.as_bytes());
        self
    }

    fn put_fd(self, offset: usize, fd: BorrowedFd<'_>) -> Self {
        self.put(offset, fd.as_raw_fd().cast_unsigned())
    }

    fn put_ptr<T>(self, offset: usize, pointer: *const T) -> Self {
        self.put(offset, pointer as u64)
    }

    fn get_u32(&self, offset: usize) -> u32 {
        u32::from_bytes(&self.0[offset..offset + 4]).expect("invariant: four bytes")
    }

    fn call(&mut self, command: u32) -> io::Result<i64> {
        // SAFETY: the attribute is as long as the size says; each caller puts in pointers that
        // live longer than the call, to as many bytes as the command reads or writes.
        let answer = unsafe {
            libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len() as u32)
        };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
    }

    fn call_for_fd(&mut self, command: u32) -> io::Result<OwnedFd> {
        let fd = self.call(command)?;
        // SAFETY: the command succeeded, so the kernel has made a descriptor for us alone.
        Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Opens what is pinned at a path.
pub(super) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    Attr::new().put_ptr(0, path.as_ptr()).call_for_fd(OBJ_GET)
}

/// Pins a map, a program or a link at a path.
pub(super) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    Attr::new().put_ptr(0, path.as_ptr()).put_fd(8, fd).call(OBJ_PIN).map(drop)
}

/// Opens a map by its id.
pub(super) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    Attr::new().put(0, id).call_for_fd(MAP_GET_FD_BY_ID)
}

/// Creates an array that is not pinned.
pub(super) fn create_array<V: Abi>(name: &str, max_entries: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new()
        .put(0, MAP_TYPE_ARRAY)
        .put(4, size_of::<u32>() as u32)
        .put(8, size_of::<V>() as u32)
        .put(12, max_entries);
    for (index, byte) in name.bytes().take(15).enumerate() {
        attr = attr.put(28 + index, byte);
    }
    attr.call_for_fd(MAP_CREATE)
}

/// Asks what a map is like.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let info = info(map)?;
    Ok(MapInfo {
        key_size: info.get_u32(8),
        value_size: info.get_u32(12),
        max_entries: info.get_u32(16),
    })
}

/// Asks what a link is attached to.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let info = info(link)?;
    // Behind type, id and program id, aligned to 8: cgroup id; or, for tcx and XDP, the interface
    // index.
    let cgroup = u64::from_bytes(&info.0[16..24]).expect("invariant: eight bytes");
    Ok(LinkInfo { ifindex: info.get_u32(16), cgroup })
}

fn info(fd: BorrowedFd<'_>) -> io::Result<Attr> {
    let mut info = Attr::new();
    Attr::new()
        .put_fd(0, fd)
        .put(4, info.0.len() as u32)
        .put_ptr(8, info.0.as_mut_ptr())
        .call(OBJ_GET_INFO_BY_FD)?;
    Ok(info)
}

/// Writes one entry.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let attr = Attr::new().put_fd(0, map).put_ptr(8, key.as_ptr()).put_ptr(16, value.as_ptr());
    { attr }.call(MAP_UPDATE_ELEM).map(drop)
}

/// Reads one entry into `value`, which must have room for what the map holds for all CPUs.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let attr = Attr::new().put_fd(0, map).put_ptr(8, key.as_ptr()).put_ptr(16, value.as_mut_ptr());
    found({ attr }.call(MAP_LOOKUP_ELEM))
}

/// Deletes one entry; false if there was none.
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    found(Attr::new().put_fd(0, map).put_ptr(8, key.as_ptr()).call(MAP_DELETE_ELEM))
}

fn found(answer: io::Result<i64>) -> io::Result<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Writes many entries; the number written, and why it went no further.
pub(super) fn update_batch(
    map: BorrowedFd<'_>,
    keys: &[u8],
    values: &[u8],
    count: u32,
) -> (u32, io::Result<()>) {
    let mut attr = Attr::new()
        .put_ptr(16, keys.as_ptr())
        .put_ptr(24, values.as_ptr())
        .put(32, count)
        .put_fd(36, map);
    let answer = attr.call(MAP_UPDATE_BATCH).map(drop);
    (attr.get_u32(32), answer)
}

/// Reads the next entries of a map. `cursor` is eight bytes that the kernel keeps its place in;
/// `is_first` begins anew. The number read, and whether there are more.
pub(super) fn lookup_batch(
    map: BorrowedFd<'_>,
    (cursor, is_first): (&mut [u8], bool),
    keys: &mut [u8],
    values: &mut [u8],
    count: u32,
) -> io::Result<(u32, bool)> {
    let from = if is_first { std::ptr::null() } else { cursor.as_ptr() };
    let mut attr = Attr::new()
        .put_ptr(0, from)
        .put_ptr(8, cursor.as_mut_ptr())
        .put_ptr(16, keys.as_mut_ptr())
        .put_ptr(24, values.as_mut_ptr())
        .put(32, count)
        .put_fd(36, map);
    match attr.call(MAP_LOOKUP_BATCH) {
        Ok(_) => Ok((attr.get_u32(32), true)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.get_u32(32), false)),
        Err(error) => Err(error),
    }
}

/// Attaches a program to a cgroup (by descriptor) in addition to those that are there.
pub(super) fn link_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let attr = Attr::new().put_fd(0, program).put_fd(4, cgroup).put(8, attach_type as u32);
    { attr }.call_for_fd(LINK_CREATE)
}

/// Attaches a program to a device by tcx: before all others at ingress, behind them at egress.
///
/// So a CNI's programs see addresses of pods alone, in both directions.
pub(super) fn link_tcx(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    let order = if attach_type == AttachType::TcxIngress { BEFORE } else { 0 };
    let attr =
        Attr::new().put_fd(0, program).put(4, ifindex).put(8, attach_type as u32).put(12, order);
    { attr }.call_for_fd(LINK_CREATE)
}

/// Attaches a program to a device by XDP, in its driver or in the stack's own hook, as the flags of
/// `include/uapi/linux/if_link.h` say.
pub(super) fn link_xdp(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let attr = Attr::new().put_fd(0, program).put(4, ifindex).put(8, AttachType::Xdp as u32);
    { attr }.put(12, flags).call_for_fd(LINK_CREATE)
}

/// Makes a program visit the elements of a map, each time that the link is read by [`iterate`].
pub(super) fn link_iterator(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // `union bpf_iter_link_info`, as long as it was in Linux 5.15.
    let info = map.as_raw_fd().cast_unsigned();
    let attr = Attr::new().put_fd(0, program).put(8, AttachType::TraceIter as u32);
    { attr }.put_ptr(16, &raw const info).put(24, size_of::<u32>() as u32).call_for_fd(LINK_CREATE)
}

/// Visits all elements once: reading gives what the program writes of them.
pub(super) fn iterate(link: BorrowedFd<'_>) -> io::Result<std::fs::File> {
    Ok(Attr::new().put_fd(0, link).call_for_fd(ITER_CREATE)?.into())
}

/// Replaces the program of a link; no packet misses both.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    Attr::new().put_fd(0, link).put_fd(4, program).call(LINK_UPDATE).map(drop)
}

/// Waits until every program that runs now has ended (an RCU grace period).
pub(super) fn settle() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: takes numbers only.
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if answer != 0 {
        // A kernel without membarrier: no program runs for as long as this.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// The cookie of the calling thread's network namespace (Linux 5.14).
pub(super) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind(("127.0.0.1", 0))
        .or_else(|_| std::net::UdpSocket::bind(("0.0.0.0", 0)))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to the cookie.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if answer == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// How many values a per-CPU map holds for each key.
pub(super) fn possible_cpus() -> usize {
    std::fs::read_to_string("/sys/devices/system/cpu/possible")
        .ok()
        .and_then(|list| list.trim().rsplit(['-', ',']).next()?.parse::<usize>().ok())
        .map_or(1, |last| last + 1)
}

/// Nanoseconds of `CLOCK_MONOTONIC`, by which programs tell the time.
pub(super) fn monotonic() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value of the type that the call writes.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}
