//! `pinfold watch`: runs a command again when files change. A run starts only after proof that the last one has ended.

mod args;
mod changes;
mod extensions;
mod files;
mod ignored;
mod keys;
mod repeats;
mod route;
mod watches;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::signal_stream::SignalStream;
use crate::report::SupervisorKind;
use crate::report::{MainEnd, Reason};
use crate::{Command, Error, Job, ProcessGroup, Report, Signal, Supervisor};
use anyhow::{Context, Result, bail};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::Receiver;

use super::exit::Exit;
use super::explain::explain_failures;
use super::run::Prepared;
use super::runtime::with_supervisor;
use super::signals::{Keys, Rules};
use super::supervise::{Event, Policy, Supervision, sleep_until};
use super::terminal::Terminal;
use super::{print_message, supervisor_of_environment};
pub use args::Args;
use args::{OnBusy, Stdin};
use changes::Changes;
use files::Files;
use repeats::Repeats;

/// A change that pinfold notices this soon after the end of a run can be a change by that run.
const NOTICED: Duration = Duration::from_millis(200);

/// The maximum number of reads at the end of a run, so that pinfold handles the end even if files change all the time.
const READS_AT_THE_END: usize = 64;

/// Runs `pinfold watch` until a signal ends it, and returns the exit code.
pub fn run(args: &Args, prepared: Prepared) -> Result<u8> {
    let Prepared { signals, terminal, guard, .. } = prepared;
    let files = Files::watch(&args.watch, &args.ext, &args.ignore)?;
    // This starts a thread. The guard must exist before that, because it is a fork of this process.
    let keys = if args.stdin == Stdin::Null { Some(keys::restarts()?) } else { None };
    let builder = supervisor_of_environment(guard)?.kind(SupervisorKind::Watch);
    let ended = with_supervisor(builder, signals, async |supervisor, signals| {
        Watch::new(args, files, terminal.as_ref()).run(supervisor, signals, keys).await
    });
    if let Some(terminal) = &terminal {
        terminal.restore(true);
    }
    Ok(Exit::on_request(ended?).code())
}

/// An event of `watch` itself.
enum WatchEvent {
    /// The user has typed `r` and Enter. `None` at the end of the input.
    Restart(Option<()>),
    /// Files have changed, or may have.
    Changed(Result<Vec<PathBuf>>),
    /// The burst of changes is over.
    Settled,
}

struct Watch<'a> {
    args: &'a Args,
    files: Files,
    terminal: Option<&'a Terminal>,
    /// Interrupts from the terminal do not end the watch, because the command reads from the terminal, as a debugger
    /// does.
    interrupts_are_for_the_job: bool,
    command: Command,
    changes: Changes,
    repeats: Repeats,
    runs: u64,
    /// When the last run began and ended.
    began: Option<Instant>,
    over: Option<Instant>,
    /// pinfold is stopping the current run.
    stopping: bool,
    /// A description of how the last run ended.
    last: Option<String>,
}

impl<'a> Watch<'a> {
    fn new(args: &'a Args, files: Files, terminal: Option<&'a Terminal>) -> Self {
        let mut command = Command::new(&args.command[0]);
        // If there is a terminal, the command runs in pinfold's process group, because only the foreground process
        // group may read from the terminal and change its settings.
        let group = if terminal.is_some() { ProcessGroup::Supervisors } else { ProcessGroup::New };
        command
            .args(&args.command[1..])
            .inherit_descriptors(true)
            .stdin(if args.stdin == Stdin::Null { crate::Stdio::null() } else { crate::Stdio::inherit() })
            .process_group(group)
            .stop_signal(args.stop_signal.unwrap_or(Signal::TERM))
            .grace(args.grace)
            .settle(args.settle);
        let for_the_job = args.stdin == Stdin::Inherit && terminal.is_some_and(|terminal| terminal.is_stdin);
        Self {
            args,
            files,
            terminal,
            interrupts_are_for_the_job: for_the_job,
            command,
            changes: Changes::default(),
            repeats: Repeats::default(),
            runs: 0,
            began: None,
            over: None,
            stopping: false,
            last: None,
        }
    }

