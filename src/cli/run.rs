//! `pinfold run`.

mod args;
mod ended;
mod forwarder;
mod notify;
mod outlet;
mod prepared;
mod pty_input;
mod ready;
mod relay;
mod stats;
mod streams;
mod usual;

use std::time::{Duration, Instant};

use crate::cli::signal_stream::SignalStream;
use crate::report::Reason;
use crate::report::SupervisorKind;
use crate::report::text::printable_os;
use crate::{Command, Signal, Supervisor};
use anyhow::{Context, Result};

use super::explain::{Settings, explain};
use super::report_sink::Sink;
use super::runtime::with_supervisor;
use super::signals::{KILL_INTERRUPTS, Keys, Rules};
use super::supervise::{Event, Policy, Step, Supervision};
use super::terminal::Terminal;
use super::write::WriteTimeout;
use super::{denials, environment, print_message};
pub use args::{Args, ContainmentArg, SignalToArg, parse_signal, parse_user, variables};
use ended::Ended;
use forwarder::Forwarder;
pub use prepared::Prepared;
use ready::ReadyTimeout;
use streams::StreamArgs;
pub use usual::parse as parse_usual;

/// pinfold waits at least this long for the reader of the report, even after the job's deadline.
const MIN_REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the command and returns the exit code.
pub fn run(mut args: Args, prepared: crate::Result<Prepared>) -> Result<u8> {
    let ended = run_and_report(&mut args, prepared);
    // This also happens after an error: the reader of --ready-notify must not wait forever.
    if let Some(notify) = &args.streams.notify {
        notify.finish();
    }
    Ok(ended?.exit(&args).code())
}

fn run_and_report(args: &mut Args, prepared: crate::Result<Prepared>) -> Result<Ended> {
    let begun = Instant::now();
    let notify = args.streams.open_notify();
    let mut sink = args.report.take().map(Sink::open).transpose()?;
    // The terminal sends its signals to the foreground process group, so the job has to be in pinfold's group.
    let terminal = prepared.as_ref().ok().and_then(|prepared| prepared.terminal.as_ref());
    let mut command = args.to_command(terminal.is_some() && !args.streams.pty);
    let sandboxed = args.sandbox.to_sandbox().map(|sandbox| {
        if let Some(sandbox) = sandbox {
            command.sandbox(sandbox);
        }
    });
    if sink.is_some() || args.stats {
        command.measure_pressure();
    }
    // pinfold checks the limits before it looks for a way to enforce them, and before it creates a file.
    let checked = args.limits.to_limits().check();
    let applied = notify.and(checked).and(sandboxed).and_then(|()| args.streams.apply(&mut command, terminal));
    if let Some(sink) = &mut sink {
        // This error does not go into a report, because the report would overwrite the file of --tee.
        args.streams.check_report(sink)?;
        sink.remove_old()?;
    }
    if let Some(notify) = &args.streams.notify {
        notify.empty().context("cannot empty the file of --ready-notify")?;
    }
    let ended = prepared.and_then(|prepared| applied.and(Ok(prepared)));
    let ended = ended.and_then(|prepared| prepared.enough_descriptors().and(Ok(prepared)));
    let ended = ended.and_then(|prepared| run_job(args, &command, prepared));
    let ended = ended.unwrap_or_else(|error| Ended::not_started(&command, &error));

    match &ended {
        Ended::Report { report, .. } => {
            let (timeout, idle_timeout) = (args.timeout, args.streams.idle_timeout);
            explain(report, &Settings { timeout, idle_timeout, quiet: args.quiet, verbose: args.verbose });
            if !args.quiet {
                denials::print_denials(report);
            }
            if args.stats {
                stats::stats(report);
            }
        }
        Ended::NotStarted { report } => {
            print_message(report.error.as_deref().unwrap_or_default());
            // The command exists, but can't be executed.
            if report.exit_code == 126 && args.sandbox.is_on() && !args.sandbox.explain_denials && !args.quiet {
                denials::print_hint();
            }
        }
        Ended::Signalled { .. } => {}
    }
    if let Some(sink) = sink {
        sink.write(ended.report(), report_timeout(args, begun))?;
    }
    Ok(ended)
}

/// Returns how long pinfold waits for the reader of the report. A time limit of the job is a limit of the whole run.
fn report_timeout(args: &Args, begun: Instant) -> WriteTimeout {
    let limit = args.timeout.into_iter().chain(args.streams.idle_timeout).min();
    limit.map_or(WriteTimeout::UntilSignal, |limit| {
        WriteTimeout::AtMost(limit.saturating_sub(begun.elapsed()).max(MIN_REPORT_TIMEOUT))
    })
}

