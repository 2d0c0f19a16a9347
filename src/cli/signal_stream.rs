//! The signals of this process, as a stream that tokio's runtime waits for.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::kernel::own_signals::{Received, SignalQueue, received};
use crate::kernel::signal_set;
use crate::supervisor::watch;

impl SignalQueue {
    /// Returns the queue as a stream that tokio's current runtime watches.
    ///
    /// # Errors
    /// The runtime's error: `ENOMEM`, `ENOSPC` (the limit on epoll watches).
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub fn listen(self) -> Result<SignalStream> {
        watch::watched(self.fd, Interest::READABLE).map(SignalStream).map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("watch", "the signal queue", errno, "")
        })
    }
}

/// The queued signals of this process.
#[derive(Debug)]
pub struct SignalStream(AsyncFd<OwnedFd>);

impl SignalStream {
    /// Returns a signal that has already arrived, without waiting.
    ///
    /// # Errors
    /// The errno of read(2).
    pub fn try_recv(&self) -> Result<Option<Received>> {
        let failed = |errno| Error::system("read", "the signal queue", errno, "");
        Ok(signal_set::read_signal(self.0.as_fd()).map_err(failed)?.and_then(|info| received(&info)))
    }

    /// Waits for the next signal. Cancel-safe: no signal is lost.
    ///
    /// # Errors
    /// The errno of read(2).
    pub async fn recv(&self) -> Result<Received> {
        let failed = |errno| Error::system("read", "the signal queue", errno, "");
        loop {
            let mut ready = self.0.readable().await.map_err(|_| failed(Errno::IO))?;
            match signal_set::read_signal(self.0.as_fd()).map_err(failed)? {
                None => ready.clear_ready(),
                Some(info) => {
                    if let Some(received) = received(&info) {
                        return Ok(received);
                    }
                }
            }
        }
    }
}
