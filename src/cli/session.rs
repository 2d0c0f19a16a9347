//! What `pinfold pool` and `pinfold serve` set up alike.

use std::path::Path;

use anyhow::{Context, Result, bail};
use pinfold::signal::{SignalQueue, SignalStream};
use pinfold::{Controller, Guard, Supervisor};

use super::environment;

/// What the descriptors that many jobs take depend on.
#[derive(Clone, Copy)]
pub struct Descriptors {
    pub workers: usize,
    /// So many more for each job that runs, beside those that hold it.
    pub each: usize,
    /// So many for each of those that are ready to be started, which are this many at most.
    pub ready: (usize, usize),
}

impl Descriptors {
    /// Its leaf, that leaf's events, once more at the end, and the main process.
    const HOLD: usize = 4;
    /// So many jobs are being started at a time, each with so many descriptors for the guard.
    const STARTS: (usize, usize) = (32, 4);
    /// The runtime, the guard, the base, and what is kept for the end of a job.
    const BESIDES: usize = 32;

    fn needed(self, workers: usize) -> usize {
        let started = workers.min(Self::STARTS.0).saturating_mul(Self::STARTS.1);
        let ready = workers.min(self.ready.1).saturating_mul(self.ready.0);
        let running = workers.saturating_mul(Self::HOLD + self.each);
        [Self::BESIDES, started, ready].into_iter().fold(running, usize::saturating_add)
    }

    /// Told before anything is started, and not by the jobs that fail then.
    fn check(self, limit: Option<u64>) -> Result<()> {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { return Ok(()) };
        let open = std::fs::read_dir("/proc/self/fd").map_or(3, Iterator::count);
        let enough = |workers: &usize| open.saturating_add(self.needed(*workers)) <= limit;
        let workers = self.workers;
        if enough(&workers) {
            return Ok(());
        }
        let needed = open.saturating_add(self.needed(workers));
        let advice = match (1..limit.min(workers)).rev().find(enough) {
            Some(possible) => format!("that is enough for -j {possible}; or raise it"),
            None => "raise it".to_owned(),
        };
        bail!("{workers} jobs at a time take {needed} open files, and the limit is {limit} (ulimit -Hn): {advice}")
    }
}

/// Runs `host` with a supervisor of many jobs and with our signals, and ends all that it left.
pub fn with_supervisor<T>(
    guard: Guard,
    signals: SignalQueue,
    cgroup: Option<&Path>,
    controllers: Vec<Controller>,
    descriptors: Descriptors,
    host: impl AsyncFnOnce(&Supervisor, &SignalStream) -> Result<T>,
) -> Result<T> {
    descriptors.check(pinfold::raise_own_limits())?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let ended = runtime.block_on(async {
        let signals = signals.listen()?;
        let builder = environment::supervisor(cgroup, None)?.guard(guard).controllers(controllers);
        let supervisor = builder.start().await?;
        let ended = host(&supervisor, &signals).await;
        supervisor.close().await;
        ended
    });
    // Nothing is left to be torn down; a thread may still hang in a write to somebody who does not read.
    std::mem::forget(runtime);
    ended
}
