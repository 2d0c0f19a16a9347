//! `pinfold serve`: the pool for programs in other languages, as JSON lines (`docs/serve.md`).

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};
use pinfold::output::OutputStream;
use pinfold::pool::{Handle, Shutdown};
use pinfold::signal::{SignalQueue, SignalStream};
use pinfold::{Controller, Guard, Job, JobHandle, Pool, Report, Signal, Stdio};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::duration;
use super::pool::{JobLine, parse_workers};
use super::session::{Descriptors, with_supervisor};
use super::signals::{Response, Rules};

/// Raised when a message changes its meaning or goes away.
const PROTOCOL: u32 = 1;

/// Pieces of output that may wait until the caller reads them.
const WAITING: usize = 256;

/// A longer line comes in pieces.
const MAX_LINE: usize = 64 * 1024;

/// Hold jobs for a program in another language, over JSON lines on standard input and standard output.
///
/// When standard input ends, or pinfold or the caller dies, every job is ended. The protocol is described in docs/serve.md.
#[derive(clap::Args)]
pub struct Args {
    /// Speak over standard input and standard output
    #[arg(long, required = true)]
    stdio: bool,

    /// How many jobs run at a time: a number, a part of the processors (50%), or auto for as many as there are
    #[arg(long = "workers", short = 'j', value_name = "N|P%|auto", default_value = "auto", value_parser = parse_workers)]
    workers: usize,

    /// The controllers that limits of jobs will need: cpu, cpuset, io, memory, pids
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = parse_controller)]
    controllers: Vec<Controller>,

    /// Kill a job this long after the stop signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    grace: Duration,

    /// The cgroup v2 directory to make the jobs' cgroups in, instead of pinfold's own
    #[arg(long, value_name = "DIR", env = "PINFOLD_CGROUP")]
    cgroup: Option<PathBuf>,
}

/// What the caller says.
#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
enum Request {
    Submit { id: String, job: Box<JobLine> },
    Cancel { id: String },
    Signal { id: String, signal: String },
    Processes { id: String },
    Freeze { id: String },
    Thaw { id: String },
    Usage { id: String },
}

/// What it hears.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Message<'a> {
    Hello {
        protocol: u32,
        version: &'a str,
    },
    /// One of the job's own events.
    Job {
        id: &'a str,
        attempt: u32,
        what: &'a pinfold::events::Event,
    },
    Output {
        id: &'a str,
        stream: &'a str,
        line: &'a str,
        complete: bool,
    },
    /// A line that is not UTF-8.
    OutputBytes {
        id: &'a str,
        stream: &'a str,
        bytes: &'a [u8],
        complete: bool,
    },
    Processes {
        id: &'a str,
        processes: &'a [pinfold::report::ProcessInfo],
    },
    /// All of it stands still.
    Frozen {
        id: &'a str,
    },
    Usage {
        id: &'a str,
        usage: &'a pinfold::report::Usage,
    },
    Done {
        id: &'a str,
        success: bool,
        cancelled: bool,
        attempts: u32,
        report: &'a Report,
    },
    Error {
        id: Option<&'a str>,
        message: &'a str,
    },
}

/// Serves until standard input ends.
pub fn run(args: &Args) -> Result<u8> {
    ensure!(args.stdio, "--stdio is the only way to speak with it");
    let signals = SignalQueue::block_all()?;
    let guard = Guard::fork()?;
    // Both outputs of each.
    let descriptors = Descriptors { workers: args.workers, each: 2, ready: (0, 0) };
    let controllers = args.controllers.clone();
    with_supervisor(guard, signals, args.cgroup.as_deref(), controllers, descriptors, async |supervisor, signals| {
        let pool = Pool::builder().workers(args.workers).queue(usize::MAX).start(supervisor)?;
        let ended = serve(args, &pool, signals).await;
        pool.kill();
        pool.shutdown(Shutdown::Now).await;
        ended.map(|()| 0)
    })
}

fn parse_controller(text: &str) -> Result<Controller, String> {
    use Controller::{Cpu, Cpuset, Io, Memory, Pids};
    let known = [Cpu, Cpuset, Io, Memory, Pids].into_iter().find(|controller| controller.name() == text);
    known.ok_or_else(|| "write cpu, cpuset, io, memory or pids".into())
}

