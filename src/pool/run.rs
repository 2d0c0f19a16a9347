//! Runs one task: starts attempts until one succeeds, no attempt is left, or the task is ended.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, Interval, interval_at};

use super::OnSlow;
use super::state::{EndRequests, Ending, Shared};
use super::task::{Attempt, Data, Outcome, SlowTask, Task};
use crate::error::Error;
use crate::job::Job;
use crate::job::caller::Caller;
use crate::job::command::Command;
use crate::job::output::Captured;
use crate::report::{Reason, Report};

/// Runs a task and returns its outcome. `attempts` counts the starts, so that the caller knows their number even if
/// this future panics or is dropped.
pub(super) async fn run(
    pool: &Shared,
    id: u64,
    mut task: Box<Task>,
    end_requests: EndRequests,
    attempts: &mut u32,
) -> Outcome {
    if task.command.timeout.is_none() {
        task.command.timeout = pool.timeout;
    }
    // A pool keeps the outputs of many jobs.
    task.command.capture.get_or_insert_default();
    let (data, mut earlier) = (task.data.clone(), Vec::new());
    let last = run_attempts(pool, id, task, end_requests, attempts, &mut earlier).await;
    Outcome { data, earlier, ..last }
}

/// Runs the attempts, adds all except the last one to `earlier`, and returns the outcome of the last one.
async fn run_attempts(
    pool: &Shared,
    id: u64,
    mut task: Box<Task>,
    mut end_requests: EndRequests,
    attempts: &mut u32,
    earlier: &mut Vec<Attempt>,
) -> Outcome {
    loop {
        *attempts += 1;
        let attempt = *attempts;
        // Boxed, so that the memory of the start is free after the start: thousands of tasks may run.
        let mut job = match Box::pin(start(pool, &task.command, &mut end_requests)).await {
            Ok(job) => job,
            Err(report) => {
                let cancelled = is_ended_by(&end_requests, report.reason);
                return Outcome::not_run(id, *report, attempt, cancelled);
            }
        };
        if let Some(on_spawn) = &task.on_spawn
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| on_spawn(&mut job, attempt))).map_err(message_of)
        {
            let report = Box::pin(kill_after(&mut job, &panic)).await;
            return Outcome::not_run(id, report, attempt, false);
        }
        let notice = SlowNotice::new(pool, id, &job, attempt, task.data.clone());
        // Before the last attempt, this drops the task, and with it the streams that the caller gave to it.
        let again = (attempt <= task.retries).then_some(task);
        let ended = wait_or_end(pool, &mut job, &mut end_requests, notice).await;
        let (report, stdout, stderr) = match ended {
            Ok((report, [stdout, stderr])) => (report, stdout, stderr),
            Err(error) => {
                let report = failed(&Command::new(job.name()), &error);
                let cancelled = is_ended_by(&end_requests, report.reason);
                return Outcome::not_run(id, report, attempt, cancelled);
            }
        };
        let cancelled = is_ended_by(&end_requests, report.reason);
        let (earlier_ones, data) = Default::default();
        let outcome = Outcome { id, report, attempts: attempt, cancelled, stdout, stderr, earlier: earlier_ones, data };
        task = match again {
            Some(task) if !outcome.success() && end_requests.now() == Ending::NotYet => task,
            _ => return outcome,
        };
        if Box::pin(is_cancelled(task.pause(attempt), &mut end_requests)).await {
            return Outcome { cancelled: true, ..outcome };
        }
        let Outcome { report, stdout, stderr, .. } = outcome;
        earlier.push(Attempt { report, stdout, stderr });
    }
}

/// Starts the job of a task. Only a kill interrupts the start. For a stop, the start finishes first, and the job
/// receives its stop signal a moment later.
async fn start(pool: &Shared, command: &Command, end_requests: &mut EndRequests) -> Result<Box<Job>, Box<Report>> {
    let spawn = async { pool.supervisor.spawn_here(command, Caller::of(command)?).await };
    tokio::select! {
        biased;
        spawned = spawn => match spawned {
            Ok(job) => Ok(Box::new(job)),
            Err(error) => Err(Box::new(failed(command, &error))),
        },
        () = end_requests.reached(Ending::Kill) => Err(Box::new(killed(command))),
    }
}

/// Waits before the next attempt; returns whether the task is cancelled, so that there is no next attempt.
async fn is_cancelled(pause: Duration, end_requests: &mut EndRequests) -> bool {
    tokio::select! {
        biased;
        () = end_requests.reached(Ending::Deadline) => true,
        () = tokio::time::sleep(pause) => false,
    }
}

