//! What `pinfold pool` and `pinfold serve` set up alike.

use std::path::Path;

use anyhow::{Context, Result};
use pinfold::signal::{SignalQueue, SignalStream};
use pinfold::{Controller, Guard, Supervisor};

/// Runs `host` with a supervisor of many jobs and with our signals, and ends all that it left.
pub fn with_supervisor<T>(
    guard: Guard,
    signals: SignalQueue,
    cgroup: Option<&Path>,
    controllers: Vec<Controller>,
    host: impl AsyncFnOnce(&Supervisor, &SignalStream) -> Result<T>,
) -> Result<T> {
    pinfold::raise_own_limits();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let ended = runtime.block_on(async {
        let signals = signals.listen()?;
        let mut builder = Supervisor::builder().guard(guard).controllers(controllers);
        if let Some(cgroup) = cgroup {
            builder = builder.cgroup(cgroup);
        }
        let supervisor = builder.start().await?;
        let ended = host(&supervisor, &signals).await;
        supervisor.close().await;
        ended
    });
    // Nothing is left to be torn down; a thread may still hang in a write to somebody who does not read.
    std::mem::forget(runtime);
    ended
}