    /// Runs until a signal ends it, and returns that signal.
    async fn run(
        &mut self,
        supervisor: &Supervisor,
        signals: &SignalStream,
        mut keys: Option<Receiver<()>>,
    ) -> Result<Signal> {
        // SAFETY: the AsyncFd owns the OwnedFd, which keeps the same descriptor open all the time.
        #[allow(unsafe_code)]
        let events = unsafe { AsyncFd::register_with_interest(self.files.descriptor()?, Interest::READABLE) };
        let events = events.context("cannot wait for the events of inotify")?;
        let rules = Rules::new(if self.terminal.is_some() { Keys::ReachJob } else { Keys::ReachPinfold });
        let rules = rules.with(Vec::new(), self.args.stop_signal.is_some());
        let policy = Policy { terminal: self.terminal, ..Policy::default() };
        let mut supervision = Supervision::new(signals, rules, policy);
        let mut job: Option<(Job, Instant)> = None;
        let mut ending = None;
        self.print_notes();
        self.changes.requested = !self.args.postpone;
        if self.args.postpone && !self.args.quiet {
            print_message("waiting for a change");
        }
        loop {
            if job.is_none() {
                if let Some(signal) = ending {
                    return Ok(signal);
                }
                if self.changes.is_pending() && self.settled().is_some_and(|at| at <= Instant::now()) {
                    match self.start(supervisor, &mut supervision).await? {
                        Some(Ok(started)) => job = Some((started, Instant::now())),
                        Some(Err(signal)) => return Ok(signal),
                        None => {}
                    }
                }
            }
            let running = job.as_ref().map(|(job, _)| job);
            let start_at = if running.is_none() && self.changes.is_pending() { self.settled() } else { None };
            let own = async {
                tokio::select! {
                    biased;
                    request = restart(&mut keys) => WatchEvent::Restart(request),
                    changed = changed(&events, &mut self.files) => WatchEvent::Changed(changed),
                    () = sleep_until(start_at) => WatchEvent::Settled,
                }
            };
            match supervision.next(running, own).await? {
                Event::Ended(report) => {
                    if self.args.on_busy == OnBusy::Ignore {
                        self.ignore_changes()?;
                    }
                    let after = job.take().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                    if self.args.stdin == Stdin::Inherit && ended_by_interrupt(&report) {
                        ending = ending.or(Some(Signal::INT));
                    }
                    self.ended(&report, after, ending.is_some())?;
                }
                Event::Requested(signal) => _ = ending.get_or_insert(signal),
                Event::Interrupted(Signal::INT | Signal::QUIT)
                    if running.is_some() && self.interrupts_are_for_the_job => {}
                // The job has received the signal from the terminal. Its grace period starts now.
                Event::Interrupted(signal) => {
                    ending.get_or_insert(signal);
                    supervision.kill_in(self.args.grace);
                }
                Event::Other(WatchEvent::Restart(Some(()))) => {
                    self.changes.requested = true;
                    self.stop(running);
                }
                Event::Other(WatchEvent::Restart(None)) => keys = None,
                Event::Other(WatchEvent::Changed(changed)) => self.change(changed?, running),
                Event::Other(WatchEvent::Settled) | Event::OwnSignal(_) => {}
            }
        }
    }

    fn settled(&self) -> Option<Instant> {
        self.changes.settled(self.args.debounce)
    }

    /// Discards the changes that happened while the command ran.
    fn ignore_changes(&mut self) -> Result<()> {
        for _ in 0..READS_AT_THE_END {
            if self.files.read()?.is_none() {
                break;
            }
        }
        self.print_notes();
        self.files.begin();
        Ok(())
    }

    fn print_notes(&mut self) {
        for note in self.files.notes() {
            print_message(&note);
        }
    }

    /// Handles changes: stops the current run at once. The next run starts when the burst of changes is over.
    fn change(&mut self, changed: Vec<PathBuf>, job: Option<&Job>) {
        self.print_notes();
        if changed.is_empty() {
            return;
        }
        let let_run = match self.args.on_busy {
            OnBusy::Ignore if job.is_some() => return,
            OnBusy::Restart => self.args.once_first && self.runs == 1,
            _ => true,
        };
        self.changes.add(changed);
        if !let_run {
            self.stop(job);
        }
    }

    /// Stops the current run, at most once for each run, because a second stop would kill it.
    fn stop(&mut self, job: Option<&Job>) {
        if let Some(job) = job
            && !self.stopping
        {
            self.stopping = true;
            // Supervision::next returns the error too.
            let _ = job.start_stop();
        }
    }

