//! Writes to a descriptor that may block, such as a pipe or a terminal, without blocking the caller: a thread of its own
//! writes. A slow reader delays the caller's next piece, but not the runtime, on which deadlines, stops and other jobs
//! depend.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Stat, fstat, makedev};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::job::output::split::whole_lines;
use crate::kernel::creator::Creator;

/// The number of bytes that may wait for the thread. When there are more, the caller waits.
const MAX_WAITING: usize = 128 * 1024;

/// The largest write to a pipe that is atomic: the data of other writers does not come between its bytes (PIPE_BUF in
/// pipe(7)).
const PIPE_BUF: usize = 4096;

/// The size of one write to anything but a pipe. To complete a line that does not fit, a write may be longer, by at most
/// this size.
const PIECE: usize = 64 * 1024;

/// Writes all bytes. Waits while the destination is full, whether it is blocking or not, without a time limit. It never
/// changes O_NONBLOCK, because all processes that have the same open file description share it (open(2)).
///
/// # Errors
/// Those of write(2), except `EINTR` and `EAGAIN`; for example `EPIPE` if no process can read from the pipe any more.
#[cfg(feature = "cli")]
pub(crate) fn write_all(out: impl AsFd, bytes: &[u8]) -> io::Result<()> {
    write(out.as_fd(), bytes).map_err(Into::into)
}

fn write(out: BorrowedFd<'_>, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(out, bytes) {
            // write(2) does not return 0 for a file type that pinfold writes to. Without this error, the loop would not
            // end.
            Ok(0) => return Err(Errno::IO),
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&out, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            },
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Returns whether this is /dev/null, whose device number is 1:3 (Documentation/admin-guide/devices.txt in Linux). A write
/// to it never blocks (`write_null` in drivers/char/mem.c).
fn discards(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode).is_char_device() && stat.st_rdev == makedev(1, 3)
}

/// Writes pieces to a descriptor in their order. Complete lines are written in one write where possible, because other
/// programs may write to the same place, and their output must not divide these lines.
#[derive(Debug)]
pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// A file to which the caller writes itself, because such a write does not block: a regular file or /dev/null.
    direct: Option<Arc<OwnedFd>>,
    creator: Creator,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Notifies the thread that the state has changed.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    waiting: Vec<u8>,
    /// The thread has bytes that it has not written yet.
    is_writing: bool,
    failed: Option<Errno>,
    last_write: Instant,
    /// No more pieces come.
    is_over: bool,
    /// The tasks that wait: for space, for the end of all writes, and for a failure.
    for_space: Vec<Waker>,
    for_end: Vec<Waker>,
    for_failure: Vec<Waker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn result(&self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |errno| Err(errno.into()))
    }
}

fn register(wakers: &mut Vec<Waker>, context: &Context<'_>) {
    if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
        wakers.push(context.waker().clone());
    }
}

fn wake(wakers: &mut Vec<Waker>) {
    wakers.drain(..).for_each(Waker::wake);
}

impl Writer {
    /// Starts the thread. It ends when the writer is dropped and everything is written, or when a write has failed.
    ///
    /// # Errors
    /// `EAGAIN` if no thread can be started. `purpose` is for the message.
    #[cfg(feature = "cli")]
    pub fn start(file: OwnedFd, purpose: &str) -> Result<Self> {
        let is_direct = fstat(&file).is_ok_and(|stat| discards(&stat));
        Self::new(Arc::new(file), is_direct, purpose)
    }

    /// The same as [`start`](Self::start), but writes to a regular file without a thread, because such writes do not
    /// block. A line may then be divided between two writes.
    pub fn for_copy(file: Arc<OwnedFd>) -> Result<Self> {
        let is_regular = |stat: &Stat| FileType::from_raw_mode(stat.st_mode).is_file();
        let is_direct = fstat(&file).is_ok_and(|stat| is_regular(&stat) || discards(&stat));
        Self::new(file, is_direct, "to copy the output")
    }

