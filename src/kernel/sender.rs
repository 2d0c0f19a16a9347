//! Receives datagrams on a Unix socket, each with the process that sent it (`SO_PASSCRED` in unix(7), `SO_PASSPIDFD`
//! from Linux 6.5).

#![allow(unsafe_code)]

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Result;

use crate::kernel::pidfd::Pidfd;
use crate::kernel::syscall::check;

/// include/uapi/asm-generic/socket.h and include/linux/socket.h; the libc crate lacks them.
const SO_PASSPIDFD: libc::c_int = 76;
const SCM_PIDFD: libc::c_int = 4;

/// Room for the credentials, a pidfd and as many descriptors as one message can have (SCM_MAX_FD, 253, in unix(7)), in
/// bytes. The kernel closes descriptors for which there is no room.
const CONTROL: usize = 2048;

/// A datagram that was received.
#[derive(Debug)]
pub(crate) struct Datagram {
    pub length: usize,
    /// Whether the whole datagram fitted into the buffer.
    pub is_complete: bool,
    pub sender: Option<Sender>,
}

/// The process that sent a datagram. The kernel checks the credentials: a process without CAP_SYS_ADMIN can send only
/// its own pid.
#[derive(Debug)]
pub(crate) struct Sender {
    /// 0 if the process has no pid in this PID namespace.
    pub pid: i32,
    #[allow(dead_code)]
    pub uid: u32,
    /// Linux 6.5 and later send it if the process still exists; Linux 6.16 and later also if the process has ended.
    pub pidfd: Option<Pidfd>,
}

/// Makes the kernel add the sender to each datagram that arrives from now on.
///
/// # Errors
/// The errno of setsockopt(2). A kernel without `SO_PASSPIDFD` is not an error.
pub(crate) fn identify_senders(socket: impl AsFd) -> Result<()> {
    rustix::net::sockopt::set_socket_passcred(&socket, true)?;
    let on: libc::c_int = 1;
    // SAFETY: the value is as large as the length that is passed, and the call only reads it. Older kernels return
    // ENOPROTOOPT.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PASSPIDFD,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Ok(())
}

/// Receives one datagram, without waiting. Closes the descriptors that were sent with it.
///
/// # Errors
/// `EAGAIN` if no datagram has arrived, or another errno of recvmsg(2).
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<Datagram> {
    /// cmsg(3): the buffer of control messages has the alignment of their header.
    #[repr(align(8))]
    struct Control([MaybeUninit<u8>; CONTROL]);
    let mut control = Control([MaybeUninit::uninit(); CONTROL]);
    let mut datagram = Datagram { length: 0, is_complete: true, sender: None };
    let (mut credentials, mut pidfd) = (None, None);
    // SAFETY: all-zero is valid for msghdr and iovec. They and the buffers outlive the calls, which write at most the
    // lengths that are given. The CMSG_ macros stay within `msg_controllen`. The content of a control message may be
    // unaligned, so it is read unaligned. Each received descriptor has no owner yet and gets exactly one.
    unsafe {
        let mut data: libc::iovec = std::mem::zeroed();
        (data.iov_base, data.iov_len) = (buffer.as_mut_ptr().cast(), buffer.len());
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut data, 1);
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL as _;
        let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
        let length = check(libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) as libc::c_long)?;
        datagram.length = length as usize;
        datagram.is_complete = message.msg_flags & libc::MSG_TRUNC == 0;
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            let (level, kind) = ((*header).cmsg_level, (*header).cmsg_type);
            let content = libc::CMSG_DATA(header);
            let size = (*header).cmsg_len as usize - (content as usize - header as usize);
            match (level, kind) {
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if size >= size_of::<libc::ucred>() => {
                    credentials = Some(content.cast::<libc::ucred>().read_unaligned());
                }
                (libc::SOL_SOCKET, libc::SCM_RIGHTS | SCM_PIDFD) => {
                    for at in 0..size / size_of::<RawFd>() {
                        let number = content.cast::<RawFd>().add(at).read_unaligned();
                        // If the process has ended, the kernel may send a negative errno in place of the pidfd.
                        let descriptor = (number >= 0).then(|| OwnedFd::from_raw_fd(number));
                        if kind == SCM_PIDFD {
                            pidfd = descriptor.map(Pidfd::from);
                        }
                    }
                }
                _ => {}
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    datagram.sender = credentials.map(|ucred| Sender { pid: ucred.pid, uid: ucred.uid, pidfd });
    Ok(datagram)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use rustix::io::Errno;

    use super::*;

    #[test]
    fn the_sender_is_known() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        identify_senders(&ours).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(receive(&ours, &mut buffer).unwrap_err(), Errno::AGAIN);
        theirs.send(b"hello").unwrap();
        theirs.send(b"too long for the buffer").unwrap();
        let first = receive(&ours, &mut buffer).unwrap();
        assert_eq!((&buffer[..first.length], first.is_complete), (&b"hello"[..], true));
        let sender = first.sender.unwrap();
        assert_eq!(sender.pid, std::process::id() as i32);
        assert_eq!(sender.uid, rustix::process::geteuid().as_raw());
        assert!(sender.pidfd.is_none_or(|pidfd| !pidfd.has_ended()));
        assert!(!receive(&ours, &mut buffer).unwrap().is_complete);
    }

    #[test]
    fn descriptors_that_were_sent_are_closed() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        identify_senders(&ours).unwrap();
        let (read, write) = std::io::pipe().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let sent = [write.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&sent)));
        sendmsg(&theirs, &[std::io::IoSlice::new(b"BARRIER=1")], &mut control, SendFlags::empty()).unwrap();
        assert_eq!(receive(&ours, &mut [0; 16]).unwrap().length, 9);
        // No copy of the write end is left.
        drop(write);
        assert_eq!(std::io::read_to_string(read).unwrap(), "");
    }
}
