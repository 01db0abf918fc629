//! Programs: loaded, pinned, attached, and exchanged without a packet that misses both.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    programs::{Program, ProgramError},
};
use lb_common::{
    abi::{Device, globals, maps},
    conntrack::Timeouts,
};

use super::{
    TableError, cgroup, clsact,
    map::Map,
    pins::{Pins, PinsError},
    sizes::{self, SizeKept},
    stale::{self, StaleFinder},
    sys::{self, AttachType},
    tables::KernelTables,
};

/// Whose sockets are translated at `connect` and `sendmsg`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum SocketLb {
    /// Sockets of the host and of its pods.
    #[default]
    All,
    /// Sockets of the host alone; pods keep seeing the ClusterIP until the packet path.
    Host,
    /// None.
    Off,
}

/// How packet programs are attached to devices.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, clap::ValueEnum)]
pub enum TcAttach {
    /// By tcx where the kernel has it (Linux 6.6), else by the clsact qdisc.
    #[default]
    Auto,
    /// By the clsact qdisc, as on older kernels.
    Clsact,
}

/// What is fixed while the agent runs.
#[derive(Clone, Debug)]
pub struct KernelOptions {
    /// Folder of pins.
    pub bpffs: PathBuf,
    /// Folder of the cgroup below which sockets are looked at; none to look at none.
    pub cgroup: Option<PathBuf>,
    /// Which of them are translated.
    pub socket_lb: SocketLb,
    /// Are processes of the host kept from binding `NodePort`s?
    pub bind_protection: bool,
    /// How packet programs are attached.
    pub tc_attach: TcAttach,
    /// First and last port that SNAT may use.
    pub snat_ports: (u16, u16),
    /// Are TCP connections to a backend that was removed reset?
    pub reset_tcp: bool,
    /// How long silent flows are remembered.
    pub timeouts: Timeouts,
    /// Entries of each conntrack map.
    pub conntrack_max: u32,
    /// Entries of each affinity map.
    pub affinity_max: u32,
    /// Entries of each frontend map.
    pub max_frontends: u32,
    /// Entries of each backend map.
    pub max_backends: u32,
}