    fn new(file: Arc<OwnedFd>, is_direct: bool, purpose: &str) -> Result<Self> {
        let state = State {
            waiting: Vec::new(),
            is_writing: false,
            failed: None,
            last_write: Instant::now(),
            is_over: false,
            for_space: Vec::new(),
            for_end: Vec::new(),
            for_failure: Vec::new(),
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        if is_direct {
            return Ok(Self { shared, direct: Some(file), creator: Creator::current_process() });
        }
        let thread = shared.clone();
        let started = std::thread::Builder::new().name("pinfold-writer".into()).spawn(move || run(&thread, &file));
        started.map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("start a thread", purpose, errno, "see ulimit -u, pids.max and ulimit -v")
        })?;
        Ok(Self { shared, direct: None, creator: Creator::current_process() })
    }

    /// Adds a piece, without waiting. After a failure, the piece is dropped.
    pub fn push(&self, bytes: &[u8]) {
        let mut state = self.shared.lock();
        if bytes.is_empty() || state.failed.is_some() {
            return;
        }
        match &self.direct {
            Some(file) => {
                state.failed = write(file.as_fd(), bytes).err();
                match state.failed {
                    Some(_) => wake(&mut state.for_failure),
                    None => state.last_write = Instant::now(),
                }
            }
            None => {
                let was_empty = state.waiting.is_empty();
                state.waiting.extend_from_slice(bytes);
                if was_empty {
                    self.shared.changed.notify_one();
                }
            }
        }
    }

    /// Waits until there is space for a piece.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The error of the first write that failed.
    #[cfg(feature = "cli")]
    pub async fn ready(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_ready(context)).await
    }

    pub fn poll_ready(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.failed.is_none() && state.waiting.len() >= MAX_WAITING {
            register(&mut state.for_space, context);
            return Poll::Pending;
        }
        Poll::Ready(state.result())
    }

    /// Waits until everything is written.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The error of the first write that failed.
    pub async fn flush(&self) -> io::Result<()> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    pub fn poll_flush(&self, context: &Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.shared.lock();
        if state.failed.is_none() && (state.is_writing || !state.waiting.is_empty()) {
            register(&mut state.for_end, context);
            return Poll::Pending;
        }
        Poll::Ready(state.result())
    }

    /// Waits until a write has failed, and returns its error.
    ///
    /// Cancel-safe.
    #[cfg(feature = "cli")]
    pub async fn failed(&self) -> io::Error {
        poll_fn(|context| {
            let mut state = self.shared.lock();
            let Some(errno) = state.failed else {
                register(&mut state.for_failure, context);
                return Poll::Pending;
            };
            Poll::Ready(errno.into())
        })
        .await
    }

    /// Returns when the last write succeeded, or when the writer was started.
    #[must_use]
    #[cfg(feature = "cli")]
    pub fn last_write(&self) -> Instant {
        self.shared.lock().last_write
    }
}

/// Pieces that were added before the drop are still written, if possible.
impl Drop for Writer {
    fn drop(&mut self) {
        // In a forked copy of the process the thread does not exist, but it may have held the lock at the fork.
        if !self.creator.is_another_process() {
            self.shared.lock().is_over = true;
            self.shared.changed.notify_one();
        }
    }
}

