//! Passes on what the command writes, where an option has pinfold stand in between.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pinfold::output::{CaptureLimit, Captured, OutputStream};
use pinfold::signal::{self, SignalStream};
use pinfold::{Job, Signal, Supervisor};
use rustix::io::Errno;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::args::Args;
use super::keys::{Input, Keys};
use super::ready::Ready;
use crate::cli::signals::{Response, Rules};
use crate::cli::terminal::Terminal;
use crate::cli::{tell, thread, write_out};

const PIECE: usize = 16 * 1024;

/// Pieces that may wait for whoever reads our output; then the command waits.
const WAITING: usize = 8;

/// A reader of a job that was ended for its time has taken nothing for so long: it is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// What stands between the command and our streams.
pub struct Relay {
    /// Where they go, and what is typed, until there is a job.
    outlets: Vec<Outlet>,
    input: Option<Input>,
    copies: Vec<JoinHandle<()>>,
    keys: Option<Keys>,
    /// When whoever reads our output has last taken something.
    taken: watch::Receiver<Instant>,
    seen: watch::Sender<bool>,
    /// Whether the line that means ready has come.
    pub line_seen: watch::Receiver<bool>,
    trouble: Trouble,
}

/// What became of the output that should not have, in words; the first of it.
#[derive(Clone)]
struct Trouble(watch::Sender<Option<String>>);

impl Trouble {
    fn tell(&self, what: String) {
        tell(&what);
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(what);
            is_first
        });
    }
}

impl Relay {
    /// Makes what can fail, before there is a job.
    pub fn new(args: &Args) -> pinfold::Result<Self> {
        let (taken_now, taken) = watch::channel(Instant::now());
        let seen = watch::Sender::new(false);
        let mut relay = Self {
            outlets: Vec::new(),
            input: None,
            copies: Vec::new(),
            keys: None,
            taken,
            line_seen: seen.subscribe(),
            seen,
            trouble: Trouble(watch::Sender::new(None)),
        };
        if !args.streams.relays() {
            return Ok(relay);
        }
        let (out, err) = (io::stdout(), io::stderr());
        // A terminal has one output.
        let outer = [out.as_fd(), err.as_fd()].into_iter().take(if args.streams.pty { 1 } else { 2 });
        for outer in outer {
            let outer = outer.try_clone_to_owned().map_err(|error| pinfold::Error::System {
                operation: "copy",
                object: "a standard stream".into(),
                errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
                advice: "see ulimit -n".into(),
            })?;
            relay.outlets.push(Outlet::new(outer.into(), taken_now.clone())?);
        }
        if args.streams.pty {
            relay.input = Some(Input::new()?);
        }
        Ok(relay)
    }

    /// Takes the job's streams, and the terminal's keys.
    pub async fn start(
        &mut self,
        args: &Args,
        job: &Job,
        supervisor: &Supervisor,
        terminal: Option<&Terminal>,
    ) -> pinfold::Result<()> {
        if let Some(input) = self.input.take() {
            self.keys = Some(Keys::start(job, supervisor, terminal, input).await?);
        }
        let feeding = self.keys.as_ref().and_then(|keys| keys.feeding.clone());
        let streams = [job.take_stdout(), job.take_stderr()].into_iter().flatten();
        for (stream, outlet) in streams.zip(std::mem::take(&mut self.outlets)) {
            let finder = match &args.streams.ready {
                Some(Ready::Line(part)) => {
                    Some(Finder { part: part.clone(), line: Vec::new(), seen: self.seen.clone() })
                }
                _ => None,
            };
            let (trouble, feeding, limit) = (self.trouble.clone(), feeding.clone(), args.streams.max_output);
            self.copies.push(tokio::spawn(Copy { outlet, limit, finder, trouble, feeding }.run(stream)));
        }
        Ok(())
    }

    /// Something is wrong with where the output goes.
    pub fn tell_trouble(&self, what: String) {
        self.trouble.tell(what);
    }

    /// A signal that is about the terminal in between, and not for the job.
    pub fn takes(&mut self, job: &Job, signal: Signal) -> bool {
        let Some(keys) = &mut self.keys else { return false };
        match signal {
            Signal::WINCH => keys.resize(job),
            // After a stop, for which a shell has set the terminal to its own use.
            Signal::CONT => keys.resume(job),
            _ => return false,
        }
        true
    }

    /// What was typed that means us; never where nothing is.
    pub async fn response(&mut self, job: &Job) -> (Response, Signal) {
        match &mut self.keys {
            Some(keys) => keys.response(job).await,
            None => std::future::pending().await,
        }
    }

    /// The job is over: waits until all is passed on, as long as somebody may read it. A stop ends that; and where the job was
    /// ended for its time (`in_time`), a reader that takes no more. Tells what is wrong with the output.
    pub async fn finish(
        &mut self,
        in_time: bool,
        signals: &SignalStream,
        rules: &mut Rules,
        terminal: Option<&Terminal>,
    ) -> Option<String> {
        // Nobody is there to type for; its keys are signals again.
        if let Some(keys) = &mut self.keys {
            keys.leave();
        }
        if let Err(why) = self.pass_on(in_time, signals, rules, terminal).await {
            self.trouble.tell(format!("the end of the output was not passed on: {why}"));
        }
        self.trouble.0.borrow().clone()
    }

