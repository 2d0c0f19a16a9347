//! `pinfold run`.

mod args;
mod exit_code;
mod explain;
mod forwarder;
mod notify;
mod outlet;
mod prepared;
mod pty_input;
mod ready;
mod relay;
mod stats;
mod streams;

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;

use super::report_sink::Sink;
use super::signals::{Keys, PATIENCE_INTERRUPTS, Response, Rules};
use super::terminal::{Terminal, has_left_our_group, has_reached_our_group};
use super::write::Patience;
use super::{environment, print_message};
#[cfg(feature = "watch")]
pub use args::parse_signal;
pub use args::{Args, ContainmentArg, SignalToArg};
use exit_code::Ended;
use explain::explain;
pub use explain::explain_failures;
use forwarder::Forwarder;
pub use prepared::Prepared;
use ready::Clock;
use streams::StreamArgs;

use crate::cli::signal_stream::SignalStream;
use crate::kernel::own_signals::{self, Received, SignalQueue};
use crate::report::Reason;
use crate::{Command, Guard, Job, Signal, Supervisor};

/// How long a stop waits until the command has been executed, so that the command receives the stop signal. An exec can
/// take long.
pub const EXEC_PATIENCE: Duration = Duration::from_secs(1);

/// pinfold waits at least this long for the reader of the report, also after the job's deadline.
const REPORT_PATIENCE: Duration = Duration::from_secs(1);

/// Runs the command and returns the exit code.
pub fn run(mut args: Args, prepared: crate::Result<Prepared>) -> Result<u8> {
    let ended = run_and_report(&mut args, prepared);
    // Also after an error: the reader of --ready-notify must not wait forever.
    if let Some(notify) = &args.streams.notify {
        notify.finish();
    }
    let ended = ended?;
    if ended.by_interrupt() {
        // pinfold ends by SIGINT, so that a loop in the calling shell stops too. The call returns only where pinfold is
        // PID 1.
        own_signals::end_by(Signal::INT);
    }
    Ok(ended.exit_code(&args))
}

fn run_and_report(args: &mut Args, prepared: crate::Result<Prepared>) -> Result<Ended> {
    let begun = Instant::now();
    let notify = args.streams.open_notify();
    let mut sink = args.report.take().map(Sink::open).transpose()?;
    // The terminal sends its signals to the foreground process group, so the job has to be in pinfold's group.
    let terminal = prepared.as_ref().ok().and_then(|prepared| prepared.terminal.as_ref());
    let mut command = args.to_command(terminal.is_some() && !args.streams.pty);
    if sink.is_some() || args.stats {
        command.measure_pressure();
    }
    // pinfold checks the limits before it looks for a way to enforce them, and before it creates a file.
    let checked = args.limits.to_limits().check();
    let applied = notify.and(checked).and_then(|()| args.streams.apply(&mut command, terminal));
    if let Some(sink) = &mut sink {
        // This error is not written to the report either, because the report would overwrite the file of --tee.
        args.streams.check_report(sink)?;
        sink.remove_old()?;
    }
    if let Some(notify) = &args.streams.notify {
        notify.empty().context("cannot empty the file of --ready-notify")?;
    }
    let ended = prepared.and_then(|prepared| applied.and(Ok(prepared)));
    let ended = ended.and_then(|prepared| prepared.enough_descriptors().and(Ok(prepared)));
    let ended = ended.and_then(|prepared| in_runtime(args, &command, prepared));
    let ended = ended.unwrap_or_else(|error| Ended::not_started(&command, &error));

    match &ended {
        Ended::Report { report, .. } => {
            explain(args, report);
            if args.stats {
                stats::stats(report);
            }
        }
        Ended::NotStarted { report } => print_message(report.error.as_deref().unwrap_or_default()),
        Ended::Signalled { .. } => {}
    }
    if let Some(sink) = sink {
        sink.write(ended.report(), patience(args, begun))?;
    }
    Ok(ended)
}

/// Returns how long pinfold waits for the reader of the report. A time limit of the job bounds the whole run.
fn patience(args: &Args, begun: Instant) -> Patience {
    let limit = args.timeout.into_iter().chain(args.streams.idle_timeout).min();
    limit.map_or(Patience::UntilSignal, |limit| {
        Patience::AtMost(limit.saturating_sub(begun.elapsed()).max(REPORT_PATIENCE))
    })
}

