//! Packet programs by the clsact qdisc, for kernels without tcx (before Linux 6.6).
//!
//! There is no link to pin. A filter of ours is known by its priority and handle, and a device
//! that has one by an empty folder among the links: `IFINDEX-clsact`.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        ProgramError, SchedClassifier, TcAttachType,
        links::Link as _,
        tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle},
    },
};

use super::pins::Pins;

/// Ahead of any filter that a CNI would add.
const PRIORITY: u16 = 1;
/// "lb": filters of one priority are told apart by handle, and CNIs take 1 for theirs.
const HANDLE: TcHandle = TcHandle::new(0, 0x6c62);

/// Attaches a program to a device, or exchanges the one that is there.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    program: &'static str,
    (ifindex, name): (u32, &str),
    pins: &Pins,
) -> io::Result<()> {
    // It may be there already; if it is not, attaching says why.
    let _ = tc::qdisc_add_clsact(name);
    fs::create_dir_all(marker(ifindex, pins))?;
    let direction = direction(program);
    let program: &mut SchedClassifier = ebpf
        .program_mut(program)
        .and_then(|program| program.try_into().ok())
        .expect("invariant: the object holds each program");
    let link = exchange(program, name, direction).map_err(|error| match name_of(ifindex) {
        Some(_) => io::Error::other(error),
        None => io::Error::from_raw_os_error(libc::ENODEV),
    })?;
    // The filter stays when the agent ends.
    std::mem::forget(link);
    Ok(())
}

fn exchange(
    program: &mut SchedClassifier,
    device: &str,
    direction: TcAttachType,
) -> Result<SchedClassifierLink, ProgramError> {
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, ..NlOptions::default() };
    let id = match program.attach_with_options(device, direction, TcAttachOptions::Netlink(options))
    {
        Ok(id) => id,
        // There is one already: exchange it in place.
        Err(_) => program.attach_to_link(ours(device, direction)?)?,
    };
    program.take_link(id)
}

fn ours(device: &str, direction: TcAttachType) -> Result<SchedClassifierLink, ProgramError> {
    let link = SchedClassifierLink::attached(device, direction, PRIORITY, HANDLE, None);
    link.map_err(|error| ProgramError::TcError(TcError::IoError(error)))
}

/// Removes our filters from a device, if it has any.
pub(super) fn detach(ifindex: u32, pins: &Pins) -> io::Result<()> {
    let marker = marker(ifindex, pins);
    if !marker.exists() {
        return Ok(());
    }
    if let Some(device) = name_of(ifindex) {
        for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
            // A filter that somebody else has removed is no error.
            let _ = ours(&device, direction).map(SchedClassifierLink::detach);
        }
    }
    fs::remove_dir(marker)
}

/// Removes our filters from all devices.
pub(super) fn detach_all(pins: &Pins) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(&pins.links) else { return Ok(()) };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if let Some(ifindex) = marked(&path) {
            detach(ifindex, pins)?;
        }
    }
    Ok(())
}

fn marker(ifindex: u32, pins: &Pins) -> PathBuf {
    pins.links.join(format!("{ifindex}-clsact"))
}

fn marked(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_suffix("-clsact")?.parse().ok()
}

fn name_of(ifindex: u32) -> Option<String> {
    let name: CString = nix::net::if_::if_indextoname(ifindex).ok()?;
    // An index that nobody has is no error there, but an empty name.
    name.into_string().ok().filter(|name| !name.is_empty())
}

fn direction(program: &str) -> TcAttachType {
    if program.ends_with("egress") { TcAttachType::Egress } else { TcAttachType::Ingress }
}