    async fn pass_on(
        &mut self,
        in_time: bool,
        signals: &SignalStream,
        rules: &mut Rules,
        terminal: Option<&Terminal>,
    ) -> Result<(), String> {
        let mut begun = Instant::now();
        for mut copy in std::mem::take(&mut self.copies) {
            loop {
                let taken = *self.taken.borrow_and_update();
                let until = in_time.then(|| begun.max(taken) + PATIENCE);
                let received = tokio::select! {
                    biased;
                    _ = &mut copy => break,
                    Ok(()) = self.taken.changed(), if in_time => continue,
                    () = super::over(until) => {
                        return Err(format!("its reader has taken nothing for {PATIENCE:?}"));
                    }
                    received = signals.recv() => received.map_err(|error| error.to_string())?,
                };
                match rules.respond(received, Instant::now()) {
                    Response::Stop(_) | Response::Kill => {
                        return Err(format!("{} came while its reader took its time", received.signal));
                    }
                    // There is no job any more that could be stopped.
                    _ if received.signal == Signal::TSTP && terminal.is_some_and(|terminal| !terminal.orphaned) => {
                        signal::suspend_by(received.signal);
                        begun = Instant::now();
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A terminal is given back however this ends.
impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(keys) = &mut self.keys {
            keys.leave();
        }
    }
}

/// Where a stream is passed on to. Writing has a thread of its own: it may block.
struct Outlet {
    pieces: mpsc::Sender<Vec<u8>>,
    /// Told when all has been written, or why it can't be.
    over: oneshot::Receiver<io::Result<()>>,
}

impl Outlet {
    fn new(outer: File, taken: watch::Sender<Instant>) -> pinfold::Result<Self> {
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(WAITING);
        let (done, over) = oneshot::channel();
        thread::start("to pass the output on", move || {
            let mut written = Ok(());
            'pieces: while let Some(piece) = pieces.blocking_recv() {
                // The end of a bounded output may be a large one.
                for part in piece.chunks(PIECE) {
                    written = write_out::write_all(&outer, part);
                    if written.is_err() {
                        break 'pieces;
                    }
                    taken.send_replace(Instant::now());
                }
            }
            // Before it is told: the command finds its end closed too.
            drop(pieces);
            let _ = done.send(written);
        })?;
        Ok(Self { pieces: sender, over })
    }

    async fn pass(&self, piece: &[u8]) -> bool {
        piece.is_empty() || self.pieces.send(piece.to_vec()).await.is_ok()
    }

    /// What has become of it. That nobody reads any more is no trouble.
    async fn close(self, trouble: &Trouble) {
        drop(self.pieces);
        if let Ok(Err(error)) = self.over.await
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            trouble.tell(format!("cannot pass the output on: {error}"));
        }
    }
}

/// One stream on its way.
struct Copy {
    outlet: Outlet,
    limit: Option<usize>,
    finder: Option<Finder>,
    trouble: Trouble,
    /// Ends with it: a terminal that nobody looks at any more hangs up.
    feeding: Option<AbortHandle>,
}

impl Copy {
    async fn run(mut self, mut stream: OutputStream) {
        let mut piece = vec![0; PIECE];
        let mut first = self.limit.map_or(usize::MAX, |limit| limit / 2);
        let mut rest = self.limit.map(|limit| Captured::new(CaptureLimit::ends(0, limit - limit / 2)));
        let mut failed = false;
        loop {
            let length = match stream.read(&mut piece).await {
                Ok(0) => break,
                Ok(length) => length,
                // The file of --tee takes no more, which is told once; the output goes on.
                Err(error) if !failed => {
                    failed = true;
                    self.trouble.tell(error.to_string());
                    continue;
                }
                Err(_) => break,
            };
            let read = &piece[..length];
            if let Some(finder) = &mut self.finder {
                finder.look(read);
            }
            let (now, later) = read.split_at(first.min(length));
            if let Some(rest) = &mut rest {
                first -= now.len();
                rest.push(later);
            }
            if !self.outlet.pass(now).await {
                drop(stream);
                if let Some(feeding) = &self.feeding {
                    feeding.abort();
                }
                return self.outlet.close(&self.trouble).await;
            }
        }
        if let Some(rest) = rest {
            if rest.dropped() > 0 {
                self.outlet.pass(format!("\n[... {} bytes left out ...]\n", rest.dropped()).as_bytes()).await;
            }
            self.outlet.pass(&rest.to_bytes()).await;
        }
        self.outlet.close(&self.trouble).await;
    }
}

/// Looks for a line that has something in it, whatever pieces it comes in.
struct Finder {
    part: Vec<u8>,
    /// The end of what was seen, that may be the beginning of it.
    line: Vec<u8>,
    seen: watch::Sender<bool>,
}

impl Finder {
    fn look(&mut self, piece: &[u8]) {
        if *self.seen.borrow() {
            return;
        }
        self.line.extend_from_slice(piece);
        if self.line.windows(self.part.len()).any(|window| window == self.part) {
            self.seen.send_replace(true);
        }
        self.line.drain(..self.line.len().saturating_sub(self.part.len() - 1));
    }
}
