//! The XDP program at devices: at most one of all programs sits there, so another's is left alone.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use aya::Ebpf;

use super::{
    kernel::{KernelError, exchange_or_pin, remove_pin},
    load::{kernel_at_least, load_program},
    pins::Pins,
    sys,
};

const PROGRAM: &str = "lb_xdp";
/// The first kernel that runs a program on frames of several buffers, which large MTUs ask for.
const SINCE: (u32, u32) = (5, 18);

/// Which hook of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XdpHook {
    /// The stack's own, behind the driver.
    Generic,
    /// The driver's.
    Native,
}

impl XdpHook {
    const ALL: [Self; 2] = [Self::Generic, Self::Native];

    /// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE`.
    fn flags(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
        }
    }

    /// Where the link to a device is pinned.
    fn pin(self, ifindex: u32, pins: &Pins) -> PathBuf {
        let end = match self {
            Self::Generic => "xdp-generic",
            Self::Native => "xdp",
        };
        pins.links.join(format!("{ifindex}-{end}"))
    }
}

/// The program.
enum Program {
    /// In the kernel.
    Loaded(OwnedFd),
    /// Why it is not, and cannot be.
    Missing(String),
    /// Not loaded yet: most nodes have no device that can have it.
    Waiting,
}

/// The program and its links.
pub(super) struct Xdp {
    program: Program,
    pins: Pins,
}

impl Xdp {
    /// The program, to be loaded when a device is to have it. Links of an earlier agent keep theirs until they
    /// are exchanged.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub(super) fn new(is_wanted: bool, pins: &Pins) -> Result<Self, KernelError> {
        remove_pin(&pins.programs.join(PROGRAM))?;
        let program = if !is_wanted {
            Program::Missing("not asked for".to_owned())
        } else if !kernel_at_least(SINCE) {
            Program::Missing(format!("Linux {}.{} is needed", SINCE.0, SINCE.1))
        } else {
            Program::Waiting
        };
        Ok(Self { program, pins: pins.clone() })
    }

    /// Attaches the program to a device, or exchanges the one that is there; the object holds it.
    ///
    /// # Errors
    ///
    /// If the kernel or the driver refuses, or another's program is there.
    pub(super) fn attach(
        &mut self,
        ebpf: &mut Ebpf,
        ifindex: u32,
        hook: XdpHook,
    ) -> Result<(), KernelError> {
        for other in XdpHook::ALL.into_iter().filter(|other| *other != hook) {
            remove_pin(&other.pin(ifindex, &self.pins))?;
        }
        if let Program::Waiting = &mut self.program {
            self.program = Program::Loaded(load_program(ebpf, PROGRAM, &self.pins)?);
        }
        let fail = |source| KernelError::Attach {
            program: PROGRAM,
            target: format!("device {ifindex}"),
            source,
        };
        let program = match &self.program {
            Program::Loaded(program) => program.as_fd(),
            Program::Missing(why) => return Err(fail(io::Error::other(why.clone()))),
            Program::Waiting => return Err(fail(io::ErrorKind::NotFound.into())),
        };
        let link = || sys::link_xdp(program, ifindex, hook.flags());
        exchange_or_pin(program, ifindex, &hook.pin(ifindex, &self.pins), link).map_err(fail)
    }

    /// Detaches the program from a device; one that has none is no error.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub(super) fn detach(&self, ifindex: u32) -> Result<(), KernelError> {
        XdpHook::ALL.into_iter().try_for_each(|hook| remove_pin(&hook.pin(ifindex, &self.pins)))
    }
}