/// Says things to the caller. Writing has a thread of its own, and output waits for its place.
#[derive(Clone)]
struct Speaker {
    lines: UnboundedSender<(Vec<u8>, Option<OwnedSemaphorePermit>)>,
    room: Arc<Semaphore>,
}

impl Speaker {
    fn start() -> (Self, oneshot::Receiver<std::io::Error>) {
        type Line = (Vec<u8>, Option<OwnedSemaphorePermit>);
        let (lines, mut receiver): (_, UnboundedReceiver<Line>) = unbounded_channel();
        let (failed, failure) = oneshot::channel();
        std::thread::spawn(move || {
            let mut stdout = std::io::stdout();
            while let Some((line, _room)) = receiver.blocking_recv() {
                if let Err(error) = stdout.write_all(&line).and_then(|()| stdout.flush()) {
                    let _ = failed.send(error);
                    return;
                }
            }
        });
        (Self { lines, room: Arc::new(Semaphore::new(WAITING)) }, failure)
    }

    fn say(&self, message: &Message<'_>, room: Option<OwnedSemaphorePermit>) {
        let mut line = serde_json::to_vec(message).unwrap_or_default();
        line.push(b'\n');
        // A caller that is gone is told nothing.
        let _ = self.lines.send((line, room));
    }

    async fn follow(self, id: Arc<str>, stream: OutputStream, name: &'static str) {
        let mut lines = stream.lines().max_line(MAX_LINE);
        while let Ok(Some(line)) = lines.next_line().await {
            let room = self.room.clone().acquire_owned().await.ok();
            let complete = line.complete;
            match std::str::from_utf8(&line.bytes) {
                Ok(text) => self.say(&Message::Output { id: &id, stream: name, line: text, complete }, room),
                Err(_) => self.say(&Message::OutputBytes { id: &id, stream: name, bytes: &line.bytes, complete }, room),
            }
        }
    }
}

/// What is known of a job.
struct Known {
    handle: Handle,
    /// Its present attempt.
    running: Arc<Mutex<Option<JobHandle>>>,
}

impl Known {
    fn running(&self) -> Result<JobHandle, String> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.clone().ok_or_else(|| "it has not been started".into())
    }
}

async fn serve(args: &Args, pool: &Pool, signals: &SignalStream) -> Result<()> {
    let mut rules = Rules::new(false, false);
    let (speaker, mut failed) = Speaker::start();
    let (sender, mut requests) = tokio::sync::mpsc::channel::<Vec<u8>>(16);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut line = Vec::new();
        while stdin.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if sender.blocking_send(std::mem::take(&mut line)).is_err() {
                return;
            }
        }
    });
    let (done_sender, mut done) = unbounded_channel::<String>();
    let mut desk = Desk { args, pool, speaker: speaker.clone(), known: HashMap::new(), done: done_sender };
    speaker.say(&Message::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION") }, None);
    loop {
        tokio::select! {
            biased;
            received = signals.recv() => {
                let received = received?;
                match rules.respond(received, std::time::Instant::now()) {
                    Response::Stop => { pool.stop(); pool.shutdown(Shutdown::Now).await; return Ok(()) }
                    Response::Kill => return Ok(()),
                    _ => {}
                }
            }
            // Nobody listens any more.
            _ = &mut failed => return Ok(()),
            Some(id) = done.recv() => drop(desk.known.remove(&id)),
            line = requests.recv() => {
                let Some(line) = line else { return Ok(()) };
                if line.trim_ascii().is_empty() {
                    continue;
                }
                let answered = match serde_json::from_slice(&line) {
                    Ok(request) => desk.answer(request).await,
                    Err(error) => Err((None, error.to_string())),
                };
                if let Err((id, message)) = answered {
                    speaker.say(&Message::Error { id: id.as_deref(), message: &message }, None);
                }
            }
        }
    }
}

/// What the answers are made from.
struct Desk<'a> {
    args: &'a Args,
    pool: &'a Pool,
    speaker: Speaker,
    known: HashMap<String, Known>,
    done: UnboundedSender<String>,
}

