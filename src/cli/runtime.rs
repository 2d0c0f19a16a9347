//! The runtime and the supervisor of a subcommand.

use crate::cli::signal_stream::SignalStream;
use crate::kernel::own_signals::SignalQueue;
use crate::{Error, Supervisor, SupervisorBuilder};
use anyhow::bail;

/// The values that determine how many open descriptors a supervisor needs for its jobs.
#[derive(Clone, Copy)]
pub struct Descriptors {
    pub workers: usize,
    /// The number of descriptors for each running job, in addition to those of its containment
    /// ([`CONTAINMENT`](Self::CONTAINMENT)).
    pub each: usize,
    /// The number of descriptors for each job that is ready to start, and the maximum number of such jobs.
    pub ready: (usize, usize),
}

impl Descriptors {
    /// The descriptors of a job's containment: its leaf, the events of the leaf, the leaf once more at the end, and the
    /// main process.
    const CONTAINMENT: usize = 4;
    /// The maximum number of jobs that start at the same time, and the number of descriptors for the guard for each of
    /// them.
    const STARTS: (usize, usize) = (32, 4);
    /// The descriptors of the runtime, the guard and the base, and a reserve for the end of a job.
    const FIXED: usize = 32;

    fn needed(self, workers: usize) -> usize {
        let started = workers.min(Self::STARTS.0).saturating_mul(Self::STARTS.1);
        let ready = workers.min(self.ready.1).saturating_mul(self.ready.0);
        let running = workers.saturating_mul(Self::CONTAINMENT + self.each);
        [Self::FIXED, started, ready].into_iter().fold(running, usize::saturating_add)
    }

    /// Raises pinfold's limit on open files as far as the hard limit allows, and returns how many workers it is enough
    /// for: at least one, and at most `workers`.
    pub fn possible(self) -> usize {
        let Some(limit) = raised_limit() else { return self.workers.min(MOST) };
        let open = open_descriptors();
        let enough = |workers: &usize| open.saturating_add(self.needed(*workers)) <= limit;
        (1..limit.min(self.workers).min(MOST)).rev().find(enough).unwrap_or(1)
    }

    /// Checks that the limit on open files is large enough. Without this check, the error would appear only later, as
    /// jobs that fail. Raises pinfold's limit first, as far as the hard limit allows.
    pub fn check(self) -> anyhow::Result<()> {
        let Some(limit) = raised_limit() else { return Ok(()) };
        let open = open_descriptors();
        let enough = |workers: &usize| open.saturating_add(self.needed(*workers)) <= limit;
        let workers = self.workers;
        if enough(&workers) {
            return Ok(());
        }
        let needed = open.saturating_add(self.needed(workers));
        let advice = match (1..limit.min(workers)).rev().find(enough) {
            Some(possible) => format!("it is enough for -j {possible}; raise it for more"),
            None => "raise it".to_owned(),
        };
        bail!("-j {workers} needs {needed} open files, but the limit is {limit} (ulimit -Hn): {advice}")
    }
}

/// The largest number of workers that pinfold chooses by itself.
const MOST: usize = 100_000;

fn raised_limit() -> Option<usize> {
    crate::kernel::inherited::raise_own_limits().and_then(|limit| usize::try_from(limit).ok())
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(3, Iterator::count)
}

/// Runs `host` in a runtime, with a supervisor and with the signals that pinfold receives. Ends the jobs that `host` has
/// left.
///
/// # Errors
/// Those of `host`, and those of the start of the supervisor.
// Its future takes much of the stack. No page of this part may be in use when a subcommand forks its guard, because both
// processes would have to copy it.
#[inline(never)]
pub fn with_supervisor<T, E: From<Error>>(
    builder: SupervisorBuilder,
    signals: SignalQueue,
    host: impl AsyncFnOnce(&Supervisor, &SignalStream) -> Result<T, E>,
) -> Result<T, E> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|source| Error::System {
        operation: "start",
        object: "the event loop".into(),
        source,
        advice: String::new(),
    })?;
    // Pinned here, so that the runtime does not move it to another part of the stack.
    let running = std::pin::pin!(async {
        let signals = signals.listen()?;
        let supervisor = builder.start().await?;
        let ended = host(&supervisor, &signals).await;
        supervisor.close_at_exit().await;
        std::mem::forget(signals);
        ended
    });
    let ended = runtime.block_on(running);
    // Dropping the runtime would wait for its threads, and a thread may still hang in a write to a reader that does not
    // read. There is nothing else to clean up, and the kernel frees everything faster when pinfold exits.
    std::mem::forget(runtime);
    ended
}