/// Why the programs cannot run here.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A program cannot be attached.
    #[error("attach {program} to {target}: {source}")]
    Attach {
        /// Name of the program.
        program: &'static str,
        /// Device or cgroup.
        target: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup cannot be opened.
    #[error("cgroup {path}: {source}; name the cgroup v2 folder with --cgroup")]
    Cgroup {
        /// The folder.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object cannot be loaded.
    #[error("load the programs: {0}")]
    Load(#[from] EbpfError),
    /// A network namespace without a cookie: a kernel before 5.14.
    #[error("cookie of the network namespace: {0}; Linux 5.15 is needed")]
    NetnsCookie(io::Error),
    /// A pin cannot be made.
    #[error("pin {path}: {source}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The folder of pins cannot be used.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// The verifier refuses a program.
    #[error("program {program}: {source}")]
    Program {
        /// Name of the program.
        program: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },
    /// A map cannot be used.
    #[error(transparent)]
    Table(#[from] TableError),
}

impl KernelError {
    /// Did it fail because the device is no longer there?
    pub fn is_device_gone(&self) -> bool {
        let is_gone = |source: &io::Error| source.raw_os_error() == Some(libc::ENODEV);
        matches!(self, Self::Attach { source, .. } if is_gone(source))
    }
}

/// A program for a hook of devices, and the end of its link's name: egress first, so that no request
/// is translated whose reply would not be.
const PACKET_PROGRAMS: [(&str, AttachType, &str); 2] = [
    ("lb_tc_egress", AttachType::TcxEgress, "egress"),
    ("lb_tc_ingress", AttachType::TcxIngress, "ingress"),
];

/// The programs and maps of a running agent.
pub struct Kernel {
    pins: Pins,
    programs: BTreeMap<&'static str, OwnedFd>,
    clsact: Option<Ebpf>,
    devices: Map<u32, Device>,
    stale: Option<Result<StaleFinder, KernelError>>,
    sizes_kept: Vec<SizeKept>,
}

impl Kernel {
    /// Loads the programs, takes over the maps that are pinned or makes them, and exchanges or
    /// attaches the socket programs. Devices are attached one by one.
    ///
    /// # Errors
    ///
    /// What this kernel or this place does not allow; what ran before goes on running.
    pub fn start(options: &KernelOptions) -> Result<Self, KernelError> {
        let pins = Pins::prepare(&options.bpffs)?;
        let mut ebpf = load(options, &pins)?;
        let mut programs = BTreeMap::new();
        let sockets = cgroup::PROGRAMS.iter().map(|(name, ..)| *name);
        for name in sockets.chain(PACKET_PROGRAMS.iter().map(|(name, ..)| *name)) {
            programs.insert(name, load_program(&mut ebpf, name, &pins)?);
        }
        let devices = Map::open(&pins.maps, maps::DEVICES)?;
        let stale = Some(stale::load(&mut ebpf, &pins));
        let clsact = (options.tc_attach == TcAttach::Clsact || !has_tcx()).then_some(ebpf);
        let sizes_kept = sizes::kept(options, &pins)
            .map_err(|source| KernelError::Pin { path: pins.maps.clone(), source })?;
        let kernel = Self { pins, programs, clsact, devices, stale, sizes_kept };
        cgroup::attach(&kernel.programs, &kernel.pins, options)?;
        Ok(kernel)
    }

    /// The tables for Services.
    ///
    /// # Errors
    ///
    /// If a map has another shape.
    pub fn tables(&self) -> Result<KernelTables, TableError> {
        KernelTables::open(&self.pins.maps)
    }

    /// Maps that an earlier agent made with another size; they keep it.
    pub fn sizes_kept(&self) -> &[SizeKept] {
        &self.sizes_kept
    }

    /// Hands out what walks over sockets and flows, once.
    ///
    /// # Errors
    ///
    /// If this kernel does not take its programs; all else works without.
    pub fn take_stale(&mut self) -> Option<Result<StaleFinder, KernelError>> {
        self.stale.take()
    }

    /// Makes a device known and attaches the packet programs to it, or exchanges them there.
    ///
    /// # Errors
    ///
    /// If the kernel refuses, as for a device that has just gone.
    pub fn attach_device(
        &mut self,
        (ifindex, name): (u32, &str),
        device: &Device,
    ) -> Result<(), KernelError> {
        self.devices.put(&ifindex, device)?;
        for (program, attach_type, end) in PACKET_PROGRAMS {
            let attached = match &mut self.clsact {
                Some(ebpf) => clsact::attach(ebpf, program, (ifindex, name), &self.pins),
                None => self.attach_tcx(program, ifindex, attach_type, end),
            };
            attached.map_err(|source| KernelError::Attach {
                program,
                target: format!("device {name}"),
                source,
            })?;
        }
        // Only then what an earlier agent attached the other way: a packet that meets both is
        // translated once, one that meets neither would be lost.
        if self.clsact.is_some() { self.detach_tcx(ifindex) } else { self.detach_clsact(ifindex) }
    }

    /// Detaches the packet programs from a device and forgets it; one that is gone is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn detach_device(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.detach_tcx(ifindex)?;
        self.detach_clsact(ifindex)?;
        Ok(self.devices.remove(&ifindex)?)
    }

    /// Devices that are known, attached by this agent or an earlier one.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn devices(&self) -> Result<Vec<(u32, Device)>, TableError> {
        self.devices.entries()
    }

    fn attach_tcx(
        &self,
        program: &'static str,
        ifindex: u32,
        attach_type: AttachType,
        end: &str,
    ) -> io::Result<()> {
        let program = self.programs[program].as_fd();
        let path = self.pins.links.join(format!("{ifindex}-{end}"));
        if let Ok(link) = sys::obj_get(&path) {
            // A device with a number that another one had before has no link to exchange.
            if sys::link_info(link.as_fd())?.ifindex == ifindex {
                return sys::link_update(link.as_fd(), program);
            }
            std::fs::remove_file(&path)?;
        }
        sys::obj_pin(sys::link_tcx(program, ifindex, attach_type)?.as_fd(), &path)
    }

    fn detach_tcx(&self, ifindex: u32) -> Result<(), KernelError> {
        PACKET_PROGRAMS
            .iter()
            .try_for_each(|(.., end)| remove_pin(&self.pins.links.join(format!("{ifindex}-{end}"))))
    }

    fn detach_clsact(&self, ifindex: u32) -> Result<(), KernelError> {
        clsact::detach(ifindex, &self.pins).map_err(|source| KernelError::Attach {
            program: "lb_tc_ingress",
            target: format!("device {ifindex}"),
            source,
        })
    }
}

/// The object that holds all programs, as the compiler made it.
pub fn object() -> &'static [u8] {
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/lb"))
}