/// Runs the command. On return the job is over, and the terminal has its earlier state again.
fn run_job(args: &Args, command: &Command, prepared: Prepared) -> crate::Result<Ended> {
    let Prepared { signals, terminal, guard, .. } = prepared;
    let builder = environment::supervisor(args.cgroup.as_deref(), args.containment())?;
    let builder =
        builder.guard(guard).one_job().kind(SupervisorKind::Run).controllers(args.limits.to_limits().controllers());
    let ended = with_supervisor(builder, signals, async |supervisor, signals| {
        args.parent.apply()?;
        supervise(args, supervisor, command, signals, terminal.as_ref()).await
    });
    if let Some(terminal) = &terminal {
        terminal.restore(!ended.as_ref().is_ok_and(Ended::by_itself));
    }
    ended
}

/// An event of `run` itself.
enum RunEvent {
    /// The job is ready, or will never be.
    Readiness(Result<(), ended::ExitOverride>),
    /// Typed keys have requested a kill.
    Typed(Signal),
}

async fn supervise(
    args: &Args,
    supervisor: &Supervisor,
    command: &Command,
    signals: &SignalStream,
    terminal: Option<&Terminal>,
) -> crate::Result<Ended> {
    let StreamArgs { pty, ready, ready_timeout, notify, .. } = &args.streams;
    let keys = match terminal {
        Some(_) if *pty => Keys::ForJobTerminal,
        Some(_) if args.sandbox.is_on() => Keys::ForJobSession,
        Some(_) => Keys::ReachJob,
        None => Keys::ReachPinfold,
    };
    let rules = Rules::new(keys).with(args.on_signal.clone(), args.stop_signal.is_some());
    // These signals concern pinfold's own terminal.
    let own = if *pty { vec![Signal::WINCH, Signal::CONT] } else { Vec::new() };
    let announce = |step| announce(args, step);
    let policy = Policy { terminal, own_signals: own, announce: &announce, ..Policy::default() };
    let mut supervision = Supervision::new(signals, rules, policy);
    let mut forwarder = Forwarder::new(args)?;
    let spawn = async {
        if let Some(readiness) = ready {
            readiness.check_before_start().await?;
        }
        supervisor.spawn(command).await
    };
    let mut job = match supervision.start(spawn).await? {
        Ok(job) => job,
        Err(signal) => return Ok(Ended::signalled(args, command, signal)),
    };
    if args.verbose {
        print_message(&format!("started {} as process {}", printable_os(&args.command[0]), job.pid()));
    }
    if let Err(error) = args.streams.empty_tee() {
        forwarder.report_loss(error.to_string());
    }
    let handle = job.handle();
    let stopped_time = supervision.stopped_time.clone();
    let ready_timer = || ReadyTimeout { timeout: *ready_timeout, stopped_time: &stopped_time };
    let ready = ready.as_ref();
    let mut readiness = ready.map(|ready| Box::pin(ready::ready(ready, ready_timer(), notify.as_ref(), &handle)));
    forwarder.start(args, &mut job, supervisor, terminal).await?;
    let mut not_ready = None;
    let report = loop {
        let own = async {
            tokio::select! {
                biased;
                done = once(&mut readiness) => RunEvent::Readiness(done),
                signal = forwarder.typed_kill(&job) => RunEvent::Typed(signal),
            }
        };
        match supervision.next(Some(&job), own).await? {
            Event::Ended(report) => break report,
            Event::Other(RunEvent::Readiness(Err(exit_override))) => {
                not_ready = Some(exit_override);
                job.start_stop()?;
            }
            Event::Other(RunEvent::Typed(signal)) => supervision.kill(&job, signal)?,
            Event::OwnSignal(signal) => forwarder.terminal_signal(&job, signal),
            Event::Other(RunEvent::Readiness(Ok(()))) | Event::Requested(_) | Event::Interrupted(_) => {}
        }
    };
    let timed_out = not_ready.is_some() || matches!(report.reason, Reason::Deadline | Reason::Idle);
    let loss = forwarder.finish(timed_out, &mut supervision).await;
    // The job has ended before it was known to be ready.
    if let (Some(_), Some(by)) = (&readiness, ready) {
        not_ready = ready::at_the_end(by, notify.as_ref(), &handle, &report).await;
    }
    Ok(Ended::over(report, supervision.requested == Some(Signal::INT), not_ready, loss))
}

/// Waits for the future, and then removes it. Waits forever after the future was removed.
async fn once<F: Future + Unpin>(waiting: &mut Option<F>) -> F::Output {
    let Some(future) = waiting else { return std::future::pending().await };
    let done = future.await;
    *waiting = None;
    done
}

/// Prints a step, with `--verbose`.
fn announce(args: &Args, step: Step) {
    match step {
        _ if !args.verbose => {}
        Step::Stop(signal) => print_message(&format!("{signal}: stopping")),
        Step::Kill(signal) => print_message(&format!("{signal}: killing")),
        Step::Interrupt(signal, count) => {
            print_message(&format!("{signal} from the terminal: {count} of the {KILL_INTERRUPTS} that kill the job"))
        }
        Step::Send(..) => {}
    }
}
