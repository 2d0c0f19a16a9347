//! Where the jobs' output goes. Printing has a thread of its own: a reader that is slow holds up new jobs, and never the
//! deadlines and signals of those that run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;

use anyhow::{Context, Result};
use pinfold::output::{Line, Lines, OutputStream};
use rustix::fs::{CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::progress::Progress;

/// A longer line of a stream may be cut by another job's.
const MAX_LINE: usize = 64 * 1024;

/// Lines, or outputs of jobs, that may wait to be printed.
const WAITING: usize = 64;

/// What is to be printed.
pub enum Piece {
    /// A job's whole output; its number among those that were handed in.
    Output {
        number: u64,
        files: Option<Files>,
        room: Option<OwnedSemaphorePermit>,
    },
    Line {
        error: bool,
        bytes: Vec<u8>,
        room: OwnedSemaphorePermit,
    },
}

/// Standard output and standard error of a job, in files without a name.
pub struct Files {
    pub stdout: File,
    pub stderr: File,
}

impl Files {
    pub fn new() -> Result<Self> {
        Ok(Self { stdout: nameless()?, stderr: nameless()? })
    }
}

/// In the directory for temporary files (`TMPDIR`), so that an output may be larger than the memory.
fn nameless() -> Result<File> {
    let directory = std::env::temp_dir();
    let failed = || format!("cannot make a file for output in {}", directory.display());
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(CWD, &directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(file.into()),
        // Not every file system has such files (open(2), O_TMPFILE).
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(errno) => return Err(errno).with_context(failed),
    }
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).with_context(failed)?;
    let path = directory.join(format!("pinfold-{:016x}", u64::from_ne_bytes(random)));
    let file: OwnedFd = openat(CWD, &path, flags | OFlags::CREATE | OFlags::EXCL, mode).with_context(failed)?;
    unlinkat(CWD, &path, rustix::fs::AtFlags::empty()).with_context(failed)?;
    Ok(file.into())
}

/// DIR/NUMBER.out and DIR/NUMBER.err.
pub fn named(directory: &Path, number: usize) -> Result<Files> {
    let file = |suffix: &str| -> Result<File> {
        let path: PathBuf = directory.join(format!("{number}.{suffix}"));
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))
    };
    Ok(Files { stdout: file("out")?, stderr: file("err")? })
}

/// The thread that prints.
pub struct Printer {
    pieces: UnboundedSender<Piece>,
    room: Arc<Semaphore>,
}

impl Printer {
    /// Starts it. The receiver hears when all is printed, or what went wrong.
    pub fn start(keep_order: bool, progress: Progress) -> (Self, oneshot::Receiver<io::Result<()>>) {
        let (pieces, receiver) = unbounded_channel();
        let (finished, over) = oneshot::channel();
        std::thread::spawn(move || {
            let _ = finished.send(Desk::new(keep_order, progress).and_then(|desk| desk.print_all(receiver)));
        });
        (Self { pieces, room: Arc::new(Semaphore::new(WAITING)) }, over)
    }

    /// A place for a job's output; waits while too many wait to be printed.
    pub async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().acquire_owned().await.ok()
    }

    pub fn print(&self, piece: Piece) {
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
    /// With `--keep-order`: the next number, and what came before its turn, put off into one file.
    next: Option<u64>,
    put_off: BTreeMap<u64, Spooled>,
    spool: Option<File>,
    spooled: u64,
}

impl Desk {
    fn new(keep_order: bool, progress: Progress) -> io::Result<Self> {
        Ok(Self {
            stdout: io::stdout().as_fd().try_clone_to_owned()?.into(),
            stderr: io::stderr().as_fd().try_clone_to_owned()?.into(),
            progress,
            next: keep_order.then_some(1),
            put_off: BTreeMap::new(),
            spool: None,
            spooled: 0,
        })
    }

    fn print_all(mut self, mut pieces: UnboundedReceiver<Piece>) -> io::Result<()> {
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Line { error, bytes, room } => {
                    let mut stream = if error { &self.stderr } else { &self.stdout };
                    self.progress.aside(|| stream.write_all(&bytes))?;
                    drop(room);
                }
                Piece::Output { number, files, room } => {
                    match self.next {
                        Some(next) if next != number => self.put_off(number, files)?,
                        _ => self.print(files)?,
                    }
                    drop(room);
                    if self.next == Some(number) {
                        self.next = Some(number + 1);
                        self.print_put_off()?;
                    }
                }
            }
        }
        Ok(())
    }

    fn print(&mut self, files: Option<Files>) -> io::Result<()> {
        let Some(files) = files else { return Ok(()) };
        for (mut from, mut to) in [(files.stdout, &self.stdout), (files.stderr, &self.stderr)] {
            // Most have nothing on standard error; a copy of nothing takes half a dozen system calls.
            if is_empty(&from) {
                continue;
            }
            from.seek(SeekFrom::Start(0))?;
            self.progress.aside(|| io::copy(&mut from, &mut to))?;
        }
        Ok(())
    }

    /// Its descriptors are needed elsewhere.
    fn put_off(&mut self, number: u64, files: Option<Files>) -> io::Result<()> {
        let mut spooled = Spooled { at: self.spooled, stdout: 0, stderr: 0 };
        if let Some(Files { mut stdout, mut stderr }) = files {
            let spool = match &mut self.spool {
                Some(spool) => spool,
                spool => spool.insert(nameless().map_err(io::Error::other)?),
            };
            // It is appended to.
            for (from, length) in [(&mut stdout, &mut spooled.stdout), (&mut stderr, &mut spooled.stderr)] {
                if !is_empty(from) {
                    from.seek(SeekFrom::Start(0))?;
                    *length = io::copy(from, spool)?;
                }
            }
        }
        self.spooled += spooled.stdout + spooled.stderr;
        self.put_off.insert(number, spooled);
        Ok(())
    }

    /// What follows without a gap.
    fn print_put_off(&mut self) -> io::Result<()> {
        while let Some(next) = self.next
            && let Some(Spooled { at, stdout, stderr }) = self.put_off.remove(&next)
        {
            if let Some(spool) = self.spool.as_mut().filter(|_| stdout + stderr > 0) {
                spool.seek(SeekFrom::Start(at))?;
                for (length, mut to) in [(stdout, &self.stdout), (stderr, &self.stderr)] {
                    if length == 0 {
                        continue;
                    }
                    self.progress.aside(|| io::copy(&mut spool.take(length), &mut to))?;
                }
            }
            if let Some(spool) = self.spool.as_mut().filter(|_| self.put_off.is_empty() && self.spooled > 0) {
                spool.set_len(0)?;
                self.spooled = 0;
            }
            self.next = Some(next + 1);
        }
        Ok(())
    }
}

fn is_empty(file: &File) -> bool {
    rustix::fs::fstat(file).is_ok_and(|status| status.st_size == 0)
}

/// Where in the spool an output is.
struct Spooled {
    at: u64,
    stdout: u64,
    stderr: u64,
}
