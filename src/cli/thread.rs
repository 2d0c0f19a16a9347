//! Starts threads. This can fail at a limit on processes, which counts threads too (RLIMIT_NPROC in getrlimit(2),
//! pids.max).

use std::thread::{Builder, JoinHandle};

/// Starts a thread that the caller does not have to wait for. `purpose` is for the error message.
///
/// # Errors
/// `EAGAIN` at such a limit, or if there is not enough memory (pthread_create(3)).
pub(crate) fn start(purpose: &str, work: impl FnOnce() + Send + 'static) -> crate::Result<JoinHandle<()>> {
    Builder::new().spawn(work).map_err(|source| crate::Error::System {
        operation: "start a thread",
        object: purpose.into(),
        source,
        advice: "see ulimit -u, pids.max and ulimit -v".into(),
    })
}