/// Returns whether a request ended the job, and not the job itself, the OOM killer, or the loss of the guard.
fn is_ended_by(end_requests: &EndRequests, reason: Reason) -> bool {
    end_requests.now() != Ending::NotYet && matches!(reason, Reason::Deadline | Reason::Stopped | Reason::Killed)
}

/// Kills the job after a panic of `on_spawn`: this callback may not have completed the setup of the job, so the job
/// must not continue.
async fn kill_after(job: &mut Job, panic: &str) -> Report {
    let report = match job.kill().await {
        Ok(report) => Report::clone(&report),
        Err(error) => failed(&Command::new(job.name()), &error),
    };
    // This applies even if the command had already ended successfully.
    Report { reason: Reason::Killed, exit_code: 125, error: Some(format!("on_spawn panicked: {panic}")), ..report }
}

/// Returns the message of a panic.
fn message_of(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast_ref::<&str>().unwrap_or(&"without a message").to_string(),
    }
}

fn killed(command: &Command) -> Report {
    Report { reason: Reason::Killed, ..Report::of_cancelled(command) }
}

/// Returns the report for a job that failed with an error and has no report of its own.
pub(super) fn failed(command: &Command, error: &Error) -> Report {
    let report = Report::of_failed_spawn(command, error);
    let reason = match error {
        Error::GuardLost => Reason::GuardLost,
        Error::EndedEarly { reason, .. } => *reason,
        _ => Reason::SpawnFailed,
    };
    Report { reason, ..report }
}

/// Waits for the job, and ends it if a request says so.
async fn wait_or_end(
    pool: &Shared,
    job: &mut Job,
    end_requests: &mut EndRequests,
    mut slow: Option<SlowNotice<'_>>,
) -> Result<(Arc<Report>, [Captured; 2]), Error> {
    let handle = job.handle();
    let mut ended = std::pin::pin!(wait(job));
    let mut done = Ending::NotYet;
    loop {
        let next = end_requests.now();
        if next > done {
            match next {
                Ending::NotYet => {}
                Ending::Deadline => handle.stop_at_deadline(),
                // If the job is already being stopped because of the deadline, a second stop would kill it.
                Ending::Stop if done == Ending::NotYet => match pool.first_signal() {
                    Some(signal) => handle.start_stop_with(signal)?,
                    None => handle.start_stop()?,
                },
                Ending::Stop => {}
                Ending::Kill => handle.start_kill()?,
            }
            done = next;
        }
        tokio::select! {
            biased;
            ended = &mut ended => return ended,
            _ = end_requests.next() => {}
            () = next_notice(&mut slow) => {}
        }
    }
}

/// The calls of [`OnSlow`](super::OnSlow) for one attempt.
struct SlowNotice<'a> {
    on_slow: &'a OnSlow,
    task: SlowTask,
    begun: Instant,
    clock: Interval,
}

impl<'a> SlowNotice<'a> {
    /// Returns `None` if the pool has no hook for slow tasks.
    fn new(pool: &'a Shared, id: u64, job: &Job, attempt: u32, data: Option<Data>) -> Option<Self> {
        let on_slow = pool.on_slow.as_ref()?;
        let task = SlowTask { id, name: job.name().to_owned(), attempt, running: Duration::ZERO, data };
        let begun = Instant::now();
        Some(Self { on_slow, task, begun, clock: interval_at(begun + on_slow.after, on_slow.after) })
    }
}

/// Gives the next notice. Never returns if the pool has no hook for slow tasks. Cancel-safe.
async fn next_notice(slow: &mut Option<SlowNotice<'_>>) {
    let Some(slow) = slow else { return std::future::pending().await };
    slow.clock.tick().await;
    slow.task.running = slow.begun.elapsed();
    (slow.on_slow.call)(&slow.task);
}

/// Waits for the job and its output. An output that can't be read or copied is lost; pinfold then stops the job.
async fn wait(job: &mut Job) -> Result<(Arc<Report>, [Captured; 2]), Error> {
    match job.wait_and_capture().await {
        Err(error @ Error::System { .. }) => Box::pin(stop_unread(job, error)).await,
        done => done,
    }
}

async fn stop_unread(job: &mut Job, error: Error) -> Result<(Arc<Report>, [Captured; 2]), Error> {
    let report = Report::clone(&*job.stop().await?);
    Ok((Arc::new(Report { error: Some(error.to_string()), ..report }), Default::default()))
}
