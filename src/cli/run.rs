//! `pinfold run`.

mod args;
mod explain;
mod keys;
mod ready;
mod relay;
mod stats;
mod streams;

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use pinfold::report::{MainEnd, Reason};
use pinfold::signal::{self, SignalQueue, SignalStream};
use pinfold::{Command, Guard, Job, Report, Signal, Supervisor};
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use super::report_sink::Sink;
use super::signals::{PATIENCE_INTERRUPTS, Response, Rules};
use super::terminal::Terminal;
use super::{FAILED, tell};
#[cfg(feature = "watch")]
pub use args::parse_signal;
pub use args::{Args, ContainmentArg};
use explain::explain;
pub use explain::explain_failures;
use relay::Relay;

/// How long a stop waits for the command to be executed, so that the command gets the stop signal; an exec can take long.
pub const EXEC_PATIENCE: Duration = Duration::from_secs(1);

/// So many descriptors the rest takes (15, and 3 for a tokio that has been built with its signals), once the signals, the
/// guard, the terminal and the report have theirs.
const DESCRIPTORS: usize = 18;

/// SIGKILL did not end all of the job, whatever else became of it.
const UNKILLABLE: u8 = 122;

/// `--fail-on-leftovers` found some, and the command itself had succeeded.
const LEFTOVERS: u8 = 123;

/// It was not ready in time.
const TOO_LATE: u8 = 124;

/// What has to be there before anything else, in this order.
pub struct Prepared {
    pub signals: SignalQueue,
    pub terminal: Option<Terminal>,
    pub guard: Guard,
    /// How many files may be open at once, where that is told.
    pub open_files: Option<u64>,
}

impl Prepared {
    pub fn new() -> pinfold::Result<Self> {
        // No signal may end pinfold from here on, and what the terminal was like is known only before the guard exists.
        let signals = SignalQueue::block_all()?;
        let terminal = Terminal::open();
        let guard = Guard::fork()?;
        let open_files = pinfold::raise_own_limits();
        Ok(Self { signals, terminal, guard, open_files })
    }
}

/// Runs the command and tells the exit code.
pub fn run(mut args: Args, prepared: pinfold::Result<Prepared>) -> Result<u8> {
    let sink = args.report.take().map(Sink::open).transpose()?;
    // The terminal sends its signals to the foreground group, so the job has to be in ours.
    let terminal = prepared.as_ref().ok().and_then(|prepared| prepared.terminal.as_ref());
    let mut command = args.to_command(terminal.is_some() && !args.streams.pty);
    if sink.is_some() || args.stats {
        command.measure_pressure();
    }
    let applied = args.streams.apply(&mut command, terminal);
    // Before it is asked who could enforce them.
    let ended = prepared.and_then(|prepared| applied.and(Ok(prepared)));
    let ended = ended.and_then(|prepared| args.limits.to_limits().check().and(Ok(prepared)));
    let ended = ended.and_then(|prepared| enough_descriptors(prepared.open_files).and(Ok(prepared)));
    let ended = ended.and_then(|prepared| in_runtime(&args, &command, prepared));
    let ended = ended.unwrap_or_else(|error| Ended::not_started(&command, &error));

    match &ended {
        Ended::Report { report, .. } => {
            explain(&args, report);
            if args.stats {
                stats::stats(report);
            }
        }
        Ended::NotStarted { report } => tell(report.error.as_deref().unwrap_or_default()),
        Ended::Signalled { .. } => {}
    }
    let (Ended::Report { report, .. } | Ended::NotStarted { report } | Ended::Signalled { report, .. }) = &ended;
    if let Some(sink) = sink {
        sink.write(report)?;
    }
    if ended_by_interrupt(&ended) {
        // So that a calling shell loop stops too. PID 1 comes back from this.
        signal::end_by(Signal::INT);
    }
    if let Ended::Report { code: Some(code), .. } = &ended
        && (*code == TOO_LATE || report.success())
    {
        return Ok(*code);
    }
    Ok(exit_code(&args, report))
}