/// Runs the thread.
fn run(shared: &Shared, file: &OwnedFd) {
    let is_pipe = fstat(file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_fifo());
    let at_once = if is_pipe { PIPE_BUF } else { PIECE };
    // The bytes that are not written yet. They can begin within a line: after all bytes were written (`is_all`), and
    // after a part of a line that was too long for one write.
    let mut held = Vec::new();
    loop {
        let mut state = shared.lock();
        while state.waiting.is_empty() && held.is_empty() {
            state.is_writing = false;
            wake(&mut state.for_end);
            if state.is_over {
                return;
            }
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // If no piece waits, all bytes of `held` are written, even an incomplete last line: its rest has not arrived
        // yet, and may arrive much later.
        let is_all = state.waiting.is_empty();
        if held.is_empty() {
            std::mem::swap(&mut held, &mut state.waiting);
        } else {
            held.append(&mut state.waiting);
        }
        state.is_writing = true;
        wake(&mut state.for_space);
        drop(state);
        if let Err(errno) = write_lines(shared, file, &mut held, at_once, is_all) {
            let mut state = shared.lock();
            state.failed = Some(errno);
            state.waiting = Vec::new();
            let State { for_space, for_end, for_failure, .. } = &mut *state;
            [for_space, for_end, for_failure].into_iter().for_each(wake);
            return;
        }
    }
}

/// Writes and removes the complete lines at the beginning of `held`; all of its bytes if `is_all`.
fn write_lines(
    shared: &Shared,
    file: &OwnedFd,
    held: &mut Vec<u8>,
    at_once: usize,
    is_all: bool,
) -> rustix::io::Result<()> {
    let mut written = 0;
    while written < held.len() {
        let rest = &held[written..];
        let length = match whole_lines(rest, at_once, PIECE) {
            Some(length) => length,
            None if is_all => rest.len(),
            None => break,
        };
        write(file.as_fd(), &rest[..length])?;
        shared.lock().last_write = Instant::now();
        written += length;
    }
    held.drain(..written);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_full_pipe_makes_only_the_caller_wait() {
        let (mut outlet, inlet) = io::pipe().unwrap();
        // pinfold waits for a non-blocking pipe too.
        fcntl_setfl(&inlet, OFlags::NONBLOCK).unwrap();
        let writer = Writer::start(inlet.into(), "to test").unwrap();
        // The piece is larger than a pipe (pipe(7)).
        let piece: Vec<u8> = (0..1_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
        block_on(async {
            writer.ready().await.unwrap();
            writer.push(&piece);
            writer.push(&piece);
            assert!(poll_fn(|context| Poll::Ready(writer.poll_flush(context).is_pending())).await);
            let mut read = vec![0; 2 * piece.len()];
            outlet.read_exact(&mut read).unwrap();
            writer.flush().await.unwrap();
            assert!(read == piece.repeat(2));
            drop(outlet);
            // A child of another test may have a copy of the read end until its exec.
            let error = loop {
                writer.push(b"x");
                if let Err(error) = writer.flush().await {
                    break error;
                }
            };
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
            // Every later call returns the error too.
            let errors = [writer.ready().await.unwrap_err(), writer.failed().await, writer.flush().await.unwrap_err()];
            assert!(errors.iter().all(|error| error.kind() == io::ErrorKind::BrokenPipe), "{errors:?}");
        });
    }

    #[test]
    fn a_drop_writes_the_rest() {
        let (mut outlet, inlet) = io::pipe().unwrap();
        let writer = Writer::start(inlet.into(), "to test").unwrap();
        writer.push(&[b'x'; 200_000]);
        writer.push(b"end");
        drop(writer);
        let mut read = Vec::new();
        outlet.read_to_end(&mut read).unwrap();
        assert!(read.len() == 200_003 && read.ends_with(b"xend"));
    }
    /// A write to /dev/null needs no thread; a write to another device may block.
    #[test]
    fn only_a_device_that_discards_is_direct() {
        for (path, is_direct) in [("/dev/null", true), ("/dev/full", false)] {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            let writer = Writer::start(file.into(), "to test").unwrap();
            assert_eq!(writer.direct.is_some(), is_direct, "{path}");
            let begun = writer.last_write();
            writer.push(b"x");
            let result = block_on(writer.flush());
            assert_eq!((result.is_ok(), writer.last_write() > begun), (is_direct, is_direct), "{path}");
        }
        // A descriptor of /dev/null that is not open for writing refuses every write.
        let writer = Writer::start(std::fs::File::open("/dev/null").unwrap().into(), "to test").unwrap();
        writer.push(b"x");
        assert_eq!(block_on(writer.failed()).raw_os_error(), Some(libc::EBADF));
    }
}
