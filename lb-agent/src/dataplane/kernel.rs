//! Programs: attached, and exchanged without a packet that misses both.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{Ebpf, EbpfError, programs::ProgramError};
use lb_common::abi::{Device, DeviceFlags, maps};

use super::{
    TableError, cgroup, clsact,
    control::{ControlMap, FlowCache},
    filter::Writes,
    load::{kernel_at_least, load, load_program, load_programs},
    map::Map,
    options::{KernelOptions, TcAttach},
    pins::{Pins, PinsError},
    sizes::{self, SizeKept},
    stale::{self, StaleFinder},
    sys::{self, AttachType},
    tables::KernelTables,
    xdp::{Xdp, XdpHook},
};

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
    /// The number of the system call's error.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Attach { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }

    /// Did it fail because the device is no longer there?
    pub fn is_device_gone(&self) -> bool {
        self.errno() == Some(libc::ENODEV)
    }
}

/// A program for a hook of devices, and the end of its link's name: egress first, so that no request
/// is translated whose reply would not be.
type PacketPrograms = [(&'static str, AttachType, &'static str); 2];
const PACKET_PROGRAMS: PacketPrograms = [
    ("lb_tc_egress", AttachType::TcxEgress, "egress"),
    ("lb_tc_ingress", AttachType::TcxIngress, "ingress"),
];
/// The same for devices whose packets begin with the IP header; loaded when there is one.
const IP_PROGRAMS: PacketPrograms = [
    ("lb_ip_egress", AttachType::TcxEgress, "egress"),
    ("lb_ip_ingress", AttachType::TcxIngress, "ingress"),
];

/// The programs and maps of a running agent.
pub struct Kernel {
    pins: Pins,
    programs: BTreeMap<&'static str, OwnedFd>,
    xdp: Xdp,
    /// Where programs come from, those too that are loaded when a device asks for them.
    ebpf: Ebpf,
    uses_clsact: bool,
    devices: Map<u32, Device>,
    control: ControlMap,
    writes: Arc<Writes>,
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
        let sockets = cgroup::PROGRAMS.iter().map(|(name, ..)| *name);
        let names: Vec<_> = sockets.chain(PACKET_PROGRAMS.iter().map(|(name, ..)| *name)).collect();
        let programs = load_programs(&mut ebpf, &names, &pins)?;
        let devices = Map::open(&pins.maps, maps::DEVICES)?;
        let control = ControlMap::open(&pins.maps)?;
        let writes = Arc::default();
        let stale = Some(stale::load(&mut ebpf, &pins, &writes));
        let uses_clsact = options.tc_attach == TcAttach::Clsact || !has_tcx();
        let xdp = Xdp::new(options.xdp, &pins)?;
        for (name, ..) in IP_PROGRAMS {
            remove_pin(&pins.programs.join(name))?;
        }
        let sizes_kept = sizes::kept(options, &pins)?;
        let kernel = Self {
            pins,
            programs,
            xdp,
            ebpf,
            uses_clsact,
            devices,
            control,
            writes,
            stale,
            sizes_kept,
        };
        cgroup::attach(&kernel.programs, &kernel.pins, options)?;
        Ok(kernel)
    }

    /// The tables for Services.
    ///
    /// # Errors
    ///
    /// If a map has another shape.
    pub fn tables(&self) -> Result<KernelTables, TableError> {
        Ok(KernelTables::open(&self.pins.maps)?.shared_with(&self.writes))
    }

    /// The cache of known flows.
    ///
    /// # Errors
    ///
    /// If its map has another shape.
    pub fn flow_cache(&self) -> Result<FlowCache, TableError> {
        FlowCache::open(&self.pins.maps)
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
        self.know(ifindex, device)?;
        let begins_with_ip = device.flags.has(DeviceFlags::BEGINS_WITH_IP);
        let programs = if begins_with_ip { IP_PROGRAMS } else { PACKET_PROGRAMS };
        for (program, attach_type, end) in programs {
            self.load(program)?;
            let attached = if self.uses_clsact {
                clsact::attach(&mut self.ebpf, program, (ifindex, name), &self.pins)
            } else {
                self.attach_tcx(program, ifindex, attach_type, end)
            };
            attached.map_err(|source| KernelError::Attach {
                program,
                target: format!("device {name}"),
                source,
            })?;
        }
        // Only then what an earlier agent attached the other way: a packet that meets both is
        // translated once, one that meets neither would be lost.
        if self.uses_clsact { self.detach_tcx(ifindex) } else { self.detach_clsact(ifindex) }
    }

    /// Makes a device known to programs.
    fn know(&self, ifindex: u32, device: &Device) -> Result<(), TableError> {
        let known = self.devices.get(&ifindex)?;
        if known == Some(*device) {
            return Ok(());
        }
        self.devices.put(&ifindex, device)?;
        if known.is_some() {
            // A CPU keeps a device for an epoch: what it reads in the new one, in whatever order it
            // loads, must not be the old one.
            sys::settle();
        }
        self.control.renew();
        Ok(())
    }

    /// Detaches the packet programs from a device and forgets it; one that is gone is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn detach_device(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.detach_xdp(ifindex)?;
        self.detach_tcx(ifindex)?;
        self.detach_clsact(ifindex)?;
        self.devices.remove(&ifindex)?;
        self.control.renew();
        Ok(())
    }

    /// Attaches the XDP program to a device that carries the packet programs, or exchanges it there.
    ///
    /// # Errors
    ///
    /// If the kernel or the device's driver refuses, or another's program is there (`EBUSY`).
    pub fn attach_xdp(&mut self, ifindex: u32, hook: XdpHook) -> Result<(), KernelError> {
        self.xdp.attach(&mut self.ebpf, ifindex, hook)
    }

    /// Detaches the XDP program from a device; one that has none is no error.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn detach_xdp(&self, ifindex: u32) -> Result<(), KernelError> {
        self.xdp.detach(ifindex)
    }

    /// Devices that are known, attached by this agent or an earlier one.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn devices(&self) -> Result<Vec<(u32, Device)>, TableError> {
        self.devices.entries()
    }

    /// Loads a program that is not loaded yet.
    fn load(&mut self, program: &'static str) -> Result<(), KernelError> {
        if let Entry::Vacant(place) = self.programs.entry(program) {
            place.insert(load_program(&mut self.ebpf, program, &self.pins)?);
        }
        Ok(())
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
        exchange_or_pin(program, ifindex, &path, || sys::link_tcx(program, ifindex, attach_type))
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

/// Exchanges the program of the link to a device that is pinned, or makes a link and pins it.
pub(super) fn exchange_or_pin(
    program: BorrowedFd<'_>,
    ifindex: u32,
    path: &Path,
    make: impl FnOnce() -> io::Result<OwnedFd>,
) -> io::Result<()> {
    if let Ok(link) = sys::obj_get(path) {
        // A device with a number that another one had before has no link to exchange.
        if sys::link_info(link.as_fd())?.ifindex == ifindex {
            return sys::link_update(link.as_fd(), program);
        }
        std::fs::remove_file(path)?;
    }
    sys::obj_pin(make()?.as_fd(), path)
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
