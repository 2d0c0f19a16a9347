//! The destination of the jobs' output. A separate thread prints it ([`PrintingThread`]), so a slow reader delays new
//! jobs, but never the deadlines and signals of the running ones.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cli::thread;
use crate::output::{LineRuns, OutputStream};

use super::gather::Part;
use super::printing_thread::PrintingThread;
use super::progress::Progress;
use super::results::Results;
use super::spill::Spill;

/// The longest line that is printed as one piece. pinfold may print lines of other jobs between the parts of a longer
/// line.
pub const MAX_LINE: usize = 64 * 1024;

/// How many pieces may wait to be printed: lines, or the whole outputs of jobs that have ended.
const MAX_WAITING: usize = 64;

/// About how many bytes of output of all jobs together are kept in memory.
const MEMORY: usize = 16 * 1024 * 1024;

/// The least and the largest number of bytes that one stream of a job keeps in memory.
const MEMORY_EACH: (usize, usize) = (4 * 1024, 64 * 1024);

/// The output of a job, which consists of two streams, and its line for the results file. The line is written after the
/// output.
pub struct Output {
    pub parts: [Part; 2],
    pub record: Option<Vec<u8>>,
    /// Its place among the outputs that wait. When it is dropped, the next job gets the place.
    pub _room: Option<OwnedSemaphorePermit>,
}

/// A task for the printing thread.
pub enum Piece {
    Print(Output),
    /// Keep the output until [`Piece::PrintDeferred`].
    Defer {
        number: u64,
        output: Output,
    },
    PrintDeferred {
        number: u64,
    },
    Lines {
        /// 0 is standard output, 1 standard error.
        stream: usize,
        bytes: Vec<u8>,
        room: OwnedSemaphorePermit,
    },
}

/// A report of the printing thread.
pub enum Notice {
    /// The reader of the output has closed it, as head(1) does.
    ReaderGone,
    /// Output is lost, or the results file cannot be written.
    Failed(String),
    /// Everything has been printed, or nothing more can be printed.
    Finished,
}

/// A job that has ended.
pub struct Ended {
    /// Its place in the order of submission, counted from 1.
    pub number: u64,
    /// Its line for the results file.
    pub record: Option<Vec<u8>>,
    pub room: Option<OwnedSemaphorePermit>,
    /// Whether its output has to be printed.
    pub print: bool,
}

/// Writes to the results file.
pub struct Recorder {
    results: Mutex<Option<Results>>,
    notices: UnboundedSender<Notice>,
}

impl Recorder {
    /// Appends a job's line to the results file. Call it when the job's output has been written.
    pub fn record(&self, record: Option<&[u8]>) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(record), Some(open)) = (record, &mut *results)
            && let Err(error) = open.append(record)
        {
            *results = None;
            let _ = self.notices.send(Notice::Failed(crate::cli::message_of(&error)));
        }
    }
}

/// Hands output to the printing thread.
pub struct Printer {
    pieces: UnboundedSender<Piece>,
    notices: UnboundedSender<Notice>,
    room: Arc<Semaphore>,
    turns: Option<Mutex<Turns>>,
    recorder: Arc<Recorder>,
    spill: Spill,
    memory_each: usize,
    /// Lines are printed as soon as they are read. When a job ends, some of its lines may still wait to be printed.
    by_line: bool,
}

/// For `--keep-order`: the job whose turn is next, and the jobs that have ended before their turn. For each of these it
/// stores whether there is output to print.
struct Turns {
    next: u64,
    early: BTreeMap<u64, bool>,
}

/// How the output is printed.
pub struct PrintOptions {
    pub keep_order: bool,
    /// How many jobs have an output at the same time; `None` where lines are printed as soon as they are read.
    pub at_once: Option<usize>,
}

