//! The life of one task: attempts, until one succeeds, none is left, or it is ended.

use std::sync::Arc;

use tokio::sync::watch;

use super::state::{Ending, Shared};
use super::task::{Outcome, Task};
use crate::command::Command;
use crate::error::Error;
use crate::job::Job;
use crate::output::Output;
use crate::report::{Reason, Report};

pub(super) async fn run(pool: &Shared, id: u64, mut task: Box<Task>, mut asked: watch::Receiver<Ending>) -> Outcome {
    if task.command.timeout.is_none() {
        task.command.timeout = pool.timeout;
    }
    let mut attempt = 0;
    loop {
        attempt += 1;
        // Only a kill ends a spawn: what is just being executed gets its stop signal a moment later.
        let spawned = tokio::select! {
            biased;
            spawned = pool.supervisor.spawn_here(&task.command) => spawned,
            () = reached(&mut asked, Ending::Kill) => {
                return Outcome::not_run(id, killed(&task.command), attempt);
            }
        };
        let job = match spawned {
            Ok(job) => job,
            Err(error) => return Outcome::not_run(id, failed(&task.command, &error), attempt),
        };
        if let Some(on_spawn) = &task.on_spawn {
            on_spawn(&job, attempt);
        }
        // What is not to be run again is not kept: there may be thousands, and the streams that they were given.
        let again = (attempt <= task.retries).then_some(task);
        let (ended, asked_for) = hold(&job, &mut asked).await;
        let (report, stdout, stderr) = match ended {
            Ok(Output { report, stdout, stderr }) => (report, stdout, stderr),
            Err(error) => return Outcome::not_run(id, failed(&Command::new(job.name()), &error), attempt),
        };
        let cancelled = asked_for != Ending::NotYet && report.reason != Reason::Exited;
        let outcome = Outcome { id, report, attempts: attempt, cancelled, stdout, stderr };
        task = match again {
            Some(task) if !outcome.success() && asked_for == Ending::NotYet => task,
            _ => return outcome,
        };
        let pause = task.pause(attempt);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = reached(&mut asked, Ending::Deadline) => return Outcome { cancelled: true, ..outcome },
        }
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
async fn hold(job: &Job, asked: &mut watch::Receiver<Ending>) -> (Result<Output, Error>, Ending) {
    let mut done = Ending::NotYet;
    let mut ended = Box::pin(wait(job));
    loop {
        let next = *asked.borrow_and_update();
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
            ended = &mut ended => return (ended, done),
            changed = asked.changed() => if changed.is_err() { return (ended.await, done) },
        }
    }
}

/// An output that can't be read, or copied, ends the job: what it says is lost.
async fn wait(job: &Job) -> Result<Output, Error> {
    match job.wait_with_output().await {
        Err(error @ Error::System { .. }) => {
            job.stop();
            Ok(unread(&*job.wait().await?, &error))
        }
        done => done,
    }
}

fn unread(report: &Report, error: &Error) -> Output {
    let report = Report { error: Some(error.to_string()), ..report.clone() };
    let (stdout, stderr) = Default::default();
    Output { report: Arc::new(report), stdout, stderr }
}

async fn reached(asked: &mut watch::Receiver<Ending>, ending: Ending) {
    if asked.wait_for(|asked| *asked >= ending).await.is_err() {
        std::future::pending().await
    }
}
