//! Job control: the terminal stops the main process, pinfold, or both.

use std::time::{Duration, Instant};

use super::Supervision;
use crate::cli::signals::Keys;
use crate::cli::terminal;
use crate::kernel::{own_signals, process, signal_set};
use crate::{Job, Signal};

/// How long `timeout` waits until the command has stopped, after the terminal has sent its stop signal. The command has
/// to stop first, so that it does not read what the user types for the shell.
pub(super) const STOP_TIMEOUT: Duration = Duration::from_millis(100);

/// How much longer pinfold waits for processes that have a stop signal but have not run since, because the machine is
/// busy. A process in an uninterruptible system call (state D) does not stop before the call returns.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

impl Supervision<'_> {
    /// Handles a stop of the main process. If job control stopped it, pinfold stops too, so that the shell takes over.
    /// If no shell would continue pinfold (an orphaned process group), pinfold undoes the stop: without the guard, the
    /// kernel would have ignored it. That includes CI engines and services, which have no terminal. If the job has a
    /// session of its own, the kernel decides.
    pub(super) fn main_stopped(&mut self, job: &Job, signal: Signal) {
        let by_job_control = [Signal::TSTP, Signal::TTIN, Signal::TTOU].contains(&signal);
        let keys = self.requests.rules.keys;
        if !by_job_control || ![Keys::ReachJob, Keys::ReachPinfold].contains(&keys) {
            return;
        }
        if self.is_orphaned() {
            job.signal_all(Signal::CONT);
        } else if keys == Keys::ReachPinfold {
            // Without a terminal pinfold keeps running, for its deadline and for requests.
        } else if self.policy.stops_with_main {
            job.postpone_deadline(self.suspend_by(signal));
        } else if self.suspend_at.take().is_some() {
            self.suspend_by(Signal::TSTP);
        }
    }

    /// Stops the job, its clocks and then pinfold, because the terminal stops pinfold's process group and the job is
    /// not in that group.
    pub(super) async fn suspend_with_job(&mut self, job: Option<&Job>, signal: Signal) {
        let Some(job) = job.filter(|_| !self.is_orphaned()) else { return };
        let since = Instant::now();
        job.signal_all(Signal::STOP);
        wait_until_stopped(job).await;
        self.suspend_by(signal);
        job.signal_all(Signal::CONT);
        job.postpone_deadline(since.elapsed());
    }

    /// Stops pinfold after a SIGTSTP that the main process received too. The main process has had [`STOP_TIMEOUT`] to
    /// stop, and has not stopped: it handles, ignores or blocks the signal, or it has not run since.
    pub(super) async fn suspend_late(&mut self, job: Option<&Job>) {
        if let Some(job) = job {
            let has = |name| {
                let mask = process::signals_in_status(job.pid(), name).unwrap_or(0);
                mask & signal_set::bit(libc::SIGTSTP) != 0
            };
            if has("ShdPnd") && !has("SigBlk") {
                let _ = tokio::time::timeout(BUSY_TIMEOUT, job.next_stop()).await;
            }
        }
        self.suspend_by(Signal::TSTP);
    }

    /// Stops pinfold by the signal. Returns how long it was stopped.
    pub(super) fn suspend_by(&self, signal: Signal) -> Duration {
        let since = Instant::now();
        own_signals::suspend_by(signal);
        let time = since.elapsed();
        self.stopped_time.set(self.stopped_time.get() + time);
        time
    }

    pub(super) fn is_orphaned(&self) -> bool {
        self.policy.terminal.map_or_else(terminal::is_orphaned, |terminal| terminal.orphaned)
    }
}

/// Call this after the job has received SIGSTOP. Waits until no process of the job can read what the user types next,
/// which is input for the shell.
///
/// A process that waits in a read of the terminal stops only when the scheduler runs it again. If there is input by
/// then, the read returns that input before the process stops (`n_tty_read` in drivers/tty/n_tty.c, Linux 6.18). A
/// frozen process has left its system calls, so pinfold freezes the job for a moment. Without a freezer (no cgroup, or
/// before Linux 5.2), pinfold waits for the main process only.
async fn wait_until_stopped(job: &Job) {
    match tokio::time::timeout(BUSY_TIMEOUT, job.freeze()).await {
        Ok(Ok(())) => {
            job.thaw();
            // A job handles its requests in order: when this call returns, the job is thawed.
            job.processes().await;
        }
        Ok(Err(_)) => drop(tokio::time::timeout(STOP_TIMEOUT, job.next_stop()).await),
        // Dropping the future has requested the thaw.
        Err(_) => drop(job.processes().await),
    }
}
