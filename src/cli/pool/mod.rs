//! `pinfold pool`.

mod args;
mod files;
mod jobs;
mod output;
mod progress;
mod results;

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pinfold::pool::Outcome;
use pinfold::report::Reason;
use pinfold::signal::{self, SignalQueue, SignalStream};
use pinfold::{Command, Guard, Pool, Signal, Stdio, Supervisor};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::FAILED;
use super::session::{Descriptors, with_supervisor};
use super::signals::{Keys, Response, Rules};
pub use args::Args;
use args::OutputArg;
pub use args::parse_workers;
use files::Files;
use jobs::Job;
pub use jobs::JobLine;
use output::Printer;
use progress::{Progress, Tally};
use results::Results;

/// Some jobs did not succeed.
const SOME_FAILED: u8 = 1;

/// The deadline of all was reached.
const DEADLINE: u8 = 124;

/// So many jobs are ready to be started, with files for their output.
const QUEUE: usize = 64;

/// Runs the jobs and tells the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let (group, stream) = (args.output == OutputArg::Group, args.output == OutputArg::Stream);
    ensure!(group || !args.keep_order, "--keep-order needs --output group");
    ensure!(stream || !args.tag, "--tag needs --output stream");
    // Before there are jobs in the memory that is forked.
    let guard = Guard::fork()?;
    let jobs = jobs::read(args)?;
    let (results, done) = match &args.results {
        Some(path) => {
            let (results, done) = Results::open(path, args.resume)?;
            (Some(results), done)
        }
        None => (None, HashSet::new()),
    };
    if let OutputArg::Files(directory) = &args.output {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    // Until here a signal ends pinfold as it ends everybody: nothing runs yet.
    let signals = SignalQueue::block_all()?;
    let controllers = jobs.iter().flat_map(Job::controllers).collect();
    let workers = args.workers.min(jobs.len());
    let descriptors = match args.output {
        // Two files each, which the job has too until it is started; and those of outputs that wait to be printed.
        OutputArg::Group => Descriptors { workers, each: 2, ready: (8, QUEUE) },
        OutputArg::Stream => Descriptors { workers, each: 2, ready: (0, 0) },
        OutputArg::Files(_) => Descriptors { workers, each: 0, ready: (2, QUEUE) },
    };
    let cgroup = args.cgroup.as_deref();
    let ended = with_supervisor(guard, signals, cgroup, controllers, descriptors, async |supervisor, signals| {
        Ok(Run::new(args, &jobs, done, results, supervisor)?.run(signals).await)
    })?;
    Ok(match ended {
        End::Code(code) => code,
        End::Signalled(signal) => {
            if signal == Signal::INT {
                // So that a calling shell loop stops too. PID 1 comes back from this.
                signal::end_by(signal);
            }
            u8::try_from(128 + signal.number()).unwrap_or(u8::MAX)
        }
    })
}

enum End {
    Code(u8),
    Signalled(Signal),
}

/// A job that was handed in.
struct Submitted<'a> {
    job: &'a Job,
    files: Option<Files>,
    room: Option<OwnedSemaphorePermit>,
}

struct Run<'a> {
    args: &'a Args,
    jobs: Vec<&'a Job>,
    pool: Pool,
    progress: Progress,
    printer: Option<Arc<Printer>>,
    printed: Option<oneshot::Receiver<io::Result<()>>>,
    results: Option<Results>,
    tally: Tally,
    begun: Instant,
    signalled: Option<Signal>,
    failed: bool,
}

