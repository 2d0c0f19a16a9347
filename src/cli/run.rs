//! `pinfold run`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use pinfold::report::{MainEnd, ProcessList, Reason};
use pinfold::signal::{self, SignalQueue, SignalStream};
use pinfold::{Command, Guard, Job, Leftovers, ProcessGroup, Report, Signal, SignalTo, Supervisor};

use super::report_sink::{self, Destination, Sink};
use super::signals::{PATIENCE_INTERRUPTS, Response, Rules};
use super::terminal::Terminal;
use super::{duration, tell};

/// How long a stop waits for the command to be executed, so that the command gets the stop signal; an exec can take long.
const EXEC_PATIENCE: Duration = Duration::from_secs(1);

/// `--fail-on-leftovers` found some, and the command itself had succeeded.
const LEFTOVERS: u8 = 123;

/// Run a command; when it ends, everything that it started has ended too.
///
/// Standard input, output and error are the command's own, untouched.
///
/// Exit code: the command's own; 128+N when signal N ended it; 124 at the deadline; 123 for --fail-on-leftovers;
/// 125 when pinfold itself failed; 126 when the command can't be executed; 127 when it was not found.
#[derive(clap::Args)]
pub struct Args {
    /// Stop the job after this time: 1h30m, 2.5s, 500ms, or plain seconds
    #[arg(long, short, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,

    /// Kill the job this long after the stop signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    grace: Duration,

    /// The stop signal: a name like INT, or a number
    #[arg(long, value_name = "SIGNAL", default_value = "TERM", value_parser = parse_signal)]
    stop_signal: Signal,

    /// Who gets the stop signal
    #[arg(long, value_name = "WHOM", default_value = "all")]
    signal_to: SignalToArg,

    /// What happens to processes that are left when the command has exited
    #[arg(long, value_name = "WHAT", default_value = "kill")]
    leftovers: LeftoversArg,

    /// End with exit code 123 when the command succeeded but left processes behind
    #[arg(long)]
    fail_on_leftovers: bool,

    /// The directory to run in
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,

    /// Set an environment variable (repeatable)
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = FromBytes(parse_variable))]
    env: Vec<(OsString, OsString)>,

    /// Start from an empty environment; --env still holds
    #[arg(long)]
    clear_env: bool,

    /// A name for messages and the report
    #[arg(long)]
    name: Option<String>,

    /// Write a report in JSON to FILE, to standard output (-) or to a descriptor (fd:N)
    #[arg(long, value_name = "FILE|-|fd:N", value_parser = FromBytes(report_sink::parse))]
    report: Option<Destination>,

    /// Refuse to start without this containment
    // The only one there is, so it always holds.
    #[arg(long, value_name = "WHAT")]
    require: Option<RequireArg>,

    /// The cgroup v2 directory to make the job's cgroup in, instead of pinfold's own
    #[arg(long, value_name = "DIR", env = "PINFOLD_CGROUP")]
    cgroup: Option<PathBuf>,

    /// Say only what went wrong
    #[arg(long, short, conflicts_with = "verbose")]
    quiet: bool,

    /// Say what is done
    #[arg(long, short)]
    verbose: bool,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum SignalToArg {
    /// Every process of the job
    All,
    /// Only the command's own process
    Main,
}

#[derive(Clone, Copy, ValueEnum)]
enum LeftoversArg {
    /// They are stopped, then killed
    Kill,
    /// They are waited for
    Wait,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RequireArg {
    /// A cgroup of its own
    Cgroup,
}

/// Parses an option's value from bytes; clap's own function parsers take only UTF-8.
#[derive(Clone)]
struct FromBytes<T>(fn(&OsStr) -> Result<T, String>);

impl<T: Clone + Send + Sync + 'static> clap::builder::TypedValueParser for FromBytes<T> {
    type Value = T;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<T, clap::Error> {
        (self.0)(value).map_err(|message| {
            let name = arg.map(ToString::to_string).unwrap_or_default();
            let message = format!("invalid value {value:?} for '{name}': {message}\n");
            command.clone().error(clap::error::ErrorKind::InvalidValue, message)
        })
    }
}

