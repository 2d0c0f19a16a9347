//! Socket options that rustix lacks.

#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Result;

use crate::kernel::syscall::check;

/// Prevents the kernel from choosing `port` as the local port of the socket (`IP_LOCAL_PORT_RANGE` in ip(7), Linux 6.3;
/// also for IPv6). The kernel chooses local ports from `first` to `last` only, so for a `port` outside of that range
/// there is nothing to do.
pub fn leave_out_local_port(socket: impl AsFd, port: u16, (first, last): (u16, u16)) -> Result<()> {
    /// include/uapi/linux/in.h.
    const IP_LOCAL_PORT_RANGE: libc::c_int = 51;
    if !(first..=last).contains(&port) {
        return Ok(());
    }
    // The high 16 bits are the last port, the low 16 bits the first one; 0 leaves that end of the range as it is. Of
    // the ports below and above `port`, the larger part is used.
    let range = if port - first > last - port { u32::from(port - 1) << 16 } else { u32::from(port) + 1 };
    // SAFETY: the value is as large as the length that is passed, and the call only reads it.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            IP_LOCAL_PORT_RANGE,
            (&raw const range).cast(),
            size_of::<u32>() as libc::socklen_t,
        )
    };
    check(libc::c_long::from(done)).map(drop)
}