impl<'a> Run<'a> {
    fn new(
        args: &'a Args,
        jobs: &'a [Job],
        done: HashSet<String>,
        results: Option<Results>,
        supervisor: &Supervisor,
    ) -> Result<Self> {
        let workers = args.workers.min(jobs.len()).max(1);
        let queue = workers.min(QUEUE);
        let mut builder = Pool::builder().workers(workers).queue(queue).fail_fast(args.fail_fast);
        if let Some(deadline) = args.deadline {
            builder = builder.deadline(deadline);
        }
        if let Some(timeout) = args.timeout {
            builder = builder.timeout(timeout);
        }
        let left: Vec<_> = jobs.iter().filter(|job| !done.contains(&job.key)).collect();
        let progress = Progress::new(left.len() as u64, args.quiet);
        // Each that was handed in has a place there from then on.
        let at_once = if args.output == OutputArg::Group { workers.saturating_add(queue) } else { 0 };
        let (printer, printed) = Printer::start(args.keep_order, at_once, progress.clone())?;
        Ok(Self {
            args,
            tally: Tally { left_out: (jobs.len() - left.len()) as u64, ..Tally::default() },
            jobs: left,
            pool: builder.start(supervisor)?,
            progress,
            printer: Some(Arc::new(printer)),
            printed: Some(printed),
            results,
            begun: Instant::now(),
            signalled: None,
            failed: false,
        })
    }

    async fn run(mut self, signals: &SignalStream) -> End {
        // Neither a terminal's keys nor its process group reach the jobs.
        let mut rules = Rules::new(Keys::ReachUs);
        let mut outcomes = self.pool.outcomes();
        let (pool, printer) = (self.pool.clone(), self.printer.clone());
        let (args, jobs) = (self.args, std::mem::take(&mut self.jobs));
        let submitted = RefCell::default();
        let mut feeding = Some(Box::pin(feed(args, &jobs, &pool, printer, &submitted)));
        loop {
            tokio::select! {
                biased;
                received = signals.recv() => match received {
                    Ok(received) => self.answer(rules.respond(received, Instant::now()), received.signal),
                    Err(error) => self.fail(&error.to_string()),
                },
                outcome = outcomes.next_outcome() => match outcome {
                    Some(outcome) => {
                        let done = submitted.borrow_mut().remove(&outcome.id);
                        if let Some(done) = done {
                            self.done(done, &outcome);
                        }
                    }
                    None => break,
                },
                printed = printed(&mut self.printed) => self.print_failed(printed),
                fed = fed(&mut feeding) => {
                    if let Err(error) = fed {
                        self.fail(&format!("{error:#}"));
                    }
                    pool.close();
                }
            }
        }
        drop(feeding);
        self.finish(jobs.len() as u64, signals, rules).await
    }

    fn answer(&mut self, response: Response, signal: Signal) {
        match response {
            Response::Stop(_) => {
                self.signalled = Some(signal);
                let running = self.pool.status().running;
                self.progress.say(&format!("{signal}: stopping {running} jobs; once more kills them"));
                self.pool.stop();
            }
            Response::Kill => {
                self.signalled = Some(signal);
                self.pool.kill();
            }
            // Ctrl-Z: the shell takes over; the jobs go on.
            Response::PassOn(Signal::TSTP) => signal::suspend_by(Signal::TSTP),
            _ => {}
        }
    }

    fn print_failed(&mut self, printed: io::Result<()>) {
        if let Err(error) = printed {
            self.fail(&format!("cannot write the jobs' output: {error}"));
        }
    }

    fn fail(&mut self, message: &str) {
        self.failed = true;
        self.progress.say(message);
        self.pool.stop();
    }

    fn done(&mut self, done: Submitted<'_>, outcome: &Outcome) {
        let Submitted { job, files, room } = done;
        let counter = match (outcome.success(), outcome.cancelled, outcome.attempts) {
            (true, ..) => &mut self.tally.succeeded,
            (false, true, 0) => &mut self.tally.never_started,
            (false, true, _) => &mut self.tally.ended,
            (false, false, _) => &mut self.tally.failed,
        };
        *counter += 1;
        self.tally.remains += u64::from(!outcome.report.is_gone());
        self.progress.ended(job, outcome, self.pool.status());
        // Its line is there before its output is: who sees the one finds the other.
        if let Some(results) = &mut self.results
            && let Err(error) = results.append(job, outcome)
        {
            self.results = None;
            self.fail(&format!("{error:#}"));
        }
        if let (Some(printer), Some(files)) = (&self.printer, files) {
            printer.print(outcome.id, files, room);
        }
        if outcome.report.reason == Reason::GuardLost && !self.failed {
            self.fail("the guard process was killed; all jobs have been ended");
        }
    }