fn parse_signal(text: &str) -> Result<Signal, String> {
    text.parse().map_err(|error: pinfold::Error| error.to_string())
}

/// Bytes, as environments are.
fn parse_variable(text: &OsStr) -> Result<(OsString, OsString), String> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(at) if at > 0 => Ok((OsStr::from_bytes(&bytes[..at]).into(), OsStr::from_bytes(&bytes[at + 1..]).into())),
        _ => Err("write KEY=VALUE".into()),
    }
}

impl Args {
    fn to_command(&self, shares_group: bool) -> Command {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().cloned().unwrap_or_default());
        command
            .args(words)
            .inherit_descriptors(true)
            .grace(self.grace)
            .stop_signal(self.stop_signal)
            .signal_to(match self.signal_to {
                SignalToArg::All => SignalTo::All,
                SignalToArg::Main => SignalTo::Main,
            })
            .leftovers(match self.leftovers {
                LeftoversArg::Kill => Leftovers::Kill,
                LeftoversArg::Wait => Leftovers::Wait,
            })
            .process_group(if shares_group { ProcessGroup::Supervisors } else { ProcessGroup::New });
        if let Some(timeout) = self.timeout {
            command.timeout(timeout);
        }
        if self.clear_env {
            command.env_clear();
        }
        for (key, value) in &self.env {
            command.env(key, value);
        }
        if let Some(cwd) = &self.cwd {
            command.cwd(cwd);
        }
        if let Some(name) = &self.name {
            command.name(name);
        }
        command
    }
}

/// What has to be there before anything else, in this order.
pub struct Prepared {
    signals: SignalQueue,
    terminal: Option<Terminal>,
    guard: Guard,
}

impl Prepared {
    pub fn new() -> Result<Self> {
        // No signal may end pinfold from here on, and what the terminal was like is known only before the guard exists.
        let signals = SignalQueue::block_all()?;
        let terminal = Terminal::open();
        Ok(Self { signals, terminal, guard: Guard::fork()? })
    }
}

/// Runs the command and tells the exit code.
pub fn run(mut args: Args, prepared: Prepared) -> Result<u8> {
    let Prepared { signals, terminal, guard } = prepared;
    let sink = args.report.take().map(Sink::open).transpose()?;
    // The terminal sends its signals to the foreground group, so the job has to be in ours.
    let shares_group = terminal.is_some();
    let rules = Rules::new(terminal.as_ref().is_some_and(|terminal| terminal.is_stdin), shares_group);
    let command = args.to_command(shares_group);

    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let ended = runtime.block_on(supervise(&args, guard, &command, signals, rules, terminal.as_ref()));
    if let Some(terminal) = &terminal {
        terminal.restore(!matches!(&ended, Ok(Ended::Report { report, .. }) if ended_by_itself(report)));
    }
    let ended = ended?;

    let code = match &ended {
        Ended::Report { report, .. } => {
            explain(&args, report);
            exit_code(&args, report)
        }
        Ended::NotStarted { report, error } => {
            tell(&error.to_string());
            report.exit_code
        }
        Ended::Signalled(signal) => u8::try_from(128 + signal.number()).unwrap_or(u8::MAX),
    };
    if let (Some(sink), Ended::Report { report, .. } | Ended::NotStarted { report, .. }) = (sink, &ended) {
        sink.write(report)?;
    }
    if ended_by_interrupt(&ended) {
        // So that a calling shell loop stops too. PID 1 comes back from this.
        signal::end_by(Signal::INT);
    }
    // Nothing is left to be torn down that the kernel does not do faster.
    std::mem::forget(runtime);
    Ok(code)
}

enum Ended {
    Report {
        report: Arc<Report>,
        /// An interrupt asked for a stop.
        interrupted: bool,
    },
    /// The command could not be executed.
    NotStarted { report: Arc<Report>, error: pinfold::Error },
    /// A signal came before the command had been executed.
    Signalled(Signal),
}

