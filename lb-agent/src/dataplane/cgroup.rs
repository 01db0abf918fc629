//! Socket programs: attached to a cgroup, exchanged in place, and taken off where a setting says so.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::fs::MetadataExt,
    path::Path,
};

use super::{
    kernel::{KernelError, remove_pin},
    options::{KernelOptions, SocketLb},
    pins::Pins,
    sys::{self, AttachType},
};

/// What a program is for, and so which setting decides about it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Purpose {
    /// Keeps processes of the host from binding `NodePort`s.
    Protect,
    /// Translates at `connect` and `sendmsg`, and back.
    Translate,
}

impl Purpose {
    fn is_wanted(self, options: &KernelOptions) -> bool {
        match self {
            Self::Protect => options.bind_protection,
            Self::Translate => options.socket_lb != SocketLb::Off,
        }
    }
}

/// The programs for hooks of cgroups.
pub(super) const PROGRAMS: [(&str, AttachType, Purpose); 10] = [
    ("lb_bind4", AttachType::Bind4, Purpose::Protect),
    ("lb_bind6", AttachType::Bind6, Purpose::Protect),
    ("lb_connect4", AttachType::Connect4, Purpose::Translate),
    ("lb_connect6", AttachType::Connect6, Purpose::Translate),
    ("lb_getpeername4", AttachType::GetPeerName4, Purpose::Translate),
    ("lb_getpeername6", AttachType::GetPeerName6, Purpose::Translate),
    ("lb_recvmsg4", AttachType::RecvMsg4, Purpose::Translate),
    ("lb_recvmsg6", AttachType::RecvMsg6, Purpose::Translate),
    ("lb_sendmsg4", AttachType::SendMsg4, Purpose::Translate),
    ("lb_sendmsg6", AttachType::SendMsg6, Purpose::Translate),
];

/// Attaches or exchanges the programs that the options want, and detaches the others.
pub(super) fn attach(
    programs: &BTreeMap<&'static str, OwnedFd>,
    pins: &Pins,
    options: &KernelOptions,
) -> Result<(), KernelError> {
    for (name, attach_type, purpose) in PROGRAMS {
        let pin = pins.links.join(name);
        match options.cgroup.as_ref().filter(|_| purpose.is_wanted(options)) {
            Some(cgroup) => attach_one(name, programs[name].as_fd(), attach_type, (cgroup, &pin))?,
            None => remove_pin(&pin)?,
        }
    }
    Ok(())
}

fn attach_one(
    name: &'static str,
    program: BorrowedFd<'_>,
    attach_type: AttachType,
    (path, pin): (&Path, &Path),
) -> Result<(), KernelError> {
    let fail = |source| KernelError::Cgroup { path: path.to_owned(), source };
    let cgroup = File::open(path).map_err(fail)?;
    link(program, attach_type, &cgroup, pin).map_err(|source| {
        let target = format!("cgroup {}", path.display());
        KernelError::Attach { program: name, target, source }
    })
}

fn link(
    program: BorrowedFd<'_>,
    attach_type: AttachType,
    cgroup: &File,
    pin: &Path,
) -> io::Result<()> {
    let old = sys::obj_get(pin).ok();
    if let Some(link) = &old
        && sys::link_info(link.as_fd())?.cgroup == cgroup.metadata()?.ino()
    {
        return sys::link_update(link.as_fd(), program);
    }
    // Another cgroup: the old link goes only when there is a new one.
    let new = sys::link_cgroup(program, cgroup.as_fd(), attach_type)?;
    if old.is_some() {
        std::fs::remove_file(pin)?;
    }
    sys::obj_pin(new.as_fd(), pin)
}
