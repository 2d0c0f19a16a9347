//! `pinfold serve`: the pool for programs in other languages, as JSON lines (`docs/serve.md`).

mod parent;
mod request;
mod writer;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use pinfold::pool::{Handle, Shutdown};
use pinfold::signal::{SignalQueue, SignalStream};
use pinfold::{Controller, Guard, Job, JobHandle, Pool, Signal, Stdio};
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use super::duration;
use super::pool::{JobLine, parse_workers};
use super::session::{Descriptors, with_supervisor};
use super::signals::{Keys, Response, Rules};
use parent::{Parent, WatchedParent};
use request::{Numbered, Request, Unreadable, requests};
use writer::{Message, Writer};

/// Raised when a message changes its meaning or goes away.
const PROTOCOL: u32 = 1;

/// When all jobs have ended, a caller that is slow to read has this time.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hold jobs for a program in another language, over JSON lines on standard input and standard output.
///
/// When standard input ends, or the process that started pinfold or pinfold itself ends, every job is ended. The protocol is
/// described in docs/serve.md.
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

    /// How long filters such as `> >(tee log)` may take to finish after the command has exited; other processes a tenth of it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    settle: Duration,

    /// Kill a job this long after the stop signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    grace: Duration,

    /// The cgroup v2 directory to make the jobs' cgroups in, instead of pinfold's own [env: PINFOLD_CGROUP]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
}

/// Serves until standard input or the parent process ends.
pub fn run(args: &Args) -> Result<u8> {
    let parent = Parent::open()?;
    ensure!(
        args.stdio,
        "write --stdio: the requests are read from standard input, and standard output has the answers"
    );
    ensure!(!pinfold::was_closed(1), "standard output is closed: open it, the answers go there");
    let signals = SignalQueue::block_all()?;
    let guard = Guard::fork()?;
    // Both outputs of each.
    let descriptors = Descriptors { workers: args.workers, each: 2, ready: (0, 0) };
    let controllers = args.controllers.clone();
    with_supervisor(guard, signals, args.cgroup.as_deref(), controllers, descriptors, async |supervisor, signals| {
        let pool = Pool::builder().workers(args.workers).queue(usize::MAX).start(supervisor)?;
        serve(args, &pool, signals, parent).await.map(|()| 0)
    })
}

fn parse_controller(text: &str) -> Result<Controller, String> {
    use Controller::{Cpu, Cpuset, Io, Memory, Pids};
    let known = [Cpu, Cpuset, Io, Memory, Pids].into_iter().find(|controller| controller.name() == text);
    known.ok_or_else(|| "write cpu, cpuset, io, memory or pids".into())
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

async fn serve(args: &Args, pool: &Pool, signals: &SignalStream, parent: Parent) -> Result<()> {
    let mut requests = requests()?;
    let (writer, failed) = Writer::start()?;
    let (done, over) = unbounded_channel();
    let mut session = Session { args, pool, writer, known: HashMap::new(), done, over };
    let parent = parent.watch();
    let mut caller = Caller { signals, rules: Rules::new(Keys::ReachUs), failed, parent, gone: None };
    session.writer.say(&Message::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION") }, None);
    let heard = handle_line(&mut session, &mut caller, &mut requests).await;
    pool.kill();
    pool.shutdown(Shutdown::Now).await;
    heard?;
    tell_the_rest(&mut session, &mut caller).await
}

/// The program at the other end, and the signals that pinfold receives.
struct Caller<'a> {
    signals: &'a SignalStream,
    rules: Rules,
    failed: oneshot::Receiver<std::io::Error>,
    parent: WatchedParent,
    /// Why it can read nothing any more.
    gone: Option<std::io::Error>,
}

/// What makes an end.
#[derive(PartialEq, Eq)]
enum News {
    /// With the signal that the jobs receive first, where that is not the stop signal.
    Stop(Option<Signal>),
    Kill,
    /// The caller has ended, or can read nothing any more.
    Gone,
}

impl Caller<'_> {
    /// Cancel-safe.
    async fn news(&mut self) -> Result<News> {
        loop {
            tokio::select! {
                biased;
                received = self.signals.recv() => match self.rules.respond(received?, Instant::now()) {
                    Response::Stop(first) => return Ok(News::Stop(first)),
                    Response::Kill => return Ok(News::Kill),
                    _ => {}
                },
                error = &mut self.failed, if self.gone.is_none() => {
                    self.gone = Some(error.unwrap_or_else(|_| std::io::Error::other("the writing thread has ended")));
                    return Ok(News::Gone);
                }
                () = self.parent.end() => return Ok(News::Gone),
            }
        }
    }
}

