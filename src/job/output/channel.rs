//! The supervisor's end of a pipe or of a pseudoterminal, for use in the runtime.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

use crate::kernel::creator::Creator;

/// pinfold reads at most this much from a terminal whose job is over. The kernel buffers less than that (8 KiB,
/// `pty_common_install` in drivers/tty/pty.c). If there is more, a process outside of the job is still writing.
const MAX_TERMINAL_OUTPUT: usize = 1024 * 1024;

/// One end of a pipe or terminal. A terminal may have two, one for each direction; it hangs up when both are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    fd: Arc<AsyncFd<OwnedFd>>,
    pub is_terminal: bool,
    /// A second reference to the terminal.
    kept: Kept,
    creator: Creator,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.creator.leak_in_forked_copy(&self.fd);
        self.creator.leak_in_forked_copy(&self.kept);
    }
}

/// Keeps a terminal from hanging up when a stream that was read to its end is dropped. The end of the output is not the
/// end of the job: a process may close the terminal just before it exits. SIGHUP must not end this process before its
/// exit.
pub(crate) type Kept = Arc<Mutex<Option<Arc<AsyncFd<OwnedFd>>>>>;

/// A weak reference to a channel. It does not keep the channel open.
#[derive(Debug)]
pub(crate) struct WeakChannel(Weak<AsyncFd<OwnedFd>>);

impl WeakChannel {
    pub fn is_unread(&self) -> bool {
        self.0.upgrade().is_some_and(|fd| ioctl_fionread(&*fd).is_ok_and(|length| length > 0))
    }
}

impl Channel {
    pub fn downgrade(&self) -> WeakChannel {
        WeakChannel(Arc::downgrade(&self.fd))
    }

    /// Makes a channel of a pipe. Call it in the context of a runtime.
    pub fn pipe(pipe: OwnedFd, interest: Interest) -> io::Result<Self> {
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        Ok(Self {
            fd: Arc::new(crate::supervisor::watch::watched(pipe, interest)?),
            is_terminal: false,
            kept: Kept::default(),
            creator: Creator::current_process(),
        })
    }

    /// Makes a channel of the supervisor's side of a pseudoterminal, which is non-blocking. Call it in the context of a
    /// runtime.
    pub fn terminal(master: OwnedFd) -> io::Result<Self> {
        let fd = Arc::new(crate::supervisor::watch::watched(master, Interest::READABLE | Interest::WRITABLE)?);
        let kept = Arc::new(Mutex::new(Some(fd.clone())));
        Ok(Self { fd, is_terminal: true, kept, creator: Creator::current_process() })
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Returns whether this is a copy in a forked process.
    pub fn is_forked_copy(&self) -> bool {
        self.creator.is_another_process()
    }

    /// Lets the terminal hang up, because its reader has stopped before the end.
    pub fn allow_hangup(&self) {
        if self.is_forked_copy() {
            return;
        }
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub fn fd(&self) -> &Arc<AsyncFd<OwnedFd>> {
        &self.fd
    }

    /// Waits until there is at least one byte, and reads the available bytes. A read of no bytes is the end.
    pub fn poll_read(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(context))?;
            let space = buffer.remaining();
            match read(&self.fd, buffer) {
                Ok(length) => {
                    // A pipe that returned fewer bytes than requested is empty. epoll reports when there are more
                    // (epoll(7)).
                    if 0 < length && length < space && !self.is_terminal {
                        ready.clear_ready();
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(errno) => return Poll::Ready(self.end(errno)),
            }
        }
    }

    /// Treats EIO from a terminal as its end: no process has the other side open any more.
    fn end(&self, errno: Errno) -> io::Result<()> {
        if self.is_terminal && errno == Errno::IO { Ok(()) } else { Err(errno.into()) }
    }

    /// Returns the maximum number of bytes that are to be read after the job is over.
    pub fn left(&self) -> usize {
        if self.is_terminal {
            return MAX_TERMINAL_OUTPUT;
        }
        usize::try_from(ioctl_fionread(&*self.fd).unwrap_or(0)).unwrap_or(0)
    }

    /// Reads without waiting. Returns 0 if there is nothing to read. A read from a terminal first collects everything
    /// that the kernel still has in transit (n_tty_read) before it reports that there is nothing.
    pub fn read_left(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&*self.fd, &mut *buffer) {
                Err(Errno::INTR) => {}
                // Another process has read the bytes.
                Err(Errno::AGAIN) => return Ok(0),
                Err(errno) => return self.end(errno).map(|()| 0),
                Ok(length) => return Ok(length),
            }
        }
    }

    pub fn poll_write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.fd.poll_write_ready(context))?;
            match rustix::io::write(&*self.fd, bytes) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::IO) if self.is_terminal => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                written => return Poll::Ready(written.map_err(Into::into)),
            }
        }
    }

    /// Writes as many bytes as there is room for, without waiting.
    pub fn write_now(&self, bytes: &[u8]) {
        let _ = rustix::io::write(self.fd.as_fd(), bytes);
    }
}

/// Reads into the free part of the buffer, which does not have to be initialised.
#[allow(unsafe_code)]
fn read(fd: &AsyncFd<OwnedFd>, buffer: &mut ReadBuf<'_>) -> rustix::io::Result<usize> {
    // SAFETY: read(2) writes to these bytes only, and leaves none uninitialised that was initialised.
    let space = unsafe { buffer.unfilled_mut() };
    let length = rustix::io::read(fd, space)?.0.len();
    // SAFETY: read(2) has written these bytes.
    unsafe { buffer.assume_init(length) };
    buffer.advance(length);
    Ok(length)
}
