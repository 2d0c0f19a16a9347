//! `pinfold serve`: the pool for programs in other languages, as JSON lines (`docs/serve.md`).

mod request;
mod writer;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::parent::{Parent, WatchedParent};
use super::pool::{JobLine, parse_workers};
use super::runtime::{Descriptors, with_supervisor};
use super::signals::{Keys, Response, Rules};
use super::supervise::Requests;
use super::{duration, environment};
use request::{InvalidRequest, NumberedLine, Request, requests};
use writer::{EventWriter, Message};

use crate::cli::signal_stream::SignalStream;
use crate::kernel::inherited;
use crate::kernel::own_signals::SignalQueue;
use crate::pool::{Handle, Shutdown};
use crate::report::SupervisorKind;
use crate::{Controller, Guard, Job, JobHandle, Pool, Signal, Stdio};

/// The version of the protocol. It is raised when the meaning of a message changes or a message is removed.
const PROTOCOL: u32 = 1;

/// How long pinfold waits for a caller that reads slowly, after all jobs have ended.
const READER_TIMEOUT: Duration = Duration::from_secs(5);

/// Run jobs for a program in another language, with JSON lines on standard input and standard output.
///
/// pinfold kills every job when its standard input ends, when the process that started pinfold ends, and when pinfold
/// itself ends. docs/serve.md describes the protocol.
#[derive(clap::Args)]
pub struct Args {
    /// Read requests from standard input and write events to standard output
    #[arg(long, required = true)]
    stdio: bool,

    /// How many jobs run at a time: a number, a percentage of the number of processors (50%), or auto for one job per
    /// processor
    #[arg(long = "workers", short = 'j', value_name = "N|P%|auto", default_value = "auto", value_parser = parse_workers)]
    workers: usize,

    /// The cgroup controllers that the limits of later jobs need: cpu, cpuset, io, memory, pids
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_parser = parse_controller)]
    controllers: Vec<Controller>,

    /// How long filters such as `> >(tee log)` may take to finish after the command has exited; other processes may
    /// take a tenth of it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    settle: Duration,

    /// Kill a job this long after the stop signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    grace: Duration,

    /// The cgroup v2 directory in which pinfold creates the jobs' cgroups, instead of in pinfold's own cgroup [env:
    /// PINFOLD_CGROUP]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

/// Serves requests until standard input or the parent process ends.
pub fn run(args: &Args) -> Result<u8> {
    let parent = Parent::open(None)?;
    ensure!(
        args.stdio,
        "write --stdio: pinfold reads requests from standard input and writes events to standard output"
    );
    ensure!(!inherited::was_closed(1), "standard output is closed: open it, because pinfold writes events there");
    let signals = SignalQueue::block_all()?;
    let guard = Guard::fork()?;
    // Two pipes for each job: standard output and standard error.
    let descriptors = Descriptors { workers: args.workers, each: 2, ready: (0, 0) };
    descriptors.check()?;
    let builder = environment::supervisor(args.cgroup.as_deref(), None)?;
    let builder = builder.guard(guard).kind(SupervisorKind::Serve).controllers(args.controllers.clone());
    with_supervisor(builder, signals, async |supervisor, signals| {
        let pool = Pool::builder().workers(args.workers).queue(usize::MAX).start(supervisor)?;
        serve(args, &pool, signals, parent).await.map(|()| 0)
    })
}

fn parse_controller(text: &str) -> Result<Controller, String> {
    use Controller::{Cpu, Cpuset, Io, Memory, Pids};
    let known = [Cpu, Cpuset, Io, Memory, Pids].into_iter().find(|controller| controller.name() == text);
    known.ok_or_else(|| "write cpu, cpuset, io, memory or pids".into())
}

/// A job that is not done.
struct ActiveJob {
    handle: Handle,
    /// The running attempt.
    running: Arc<Mutex<Option<JobHandle>>>,
}

impl ActiveJob {
    fn running(&self) -> Result<JobHandle, String> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.clone().ok_or_else(|| "it has not been started".into())
    }
}