/// Answers until nobody asks any more: then all is to be killed. A stop is waited for, whoever else goes away meanwhile.
async fn handle_line(
    session: &mut Session<'_>,
    caller: &mut Caller<'_>,
    requests: &mut Receiver<Numbered>,
) -> Result<()> {
    let (mut stopping, mut asks) = (false, !matches!(caller.parent, WatchedParent::Ended));
    if !asks {
        return Ok(());
    }
    loop {
        tokio::select! {
            biased;
            news = caller.news() => match news? {
                News::Stop(first) => {
                    stopping = true;
                    match first {
                        Some(first) => session.pool.stop_with(first),
                        None => session.pool.stop(),
                    }
                }
                News::Kill => return Ok(()),
                News::Gone => asks = false,
            },
            Some(id) = session.over.recv() => drop(session.known.remove(&id)),
            () = session.pool.shutdown(Shutdown::Now), if stopping => return Ok(()),
            line = requests.recv(), if asks => match line {
                Some(line) => session.handle_line(&line).await,
                None => asks = false,
            },
        }
        if !asks && !stopping {
            return Ok(());
        }
    }
}

/// All has ended; what the caller has not read yet is waited for, with some patience.
async fn tell_the_rest(session: &mut Session<'_>, caller: &mut Caller<'_>) -> Result<()> {
    let told = async {
        while !session.known.is_empty()
            && let Some(id) = session.over.recv().await
        {
            session.known.remove(&id);
        }
        session.writer.all_written().await;
    };
    if matches!(caller.parent, WatchedParent::Ended) {
        // No program is left that could want it.
        return Ok(());
    }
    if caller.gone.is_none() {
        tokio::select! {
            biased;
            () = told => return Ok(()),
            () = tokio::time::sleep(PATIENCE) => {}
            // A signal ends the patience.
            _ = caller.news() => {}
        }
    }
    match &caller.gone {
        // It wants to know nothing more.
        Some(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Some(error) => bail!("cannot write to standard output: {error}; what was to be told is lost"),
        None => {
            bail!("all jobs have been ended, but nobody reads standard output: some of what was to be told is lost")
        }
    }
}

/// What the answers are made from.
struct Session<'a> {
    args: &'a Args,
    pool: &'a Pool,
    writer: Writer,
    known: HashMap<String, Known>,
    /// Where a job is named when its `done` has been said, and where that is read.
    done: UnboundedSender<String>,
    over: UnboundedReceiver<String>,
}

