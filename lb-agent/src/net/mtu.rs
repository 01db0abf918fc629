//! How long packets may be at a device.

use std::{io, net::UdpSocket, os::fd::AsRawFd};

/// The MTU of a device of the calling thread's namespace, in bytes.
///
/// # Errors
///
/// What the kernel says, as of a device that has gone.
pub fn mtu(device: &str) -> io::Result<u32> {
    let socket = UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::]:0"))?;
    // SAFETY: integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *place = byte.cast_signed();
    }
    // SAFETY: the request lives until the call returns.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut request) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written the MTU here.
    Ok(unsafe { request.ifr_ifru.ifru_mtu }.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_has_one_and_a_device_that_is_not_there_none() {
        assert!(mtu("lo").unwrap() >= 1280);
        assert_eq!(mtu("none-such").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert!(mtu("a-name-that-is-too-long").is_err());
    }
}