/// Whether there are as many descriptors to be had as a run takes: what is too little is better told now than in the middle.
fn enough_descriptors(limit: Option<u64>) -> pinfold::Result<()> {
    const PLENTY: u64 = 4096;
    if limit.is_none_or(|limit| limit >= PLENTY) {
        return Ok(());
    }
    let null = File::open("/").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
    let had: Result<Vec<_>, _> =
        null.and_then(|null| (1..DESCRIPTORS).map(|_| fcntl_dupfd_cloexec(&null, 0)).collect());
    had.map(drop).map_err(|errno| pinfold::Error::System {
        operation: "take",
        object: format!("{DESCRIPTORS} descriptors"),
        errno,
        advice: format!(
            "the hard limit on open files is {}: close some of those that are open, or see ulimit -Hn",
            limit.unwrap_or_default()
        ),
    })
}

/// Runs the command; when it comes back the job is over, and the terminal is as it was.
fn in_runtime(args: &Args, command: &Command, prepared: Prepared) -> pinfold::Result<Ended> {
    let Prepared { signals, terminal, guard, .. } = prepared;
    let shares_group = terminal.is_some() && !args.streams.pty;
    let rules = Rules::new(terminal.as_ref().is_some_and(|terminal| terminal.is_stdin), shares_group);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| pinfold::Error::System {
        operation: "start",
        object: "the event loop".into(),
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        advice: String::new(),
    })?;
    let ended = runtime.block_on(supervise(args, guard, command, signals, rules, terminal.as_ref()));
    if let Some(terminal) = &terminal {
        terminal.restore(!matches!(&ended, Ok(Ended::Report { report, .. }) if ended_by_itself(report)));
    }
    if ended.is_ok() {
        // Nothing is left to be torn down that the kernel does not do faster.
        std::mem::forget(runtime);
    }
    ended
}

enum Ended {
    Report {
        report: Arc<Report>,
        /// An interrupt asked for a stop.
        interrupted: bool,
        /// Of the options about its output: what makes a success none.
        code: Option<u8>,
    },
    /// The command could not be executed.
    NotStarted { report: Arc<Report> },
    /// A signal came before the command had been executed.
    Signalled { report: Arc<Report>, signal: Signal },
}

impl Ended {
    fn not_started(command: &Command, error: &pinfold::Error) -> Self {
        Self::NotStarted { report: Arc::new(Report::of_failed_spawn(command, error)) }
    }

    fn signalled(args: &Args, command: &Command, signal: Signal) -> Self {
        let program = args.command[0].to_string_lossy().into_owned();
        let error = pinfold::Error::EndedEarly { program, reason: Reason::Stopped };
        let mut report = Report::of_failed_spawn(command, &error);
        report.error = Some(format!("{error}: {signal}"));
        report.exit_code = u8::try_from(128 + signal.number()).unwrap_or(u8::MAX);
        Self::Signalled { report: Arc::new(report), signal }
    }
}

