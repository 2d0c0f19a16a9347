//! `pinfold serve`: a pool that programs in other languages control with JSON lines (`docs/serve.md`).

mod active;
mod event;
mod lines;
mod output;
mod request;
#[cfg(all(test, feature = "schema"))]
mod schema;
mod session;
mod stdin;
mod submission;
mod writer;

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::sync::mpsc::{Receiver, unbounded_channel};

use super::parent::{Parent, WatchedParent};
use super::pool::parse_workers;
use super::runtime::{Descriptors, with_supervisor};
use super::signals::{Keys, Response, Rules};
use super::supervise::Requests;
use super::{duration, environment};
use event::{Capability, Message, PROTOCOL};
use lines::{NumberedLine, requests};
use session::Session;
use writer::EventWriter;

use crate::cli::signal_stream::SignalStream;
use crate::kernel::inherited;
use crate::kernel::own_signals::SignalQueue;
use crate::pool::Shutdown;
use crate::report::SupervisorKind;
use crate::{Controller, Guard, Pool, Signal};

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

    /// How many jobs run at a time: a number, a percentage of the number of processors (50%), auto for one job per
    /// processor, or max for as many as the limit on open files allows
    #[arg(long = "workers", short = 'j', value_name = "N|P%|auto|max", default_value = "auto", value_parser = parse_workers_or_max)]
    workers: Workers,

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
    // Three pipes for each job.
    let descriptors = |workers| Descriptors { workers, each: 3, ready: (0, 0) };
    let workers = match args.workers {
        Workers::Number(workers) => {
            descriptors(workers).check()?;
            workers
        }
        Workers::Max => descriptors(usize::MAX).possible(),
    };
    let builder = environment::supervisor(args.cgroup.as_deref(), None)?;
    let builder = builder.guard(guard).kind(SupervisorKind::Serve).controllers(args.controllers.clone());
    with_supervisor(builder, signals, async |supervisor, signals| {
        let pool = Pool::builder().workers(workers).queue(usize::MAX).start(supervisor)?;
        serve(args, workers, &pool, signals, parent).await.map(|()| 0)
    })
}

/// How many jobs run at a time.
#[derive(Clone, Copy, Debug)]
enum Workers {
    Number(usize),
    /// As many as the limit on open files allows.
    Max,
}

fn parse_workers_or_max(text: &str) -> Result<Workers, String> {
    if text == "max" {
        return Ok(Workers::Max);
    }
    parse_workers(text).map(Workers::Number).map_err(|error| format!("{error}, or max"))
}

fn parse_controller(text: &str) -> Result<Controller, String> {
    use Controller::{Cpu, Cpuset, Io, Memory, Pids};
    let known = [Cpu, Cpuset, Io, Memory, Pids].into_iter().find(|controller| controller.name() == text);
    known.ok_or_else(|| "write cpu, cpuset, io, memory or pids".into())
}

async fn serve(args: &Args, workers: usize, pool: &Pool, signals: &SignalStream, parent: Parent) -> Result<()> {
    let mut requests = requests()?;
    let writer = EventWriter::start()?;
    let (done_sender, done_receiver) = unbounded_channel();
    let mut session = Session { args, pool, writer, active: HashMap::new(), done_sender, done_receiver };
    let parent = parent.watch();
    let signals = Requests { signals, rules: Rules::new(Keys::ReachPinfold) };
    let mut caller = Caller { signals, writer: session.writer.clone(), parent, gone: None };
    session.writer.send(&Message::Hello {
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION"),
        capabilities: Capability::ALL,
        workers,
        stdin_window: stdin::WINDOW,
    });
    let handled = handle_requests(&mut session, &mut caller, &mut requests).await;
    session.remove_limits();
    pool.shutdown(Shutdown::Kill).await;
    handled?;
    deliver_the_rest(&mut session, &mut caller).await
}

/// The program that sends the requests, and the signals that pinfold receives.
struct Caller<'a> {
    signals: Requests<'a>,
    writer: EventWriter,
    parent: WatchedParent,
    /// The error of a failed write. After it, pinfold can write nothing more to the caller.
    gone: Option<std::io::Error>,
}

/// A reason to end.
#[derive(PartialEq, Eq)]
enum EndCause {
    /// A signal requested a stop. The value is the signal that the jobs receive first; `None` if that is the stop
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
            Some(id) = session.done_receiver.recv() => drop(session.active.remove(&id)),
            () = session.pool.shutdown(Shutdown::Stop), if stopping => return Ok(()),
            line = requests.recv(), if connected => match line {
                Some(line) => session.handle_line(&line).await,
                None => connected = false,
            },
        }
        if !connected {
            if !stopping {
                return Ok(());
            }
            session.remove_limits();
        }
    }
}

/// Waits until the caller has read the remaining events, for at most [`READER_TIMEOUT`]. Called when all jobs have
/// ended.
///
/// # Errors
/// If some events could not be delivered, although the caller has not closed its end.
async fn deliver_the_rest(session: &mut Session<'_>, caller: &mut Caller<'_>) -> Result<()> {
    let delivered = async {
        while !session.active.is_empty()
            && let Some(id) = session.done_receiver.recv().await
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
