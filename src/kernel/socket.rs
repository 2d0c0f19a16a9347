//! Socket options that rustix lacks, and descriptors that are sent through a socket.

#![allow(unsafe_code)]

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use rustix::io::Result;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use crate::kernel::syscall::{check, checked};

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

/// Sends a copy of a descriptor, with one byte of data (SCM_RIGHTS in unix(7)). May be called between clone and exec,
/// because it only makes one system call.
///
/// # Errors
/// The errno.
///
/// # Safety
/// `descriptor` may be given to the process at the other end.
pub unsafe fn send_descriptor(socket: RawFd, descriptor: RawFd) -> std::result::Result<(), i32> {
    #[repr(C)]
    struct Control {
        header: libc::cmsghdr,
        descriptor: RawFd,
        /// cmsg(3): each message ends at a multiple of the size of a `long`.
        _rest: u32,
    }
    let byte = 0_u8;
    // SAFETY: all three structures are plain data, for which all-zero is valid. They have the kernel's layout, and they
    // and the byte outlive the call, which only reads them.
    unsafe {
        let mut control: Control = std::mem::zeroed();
        control.header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<RawFd>()) as _;
        control.header.cmsg_level = libc::SOL_SOCKET;
        control.header.cmsg_type = libc::SCM_RIGHTS;
        control.descriptor = descriptor;
        let mut data: libc::iovec = std::mem::zeroed();
        data.iov_base = (&raw const byte).cast_mut().cast();
        data.iov_len = 1;
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut data, 1);
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        let flags = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as usize;
        checked(libc::SYS_sendmsg, [socket as usize, &raw const message as usize, flags]).map(drop)
    }
}

/// Receives a descriptor that [`send_descriptor`] has sent. Returns `None` if no descriptor has arrived. Does not wait.
pub fn receive_descriptor(socket: impl AsFd) -> Option<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, flags).ok()?;
    control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{Mode, OFlags, fstat, open};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn a_descriptor_goes_through() {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None).unwrap();
        assert!(receive_descriptor(&ours).is_none());
        let directory = open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        // SAFETY: this process itself receives it.
        unsafe { send_descriptor(theirs.as_raw_fd(), directory.as_raw_fd()) }.unwrap();
        let received = receive_descriptor(&ours).unwrap();
        let id = |descriptor: &OwnedFd| fstat(descriptor).map(|stat| (stat.st_dev, stat.st_ino)).unwrap();
        assert_eq!(id(&received), id(&directory));
        assert!(receive_descriptor(&ours).is_none());
    }
}