impl Session<'_> {
    async fn handle_line(&mut self, line: &Numbered) {
        let answered = match line.parse() {
            None => return,
            Some(Ok(request)) => {
                let id = Value::from(request.id());
                self.act(line.number, request).await.map_err(|message| Unreadable { id, message })
            }
            Some(Err(unreadable)) => Err(unreadable),
        };
        if let Err(Unreadable { id, message }) = answered {
            self.writer.say(&Message::Error { request: line.number, id: &id, message: &message }, None);
        }
    }

    /// Does what the request of this number asks for.
    async fn act(&mut self, number: u64, request: Request) -> Result<(), String> {
        let of = |id: &str| self.known.get(id).ok_or_else(|| "there is no such job, or it is done".to_owned());
        match request {
            Request::Submit { id, job } => return self.submit(number, id, &job).await,
            Request::Cancel { id } => of(&id)?.handle.cancel(),
            Request::Signal { id, signal } => {
                let signal: Signal = signal.parse().map_err(|error: pinfold::Error| error.to_string())?;
                of(&id)?.running()?.signal(signal).map_err(|error| error.to_string())?;
            }
            Request::Processes { id } => {
                let processes = &of(&id)?.running()?.processes().await;
                self.writer.say(&Message::Processes { request: number, id: &id, processes }, None);
            }
            Request::Freeze { id } => {
                let (job, writer) = (of(&id)?.running()?, self.writer.clone());
                // It can take a while, and other requests do not wait for it.
                tokio::spawn(async move {
                    match job.freeze().await {
                        Ok(()) => writer.say(&Message::Frozen { request: number, id: &id }, None),
                        Err(error) => {
                            let (id, message) = (&Value::from(id), &error.to_string());
                            writer.say(&Message::Error { request: number, id, message }, None);
                        }
                    }
                });
            }
            Request::Thaw { id } => of(&id)?.running()?.thaw(),
            Request::Usage { id } => {
                let usage = of(&id)?.running()?.usage().await;
                let usage = &usage.ok_or("it is over: its report has the usage")?;
                self.writer.say(&Message::Usage { request: number, id: &id, usage }, None);
            }
        }
        Ok(())
    }

    async fn submit(&mut self, number: u64, id: String, line: &JobLine) -> Result<(), String> {
        if self.known.contains_key(&id) {
            return Err(
                "another job has this id, and is not done: that job goes on, and this one is not started".into()
            );
        }
        line.check()?;
        if let Some(needed) = line.controllers().iter().find(|needed| !self.args.controllers.contains(needed)) {
            return Err(format!(
                "its limits need the controller {needed}: start pinfold serve with --controllers {needed}"
            ));
        }
        let mut command = line.command();
        command.measure_pressure(); // Its report is told whole.
        command
            .stdout(Stdio::Piped)
            .stderr(Stdio::Piped)
            .stderr_to_stdout(line.merges_stderr(false))
            .grace(self.args.grace)
            .settle(self.args.settle);
        command.check().map_err(|error| error.to_string())?;
        let running = Arc::new(Mutex::new(None));
        let followers = Arc::new(Mutex::new(Vec::new()));
        let (now, writer, name) = (running.clone(), self.writer.clone(), Arc::<str>::from(id.as_str()));
        let following = followers.clone();
        let task = line.task(command, 0, Duration::ZERO).on_spawn(move |job: &Job, attempt| {
            *now.lock().unwrap_or_else(PoisonError::into_inner) = Some(job.handle());
            let mut following = following.lock().unwrap_or_else(PoisonError::into_inner);
            for (stream, what) in [(job.take_stdout(), "stdout"), (job.take_stderr(), "stderr")] {
                if let Some(stream) = stream {
                    following.push(tokio::spawn(writer.clone().follow(name.clone(), stream, what)));
                }
            }
            let (mut events, writer, name) = (job.events(), writer.clone(), name.clone());
            following.push(tokio::spawn(async move {
                while let Some(event) = events.next_event().await {
                    writer.say(&Message::Job { id: &name, attempt, what: &event }, None);
                }
            }));
        });
        let handle = self.pool.submit(task).await.map_err(|error| error.to_string())?;
        self.known.insert(id.clone(), Known { handle: handle.clone(), running });
        let (writer, done) = (self.writer.clone(), self.done.clone());
        tokio::spawn(async move {
            let outcome = handle.wait().await;
            let followers = std::mem::take(&mut *followers.lock().unwrap_or_else(PoisonError::into_inner));
            for follower in followers {
                let _ = follower.await;
            }
            let (success, cancelled, attempts) = (outcome.success(), outcome.cancelled, outcome.attempts);
            let (request, report) = (number, &outcome.report);
            writer.say(&Message::Done { request, id: &id, success, cancelled, attempts, report }, None);
            let _ = done.send(id);
        });
        Ok(())
    }
}
