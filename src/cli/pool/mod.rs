//! `pinfold pool`.

mod args;
mod files;
mod gather;
mod input;
mod job_line;
mod jobs;
mod output;
mod printing_thread;
mod progress;
mod results;
mod spill;
mod template;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;
use std::time::Instant;

use crate::cli::signal_stream::SignalStream;
use crate::kernel::own_signals::{self, SignalQueue};
use crate::pool::{Outcome, Shutdown};
use crate::report::text::counted;
use crate::report::{Reason, SupervisorKind};
use crate::{Guard, Pool, Signal, Stdio, Supervisor};
use anyhow::{Context, Result, ensure};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedReceiver;

use super::exit::{Exit, FAILED, TIMED_OUT};
use super::runtime::{Descriptors, with_supervisor};
use super::signals::{Keys, Response, Rules};
use super::supervise::Requests;
use super::{environment, print_message};
pub use args::Args;
use args::OutputArg;
pub use args::parse_workers;
use gather::Collector;
pub use job_line::{JobLine, explain};
use jobs::Job;
use output::{Ended, Notice, PrintOptions, Printer};
use progress::{Progress, Tally};
use results::{DoneJobs, Results};

/// Some jobs did not succeed.
const SOME_FAILED: u8 = 1;

/// The largest number of jobs that wait to be started. The files for their output are open already.
const QUEUE: usize = 64;

/// Runs the jobs and returns the exit code.
pub fn run(args: &Args) -> Result<u8> {
    let (group, stream) = (args.output == OutputArg::Group, args.output == OutputArg::Stream);
    ensure!(group || !args.keep_order, "--keep-order needs --output group");
    ensure!(stream || !args.tag, "--tag needs --output stream");
    ensure!(group || !args.finished_only, "--finished-only needs --output group");
    // The guard is forked before the jobs are read, so that they are not in the memory that the fork copies.
    let guard = Guard::fork()?;
    if let Some(interpreter) = template::runs_lines_as_code(&args.command).filter(|_| !args.quiet) {
        print_message(&format!(
            "{{}} in a script of {interpreter} runs each line as code: a file name like $(reboot) is a command there. \
             Write {{q}}, which quotes the line for a shell, or pass the line as an argument: sh -c 'cat \"$1\"' sh {{}}"
        ));
    }
    let jobs = jobs::read(args)?;
    let (results, done) = match &args.results {
        Some(path) => {
            let (results, done) = Results::open(path, args.resume || args.retry_failed)?;
            (Some(results), done)
        }
        None => (None, DoneJobs::new()),
    };
    if let OutputArg::Files(directory) = &args.output {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", crate::report::text::printable_path(directory)))?;
    }
    // Until now, a signal had its default action: it ended pinfold. That was safe, because no job ran yet.
    let signals = SignalQueue::block_all()?;
    let workers = args.workers.min(jobs.len());
    let descriptors = match args.output {
        // Each running job needs two pipes, and two files for output that is too large for the memory. The outputs that
        // wait to be printed need files too.
        OutputArg::Group => Descriptors { workers, each: 4, ready: (4, QUEUE) },
        OutputArg::Stream => Descriptors { workers, each: 2, ready: (0, 0) },
        OutputArg::Files(_) => Descriptors { workers, each: 0, ready: (2, QUEUE) },
    };
    descriptors.check()?;
    let builder = environment::supervisor(args.cgroup.as_deref(), None)?.guard(guard).kind(SupervisorKind::Pool);
    let builder = builder.controllers(jobs.iter().flat_map(Job::controllers));
    let exit = with_supervisor(builder, signals, async |supervisor, signals| -> Result<Exit> {
        args.parent.apply()?;
        Ok(Run::new(args, &jobs, done, results, supervisor)?.run(signals).await)
    })?;
    Ok(exit.code())
}

/// A job that was submitted to the pool.
struct Submitted<'a> {
    job: &'a Job,
    collector: Arc<Collector>,
    room: Option<OwnedSemaphorePermit>,
}

struct Run<'a> {
    args: &'a Args,
    jobs: Vec<&'a Job>,
    pool: Pool,
    progress: Progress,
    printer: Option<Arc<Printer>>,
    /// The notices of the printing thread, until the thread has ended.
    notices: Option<UnboundedReceiver<Notice>>,
    records: bool,
    tally: Tally,
    begun: Instant,
    signalled: Option<Signal>,
    failed: bool,
}

