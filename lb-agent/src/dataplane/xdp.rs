//! The XDP program at devices: at most one of all programs sits there, so another's is left alone.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use super::{
    kernel::{KernelError, exchange_or_pin, remove_pin},
    load::{kernel_at_least, load, load_program},
    options::KernelOptions,
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

/// The program, loaded when a device is to have it: most nodes have none that can.
pub(super) struct Xdp {
    options: KernelOptions,
    pins: Pins,
    secret: u64,
    program: Option<OwnedFd>,
}

impl Xdp {
    /// Knows what to load the program with. Links of an earlier agent keep theirs until they are
    /// exchanged.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub(super) fn new(
        options: &KernelOptions,
        pins: &Pins,
        secret: u64,
    ) -> Result<Self, KernelError> {
        remove_pin(&pins.programs.join(PROGRAM))?;
        Ok(Self { options: options.clone(), pins: pins.clone(), secret, program: None })
    }

    /// Attaches the program to a device, or exchanges the one that is there.
    ///
    /// # Errors
    ///
    /// If the kernel or the driver refuses, or another's program is there.
    pub(super) fn attach(&mut self, ifindex: u32, hook: XdpHook) -> Result<(), KernelError> {
        for other in XdpHook::ALL.into_iter().filter(|other| *other != hook) {
            remove_pin(&other.pin(ifindex, &self.pins))?;
        }
        let fail = |source| KernelError::Attach {
            program: PROGRAM,
            target: format!("device {ifindex}"),
            source,
        };
        if !kernel_at_least(SINCE) {
            let text = format!("Linux {}.{} is needed", SINCE.0, SINCE.1);
            return Err(fail(io::Error::new(io::ErrorKind::Unsupported, text)));
        }
        let path = hook.pin(ifindex, &self.pins);
        let program = self.program()?.as_fd();
        let link = || sys::link_xdp(program, ifindex, hook.flags());
        exchange_or_pin(program, ifindex, &path, link).map_err(fail)
    }

    /// Detaches the program from a device; one that has none is no error.
    ///
    /// # Errors
    ///
    /// If a pin cannot be removed.
    pub(super) fn detach(&self, ifindex: u32) -> Result<(), KernelError> {
        XdpHook::ALL.into_iter().try_for_each(|hook| remove_pin(&hook.pin(ifindex, &self.pins)))
    }

    fn program(&mut self) -> Result<&OwnedFd, KernelError> {
        let program = match self.program.take() {
            Some(program) => program,
            None => {
                let mut ebpf = load(&self.options, &self.pins, self.secret)?;
                load_program(&mut ebpf, PROGRAM, &self.pins)?
            }
        };
        Ok(self.program.insert(program))
    }
}