/// Runs the command. On return the job is over, and the terminal has its earlier state again.
fn in_runtime(args: &Args, command: &Command, prepared: Prepared) -> crate::Result<Ended> {
    let Prepared { signals, terminal, guard, .. } = prepared;
    let keys = match terminal {
        Some(_) if args.streams.pty => Keys::ForItsTerminal,
        Some(_) => Keys::ReachTheJob,
        None => Keys::ReachUs,
    };
    let rules = Rules::new(keys).with(args.on_signal.clone(), args.stop_signal.is_some());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| crate::Error::System {
        operation: "start",
        object: "the event loop".into(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        advice: String::new(),
    })?;
    let ended = runtime.block_on(supervise(args, guard, command, signals, rules, terminal.as_ref()));
    if let Some(terminal) = &terminal {
        terminal.restore(!ended.as_ref().is_ok_and(Ended::by_itself));
    }
    if ended.is_ok() {
        // pinfold skips the teardown of the runtime: the kernel frees everything faster when pinfold exits.
        std::mem::forget(runtime);
    }
    ended
}

async fn supervise(
    args: &Args,
    guard: Guard,
    command: &Command,
    signals: SignalQueue,
    mut rules: Rules,
    terminal: Option<&Terminal>,
) -> crate::Result<Ended> {
    let signals = signals.listen()?;
    let controllers = args.limits.to_limits().controllers();
    let builder = environment::supervisor(args.cgroup.as_deref(), args.containment())?;
    let builder = builder.guard(guard).one_job().controllers(controllers);
    let supervisor = builder.start().await?;
    let ended = hold(args, &supervisor, command, &signals, &mut rules, terminal).await;
    supervisor.close().await;
    ended
}

async fn hold(
    args: &Args,
    supervisor: &Supervisor,
    command: &Command,
    signals: &SignalStream,
    rules: &mut Rules,
    terminal: Option<&Terminal>,
) -> crate::Result<Ended> {
    let mut early = Vec::new();
    let mut patience = None;
    // Signals that arrived before pinfold had a job. After a second request to end, pinfold starts no job.
    while let Some(received) = signals.try_recv()? {
        match rules.respond(received, Instant::now()) {
            Response::Kill => return Ok(Ended::signalled(args, command, received.signal)),
            response => {
                if let Response::Stop(_) = response {
                    patience = Some((Instant::now() + EXEC_PATIENCE, received.signal));
                }
                early.push((response, received));
            }
        }
    }
    let mut forwarder = Forwarder::new(args)?;
    let spawned = {
        let mut spawning = std::pin::pin!(async {
            if let Some(readiness) = &args.streams.ready {
                readiness.check_before_start().await?;
            }
            supervisor.spawn(command).await
        });
        loop {
            tokio::select! {
                biased;
                spawned = &mut spawning => break spawned,
                received = signals.recv() => {
                    let received = received?;
                    match rules.respond(received, Instant::now()) {
                        // Dropping the future ends the part of the job that exists already.
                        Response::Kill => return Ok(Ended::signalled(args, command, received.signal)),
                        response => {
                            if let Response::Stop(_) = response {
                                patience = Some((Instant::now() + EXEC_PATIENCE, received.signal));
                            }
                            early.push((response, received));
                        }
                    }
                }
                () = over(patience.map(|(at, _)| at)) => {
                    if let Some((_, signal)) = patience {
                        return Ok(Ended::signalled(args, command, signal));
                    }
                }
            }
        }
    };
    let job = match spawned {
        Ok(job) => job,
        Err(error) => return Ok(Ended::not_started(command, &error)),
    };
    if args.verbose {
        print_message(&format!(
            "started {} as process {}",
            crate::report::text::printable_os(&args.command[0]),
            job.pid()
        ));
    }
    let mut interrupted = false;
    if let Err(error) = args.streams.empty_tee() {
        forwarder.report_trouble(error.to_string());
    }
    // The command may have been executed, and other processes may have seen it and sent signals, before pinfold was
    // notified of it. pinfold handles these signals now, so that none is lost.
    for (response, received) in early {
        if rules.keys == Keys::ReachTheJob && is_by_the_job(&job, received).await {
            rules.forget(received);
            continue;
        }
        interrupted |= received.signal == Signal::INT && matches!(response, Response::Stop(_));
        perform(args, &job, response, received.signal);
    }
    let StreamArgs { ready, ready_timeout, notify, .. } = &args.streams;
    let stopped_time = Cell::new(Duration::ZERO);
    let clock = || Clock { timeout: *ready_timeout, stopped_time: &stopped_time };
    let ready = ready.as_ref();
    let mut readiness = ready.map(|ready| Box::pin(ready::ready(ready, clock(), notify.as_ref(), &job)));
    forwarder.start(args, &job, supervisor, terminal).await?;
    let mut not_ready = None;
    loop {
        let received = tokio::select! {
            biased;
            report = job.wait() => {
                let report = report?;
                let timed_out = not_ready.is_some() || matches!(report.reason, Reason::Deadline | Reason::Idle);
                let trouble = forwarder.finish(timed_out, signals, rules, terminal).await;
                // The job has ended before it was known to be ready.
                if let (Some(_), Some(by)) = (&readiness, ready) {
                    not_ready = ready::at_the_end(by, notify.as_ref(), &job, &report).await;
                }
                return Ok(Ended::over(report, interrupted, not_ready, trouble));
            }
            signal = job.next_stop() => {
                if let Some(terminal) = terminal.filter(|_| !args.streams.pty) {
                    stopped_time.set(stopped_time.get() + stopped(&job, signal, terminal));
                }
                continue;
            }
            done = once(&mut readiness) => {
                if let Err(verdict) = done {
                    not_ready = Some(verdict);
                    job.start_stop();
                }
                continue;
            }
            (response, signal) = forwarder.response(&job) => {
                perform(args, &job, response, signal);
                continue;
            }
            received = signals.recv() => received?,
        };
        if forwarder.takes(&job, received.signal) {
            continue;
        }
        if rules.keys == Keys::ReachTheJob && is_by_the_job(&job, received).await {
            continue;
        }
        if rules.keys == Keys::ReachTheJob && has_reached_our_group(received) && has_left_our_group(&job) {
            // Without pinfold, the main process would lead the foreground group and would have received the signal.
            let _ = job.signal(received.signal);
        }
        let response = rules.respond(received, Instant::now());
        interrupted |= received.signal == Signal::INT && matches!(response, Response::Stop(_));
        match (response, terminal) {
            (Response::Suspend, Some(terminal)) if !terminal.orphaned => {
                stopped_time.set(stopped_time.get() + suspended(&job, received.signal).await);
            }
            _ => perform(args, &job, response, received.signal),
        }
    }
}

