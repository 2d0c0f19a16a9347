//! `pinfold watch`: runs a command again when files change, and never before the last run is proven gone.

mod args;
mod changes;
mod files;
mod ignored;

use std::ffi::OsString;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pinfold::report::{MainEnd, Reason};
use pinfold::signal::{self, SignalStream};
use pinfold::{Command, Error, Job, ProcessGroup, Report, Signal, Stdio, Supervisor};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::run::{self, Prepared};
use super::signals::{Response, Rules};
use super::terminal::Terminal;
use super::{supervisor_of_environment, tell, thread};
pub use args::Args;
use args::OnBusy;
use changes::Changes;
use files::{Events, Files};

/// A burst of events is one change to the run, and none of them may make a signal wait.
const EVENTS_A_TURN: usize = 256;

/// Runs until a signal ends it; tells the exit code.
pub fn run(args: &Args, prepared: Prepared) -> Result<u8> {
    let Prepared { signals, terminal, guard, .. } = prepared;
    // It starts a thread: after the guard.
    let (files, events) = Files::watch(&args.watch, &args.ext, &args.ignore)?;
    let keys = keys()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")?;
    let ended = runtime.block_on(async {
        let signals = signals.listen()?;
        let supervisor = supervisor_of_environment(guard)?.start().await?;
        let mut watch = Watch::new(args, files, terminal.as_ref());
        let ended = watch.live(&supervisor, &signals, events, keys).await;
        supervisor.close().await;
        ended
    });
    if let Some(terminal) = &terminal {
        terminal.restore(true);
    }
    let signal = ended?;
    std::mem::forget(runtime);
    if signal == Signal::INT {
        // So that a calling shell loop stops too.
        signal::end_by(Signal::INT);
    }
    Ok(u8::try_from(128 + signal.number()).unwrap_or(u8::MAX))
}

/// The lines that are typed.
fn keys() -> Result<UnboundedReceiver<String>> {
    let (sender, keys) = unbounded_channel();
    thread::start("to read standard input", move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    })?;
    Ok(keys)
}

struct Watch<'a> {
    args: &'a Args,
    files: Files,
    terminal: Option<&'a Terminal>,
    rules: Rules,
    command: Command,
    changes: Changes,
    runs: u64,
    /// The current run has been told to end.
    stopping: bool,
    /// How the last run ended, in words.
    last: Option<String>,
}

impl<'a> Watch<'a> {
    fn new(args: &'a Args, files: Files, terminal: Option<&'a Terminal>) -> Self {
        let mut command = Command::new(&args.command[0]);
        // With a terminal in our process group: its settings may be changed from nowhere else.
        let group = if terminal.is_some() { ProcessGroup::Supervisors } else { ProcessGroup::New };
        command
            .args(&args.command[1..])
            .inherit_descriptors(true)
            .stdin(Stdio::Null)
            .process_group(group)
            .stop_signal(args.stop_signal)
            .grace(args.grace)
            .settle(args.settle);
        // An interrupt from the terminal is not the job's affair alone: it ends all.
        let rules = Rules::new(false, terminal.is_some());
        Self {
            args,
            files,
            terminal,
            rules,
            command,
            changes: Changes::default(),
            runs: 0,
            stopping: false,
            last: None,
        }
    }

    /// Runs until a signal ends it: which.
    async fn live(
        &mut self,
        supervisor: &Supervisor,
        signals: &SignalStream,
        mut events: Events,
        mut keys: UnboundedReceiver<String>,
    ) -> Result<Signal> {
        let mut job: Option<(Job, Instant)> = None;
        let mut keys_are_there = true;
        let mut ending = None;
        self.changes.asked = !self.args.postpone;
        if self.args.postpone && !self.args.quiet {
            tell("waiting for a change");
        }
        loop {
            if job.is_none() {
                if let Some(signal) = ending {
                    return Ok(signal);
                }
                if self.changes.are_there() && self.settled().is_some_and(|at| at <= Instant::now()) {
                    job = self.start(supervisor).await?;
                }
            }
            let start_at = if job.is_none() && self.changes.are_there() { self.settled() } else { None };
            tokio::select! {
                biased;
                received = signals.recv() => {
                    let received = received?;
                    match (self.rules.respond(received, Instant::now()), &job) {
                        (Response::Stop, _) => {
                            ending = Some(received.signal);
                            job.iter().for_each(|(job, _)| job.stop());
                        }
                        (Response::Kill, _) => {
                            ending.get_or_insert(received.signal);
                            job.iter().for_each(|(job, _)| job.kill());
                        }
                        (Response::PassOn(signal), Some((job, _))) => {
                            // It may just have ended.
                            let _ = job.signal(signal);
                        }
                        _ => {}
                    }
                }
                report = ended(&job) => {
                    let report = report?;
                    let after = job.take().map_or(Duration::ZERO, |(_, since)| since.elapsed());
                    self.ended(&report, after, ending.is_some())?;
                }
                stop = next_stop(&job) => {
                    if let (Some((job, _)), Some(terminal)) = (&job, self.terminal) {
                        run::stopped(job, stop, terminal);
                    }
                }
                event = events.recv() => {
                    let Some(event) = event else { bail!("the watch on the files has ended") };
                    let mut changed = self.files.changed(event)?;
                    // Not all that are there: a signal is heard between two turns.
                    for _ in 1..EVENTS_A_TURN {
                        let Ok(event) = events.try_recv() else { break };
                        changed.extend(self.files.changed(event)?);
                    }
                    if !changed.is_empty() {
                        self.change(changed, job.as_ref().map(|(job, _)| job));
                    }
                }
                line = keys.recv(), if keys_are_there => match line.as_deref().map(str::trim) {
                    Some("r") => {
                        self.changes.asked = true;
                        self.stop(job.as_ref().map(|(job, _)| job));
                    }
                    Some(_) => {}
                    None => keys_are_there = false,
                },
                () = run::over(start_at), if start_at.is_some() => {}
            }
        }
    }

