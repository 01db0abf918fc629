//! Programs on their way into the kernel: from the object that the compiler made to pinned programs.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    panic::resume_unwind,
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};
use lb_common::{
    abi::{globals, maps},
    carrier::Kind,
};

use super::{
    kernel::{KernelError, remove_pin},
    options::{KernelOptions, MidFlow, SocketLb},
    pins::Pins,
    sizes, sys,
};

/// The object that holds all programs, as the compiler made it.
pub fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"))
}

/// Loads the object, with the maps of the folder where they are pinned already.
///
/// # Errors
///
/// What this kernel, or a map that is pinned, does not allow.
pub(super) fn load(options: &KernelOptions, pins: &Pins) -> Result<Ebpf, KernelError> {
    let netns = sys::netns_cookie().map_err(KernelError::NetnsCookie)?;
    let mark = mark(netns);
    let host_only = u32::from(options.socket_lb == SocketLb::Host);
    let migrate = u32::from(options.mid_flow == MidFlow::LeftToStack);
    let reset_tcp = u32::from(options.reset_tcp);
    let set_retval = u32::from(kernel_at_least((5, 18)));
    let (first, last) = options.snat_ports;
    let timeouts = options.timeouts;
    let (snat_first, snat_count) = (u32::from(first), u32::from(last - first) + 1);
    let flows = flows(options.conntrack_max);
    let flows_shift = u64::BITS - flows.trailing_zeros();
    let carrier_ipip = u32::from(options.carrier_kind == Kind::Ipip);
    let carrier_port = u32::from(options.carrier_port);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(globals::CARRIER_IPIP, &carrier_ipip, true)
        .override_global(globals::CARRIER_PORT, &carrier_port, true)
        .override_global(globals::FLOWS_SHIFT, &flows_shift, true)
        .override_global(globals::HOST_NETNS, &netns, true)
        .override_global(globals::MARK, &mark, true)
        .override_global(globals::MIGRATE, &migrate, true)
        .override_global(globals::RESET_TCP, &reset_tcp, true)
        .override_global(globals::SET_RETVAL, &set_retval, true)
        .override_global(globals::SNAT_FIRST, &snat_first, true)
        .override_global(globals::SNAT_COUNT, &snat_count, true)
        .override_global(globals::SOCKET_HOST_ONLY, &host_only, true)
        .override_global(globals::CT_TCP_CLOSE_WAIT, &timeouts.tcp_close_wait, true)
        .override_global(globals::CT_TCP_ESTABLISHED, &timeouts.tcp_established, true)
        .override_global(globals::CT_UDP, &timeouts.udp, true)
        .override_global(globals::CT_UDP_STREAM, &timeouts.udp_stream, true);
    for (map, entries) in sizes::sizes(options) {
        loader.map_max_entries(map, entries);
    }
    loader.map_max_entries(maps::FLOWS_V4, flows).map_max_entries(maps::FLOWS_V6, flows);
    for name in maps::ALL {
        loader.map_pin_path(name, pins.maps.join(name));
    }
    Ok(loader.load(object())?)
}

/// Elements of each flow cache: a power of two, up to 16 MiB for IPv4.
fn flows(conntrack_max: u32) -> u32 {
    conntrack_max.next_power_of_two().clamp(1 << 12, 1 << 18)
}

/// A mark for packets of this node, not zero, in 16 bits; nodes on one kernel have different ones.
fn mark(netns: u64) -> u32 {
    let mixed = netns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    u32::try_from(mixed).map_or(1, |mark| mark.max(1))
}

/// Loads programs of the socket path and the packet path, all at once, and pins them: the verifier takes
/// its time with each, and several CPUs.
///
/// # Errors
///
/// If the verifier refuses one, or it cannot be pinned.
pub(super) fn load_programs(
    ebpf: &mut Ebpf,
    names: &[&'static str],
    pins: &Pins,
) -> Result<BTreeMap<&'static str, OwnedFd>, KernelError> {
    thread::scope(|scope| {
        let wanted = ebpf.programs_mut().filter_map(|(found, program)| {
            names.iter().find(|name| **name == found).map(|name| (*name, program))
        });
        let loads = wanted.map(|(name, program)| {
            scope.spawn(move || Ok((name, pin((name, program), pins, load_by_kind)?)))
        });
        let loads: Vec<_> = loads.collect();
        assert_eq!(loads.len(), names.len(), "invariant: the object holds each program");
        let ended = loads.into_iter().map(thread::ScopedJoinHandle::join);
        ended.map(|load| load.unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

/// Loads a program of the socket path or the packet path, and pins it.
///
/// # Errors
///
/// As for [`load_programs`].
pub(super) fn load_program(
    ebpf: &mut Ebpf,
    name: &'static str,
    pins: &Pins,
) -> Result<OwnedFd, KernelError> {
    load_and_pin(ebpf, name, pins, load_by_kind)
}

fn load_by_kind(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Ok(()),
    }
}

/// Loads a program as `load` says, and pins it in place of the one before.
pub(super) fn load_and_pin(
    ebpf: &mut Ebpf,
    name: &'static str,
    pins: &Pins,
    load: impl FnOnce(&mut Program) -> Result<(), ProgramError>,
) -> Result<OwnedFd, KernelError> {
    let program = ebpf.program_mut(name).expect("invariant: the object holds each program");
    pin((name, program), pins, load)
}

fn pin(
    (name, program): (&'static str, &mut Program),
    pins: &Pins,
    load: impl FnOnce(&mut Program) -> Result<(), ProgramError>,
) -> Result<OwnedFd, KernelError> {
    let fail = |source| KernelError::Program { program: name, source };
    load(program).map_err(fail)?;
    let fd = program.fd().map_err(fail)?.as_fd().try_clone_to_owned();
    let path = pins.programs.join(name);
    remove_pin(&path)?;
    let fd = fd.map_err(|source| KernelError::Pin { path: path.clone(), source })?;
    sys::obj_pin(fd.as_fd(), &path).map_err(|source| KernelError::Pin { path, source })?;
    Ok(fd)
}

/// Is the running kernel of this version or a later one?
pub(super) fn kernel_at_least(wanted: (u32, u32)) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => false,
    }
}
