//! Where the jobs' output goes. Printing has a thread of its own: a reader that is slow holds up new jobs, and never the
//! deadlines and signals of those that run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use anyhow::Result;
use pinfold::output::{Line, Lines, OutputStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::files::{Files, Shelf, is_empty, nameless};
use super::progress::Progress;
use crate::cli::thread;
use crate::cli::write_out::write_all;

/// A longer line of a stream may be cut by another job's.
const MAX_LINE: usize = 64 * 1024;

/// Lines, or outputs of jobs beyond those of the jobs that run, that may wait to be printed.
const WAITING: usize = 64;

/// What the printing thread is to do.
enum Piece {
    /// Print a job's output.
    Output {
        files: Files,
        room: Option<OwnedSemaphorePermit>,
    },
    /// Keep this one until its turn.
    PutOff {
        number: u64,
        files: Files,
        room: Option<OwnedSemaphorePermit>,
    },
    /// Its turn.
    PrintPutOff {
        number: u64,
    },
    Line {
        error: bool,
        bytes: Vec<u8>,
        room: OwnedSemaphorePermit,
    },
}

/// The thread that prints.
pub struct Printer {
    pieces: UnboundedSender<Piece>,
    room: Arc<Semaphore>,
    shelf: Arc<Shelf>,
    turns: Option<Mutex<Turns>>,
}

/// With `--keep-order`: whose turn it is, and who came before his: whether there is something of him to be printed.
struct Turns {
    next: u64,
    early: BTreeMap<u64, bool>,
}

impl Printer {
    /// Starts it, for so many jobs at once. The receiver hears when all is printed, or what went wrong.
    pub fn start(
        keep_order: bool,
        at_once: usize,
        progress: Progress,
    ) -> Result<(Self, oneshot::Receiver<io::Result<()>>)> {
        let (pieces, receiver) = unbounded_channel();
        let (finished, over) = oneshot::channel();
        // Outputs that wait hold files: not many more than those that are being made.
        let waiting = if at_once > 0 { WAITING.min(at_once) } else { WAITING };
        let places = at_once.saturating_add(waiting).min(Semaphore::MAX_PERMITS);
        let shelf = Arc::<Shelf>::default();
        let desks = shelf.clone();
        thread::start("to print what jobs write", move || {
            let _ = finished.send(Desk::new(progress, desks).and_then(|desk| desk.print_all(receiver)));
        })?;
        let turns = keep_order.then(|| Mutex::new(Turns { next: 1, early: BTreeMap::new() }));
        Ok((Self { pieces, room: Arc::new(Semaphore::new(places)), shelf, turns }, over))
    }

    /// Files for a job's output.
    pub fn files(&self) -> Result<Files> {
        self.shelf.take()
    }

    /// A place for a job's output; waits while too many wait to be printed.
    pub async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().acquire_owned().await.ok()
    }

    /// Prints a job's output, in its turn; `number` is its place among those that were handed in. What is empty does not wake the
    /// thread: most jobs say nothing.
    pub fn print(&self, number: u64, files: Files, room: Option<OwnedSemaphorePermit>) {
        let empty = files.are_empty();
        let Some(turns) = &self.turns else {
            return if empty { self.shelf.put_back(files) } else { self.send(Piece::Output { files, room }) };
        };
        let mut turns = turns.lock().unwrap_or_else(PoisonError::into_inner);
        let early = turns.next != number;
        match (empty, early) {
            (true, _) => self.shelf.put_back(files),
            (false, true) => self.send(Piece::PutOff { number, files, room }),
            (false, false) => self.send(Piece::Output { files, room }),
        }
        if early {
            turns.early.insert(number, !empty);
            return;
        }
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

    fn send(&self, piece: Piece) {
        // A printer that has failed has told so.
        let _ = self.pieces.send(piece);
    }

    /// Prints a stream's lines as they come, each after the tag, until it ends.
    pub fn follow(&self, stream: OutputStream, error: bool, tag: Option<&str>) {
        let tag = tag.map(|tag| format!("{tag}\t").into_bytes()).unwrap_or_default();
        let (pieces, room) = (self.pieces.clone(), self.room.clone());
        tokio::spawn(async move {
            let mut lines = stream.lines().max_line(MAX_LINE);
            let mut begins = true;
            let mut open = false;
            // What can't be read is at its end.
            while let Ok(Some(line)) = lines.next_line().await {
                let mut bytes = Vec::new();
                let mut next = Some(line);
                // With it, those that are there already: a job that prints much prints faster so.
                while let Some(line) = next {
                    if begins {
                        bytes.extend_from_slice(&tag);
                    }
                    bytes.extend_from_slice(&line.bytes);
                    if line.complete {
                        bytes.push(b'\n');
                    }
                    begins = line.complete;
                    open = !line.complete;
                    next = if bytes.len() < MAX_LINE { there_already(&mut lines).await } else { None };
                }
                let Ok(room) = room.clone().acquire_owned().await else { return };
                let _ = pieces.send(Piece::Line { error, bytes, room });
            }
            // The next job's line begins on a line of its own.
            if open && let Ok(room) = room.acquire_owned().await {
                let _ = pieces.send(Piece::Line { error, bytes: b"\n".to_vec(), room });
            }
        });
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

/// What the printing thread has.
struct Desk {
    stdout: File,
    stderr: File,
    progress: Progress,
    shelf: Arc<Shelf>,
    /// What came before its turn, put off into one file.
    put_off: BTreeMap<u64, Spooled>,
    spool: Option<File>,
    spooled: u64,
    /// What is being copied.
    piece: Vec<u8>,
}

impl Desk {
    fn new(progress: Progress, shelf: Arc<Shelf>) -> io::Result<Self> {
        Ok(Self {
            stdout: io::stdout().as_fd().try_clone_to_owned()?.into(),
            stderr: io::stderr().as_fd().try_clone_to_owned()?.into(),
            progress,
            shelf,
            put_off: BTreeMap::new(),
            spool: None,
            spooled: 0,
            piece: vec![0; MAX_LINE],
        })
    }

    fn print_all(mut self, mut pieces: UnboundedReceiver<Piece>) -> io::Result<()> {
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Line { error, bytes, room } => {
                    let stream = if error { &self.stderr } else { &self.stdout };
                    self.progress.aside(|| write_all(stream, &bytes))?;
                    drop(room);
                }
                Piece::Output { files, room } => {
                    self.print(files)?;
                    drop(room);
                }
                Piece::PutOff { number, files, room } => {
                    self.put_off(number, files)?;
                    drop(room);
                }
                Piece::PrintPutOff { number } => self.print_put_off(number)?,
            }
        }
        Ok(())
    }

    fn print(&mut self, mut files: Files) -> io::Result<()> {
        for (from, to) in [(&mut files.stdout, &self.stdout), (&mut files.stderr, &self.stderr)] {
            // Most have nothing on standard error; a copy of nothing takes half a dozen system calls.
            if is_empty(from) {
                continue;
            }
            from.seek(SeekFrom::Start(0))?;
            self.progress.aside(|| copy(from, to, &mut self.piece))?;
        }
        self.shelf.put_back(files);
        Ok(())
    }

    /// Its descriptors are needed elsewhere.
    fn put_off(&mut self, number: u64, mut files: Files) -> io::Result<()> {
        let mut spooled = Spooled { at: self.spooled, stdout: 0, stderr: 0 };
        let spool = match &mut self.spool {
            Some(spool) => spool,
            spool => spool.insert(nameless().map_err(io::Error::other)?),
        };
        // It is appended to.
        for (from, length) in [(&mut files.stdout, &mut spooled.stdout), (&mut files.stderr, &mut spooled.stderr)] {
            if !is_empty(from) {
                from.seek(SeekFrom::Start(0))?;
                *length = io::copy(from, spool)?;
            }
        }
        self.shelf.put_back(files);
        self.spooled += spooled.stdout + spooled.stderr;
        self.put_off.insert(number, spooled);
        Ok(())
    }

    fn print_put_off(&mut self, number: u64) -> io::Result<()> {
        let Some(Spooled { at, stdout, stderr }) = self.put_off.remove(&number) else { return Ok(()) };
        if let Some(spool) = &mut self.spool {
            spool.seek(SeekFrom::Start(at))?;
            for (length, to) in [(stdout, &self.stdout), (stderr, &self.stderr)] {
                if length > 0 {
                    self.progress.aside(|| copy(&mut spool.take(length), to, &mut self.piece))?;
                }
            }
            if self.put_off.is_empty() {
                spool.set_len(0)?;
                self.spooled = 0;
            }
        }
        Ok(())
    }
}

/// Not `io::copy`: that loses what it has read where a write would block.
fn copy(from: &mut impl Read, to: &File, piece: &mut [u8]) -> io::Result<()> {
    loop {
        match from.read(piece) {
            Ok(0) => return Ok(()),
            Ok(length) => write_all(to, &piece[..length])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Where in the spool an output is.
struct Spooled {
    at: u64,
    stdout: u64,
    stderr: u64,
}