impl Printer {
    /// Starts the printing thread. The receiver gets [`Notice::Finished`] when that thread has ended.
    pub fn start(
        options: &PrintOptions,
        results: Option<Results>,
        progress: Progress,
    ) -> Result<(Self, UnboundedReceiver<Notice>)> {
        let (pieces, receiver) = unbounded_channel();
        let (notices, noticed) = unbounded_channel();
        // Outputs that wait to be printed hold memory and files. So at most `at_once` of them may wait.
        let at_once = options.at_once.unwrap_or(0);
        let waiting = if at_once > 0 { MAX_WAITING.min(at_once) } else { MAX_WAITING };
        let places = at_once.saturating_add(waiting).min(Semaphore::MAX_PERMITS);
        let recorder = Arc::new(Recorder { results: Mutex::new(results), notices: notices.clone() });
        let (thread_recorder, thread_notices) = (recorder.clone(), notices.clone());
        thread::start("to print the output of jobs", move || {
            let printed = PrintingThread::new(progress, thread_recorder, thread_notices.clone())
                .and_then(|printing_thread| printing_thread.print_all(receiver));
            let _ = match printed {
                Ok(()) => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => thread_notices.send(Notice::ReaderGone),
                Err(error) => thread_notices.send(Notice::Failed(format!("cannot write the jobs' output: {error}"))),
            };
            let _ = thread_notices.send(Notice::Finished);
        })?;
        let printer = Self {
            pieces,
            notices,
            room: Arc::new(Semaphore::new(places)),
            turns: options.keep_order.then(|| Mutex::new(Turns { next: 1, early: BTreeMap::new() })),
            recorder,
            spill: Spill::default(),
            memory_each: (MEMORY / places.max(1)).clamp(MEMORY_EACH.0, MEMORY_EACH.1),
            by_line: options.at_once.is_none(),
        };
        Ok((printer, noticed))
    }

    /// Returns a place for a job's output. It waits while too many outputs wait to be printed.
    pub async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().acquire_owned().await.ok()
    }

    /// Returns how many bytes of a stream stay in memory, and the writer that moves further bytes to the disk.
    pub fn spill(&self) -> (usize, &Spill) {
        (self.memory_each, &self.spill)
    }

    /// Reports a failure that ends the pool.
    pub fn fail(&self, message: String) {
        let _ = self.notices.send(Notice::Failed(message));
    }

    /// Prints a job's output when its turn comes, and then writes its line to the results file. An empty output does
    /// not wake the thread, because most jobs print nothing.
    pub fn print(&self, parts: [Part; 2], ended: Ended) {
        let Ended { number, record, room, print } = ended;
        let parts = if print { parts } else { Default::default() };
        let empty = parts.iter().all(Part::is_empty) && !self.by_line;
        let output = Output { parts, record, _room: room };
        let Some(turns) = &self.turns else { return self.print_now(output, empty) };
        let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        if turns.next != number {
            if empty {
                // The line is written now, before the job's turn: the job has no output that could be lost.
                self.print_now(output, true);
            } else {
                self.send(Piece::Defer { number, output });
            }
            turns.early.insert(number, !empty);
            return;
        }
        self.print_now(output, empty);
        turns.next += 1;
        while let next = turns.next
            && let Some(has_output) = turns.early.remove(&next)
        {
            if has_output {
                self.send(Piece::PrintDeferred { number: next });
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
        // A send fails where the thread has ended. The thread has reported the reason.
        let _ = self.pieces.send(piece);
    }

    /// Prints the complete lines of a stream as soon as they are read, until the stream ends. Each line begins with the
    /// tag.
    ///
    /// # Errors
    /// Why the stream cannot be read. The part that was read before is printed.
    pub async fn follow(&self, mut stream: OutputStream, number: usize, tag: &[u8]) -> io::Result<()> {
        let mut runs = LineRuns::new(tag, MAX_LINE);
        let result = loop {
            match stream.read_piece(|piece| runs.push(piece)).await {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
            while let Some(run) = runs.next() {
                self.print_lines(number, run).await;
            }
        };
        // The next job's output must begin on a new line.
        if let Some(rest) = runs.end() {
            self.print_lines(number, rest).await;
        }
        result
    }

    async fn print_lines(&self, stream: usize, bytes: Vec<u8>) {
        if let Some(room) = self.room().await {
            self.send(Piece::Lines { stream, bytes, room });
        }
    }
}