async fn serve(args: &Args, pool: &Pool, signals: &SignalStream, parent: Parent) -> Result<()> {
    let mut requests = requests()?;
    let writer = EventWriter::start()?;
    let (done, over) = unbounded_channel();
    let mut session = Session { args, pool, writer, active: HashMap::new(), done, over };
    let parent = parent.watch();
    let signals = Requests { signals, rules: Rules::new(Keys::ReachPinfold) };
    let mut caller = Caller { signals, writer: session.writer.clone(), parent, gone: None };
    session.writer.send(&Message::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION") });
    let handled = handle_requests(&mut session, &mut caller, &mut requests).await;
    pool.shutdown(Shutdown::Kill).await;
    handled?;
    deliver_the_rest(&mut session, &mut caller).await
}

/// The program that sends the requests, and the signals that pinfold receives.
struct Caller<'a> {
    signals: Requests<'a>,
    writer: EventWriter,
    parent: WatchedParent,
    /// The error of the write after which nothing more can be written to the caller.
    gone: Option<std::io::Error>,
}

/// A reason to end.
#[derive(PartialEq, Eq)]
enum EndCause {
    /// A signal requested a stop. The value is the signal that the jobs receive first, where that is not the stop
    /// signal.
    Stop(Option<Signal>),
    Kill,
    /// The caller has ended, or nothing more can be written to it.
    Gone,
}

impl Caller<'_> {
    /// Waits for the next reason to end. Cancel-safe.
    async fn next_end_cause(&mut self) -> Result<EndCause> {
        loop {
            tokio::select! {
                biased;
                request = self.signals.next() => match request?.0 {
                    Response::Stop(first) => return Ok(EndCause::Stop(first)),
                    Response::Kill => return Ok(EndCause::Kill),
                    _ => {}
                },
                error = self.writer.failed(), if self.gone.is_none() => {
                    self.gone = Some(error);
                    return Ok(EndCause::Gone);
                }
                () = self.parent.end() => return Ok(EndCause::Gone),
            }
        }
    }
}

/// Handles requests until there are no more, or until a signal asks pinfold to kill. The caller of this function then
/// kills all jobs. If a signal requested a stop, this function waits for the end of the jobs, even if standard input or
/// the parent process ends meanwhile.
async fn handle_requests(
    session: &mut Session<'_>,
    caller: &mut Caller<'_>,
    requests: &mut Receiver<NumberedLine>,
) -> Result<()> {
    let (mut stopping, mut connected) = (false, !matches!(caller.parent, WatchedParent::Ended));
    if !connected {
        return Ok(());
    }
    loop {
        tokio::select! {
            biased;
            cause = caller.next_end_cause() => match cause? {
                EndCause::Stop(first) => {
                    stopping = true;
                    session.pool.start_shutdown(first.map_or(Shutdown::Stop, Shutdown::StopWith));
                }
                EndCause::Kill => return Ok(()),
                EndCause::Gone => connected = false,
            },
            Some(id) = session.over.recv() => drop(session.active.remove(&id)),
            () = session.pool.shutdown(Shutdown::Stop), if stopping => return Ok(()),
            line = requests.recv(), if connected => match line {
                Some(line) => session.handle_line(&line).await,
                None => connected = false,
            },
        }
        if !connected && !stopping {
            return Ok(());
        }
    }
}

/// Waits, after the end of all jobs, until the caller has read the rest of the events, for at most [`READER_TIMEOUT`].
///
/// # Errors
/// If some events could not be delivered, although the caller has not closed its end.
async fn deliver_the_rest(session: &mut Session<'_>, caller: &mut Caller<'_>) -> Result<()> {
    let delivered = async {
        while !session.active.is_empty()
            && let Some(id) = session.over.recv().await
        {
            session.active.remove(&id);
        }
        session.writer.all_written().await;
    };
    if matches!(caller.parent, WatchedParent::Ended) {
        // The program that would read the events has ended.
        return Ok(());
    }
    if caller.gone.is_none() {
        tokio::select! {
            biased;
            () = delivered => return Ok(()),
            () = tokio::time::sleep(READER_TIMEOUT) => {}
            // A signal ends the wait.
            _ = caller.next_end_cause() => {}
        }
    }
    match &caller.gone {
        // The caller has closed its end, so it wants no more events.
        Some(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Some(error) => bail!("cannot write to standard output: {error}; the remaining events are lost"),
        None => {
            bail!("all jobs have been ended, but no process reads standard output: some events are lost")
        }
    }
}

/// The state that is needed to answer requests.
struct Session<'a> {
    args: &'a Args,
    pool: &'a Pool,
    writer: EventWriter,
    active: HashMap<String, ActiveJob>,
    /// Receives the id of each job whose `done` has been sent to the writer.
    done: UnboundedSender<String>,
    /// The other end of `done`.
    over: UnboundedReceiver<String>,
}

