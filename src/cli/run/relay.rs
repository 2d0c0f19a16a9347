//! Passes on what the command writes, where an option has pinfold stand in between.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use pinfold::output::{CaptureLimit, Captured, OutputStream};
use pinfold::signal::SignalStream;
use pinfold::{Job, Signal, Supervisor};
use rustix::io::Errno;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle};

use super::args::Args;
use super::keys::Keys;
use super::ready::Ready;
use crate::cli::signals::{Response, Rules};
use crate::cli::tell;
use crate::cli::terminal::Terminal;

const PIECE: usize = 16 * 1024;

/// Pieces that may wait for whoever reads our output; then the command waits.
const WAITING: usize = 8;

/// Beyond the deadline, a reader that is slow has this time.
const PATIENCE: Duration = Duration::from_secs(1);

/// What stands between the command and our streams.
pub struct Relay {
    copies: Vec<JoinHandle<()>>,
    keys: Option<Keys>,
    /// Nobody needs to wait for the reader any longer then.
    until: Option<Instant>,
    /// Whether the line that means ready has come.
    pub line_seen: watch::Receiver<bool>,
    pub tee_failed: watch::Receiver<bool>,
}

impl Relay {
    /// Takes the job's streams, and the terminal's keys.
    pub async fn start(
        args: &Args,
        job: &Job,
        supervisor: &Supervisor,
        terminal: Option<&Terminal>,
    ) -> pinfold::Result<Self> {
        let (seen, line_seen) = watch::channel(false);
        let (failed, tee_failed) = watch::channel(false);
        let until = args.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut relay = Self { copies: Vec::new(), keys: None, until, line_seen, tee_failed };
        if !args.streams.relays() {
            return Ok(relay);
        }
        if args.streams.pty {
            relay.keys = Some(Keys::start(job, supervisor, terminal).await?);
        }
        let feeding = relay.keys.as_ref().and_then(|keys| keys.feeding.clone());
        let (out, err) = (io::stdout(), io::stderr());
        for (stream, outer) in [(job.take_stdout(), out.as_fd()), (job.take_stderr(), err.as_fd())] {
            let Some(stream) = stream else { continue };
            let outer = outer.try_clone_to_owned().map_err(|error| pinfold::Error::System {
                operation: "copy",
                object: "a standard stream".into(),
                errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
                advice: "see ulimit -n".into(),
            })?;
            let finder = match &args.streams.ready {
                Some(Ready::Line(part)) => Some(Finder { part: part.clone(), line: Vec::new(), seen: seen.clone() }),
                _ => None,
            };
            let (tee_failed, feeding) = (failed.clone(), feeding.clone());
            let (outlet, limit) = (Outlet::new(outer.into()), args.streams.max_output);
            relay.copies.push(tokio::spawn(Copy { outlet, limit, finder, tee_failed, feeding }.run(stream)));
        }
        Ok(relay)
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

    /// The job is over: waits until all is passed on. A stop ends that, and a deadline with some patience.
    pub async fn finish(&mut self, signals: &SignalStream, rules: &mut Rules) {
        let until = self.until.map(|until| until.max(Instant::now() + PATIENCE));
        for mut copy in std::mem::take(&mut self.copies) {
            loop {
                tokio::select! {
                    biased;
                    _ = &mut copy => break,
                    () = super::over(until) => return,
                    received = signals.recv() => {
                        let Ok(received) = received else { return };
                        if matches!(rules.respond(received, Instant::now()), Response::Stop | Response::Kill) {
                            return;
                        }
                    }
                }
            }
        }
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
    /// Ends when all has been written, or can't be.
    over: oneshot::Receiver<()>,
}

impl Outlet {
    fn new(mut outer: File) -> Self {
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(WAITING);
        let (done, over) = oneshot::channel();
        std::thread::spawn(move || {
            let _done = done;
            while let Some(piece) = pieces.blocking_recv() {
                if outer.write_all(&piece).is_err() {
                    // Whoever read it has gone: the command finds its end closed too.
                    return;
                }
            }
        });
        Self { pieces: sender, over }
    }

    async fn pass(&self, piece: &[u8]) -> bool {
        piece.is_empty() || self.pieces.send(piece.to_vec()).await.is_ok()
    }

    async fn close(self) {
        drop(self.pieces);
        let _ = self.over.await;
    }
}

/// One stream on its way.
struct Copy {
    outlet: Outlet,
    limit: Option<usize>,
    finder: Option<Finder>,
    tee_failed: watch::Sender<bool>,
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
                    tell(&error.to_string());
                    self.tee_failed.send_replace(true);
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
                if let Some(feeding) = &self.feeding {
                    feeding.abort();
                }
                return;
            }
        }
        if let Some(rest) = rest {
            if rest.dropped() > 0 {
                self.outlet.pass(format!("\n[... {} bytes left out ...]\n", rest.dropped()).as_bytes()).await;
            }
            self.outlet.pass(&rest.to_bytes()).await;
        }
        self.outlet.close().await;
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