impl<'a> Run<'a> {
    fn new(
        args: &'a Args,
        jobs: &'a [Job],
        done: DoneJobs,
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
        let mut tally = Tally::default();
        let left: Vec<_> = jobs
            .iter()
            .filter(|job| match done.get(&job.key) {
                None => true,
                Some(false) if args.retry_failed => true,
                Some(false) => {
                    tally.failed_before += 1;
                    false
                }
                Some(true) => {
                    tally.left_out += 1;
                    false
                }
            })
            .collect();
        let progress = Progress::new(left.len() as u64, args.quiet);
        // The output of each submitted job occupies a place.
        let at_once = match args.output {
            OutputArg::Group => Some(workers.saturating_add(queue)),
            OutputArg::Stream => None,
            OutputArg::Files(_) => Some(0),
        };
        let (options, records) = (PrintOptions { keep_order: args.keep_order, at_once }, results.is_some());
        let (printer, notices) = Printer::start(&options, results, progress.clone())?;
        Ok(Self {
            args,
            tally,
            jobs: left,
            pool: builder.start(supervisor)?,
            progress,
            printer: Some(Arc::new(printer)),
            notices: Some(notices),
            records,
            begun: Instant::now(),
            signalled: None,
            failed: false,
        })
    }

    async fn run(mut self, signals: &SignalStream) -> Exit {
        // Signals from a terminal's keys, or to pinfold's process group, do not reach the jobs.
        let rules = Rules::new(Keys::ReachPinfold).with(Vec::new(), self.args.stop_signal.is_some());
        let mut requests = Requests { signals, rules };
        let mut outcomes = self.pool.outcomes();
        let (pool, printer) = (self.pool.clone(), self.printer.clone());
        let (args, jobs) = (self.args, std::mem::take(&mut self.jobs));
        let submitted = RefCell::default();
        let mut submitting = Some(Box::pin(submit_all(args, &jobs, &pool, printer, &submitted)));
        loop {
            tokio::select! {
                biased;
                request = requests.next() => match request {
                    Ok((response, signal)) => self.handle(response, signal),
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
                notice = notice(&mut self.notices) => self.notice(notice),
                result = all_submitted(&mut submitting) => {
                    if let Err(error) = result {
                        self.fail(&crate::cli::message_of(&error));
                    }
                    pool.start_shutdown(Shutdown::Drain);
                }
            }
        }
        drop(submitting);
        self.finish(jobs.len() as u64, requests).await
    }

    fn handle(&mut self, response: Response, signal: Signal) {
        match response {
            Response::Stop(first) => {
                self.signalled = Some(signal);
                let running = counted(self.pool.status().running, "job");
                self.progress.print(&format!("{signal}: stopping {running}; a second signal kills at once"));
                self.pool.start_shutdown(first.map_or(Shutdown::Stop, Shutdown::StopWith));
            }
            Response::Kill => {
                self.signalled = Some(signal);
                self.pool.start_shutdown(Shutdown::Kill);
            }
            // Ctrl-Z: pinfold stops and the shell takes over. The jobs continue to run.
            Response::PassOn(Signal::TSTP) => own_signals::suspend_by(Signal::TSTP),
            _ => {}
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            // pinfold ends without a message, like a program that SIGPIPE kills: the reader wants no more output.
            Notice::ReaderGone => {
                self.signalled = Some(Signal::PIPE);
                self.pool.start_shutdown(Shutdown::Stop);
            }
            Notice::Failed(message) => self.fail(&message),
            Notice::Finished => self.notices = None,
        }
    }

    fn fail(&mut self, message: &str) {
        self.failed = true;
        self.progress.print(message);
        self.pool.start_shutdown(Shutdown::Stop);
    }

    fn done(&mut self, done: Submitted<'_>, outcome: &Outcome) {
        let Submitted { job, collector, room } = done;
        let counter = match (outcome.success(), outcome.cancelled, outcome.attempts) {
            (true, ..) => &mut self.tally.succeeded,
            (false, true, 0) => &mut self.tally.never_started,
            (false, true, _) => &mut self.tally.ended,
            (false, false, _) => &mut self.tally.failed,
        };
        *counter += 1;
        self.tally.remains += u64::from(!outcome.report.is_gone());
        // If the reader of the output is gone, pinfold does not report the jobs that it stopped for that reason.
        if self.signalled != Some(Signal::PIPE) || !outcome.cancelled {
            self.progress.ended(job, outcome, self.pool.status());
        }
        let record = if self.records { results::line(job, outcome) } else { Ok(None) };
        let record = record.unwrap_or_else(|error| {
            self.fail(&crate::cli::message_of(&error));
            None
        });
        let print = !(self.args.finished_only && outcome.cancelled);
        collector.end(Ended { number: outcome.id, record, room, print });
        if outcome.report.reason == Reason::GuardLost && !self.failed {
            self.fail("the guard process was killed; all jobs have been ended");
        }
    }

    /// Waits until all output is printed. A signal ends the wait.
    async fn finish(mut self, count: u64, mut requests: Requests<'_>) -> Exit {
        // This closes the channel, so that the printing thread ends.
        self.printer = None;
        while self.notices.is_some() {
            tokio::select! {
                biased;
                notice = notice(&mut self.notices) => self.notice(notice),
                request = requests.next() => match request {
                    Ok((Response::Stop(_) | Response::Kill, signal)) => {
                        self.signalled = Some(signal);
                        break;
                    }
                    Ok(_) => {}
                    Err(_) => break,
                },
            }
        }
        let Tally { succeeded, failed, ended, never_started, .. } = self.tally;
        self.tally.never_started = never_started + count - (succeeded + failed + ended + never_started);
        if self.signalled == Some(Signal::PIPE) && !self.failed {
            self.progress.clear();
        } else {
            self.progress.finish(&self.tally, self.begun);
        }
        let expired = self.args.deadline.is_some_and(|deadline| self.begun.elapsed() >= deadline);
        match self.signalled {
            _ if self.failed => Exit::Code(FAILED),
            Some(signal) => Exit::on_request(signal),
            None if succeeded == count && self.tally.failed_before == 0 => Exit::Code(0),
            None if expired && (ended > 0 || self.tally.never_started > 0) => Exit::Code(TIMED_OUT),
            None => Exit::Code(SOME_FAILED),
        }
    }
}

/// Waits for the next notice of the printing thread. Waits forever after that thread has ended. Cancel-safe.
async fn notice(notices: &mut Option<UnboundedReceiver<Notice>>) -> Notice {
    let Some(receiver) = notices else { return std::future::pending().await };
    if let Some(notice) = receiver.recv().await {
        return notice;
    }
    *notices = None;
    Notice::Failed("the printing thread has ended too early: a part of the jobs' output may be lost".into())
}

/// Waits until all jobs are submitted. The second call waits forever.
async fn all_submitted<F: Future<Output = Result<()>> + Unpin>(submitting: &mut Option<F>) -> Result<()> {
    let Some(waiting) = submitting else { return std::future::pending().await };
    let result = waiting.await;
    *submitting = None;
    result
}

/// Submits the jobs to the pool. It waits while there is no room for the next one.
async fn submit_all<'a>(
    args: &Args,
    jobs: &[&'a Job],
    pool: &Pool,
    printer: Option<Arc<Printer>>,
    submitted: &RefCell<HashMap<u64, Submitted<'a>>>,
) -> Result<()> {
    let Some(printer) = printer else { return Ok(()) };
    // pinfold opens /dev/null once, and not for each job.
    let null = Stdio::from(File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?);
    for job in jobs {
        let room = match args.output {
            OutputArg::Group => printer.room().await,
            _ => None,
        };
        let collector = Collector::new(printer.clone(), job.line);
        let merged = job.merges_stderr(args);
        let (stdout, stderr) = match &args.output {
            OutputArg::Files(directory) => files::create_named(directory, job.line, merged)?,
            _ => (Stdio::piped(), Stdio::piped()),
        };
        let task = job.task(args, |command| {
            command.stdout(stdout).stderr(stderr).stderr_to_stdout(merged);
            if !job.has_stdin() {
                command.stdin(null.clone());
            }
        });
        let (reader, by_line, tag) = (collector.clone(), args.output == OutputArg::Stream, args.tag);
        let task = task.on_spawn(move |job, _| {
            for (number, stream) in [job.stdout.take(), job.stderr.take()].into_iter().enumerate() {
                match stream {
                    Some(stream) if by_line => reader.follow(stream, number, tag.then(|| job.name())),
                    Some(stream) => reader.gather(stream, number),
                    None => {}
                }
            }
        });
        match pool.submit(task).await {
            Ok(handle) => {
                submitted.borrow_mut().insert(handle.id(), Submitted { job, collector, room });
            }
            // The pool was stopped, or its deadline was reached. `finish` counts the jobs that were not submitted.
            Err(crate::Error::PoolClosed) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