impl Session<'_> {
    async fn handle_line(&mut self, line: &NumberedLine) {
        let answered = match line.parse() {
            None => return,
            Some(Ok(request)) => {
                let id = Value::from(request.id());
                self.act(line.number, request).await.map_err(|message| InvalidRequest { id, message })
            }
            Some(Err(invalid)) => Err(invalid),
        };
        if let Err(InvalidRequest { id, message }) = answered {
            self.writer.send(&Message::Error { request: line.number, id: &id, message: &message });
        }
    }

    /// Executes the request with this number.
    async fn act(&mut self, number: u64, request: Request) -> Result<(), String> {
        let job = |id: &str| self.active.get(id).ok_or_else(|| "no such job exists, or the job is done".to_owned());
        match request {
            Request::Submit { id, job } => return self.submit(number, id, &job).await,
            Request::Cancel { id } => job(&id)?.handle.cancel(),
            Request::Signal { id, signal } => {
                let signal: Signal = signal.parse().map_err(|error: crate::Error| error.to_string())?;
                job(&id)?.running()?.signal(signal).map_err(|error| error.to_string())?;
            }
            Request::Processes { id } => {
                let processes = &job(&id)?.running()?.processes().await;
                self.writer.send(&Message::Processes { request: number, id: &id, processes });
            }
            Request::Freeze { id } => {
                let (job, writer) = (job(&id)?.running()?, self.writer.clone());
                // A freeze can take a while, and must not delay other requests.
                tokio::spawn(async move {
                    match job.freeze().await {
                        Ok(()) => writer.send(&Message::Frozen { request: number, id: &id }),
                        Err(error) => {
                            let (id, message) = (&Value::from(id), &error.to_string());
                            writer.send(&Message::Error { request: number, id, message });
                        }
                    }
                });
            }
            Request::Thaw { id } => job(&id)?.running()?.thaw(),
            Request::Usage { id } => {
                let usage = &job(&id)?.running()?.usage().await.map_err(|error| error.to_string())?;
                self.writer.send(&Message::Usage { request: number, id: &id, usage });
            }
        }
        Ok(())
    }

    async fn submit(&mut self, number: u64, id: String, line: &JobLine) -> Result<(), String> {
        if self.active.contains_key(&id) {
            return Err(
                "another job has this id and is not done: that job continues, and this one is not started".into()
            );
        }
        line.check()?;
        if let Some(needed) = line.controllers().iter().find(|needed| !self.args.controllers.contains(needed)) {
            return Err(format!(
                "its limits need the controller {needed}: start pinfold serve with --controllers {needed}"
            ));
        }
        let mut command = line.command();
        command.measure_pressure(); // The caller receives the complete report.
        command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .stderr_to_stdout(line.merges_stderr(false))
            .grace(self.args.grace)
            .settle(self.args.settle);
        command.check().map_err(|error| error.to_string())?;
        let running = Arc::new(Mutex::new(None));
        let followers = Arc::new(Mutex::new(Vec::new()));
        let (now, writer, name) = (running.clone(), self.writer.clone(), Arc::<str>::from(id.as_str()));
        let following = followers.clone();
        let task = line.task(command, 0, Duration::ZERO).on_spawn(move |job: &mut Job, attempt| {
            *now.lock().unwrap_or_else(PoisonError::into_inner) = Some(job.handle());
            let mut following = following.lock().unwrap_or_else(PoisonError::into_inner);
            for (stream, what) in [(job.stdout.take(), "stdout"), (job.stderr.take(), "stderr")] {
                if let Some(stream) = stream {
                    following.push(tokio::spawn(writer.clone().follow(name.clone(), stream, what)));
                }
            }
            let (mut events, writer, name) = (job.events(), writer.clone(), name.clone());
            following.push(tokio::spawn(async move {
                while let Some(event) = events.next_event().await {
                    writer.send(&Message::Job { id: &name, attempt, what: &event });
                }
            }));
        });
        let handle = self.pool.submit(task).await.map_err(|error| error.to_string())?;
        self.active.insert(id.clone(), ActiveJob { handle: handle.clone(), running });
        let (writer, done) = (self.writer.clone(), self.done.clone());
        tokio::spawn(async move {
            let outcome = handle.wait().await;
            let followers = std::mem::take(&mut *followers.lock().unwrap_or_else(PoisonError::into_inner));
            for follower in followers {
                let _ = follower.await;
            }
            let (success, cancelled, attempts) = (outcome.success(), outcome.cancelled, outcome.attempts);
            let (request, report) = (number, &outcome.report);
            writer.send(&Message::Done { request, id: &id, success, cancelled, attempts, report });
            let _ = done.send(id);
        });
        Ok(())
    }
}
