//! Where the jobs' output goes. Printing has a thread of its own ([`PrintingThread`]): a reader that is slow delays new jobs, but never the
//! deadlines and signals of those that run.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use anyhow::Result;
use pinfold::output::{Line, Lines, OutputStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::gather::Part;
use super::printing_thread::PrintingThread;
use super::progress::Progress;
use super::results::Results;
use super::spill::Spill;
use crate::cli::thread;

/// A longer line of a stream may be cut by another job's.
pub const MAX_LINE: usize = 64 * 1024;

/// Lines, or outputs of jobs beyond those of the jobs that run, that may wait to be printed.
const WAITING: usize = 64;

/// How much output all jobs together keep in memory, about.
const MEMORY: usize = 16 * 1024 * 1024;

/// How much of that one stream of a job keeps, at least and at most.
const MEMORY_EACH: (usize, usize) = (4 * 1024, 64 * 1024);

/// A job's output, both streams of it, and its line for the results file, which is written when the output has been.
pub struct Output {
    pub parts: [Part; 2],
    pub record: Option<Vec<u8>>,
    /// Its place among the outputs that wait, which the next job gets.
    pub _room: Option<OwnedSemaphorePermit>,
}

/// What the printing thread is to do.
pub enum Piece {
    Print(Output),
    /// Keep the output until [`Piece::PrintPutOff`].
    PutOff {
        number: u64,
        output: Output,
    },
    PrintPutOff {
        number: u64,
    },
    Line {
        /// 0 is standard output, 1 standard error.
        stream: usize,
        bytes: Vec<u8>,
        room: OwnedSemaphorePermit,
    },
}

/// What the printing thread reports.
pub enum Notice {
    /// The reader of the output has closed it, as head(1) does.
    ReaderGone,
    /// Output is lost, or the results file cannot be written.
    Failed(String),
    /// Everything has been printed, or nothing more can be.
    Finished,
}

/// A job that has ended.
pub struct Ended {
    /// Its place among the jobs that were handed in, from 1 on.
    pub number: u64,
    /// Its line for the results file.
    pub record: Option<Vec<u8>>,
    pub room: Option<OwnedSemaphorePermit>,
    /// Whether its output is to be printed.
    pub print: bool,
}

/// Writes to the results file.
pub struct Recorder {
    results: Mutex<Option<Results>>,
    notices: UnboundedSender<Notice>,
}

impl Recorder {
    /// Call it when the job's output has been written.
    pub fn record(&self, record: Option<&[u8]>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(record), Some(open)) = (record, &mut *results)
            && let Err(error) = open.append(record)
        {
            *results = None;
            let _ = self.notices.send(Notice::Failed(format!("{error:#}")));
        }
    }
}

/// Hands output to the thread that prints.
pub struct Printer {
    pieces: UnboundedSender<Piece>,
    notices: UnboundedSender<Notice>,
    room: Arc<Semaphore>,
    turns: Option<Mutex<Turns>>,
    recorder: Arc<Recorder>,
    spill: Spill,
    memory_each: usize,
    /// Lines are printed as they come: some of a job may wait to be printed when it ends.
    by_line: bool,
}

/// With `--keep-order`: which job is the next, and which have ended before their turn: whether there is output to print.
struct Turns {
    next: u64,
    early: BTreeMap<u64, bool>,
}

/// How the output is printed.
pub struct How {
    pub keep_order: bool,
    /// The number of jobs that have an output at a time; none where their lines are printed as they come.
    pub at_once: Option<usize>,
}