async fn supervise(
    args: &Args,
    guard: Guard,
    command: &Command,
    signals: SignalQueue,
    mut rules: Rules,
    terminal: Option<&Terminal>,
) -> Result<Ended> {
    let signals = signals.listen()?;
    let mut builder = Supervisor::builder().guard(guard).one_job();
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
) -> Result<Ended> {
    let mut early = Vec::new();
    let mut patience = None;
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
                        Response::Kill => return Ok(Ended::Signalled(received.signal)),
                        Response::Stop => {
                            patience = Some((Instant::now() + EXEC_PATIENCE, received.signal));
                            early.push((Response::Stop, received.signal));
                        }
                        response => early.push((response, received.signal)),
                    }
                }
                signal = over(patience) => return Ok(Ended::Signalled(signal)),
            }
        }
    };
    let job = match spawned {
        Ok(job) => job,
        Err(error) => {
            let report = Arc::new(Report::of_failed_spawn(command, &error));
            return Ok(Ended::NotStarted { report, error });
        }
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
    loop {
        let received = tokio::select! {
            biased;
            report = job.wait() => {
                return Ok(Ended::Report { report: report?, interrupted });
            }
            signal = job.next_stop() => {
                if let Some(terminal) = terminal {
                    stopped(&job, signal, terminal);
                }
                continue;
            }
            received = signals.recv() => received?,
        };
        let response = rules.respond(received, Instant::now());
        interrupted |= received.signal == Signal::INT && response == Response::Stop;
        perform(args, &job, response, received.signal);
    }
}

/// Waits until the patience is over, for ever where none was set.
async fn over(patience: Option<(Instant, Signal)>) -> Signal {
    match patience {
        Some((at, signal)) => {
            tokio::time::sleep_until(at.into()).await;
            signal
        }
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
fn stopped(job: &Job, signal: Signal, terminal: &Terminal) {
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

/// Says on standard error what a person would want to know.
fn explain(args: &Args, report: &Report) {
    if report.unkillable.count > 0 {
        tell(&format!("could not end {}", list(&report.unkillable)));
    }
    for left in &report.not_removed {
        tell(&format!("could not remove {}: {}", left.path, left.error));
    }
    if report.reason == Reason::GuardLost {
        tell("the guard process was killed; the job has been ended");
    }
    if args.quiet {
        return;
    }
    if report.reason == Reason::Deadline {
        let timeout = args.timeout.unwrap_or_default();
        let how = if report.killed { "killed" } else { "stopped" };
        tell(&format!("{} was {how} at its deadline of {}", report.name, humantime::format_duration(timeout)));
    }
    if report.leftovers.count > 0 {
        let fate = match (report.killed, report.phases.stopping) {
            (true, _) => "killed now",
            (false, Some(_)) => "ended now",
            (false, None) => "waited for",
        };
        tell(&format!("{} left {} behind, {fate}", report.name, list(&report.leftovers)));
    }
    if report.emigrants.count > 0 {
        tell(&format!("{} had left its cgroup, killed now", list(&report.emigrants)));
    }
    if args.verbose {
        tell(&format!(
            "{:?}, {:?} in {}",
            report.reason,
            report.main,
            report.containment.cgroup.as_deref().unwrap_or("-")
        ));
    }
}

fn list(processes: &ProcessList) -> String {
    const SHOWN: usize = 3;
    let mut text = if processes.count == 1 { "1 process".to_owned() } else { format!("{} processes", processes.count) };
    let shown: Vec<_> = processes.processes.iter().take(SHOWN).map(ToString::to_string).collect();
    if !shown.is_empty() {
        let more = if processes.count as usize > shown.len() { ", …" } else { "" };
        text.push_str(&format!(" ({}{more})", shown.join(", ")));
    }
    text
}

fn exit_code(args: &Args, report: &Report) -> u8 {
    if report.exit_code == 0 && args.fail_on_leftovers && report.leftovers.count > 0 {
        return LEFTOVERS;
    }
    report.exit_code
}

fn ended_by_interrupt(ended: &Ended) -> bool {
    match ended {
        Ended::NotStarted { .. } => false,
        Ended::Signalled(signal) => *signal == Signal::INT,
        Ended::Report { report, interrupted } => match report.main {
            Some(MainEnd::Signalled { signal, .. }) if report.reason != Reason::Deadline => {
                signal == Signal::INT.number() || *interrupted && report.reason == Reason::Stopped
            }
            _ => false,
        },
    }
}