/// Waits for the future, and then removes it. Waits forever where there is no future any more.
async fn once<F: Future + Unpin>(waiting: &mut Option<F>) -> F::Output {
    let Some(future) = waiting else { return std::future::pending().await };
    let done = future.await;
    *waiting = None;
    done
}

/// Waits until the given time; forever where the time is `None`.
pub async fn over(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn perform(args: &Args, job: &Job, response: Response, signal: Signal) {
    match response {
        Response::Stop(first) => {
            if args.verbose {
                print_message(&format!("{signal}: stopping"));
            }
            match first {
                Some(first) => job.start_stop_with(first),
                None => job.start_stop(),
            }
        }
        Response::Kill => {
            if args.verbose {
                print_message(&format!("{signal}: killing"));
            }
            job.start_kill();
        }
        Response::PassOn(signal) => {
            // The main process may just have ended, so an error is ignored.
            let _ = job.signal(signal);
        }
        Response::Key(signal) => {
            // A job that is over has no terminal, so an error is ignored.
            let _ = job.signal_pty(signal);
        }
        Response::LeftToTheJob(count) => {
            if args.verbose && count > 0 {
                print_message(&format!(
                    "{signal} from the terminal: {count} of the {PATIENCE_INTERRUPTS} that kill the job"
                ));
            }
        }
        Response::Suspend | Response::Nothing => {}
    }
}

/// Returns whether a process of the job sent the signal. The job is in pinfold's process group: the process sent the
/// signal to the group (`kill 0`), and the job has received it already.
pub async fn is_by_the_job(job: &Job, received: Received) -> bool {
    let Ok(sender) = i32::try_from(received.sender) else { return false };
    let by_a_process = !received.from_kernel && sender != 0;
    by_a_process && (sender == job.pid() || job.processes().await.iter().any(|process| process.pid == sender))
}

/// Stops the job, its clocks and then pinfold, because the terminal stops pinfold's process group and the job is not in
/// that group. Returns how long the job was stopped.
async fn suspended(job: &Job, signal: Signal) -> Duration {
    let since = Instant::now();
    job.signal_all(Signal::STOP);
    // A job handles its requests in order: when this call returns, the signal has been sent.
    job.processes().await;
    own_signals::suspend_by(signal);
    job.signal_all(Signal::CONT);
    let stopped_time = since.elapsed();
    job.postpone_deadline(stopped_time);
    stopped_time
}

/// Handles a stop of the main process. Where job control stopped it, pinfold stops too, so that the shell takes over,
/// and the deadline's clock stops with pinfold. Where no shell would continue pinfold (an orphaned process group),
/// pinfold undoes the stop: without the guard, the kernel would have ignored it. Returns how long the job was stopped.
pub fn stopped(job: &Job, signal: Signal, terminal: &Terminal) -> Duration {
    if ![Signal::TSTP, Signal::TTIN, Signal::TTOU].contains(&signal) {
        return Duration::ZERO;
    }
    if terminal.orphaned {
        job.signal_all(Signal::CONT);
        return Duration::ZERO;
    }
    let since = Instant::now();
    own_signals::suspend_by(signal);
    let stopped_time = since.elapsed();
    job.postpone_deadline(stopped_time);
    stopped_time
}