impl Printer {
    /// Starts the thread. The receiver gets [`Notice::Finished`] when it has ended.
    pub fn start(how: &How, results: Option<Results>, progress: Progress) -> Result<(Self, UnboundedReceiver<Notice>)> {
        let (pieces, receiver) = unbounded_channel();
        let (notices, noticed) = unbounded_channel();
        // Outputs that wait hold memory and files: not many more than those that are being made.
        let at_once = how.at_once.unwrap_or(0);
        let waiting = if at_once > 0 { WAITING.min(at_once) } else { WAITING };
        let places = at_once.saturating_add(waiting).min(Semaphore::MAX_PERMITS);
        let recorder = Arc::new(Recorder { results: Mutex::new(results), notices: notices.clone() });
        let (to_desk, from_desk) = (recorder.clone(), notices.clone());
        thread::start("to print what jobs write", move || {
            let printed = PrintingThread::new(progress, to_desk, from_desk.clone())
                .and_then(|printing_thread| printing_thread.print_all(receiver));
            let _ = match printed {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => from_desk.send(Notice::ReaderGone),
                Err(error) => from_desk.send(Notice::Failed(format!("cannot write the jobs' output: {error}"))),
            };
            let _ = from_desk.send(Notice::Finished);
        })?;
        let printer = Self {
            pieces,
            notices,
            room: Arc::new(Semaphore::new(places)),
            turns: how.keep_order.then(|| Mutex::new(Turns { next: 1, early: BTreeMap::new() })),
            recorder,
            spill: Spill::default(),
            memory_each: (MEMORY / places.max(1)).clamp(MEMORY_EACH.0, MEMORY_EACH.1),
            by_line: how.at_once.is_none(),
        };
        Ok((printer, noticed))
    }

    /// A place for a job's output; waits while too many wait to be printed.
    pub async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().acquire_owned().await.ok()
    }

    /// How much of a stream is kept in memory, and what writes the rest to the disk.
    pub fn spill(&self) -> (usize, &Spill) {
        (self.memory_each, &self.spill)
    }

    /// Reports a failure that ends the pool.
    pub fn fail(&self, message: String) {
        let _ = self.notices.send(Notice::Failed(message));
    }

    /// Prints a job's output in its turn, and then writes its line to the results file. An empty output does not wake the
    /// thread: most jobs print nothing.
    pub fn print(&self, parts: [Part; 2], ended: Ended) {
        let Ended { number, record, room, print } = ended;
        let parts = if print { parts } else { Default::default() };
        let empty = parts.iter().all(Part::is_empty) && !self.by_line;
        let output = Output { parts, record, _room: room };
        let Some(turns) = &self.turns else { return self.print_now(output, empty) };
        let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.next != number {
            if empty {
                // It loses nothing: no output of it waits.
                self.print_now(output, true);
            } else {
                self.send(Piece::PutOff { number, output });
            }
            turns.early.insert(number, !empty);
            return;
        }
        self.print_now(output, empty);
        turns.next += 1;
        while let next = turns.next
            && let Some(something) = turns.early.remove(&next)
        {
            if something {
                self.send(Piece::PrintPutOff { number: next });
            }
            turns.next += 1;
        }
    }

    fn print_now(&self, output: Output, empty: bool) {
        if empty {
            self.recorder.record(output.record.as_deref());
        } else {
            self.send(Piece::Print(output));
        }
    }

    fn send(&self, piece: Piece) {
        // A thread that has ended has reported why.
        let _ = self.pieces.send(piece);
    }

    /// Prints a stream's lines as they come, each after the tag, until it ends.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub async fn follow(&self, stream: OutputStream, number: usize, tag: &[u8]) -> io::Result<()> {
        let mut lines = stream.lines().max_line(MAX_LINE);
        let mut begins = true;
        let mut open = false;
        while let Some(line) = lines.next_line().await? {
            let mut bytes = Vec::new();
            let mut next = Some(line);
            // With it, those that are there already: a job that prints much prints faster so.
            while let Some(line) = next {
                if begins {
                    bytes.extend_from_slice(tag);
                }
                bytes.extend_from_slice(&line.bytes);
                if line.complete {
                    bytes.push(b'\n');
                }
                begins = line.complete;
                open = !line.complete;
                next = if bytes.len() < MAX_LINE { there_already(&mut lines).await } else { None };
            }
            self.print_line(number, bytes).await;
        }
        if open {
            // The next job's line begins on a line of its own.
            self.print_line(number, b"\n".to_vec()).await;
        }
        Ok(())
    }

    async fn print_line(&self, stream: usize, bytes: Vec<u8>) {
        if let Some(room) = self.room().await {
            self.send(Piece::Line { stream, bytes, room });
        }
    }
}

/// The next line, where it needs no waiting. An error comes again.
async fn there_already(lines: &mut Lines) -> Option<Line> {
    let mut next = std::pin::pin!(lines.next_line());
    std::future::poll_fn(|context| match next.as_mut().poll(context) {
        Poll::Ready(line) => Poll::Ready(line.ok().flatten()),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}
