//! The supervisor's end of a pipe or of a pseudoterminal, as the runtime waits for it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, ioctl_fionread};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, ReadBuf};

use crate::kernel::maker::Maker;
/// More is not read of a terminal whose job is over: the kernel holds less, so somebody outside of the job goes on writing.
const TERMINAL_HOLDS: usize = 1024 * 1024;

/// One end. Of a terminal there may be two, for each direction one: it hangs up when both are gone.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    fd: Arc<AsyncFd<OwnedFd>>,
    pub is_terminal: bool,
    /// The terminal once more.
    kept: Kept,
    maker: Maker,
}

impl Drop for Channel {
    fn drop(&mut self) {
        self.maker.keep_elsewhere(&self.fd);
        self.maker.keep_elsewhere(&self.kept);
    }
}

/// Keeps a terminal from hanging up. A program may close all of it just before it exits, and is not to be ended by SIGHUP for
/// that: who has read to the end does not hang up.
pub(crate) type Kept = Arc<Mutex<Option<Arc<AsyncFd<OwnedFd>>>>>;

/// The same, for who does not keep it open.
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

    /// In the context of a runtime.
    pub fn pipe(pipe: OwnedFd, interest: Interest) -> io::Result<Self> {
        fcntl_setfl(&pipe, fcntl_getfl(&pipe)? | OFlags::NONBLOCK)?;
        Ok(Self {
            fd: Arc::new(crate::supervisor::watch::watched(pipe, interest)?),
            is_terminal: false,
            kept: Kept::default(),
            maker: Maker::here(),
        })
    }

    /// The same, for the supervisor's side of a pseudoterminal, which does not block.
    pub fn terminal(master: OwnedFd) -> io::Result<Self> {
        let fd = Arc::new(crate::supervisor::watch::watched(master, Interest::READABLE | Interest::WRITABLE)?);
        let kept = Arc::new(Mutex::new(Some(fd.clone())));
        Ok(Self { fd, is_terminal: true, kept, maker: Maker::here() })
    }

    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Whether this is a forked copy.
    pub fn is_elsewhere(&self) -> bool {
        self.maker.is_elsewhere()
    }

    /// Its reader does so no longer.
    pub fn let_go(&self) {
        if self.is_elsewhere() {
            return;
        }
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub fn fd(&self) -> &Arc<AsyncFd<OwnedFd>> {
        &self.fd
    }

    /// Reads what is there, and waits where nothing is. Nothing read is the end.
    pub fn poll_read(&self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.fd.poll_read_ready(context))?;
            let space = buffer.initialize_unfilled();
            match rustix::io::read(&*self.fd, &mut *space) {
                Ok(length) => {
                    // A pipe that gave less than was asked for is empty; it tells when there is more (epoll(7)).
                    if 0 < length && length < space.len() && !self.is_terminal {
                        ready.clear_ready();
                    }
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(errno) => return Poll::Ready(self.end(errno)),
            }
        }
    }

    /// The errno of a terminal that nobody has open any more is its end.
    fn end(&self, errno: Errno) -> io::Result<()> {
        if self.is_terminal && errno == Errno::IO { Ok(()) } else { Err(errno.into()) }
    }

    /// How much there may be to read of a job that is over.
    pub fn left(&self) -> usize {
        if self.is_terminal {
            return TERMINAL_HOLDS;
        }
        usize::try_from(ioctl_fionread(&*self.fd).unwrap_or(0)).unwrap_or(0)
    }

    /// Reads without waiting; 0 where there is nothing. A terminal's read looks into all that the kernel has on its way
    /// (n_tty_read), before it says so.
    pub fn read_left(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match rustix::io::read(&*self.fd, &mut *buffer) {
                Err(Errno::INTR) => {}
                // Somebody else has read it.
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

    /// Writes what there is room for.
    pub fn write_now(&self, bytes: &[u8]) {
        let _ = rustix::io::write(self.fd.as_fd(), bytes);
    }
}