/// Loads the object, with the maps of the folder where they are pinned already.
fn load(options: &KernelOptions, pins: &Pins) -> Result<Ebpf, KernelError> {
    let netns = sys::netns_cookie().map_err(KernelError::NetnsCookie)?;
    let mark = mark(netns);
    let host_only = u32::from(options.socket_lb == SocketLb::Host);
    let reset_tcp = u32::from(options.reset_tcp);
    let set_retval = u32::from(kernel_at_least((5, 18)));
    let (first, last) = options.snat_ports;
    let timeouts = options.timeouts;
    let (snat_first, snat_count) = (u32::from(first), u32::from(last - first) + 1);
    let mut loader = EbpfLoader::new();
    loader
        .override_global(globals::HOST_NETNS, &netns, true)
        .override_global(globals::MARK, &mark, true)
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
    for name in maps::ALL {
        loader.map_pin_path(name, pins.maps.join(name));
    }
    Ok(loader.load(object())?)
}

/// A mark for packets of this node, not zero, in 16 bits; nodes on one kernel have different ones.
fn mark(netns: u64) -> u32 {
    let mixed = netns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
    u32::try_from(mixed).map_or(1, |mark| mark.max(1))
}

fn load_program(ebpf: &mut Ebpf, name: &'static str, pins: &Pins) -> Result<OwnedFd, KernelError> {
    let load = |program: &mut Program| match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Ok(()),
    };
    load_and_pin(ebpf, name, pins, load)
}

/// Loads a program as `load` says, and pins it in place of the one before.
pub(super) fn load_and_pin(
    ebpf: &mut Ebpf,
    name: &'static str,
    pins: &Pins,
    load: impl FnOnce(&mut Program) -> Result<(), ProgramError>,
) -> Result<OwnedFd, KernelError> {
    let fail = |source| KernelError::Program { program: name, source };
    let program = ebpf.program_mut(name).expect("invariant: the object holds each program");
    load(program).map_err(fail)?;
    let fd = program.fd().map_err(fail)?.as_fd().try_clone_to_owned();
    let path = pins.programs.join(name);
    remove_pin(&path)?;
    let fd = fd.map_err(|source| KernelError::Pin { path: path.clone(), source })?;
    sys::obj_pin(fd.as_fd(), &path).map_err(|source| KernelError::Pin { path, source })?;
    Ok(fd)
}

pub(super) fn remove_pin(path: &Path) -> Result<(), KernelError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(KernelError::Pin { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn has_tcx() -> bool {
    kernel_at_least((6, 6))
}

/// Is the running kernel of this version or a later one?
fn kernel_at_least(wanted: (u32, u32)) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= wanted,
        _ => false,
    }
}