    /// Waits until all is printed; a signal ends that.
    async fn finish(mut self, count: u64, signals: &SignalStream, mut rules: Rules) -> End {
        // Without it, the printer comes to its end.
        self.printer = None;
        while self.printed.is_some() {
            tokio::select! {
                biased;
                printed = printed(&mut self.printed) => self.print_failed(printed),
                received = signals.recv() => {
                    let Ok(received) = received else { break };
                    if matches!(rules.respond(received, Instant::now()), Response::Stop(_) | Response::Kill) {
                        self.signalled = Some(received.signal);
                        break;
                    }
                }
            }
        }
        let Tally { succeeded, failed, ended, never_started, .. } = self.tally;
        self.tally.never_started = never_started + count - (succeeded + failed + ended + never_started);
        self.progress.finish(&self.tally, self.begun);
        let over = self.args.deadline.is_some_and(|deadline| self.begun.elapsed() >= deadline);
        match self.signalled {
            _ if self.failed => End::Code(FAILED),
            Some(signal) => End::Signalled(signal),
            None if succeeded == count => End::Code(0),
            None if over && (ended > 0 || self.tally.never_started > 0) => End::Code(DEADLINE),
            None => End::Code(SOME_FAILED),
        }
    }
}

/// Waits for the printer's end; once.
async fn printed(over: &mut Option<oneshot::Receiver<io::Result<()>>>) -> io::Result<()> {
    let Some(waiting) = over else { return std::future::pending().await };
    let printed = waiting.await;
    *over = None;
    printed.unwrap_or_else(|_| Err(io::Error::other("the printing thread has ended")))
}

/// Waits until all jobs are handed in; once.
async fn fed<F: Future<Output = Result<()>> + Unpin>(feeding: &mut Option<F>) -> Result<()> {
    let Some(waiting) = feeding else { return std::future::pending().await };
    let fed = waiting.await;
    *feeding = None;
    fed
}

/// Hands the jobs in, as there is room for them.
async fn feed<'a>(
    args: &Args,
    jobs: &[&'a Job],
    pool: &Pool,
    printer: Option<Arc<Printer>>,
    submitted: &RefCell<HashMap<u64, Submitted<'a>>>,
) -> Result<()> {
    let Some(printer) = printer else { return Ok(()) };
    // Opened once, and not for each.
    let null = Stdio::from(File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?);
    for job in jobs {
        let room = match args.output {
            OutputArg::Group => printer.room().await,
            _ => None,
        };
        let mut files = if args.output == OutputArg::Group { Some(printer.files()?) } else { None };
        let streams = match (&mut files, &args.output) {
            (Some(files), _) => Some(files.for_job()?),
            (None, OutputArg::Files(directory)) => Some(files::named(directory, job.line)?),
            (None, _) => None,
        };
        let given = |command: &mut Command, stdout, stderr| {
            command.stdout(stdout).stderr(stderr);
            if !job.has_stdin() {
                command.stdin(null.clone());
            }
        };
        let task = match streams {
            Some([stdout, stderr]) => job.task(args, |command| given(command, stdout.into(), stderr.into())),
            None => {
                let (printer, tag) = (Arc::downgrade(&printer), args.tag);
                let task = job.task(args, |command| given(command, Stdio::Piped, Stdio::Piped));
                task.on_spawn(move |job, _| {
                    let Some(printer) = printer.upgrade() else { return };
                    let tag = tag.then(|| job.name());
                    for (stream, error) in [(job.take_stdout(), false), (job.take_stderr(), true)] {
                        if let Some(stream) = stream {
                            printer.follow(stream, error, tag);
                        }
                    }
                })
            }
        };
        match pool.submit(task).await {
            Ok(handle) => {
                submitted.borrow_mut().insert(handle.id(), Submitted { job, files, room });
            }
            // Stopped, or its deadline is over: those that were not handed in are counted at the end.
            Err(pinfold::Error::PoolClosed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