    fn settled(&self) -> Option<Instant> {
        self.changes.settled(self.args.debounce)
    }

    /// The last run is told to end at once, the next waits until nothing changes any more.
    fn change(&mut self, changed: Vec<PathBuf>, job: Option<&Job>) {
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

    /// Once a run: a second stop would kill.
    fn stop(&mut self, job: Option<&Job>) {
        if let Some(job) = job
            && !self.stopping
        {
            self.stopping = true;
            job.stop();
        }
    }

    /// Starts the next run; none where the command can't be executed: it may be after the next change.
    async fn start(&mut self, supervisor: &Supervisor) -> Result<Option<(Job, Instant)>> {
        let changes = std::mem::take(&mut self.changes);
        let mut stdout = std::io::stdout();
        if self.args.clear && stdout.is_terminal() {
            // Screen, lines scrolled away, to the top (console_codes(4)).
            let _ = stdout.write_all(b"\x1b[2J\x1b[3J\x1b[H").and_then(|()| stdout.flush());
        }
        let what = match self.last.as_deref().unwrap_or("did not start") {
            last if self.runs > 0 => Some(format!("; the last run {last}; starting again")),
            _ if self.args.postpone => Some("; starting".to_owned()),
            _ => None,
        };
        if let Some(what) = what.filter(|_| !self.args.quiet) {
            tell(&format!("{}{what}", changes.tell()));
        }
        self.runs += 1;
        self.last = None;
        self.stopping = false;
        match supervisor.spawn(&self.command).await {
            Ok(job) => Ok(Some((job, Instant::now()))),
            Err(error @ Error::Spawn(_)) => {
                tell(&format!("{error}; waiting for a change"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn ended(&mut self, report: &Arc<Report>, after: Duration, ending: bool) -> Result<()> {
        run::explain_failures(report);
        if !report.is_gone() {
            bail!("the last run could not be ended: the next would not be alone");
        }
        let words = format!("{} after {}", how(report), humantime::format_duration(rounded(after)));
        if !ending && !self.args.quiet && !self.changes.are_there() {
            tell(&format!("{} {words}; waiting for a change", name(&self.args.command[0])));
        }
        self.last = Some(words);
        Ok(())
    }
}

fn name(program: &OsString) -> String {
    pinfold::text::printable_os(Path::new(program).file_name().unwrap_or(program)).into_owned()
}

fn how(report: &Report) -> String {
    let asked = if report.reason == Reason::Stopped { "was stopped, and " } else { "" };
    match &report.main {
        Some(MainEnd::Exited(code)) => format!("{asked}exited with {code}"),
        Some(MainEnd::Signalled { name, .. }) if report.killed => format!("{asked}was killed ({name})"),
        Some(MainEnd::Signalled { name, .. }) => format!("{asked}ended by {name}"),
        _ => "ended".into(),
    }
}

/// To what a person reads.
fn rounded(time: Duration) -> Duration {
    let unit = if time < Duration::from_secs(10) { 100 } else { 1000 };
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(if millis < 1000 { millis } else { millis / unit * unit })
}

async fn ended(job: &Option<(Job, Instant)>) -> Result<Arc<Report>> {
    match job {
        Some((job, _)) => Ok(job.wait().await?),
        None => std::future::pending().await,
    }
}

async fn next_stop(job: &Option<(Job, Instant)>) -> Signal {
    match job {
        Some((job, _)) => job.next_stop().await,
        None => std::future::pending().await,
    }
}
