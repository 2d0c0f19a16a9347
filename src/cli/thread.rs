//! Threads, of which there may be no more: a limit on processes counts them too (RLIMIT_NPROC in getrlimit(2), pids.max).

use std::thread::{Builder, JoinHandle};

use rustix::io::Errno;

/// Starts one that is not waited for.
///
/// # Errors
/// `EAGAIN` at such a limit, or where memory is short (pthread_create(3)).
pub(crate) fn start(purpose: &str, work: impl FnOnce() + Send + 'static) -> pinfold::Result<JoinHandle<()>> {
    Builder::new().spawn(work).map_err(|error| pinfold::Error::System {
        operation: "start a thread",
        object: purpose.into(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        advice: "see ulimit -u, pids.max and ulimit -v".into(),
    })
}
