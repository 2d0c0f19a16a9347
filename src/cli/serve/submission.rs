//! Runs a job that the caller submits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::active::{ActiveJob, Attempt, Streams};
use super::event::{ErrorCode, Failure, Message};
use super::output::{Follower, Gate};
use super::request::{Output, OutputMode, OutputName, PtySize, Submit};
use super::session::Session;
use super::stdin::Input;
use super::writer::EventWriter;
use crate::pool::Handle;
use crate::{Command, Job, Pty, Stdio};

impl Session<'_> {
    /// Runs or queues a job. `number` is the number of the request.
    pub(super) async fn submit(&mut self, number: u64, submit: Submit) -> Result<(), Failure> {
        if self.active.contains_key(&*submit.id) {
            let message = "another job has this id and is not done: that job continues, and this one is not started";
            return Err(Failure::new(ErrorCode::DuplicateId, message));
        }
        let command = self.command(&submit)?;
        let id = Arc::<str>::from(submit.id.as_str());
        let gate = || Gate::new(submit.credit);
        let streams = Streams { stdin: submit.stdin.map(|_| Input::new()), stdout: gate(), stderr: gate() };
        let start = Start {
            id: id.clone(),
            writer: self.writer.clone(),
            output: submit.output,
            streams: streams.clone(),
            attempt: Arc::default(),
            followers: Arc::default(),
        };
        let (attempt, followers) = (start.attempt.clone(), start.followers.clone());
        let task = submit.job.task(command, 0, Duration::ZERO);
        let task = task.on_spawn(move |job: &mut Job, attempt| start.follow(job, attempt));
        let handle = self.pool.submit(task).await.map_err(|error| Failure::of(&error))?;
        self.active.insert(id.clone(), ActiveJob { handle: handle.clone(), attempt, streams: streams.clone() });
        let (writer, done) = (self.writer.clone(), self.done_sender.clone());
        let end = End { number, id, data: submit.data, stdin: streams.stdin, followers, writer, done };
        tokio::spawn(end.wait(handle));
        Ok(())
    }

    /// Returns the command of a job.
    fn command(&self, submit: &Submit) -> Result<Command, Failure> {
        let Submit { job, stdin, output, credit, pty, .. } = submit;
        job.check().map_err(Failure::invalid)?;
        if let Some(needed) = job.controllers().iter().find(|needed| !self.args.controllers.contains(needed)) {
            return Err(Failure::invalid(format!(
                "the job's limits need the controller {needed}: start pinfold serve with --controllers {needed}"
            )));
        }
        let modes = [OutputName::Stdout, OutputName::Stderr].map(|stream| output.of(stream));
        for (is_wrong, message) in [
            (
                stdin.is_some() && job.has_stdin(),
                "the request has \"stdin\": \"stream\", and the job has a \"stdin\" too: write only one",
            ),
            (
                stdin.is_some() && job.retries() > 0,
                "\"stdin\" is a stream, which cannot be read again: do not write \"retries\"",
            ),
            (
                credit.is_some() && modes.contains(&OutputMode::Lines),
                "\"credit\" needs \"output\": \"data\", because pinfold reads whole lines",
            ),
            (
                pty.is_some() && (job.has_stdin() || modes[0] == OutputMode::None),
                "the terminal is the job's standard input and output: write \"stdin\": \"stream\" beside \"pty\" \
                 instead of the job's \"stdin\", and do not write \"output\": \"none\"",
            ),
        ] {
            if is_wrong {
                return Err(Failure::invalid(message));
            }
        }
        let mut command = job.command();
        command.measure_pressure(); // The caller receives the complete report.
        command.grace(self.args.grace).settle(self.args.settle);
        job.set_stop(&mut command);
        match pty {
            Some(PtySize { rows, columns, echo }) => {
                let pty = Pty::new(*rows, *columns);
                command.stdio = Default::default();
                command.pty(echo.iter().fold(pty, |pty, echo| pty.echo(*echo)));
            }
            None => {
                let [stdout, stderr] =
                    modes.map(|mode| if mode == OutputMode::None { Stdio::null() } else { Stdio::piped() });
                command.stdout(stdout).stderr(stderr).stderr_to_stdout(job.merges_stderr(false));
                if stdin.is_some() {
                    command.stdin(Stdio::piped());
                }
            }
        }
        command.check().map_err(|error| Failure::of(&error))?;
        Ok(command)
    }
}

type Followers = Arc<Mutex<Vec<JoinHandle<()>>>>;

/// The values that the start of each attempt needs.
struct Start {
    id: Arc<str>,
    writer: EventWriter,
    output: Output,
    streams: Streams,
    attempt: Arc<Mutex<Option<Attempt>>>,
    followers: Followers,
}

impl Start {
    /// Follows the streams and the events of an attempt that has just been started.
    fn follow(&self, job: &mut Job, attempt: u32) {
        let running = Attempt { job: job.handle(), terminal: job.weak_terminal() };
        *self.attempt.lock().unwrap_or_else(PoisonError::into_inner) = Some(running);
        // `spawned` is sent before the output.
        let (announced, announcement) = watch::channel(false);
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        for (stream, name) in [(job.stdout.take(), OutputName::Stdout), (job.stderr.take(), OutputName::Stderr)] {
            if let Some(stream) = stream {
                let (writer, id, gate) = (self.writer.clone(), self.id.clone(), self.streams.gate(name).clone());
                let follower = Follower { writer, id, stream: name, gate };
                let (mode, mut announcement) = (self.output.of(name), announcement.clone());
                followers.push(tokio::spawn(async move {
                    let _ = announcement.wait_for(|announced| *announced).await;
                    follower.follow(stream, mode).await;
                }));
            }
        }
        if let Some((input, stream)) = self.streams.stdin.clone().zip(job.stdin.take()) {
            followers.push(tokio::spawn(input.feed(self.id.clone(), stream, self.writer.clone())));
        }
        let (mut events, writer, id) = (job.events(), self.writer.clone(), self.id.clone());
        followers.push(tokio::spawn(async move {
            while let Some(event) = events.next_event().await {
                writer.send(&Message::Job { id: &id, attempt, what: &event });
                announced.send_replace(true);
            }
        }));
    }
}

/// The values that the end of a job needs.
struct End {
    number: u64,
    id: Arc<str>,
    data: Option<Value>,
    stdin: Option<Input>,
    followers: Followers,
    writer: EventWriter,
    done: UnboundedSender<Arc<str>>,
}

impl End {
    /// Waits for the end of the job and of its streams, and sends `done`.
    async fn wait(self, handle: Handle) {
        let Self { number, id, data, stdin, followers, writer, done } = self;
        let outcome = handle.wait().await;
        if let Some(stdin) = stdin {
            stdin.end(&id, &writer).await;
        }
        let followers = std::mem::take(&mut *followers.lock().unwrap_or_else(PoisonError::into_inner));
        for follower in followers {
            let _ = follower.await;
        }
        writer.send(&Message::Done {
            request: number,
            id: &id,
            success: outcome.success(),
            cancelled: outcome.cancelled,
            attempts: outcome.attempts,
            report: &outcome.report,
            data: data.as_ref(),
        });
        let _ = done.send(id);
    }
}