async fn supervise(
    args: &Args,
    guard: Guard,
    command: &Command,
    signals: SignalQueue,
    mut rules: Rules,
    terminal: Option<&Terminal>,
) -> pinfold::Result<Ended> {
    let signals = signals.listen()?;
    let controllers = args.limits.to_limits().controllers();
    let mut builder = Supervisor::builder().guard(guard).one_job().controllers(controllers);
    if let Some(kind) = args.containment() {
        builder = builder.containment(kind);
    }
    if let Some(cgroup) = &args.cgroup {
        builder = builder.cgroup(cgroup);
    }
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
) -> pinfold::Result<Ended> {
    let mut early = Vec::new();
    let mut patience = None;
    // Those that have come before pinfold had a job: a second wish starts none.
    while let Some(received) = signals.try_recv()? {
        match rules.respond(received, Instant::now()) {
            Response::Kill => return Ok(Ended::signalled(args, command, received.signal)),
            response => {
                if response == Response::Stop {
                    patience = Some((Instant::now() + EXEC_PATIENCE, received.signal));
                }
                early.push((response, received.signal));
            }
        }
    }
    let spawned = {
        let mut spawning = std::pin::pin!(supervisor.spawn(command));
        loop {
            tokio::select! {
                biased;
                spawned = &mut spawning => break spawned,
                received = signals.recv() => {
                    let received = received?;
                    match rules.respond(received, Instant::now()) {
                        // Dropping the future ends what there is of the job.
                        Response::Kill => return Ok(Ended::signalled(args, command, received.signal)),
                        Response::Stop => {
                            patience = Some((Instant::now() + EXEC_PATIENCE, received.signal));
                            early.push((Response::Stop, received.signal));
                        }
                        response => early.push((response, received.signal)),
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
        tell(&format!("started {} as process {}", args.command[0].to_string_lossy(), job.pid()));
    }
    let mut interrupted = false;
    // The command may have been executed, and have been seen by others, before we heard of it: none of these is lost.
    for (response, signal) in early {
        interrupted |= signal == Signal::INT && response == Response::Stop;
        perform(args, &job, response, signal);
    }
    let mut relay = Relay::start(args, &job, supervisor, terminal).await?;
    let mut ready = Some(Box::pin(ready::ready(&args.streams, &job, relay.line_seen.clone())));
    let mut late = false;
    loop {
        let received = tokio::select! {
            biased;
            report = job.wait() => {
                let report = report?;
                relay.finish(signals, rules).await;
                let code = if late { Some(TOO_LATE) } else { relay.tee_failed.borrow().then_some(FAILED) };
                return Ok(Ended::Report { report, interrupted, code });
            }
            signal = job.next_stop() => {
                if let Some(terminal) = terminal.filter(|_| !args.streams.pty) {
                    stopped(&job, signal, terminal);
                }
                continue;
            }
            in_time = once(&mut ready) => {
                if !in_time {
                    late = true;
                    job.stop();
                }
                continue;
            }
            (response, signal) = relay.response(&job) => {
                perform(args, &job, response, signal);
                continue;
            }
            received = signals.recv() => received?,
        };
        if relay.takes(&job, received.signal) {
            continue;
        }
        let response = rules.respond(received, Instant::now());
        interrupted |= received.signal == Signal::INT && response == Response::Stop;
        perform(args, &job, response, received.signal);
    }
}

/// Waits for it, once.
async fn once<F: Future + Unpin>(waiting: &mut Option<F>) -> F::Output {
    let Some(future) = waiting else { return std::future::pending().await };
    let done = future.await;
    *waiting = None;
    done
}

/// Waits until then, for ever where no time is set.
pub async fn over(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn perform(args: &Args, job: &Job, response: Response, signal: Signal) {
    match response {
        Response::Stop => {
            if args.verbose {
                tell(&format!("{signal}: stopping"));
            }
            job.stop();
        }
        Response::Kill => {
            if args.verbose {
                tell(&format!("{signal}: killing"));
            }
            job.kill();
        }
        Response::PassOn(signal) => {
            // It may just have ended.
            let _ = job.signal(signal);
        }
        Response::LeftToTheJob(count) => {
            if args.verbose {
                tell(&format!("{signal} from the terminal, {count} of {PATIENCE_INTERRUPTS} to kill"));
            }
        }
        Response::Nothing => {}
    }
}

/// The main process was stopped. By job control: pinfold stops too, so that the shell takes over, and the deadline's clock
/// with it. Where no shell would continue us, the stop is undone: the kernel would have ignored it but for the guard.
pub fn stopped(job: &Job, signal: Signal, terminal: &Terminal) {
    if ![Signal::TSTP, Signal::TTIN, Signal::TTOU].contains(&signal) {
        return;
    }
    if terminal.orphaned {
        job.signal_all(Signal::CONT);
        return;
    }
    let since = Instant::now();
    signal::suspend_by(signal);
    job.postpone_deadline(since.elapsed());
}

/// Whether the command ended as it wanted to: then the terminal is as it wanted to leave it.
fn ended_by_itself(report: &Report) -> bool {
    report.reason == Reason::Exited && matches!(report.main, Some(MainEnd::Exited(_))) && !report.killed
}

fn exit_code(args: &Args, report: &Report) -> u8 {
    if report.unkillable.count > 0 {
        return UNKILLABLE;
    }
    if report.exit_code == 0 && args.fail_on_leftovers && report.leftovers.count > 0 {
        return LEFTOVERS;
    }
    report.exit_code
}

fn ended_by_interrupt(ended: &Ended) -> bool {
    match ended {
        Ended::NotStarted { .. } => false,
        Ended::Signalled { signal, .. } => *signal == Signal::INT,
        Ended::Report { report, interrupted, .. } => match report.main {
            Some(MainEnd::Signalled { signal, .. }) if report.reason != Reason::Deadline => {
                signal == Signal::INT.number() || *interrupted && report.reason == Reason::Stopped
            }
            _ => false,
        },
    }
}