    /// Starts the next run. Returns `None` if the command can't be executed; it may be possible after the next change.
    async fn start(
        &mut self,
        supervisor: &Supervisor,
        supervision: &mut Supervision<'_>,
    ) -> Result<Option<std::result::Result<Job, Signal>>> {
        let changes = std::mem::take(&mut self.changes);
        let mut stdout = std::io::stdout();
        if self.args.clear && stdout.is_terminal() {
            // Clear the screen, clear the scrolled-off lines, move the cursor to the top (console_codes(4)).
            let _ = stdout.write_all(b"\x1b[2J\x1b[3J\x1b[H").and_then(|()| stdout.flush());
        }
        let what = match self.last.as_deref().unwrap_or("did not start") {
            last if self.runs > 0 => Some(format!("; the last run {last}; starting again")),
            _ if self.args.postpone => Some("; starting".to_owned()),
            _ => None,
        };
        if let Some(what) = what.filter(|_| !self.args.quiet) {
            print_message(&format!("{}{what}", changes.describe()));
        }
        self.report_repeats(&changes);
        self.runs += 1;
        self.last = None;
        self.over = None;
        self.began = Some(Instant::now());
        self.files.begin();
        self.stopping = false;
        match supervision.start(supervisor.spawn(&self.command)).await {
            Ok(started) => Ok(Some(started)),
            Err(error @ Error::Spawn(_)) => {
                print_message(&format!("{error}; waiting for a change"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Prints a message if the command seems to write watched files, so that it causes its own restart without end.
    fn report_repeats(&mut self, changes: &Changes) {
        let own = |first: &Instant| !changes.requested && self.over.is_none_or(|over| *first <= over + NOTICED);
        let after =
            changes.first.filter(own).zip(self.began).map(|(first, began)| first.saturating_duration_since(began));
        if let Some(file) = self.repeats.add(after, changes.files()) {
            print_message(&format!(
                "{} changed in each of the last three runs: if the command writes it, the restarts never end; exclude \
                 such files with --ignore GLOB",
                changes::name(&file)
            ));
        }
    }

    fn ended(&mut self, report: &Arc<Report>, after: Duration, ending: bool) -> Result<()> {
        explain_failures(report);
        if !report.is_gone() {
            bail!("could not end the last run, so pinfold does not start the next one");
        }
        let words = format!("{} after {}", how(report), humantime::format_duration(rounded(after)));
        self.over = Some(Instant::now());
        if let Some(terminal) = self.terminal.filter(|_| self.args.stdin == Stdin::Inherit) {
            // A debugger that pinfold has stopped may have left the terminal without echo.
            terminal.restore(true);
        }
        if !ending && !self.args.quiet && !self.changes.is_pending() {
            let missing: Vec<_> = self.files.missing().map(changes::name).collect();
            let missing =
                if missing.is_empty() { String::new() } else { format!(" ({} is missing)", missing.join(", ")) };
            print_message(&format!("{} {words}; waiting for a change{missing}", name(&self.args.command[0])));
        }
        self.last = Some(words);
        Ok(())
    }
}

fn name(program: &OsString) -> String {
    crate::report::text::printable_os(Path::new(program).file_name().unwrap_or(program)).into_owned()
}

fn how(report: &Report) -> String {
    let stopped = if report.reason == Reason::Stopped { "was stopped, and " } else { "" };
    match &report.main {
        Some(MainEnd::Exited(code)) => format!("{stopped}exited with {code}"),
        Some(MainEnd::Signalled { name, .. }) if report.killed => format!("{stopped}was killed ({name})"),
        Some(MainEnd::Signalled { name, .. }) => format!("{stopped}ended by {name}"),
        _ => "ended".into(),
    }
}

/// Returns whether an interrupt ended the command. Then the command did not handle the interrupt, and the watch ends
/// too.
fn ended_by_interrupt(report: &Report) -> bool {
    matches!(&report.main, Some(MainEnd::Signalled { signal, .. }) if *signal == Signal::INT.number())
}

/// Returns the time rounded for a message.
fn rounded(time: Duration) -> Duration {
    let unit = if time < Duration::from_secs(10) { 100 } else { 1000 };
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(if millis < 1000 { millis } else { millis / unit * unit })
}

async fn restart(requests: &mut Option<Receiver<()>>) -> Option<()> {
    match requests {
        Some(requests) => requests.recv().await,
        None => std::future::pending().await,
    }
}

/// Waits until files have changed. Cancel-safe. It reads once, and not until the queue is empty, so that signals are
/// handled between reads.
async fn changed(events: &AsyncFd<OwnedFd>, files: &mut Files) -> Result<Vec<PathBuf>> {
    loop {
        let mut ready = events.readable().await.context("cannot wait for the events of inotify")?;
        match files.read()? {
            None => ready.clear_ready(),
            Some(changed) => return Ok(changed),
        }
    }
}
