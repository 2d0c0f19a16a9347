//! The life of one task: attempts, until one succeeds, none is left, or it is ended.

use std::sync::Arc;
use std::time::Duration;

use super::state::{Asked, Ending, Shared};
use super::task::{Outcome, Task};
use crate::command::Command;
use crate::error::Error;
use crate::job::Job;
use crate::output::Output;
use crate::report::{Reason, Report};

pub(super) async fn run(pool: &Shared, id: u64, mut task: Box<Task>, mut asked: Asked) -> Outcome {
    if task.command.timeout.is_none() {
        task.command.timeout = pool.timeout;
    }
    let mut attempt = 0;
    loop {
        attempt += 1;
        // On the heap, what only the start needs: there may be thousands that run.
        let job = match Box::pin(start(pool, &task.command, &mut asked)).await {
            Ok(job) => job,
            Err(report) => return Outcome::not_run(id, *report, attempt),
        };
        if let Some(on_spawn) = &task.on_spawn {
            on_spawn(&job, attempt);
        }
        // What is not to be run again is not kept, nor the streams that it was given.
        let again = (attempt <= task.retries).then_some(task);
        let ended = hold(&job, &mut asked).await;
        let (report, stdout, stderr) = match ended {
            Ok(Output { report, stdout, stderr }) => (report, stdout, stderr),
            Err(error) => return Outcome::not_run(id, failed(&Command::new(job.name()), &error), attempt),
        };
        let cancelled = asked.now() != Ending::NotYet && report.reason != Reason::Exited;
        let outcome = Outcome { id, report, attempts: attempt, cancelled, stdout, stderr };
        task = match again {
            Some(task) if !outcome.success() && asked.now() == Ending::NotYet => task,
            _ => return outcome,
        };
        if Box::pin(is_cancelled(task.pause(attempt), &mut asked)).await {
            return Outcome { cancelled: true, ..outcome };
        }
    }
}

/// Only a kill ends a spawn: what is just being executed gets its stop signal a moment later.
async fn start(pool: &Shared, command: &Command, asked: &mut Asked) -> Result<Box<Job>, Box<Report>> {
    tokio::select! {
        biased;
        spawned = pool.supervisor.spawn_here(command) => match spawned {
            Ok(job) => Ok(Box::new(job)),
            Err(error) => Err(Box::new(failed(command, &error))),
        },
        () = asked.reached(Ending::Kill) => Err(Box::new(killed(command))),
    }
}

/// Waits before the next attempt, and tells whether there is to be none.
async fn is_cancelled(pause: Duration, asked: &mut Asked) -> bool {
    tokio::select! {
        biased;
        () = asked.reached(Ending::Deadline) => true,
        () = tokio::time::sleep(pause) => false,
    }
}

fn killed(command: &Command) -> Report {
    Report { reason: Reason::Killed, ..Report::of_cancelled(command) }
}

/// What is told of a job without a report.
fn failed(command: &Command, error: &Error) -> Report {
    let report = Report::of_failed_spawn(command, error);
    let reason = match error {
        Error::GuardLost => Reason::GuardLost,
        Error::EndedEarly { reason, .. } => *reason,
        _ => Reason::SpawnFailed,
    };
    Report { reason, ..report }
}

/// Waits for the job, and ends it as it is asked to.
async fn hold(job: &Job, asked: &mut Asked) -> Result<Output, Error> {
    let mut ended = std::pin::pin!(wait(job));
    let mut done = Ending::NotYet;
    loop {
        let next = asked.now();
        if next > done {
            match next {
                Ending::NotYet => {}
                Ending::Deadline => job.stop_at_deadline(),
                // A job that is being stopped at the deadline already is not to be killed for that.
                Ending::Stop if done == Ending::NotYet => job.stop(),
                Ending::Stop => {}
                Ending::Kill => job.kill(),
            }
            done = next;
        }
        tokio::select! {
            biased;
            ended = &mut ended => return ended,
            _ = asked.next() => {}
        }
    }
}

/// An output that can't be read, or copied, ends the job: what it says is lost.
async fn wait(job: &Job) -> Result<Output, Error> {
    match job.wait_with_output().await {
        Err(error @ Error::System { .. }) => Box::pin(stop_unread(job, error)).await,
        done => done,
    }
}

async fn stop_unread(job: &Job, error: Error) -> Result<Output, Error> {
    job.stop();
    Ok(unread(&*job.wait().await?, &error))
}

fn unread(report: &Report, error: &Error) -> Output {
    let report = Report { error: Some(error.to_string()), ..report.clone() };
    let (stdout, stderr) = Default::default();
    Output { report: Arc::new(report), stdout, stderr }
}