impl Desk<'_> {
    /// The error is for the job of that name.
    async fn answer(&mut self, request: Request) -> Result<(), (Option<String>, String)> {
        let (Request::Submit { id, .. }
        | Request::Cancel { id }
        | Request::Signal { id, .. }
        | Request::Processes { id }
        | Request::Freeze { id }
        | Request::Thaw { id }
        | Request::Usage { id }) = &request;
        let id = id.clone();
        self.act(request).await.map_err(|message| (Some(id), message))
    }

    async fn act(&mut self, request: Request) -> Result<(), String> {
        let of = |id: &str| self.known.get(id).ok_or_else(|| "there is no such job, or it is done".to_owned());
        match request {
            Request::Submit { id, job } => return self.submit(id, &job).await,
            Request::Cancel { id } => of(&id)?.handle.cancel(),
            Request::Signal { id, signal } => {
                let signal: Signal = signal.parse().map_err(|error: pinfold::Error| error.to_string())?;
                of(&id)?.running()?.signal(signal).map_err(|error| error.to_string())?;
            }
            Request::Processes { id } => {
                let processes = of(&id)?.running()?.processes().await;
                self.speaker.say(&Message::Processes { id: &id, processes: &processes }, None);
            }
            Request::Freeze { id } => {
                let (job, speaker) = (of(&id)?.running()?, self.speaker.clone());
                // It can take a while, and others are not to wait for it.
                tokio::spawn(async move {
                    match job.freeze().await {
                        Ok(()) => speaker.say(&Message::Frozen { id: &id }, None),
                        Err(error) => {
                            speaker.say(&Message::Error { id: Some(&id), message: &error.to_string() }, None);
                        }
                    }
                });
            }
            Request::Thaw { id } => of(&id)?.running()?.thaw(),
            Request::Usage { id } => {
                let usage = of(&id)?.running()?.usage().await;
                let usage = usage.ok_or("it is over: its report tells")?;
                self.speaker.say(&Message::Usage { id: &id, usage: &usage }, None);
            }
        }
        Ok(())
    }

    async fn submit(&mut self, id: String, line: &JobLine) -> Result<(), String> {
        if self.known.contains_key(&id) {
            return Err("there is a job of this id".into());
        }
        line.check()?;
        if let Some(needed) = line.controllers().iter().find(|needed| !self.args.controllers.contains(needed)) {
            return Err(format!(
                "its limits need the controller {needed}: start pinfold serve with --controllers {needed}"
            ));
        }
        let mut command = line.command();
        command.measure_pressure(); // Its report is told whole.
        command.stdout(Stdio::Piped).stderr(Stdio::Piped).grace(self.args.grace);
        command.check().map_err(|error| error.to_string())?;
        let running = Arc::new(Mutex::new(None));
        let followers = Arc::new(Mutex::new(Vec::new()));
        let (now, speaker, name) = (running.clone(), self.speaker.clone(), Arc::<str>::from(id.as_str()));
        let following = followers.clone();
        let task = line.task(command, 0, Duration::ZERO).on_spawn(move |job: &Job, attempt| {
            *now.lock().unwrap_or_else(PoisonError::into_inner) = Some(job.handle());
            let mut following = following.lock().unwrap_or_else(PoisonError::into_inner);
            for (stream, what) in [(job.take_stdout(), "stdout"), (job.take_stderr(), "stderr")] {
                if let Some(stream) = stream {
                    following.push(tokio::spawn(speaker.clone().follow(name.clone(), stream, what)));
                }
            }
            let (mut events, speaker, name) = (job.events(), speaker.clone(), name.clone());
            following.push(tokio::spawn(async move {
                while let Some(event) = events.next_event().await {
                    speaker.say(&Message::Job { id: &name, attempt, what: &event }, None);
                }
            }));
        });
        let handle = self.pool.submit(task).await.map_err(|error| error.to_string())?;
        self.known.insert(id.clone(), Known { handle: handle.clone(), running });
        let (speaker, done) = (self.speaker.clone(), self.done.clone());
        tokio::spawn(async move {
            let outcome = handle.wait().await;
            let followers = std::mem::take(&mut *followers.lock().unwrap_or_else(PoisonError::into_inner));
            for follower in followers {
                let _ = follower.await;
            }
            let (success, cancelled, attempts) = (outcome.success(), outcome.cancelled, outcome.attempts);
            let report = &outcome.report;
            speaker.say(&Message::Done { id: &id, success, cancelled, attempts, report }, None);
            let _ = done.send(id);
        });
        Ok(())
    }
}
