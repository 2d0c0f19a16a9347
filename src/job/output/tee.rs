//! The file that receives a copy of a job's output. A file that may block, such as a pipe, has a thread of its own. A
//! slow reader of that file can delay the reader of the stream, but not the runtime, on which deadlines, stops and
//! other jobs depend.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::{Errno, Result};

#[derive(Debug)]
pub(crate) struct Tee(Way);

#[derive(Debug)]
enum Way {
    /// A regular file, to which writes do not block.
    Direct(Arc<OwnedFd>),
    Thread(Arc<Shared>),
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Notifies the thread that the state has changed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    piece: Vec<u8>,
    /// Whether a piece was given and has not been written yet.
    busy: bool,
    failed: Option<Errno>,
    reader: Option<Waker>,
    /// No more pieces come.
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tee {
    /// # Errors
    /// `EAGAIN` if no thread can be started.
    pub fn new(file: Arc<OwnedFd>) -> std::io::Result<Self> {
        if fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file()) {
            return Ok(Self(Way::Direct(file)));
        }
        let shared = Arc::new(Shared::default());
        let thread = shared.clone();
        std::thread::Builder::new().name("pinfold-tee".into()).spawn(move || write_pieces(&file, &thread))?;
        Ok(Self(Way::Thread(shared)))
    }

    /// Waits until all given pieces have been written. Then returns the error of a failed write, once.
    pub fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<Result<()>> {
        let Way::Thread(shared) = &self.0 else { return Poll::Ready(Ok(())) };
        let mut state = shared.lock();
        if state.busy {
            state.reader = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(state.failed.take().map_or(Ok(()), Err))
    }

    /// Gives a piece to the tee. Call it only when all earlier pieces have been written.
    pub fn give(&mut self, bytes: &[u8]) -> Result<()> {
        match &self.0 {
            Way::Direct(file) => write_all(file.as_fd(), bytes),
            Way::Thread(shared) => {
                let mut state = shared.lock();
                state.piece.extend_from_slice(bytes);
                state.busy = true;
                shared.changed.notify_one();
                Ok(())
            }
        }
    }
}

/// Pieces that were given before the drop are still written, if possible.
impl Drop for Tee {
    fn drop(&mut self) {
        if let Way::Thread(shared) = &self.0 {
            shared.lock().over = true;
            shared.changed.notify_one();
        }
    }
}

/// Runs the thread: writes pieces until the tee is dropped.
fn write_pieces(file: &OwnedFd, shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if state.busy {
            let piece = std::mem::take(&mut state.piece);
            drop(state);
            let written = write_all(file.as_fd(), &piece);
            state = shared.lock();
            state.busy = false;
            state.failed = written.err();
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
        } else if state.over {
            return;
        } else {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn write_all(file: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(file, bytes) {
            Err(Errno::INTR) => {}
            // This runs in a thread of its own, so it may wait here.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&file, PollFlags::OUT)], None) {
                Err(errno) if errno != Errno::INTR => return Err(errno),
                _ => {}
            },
            written => bytes = &bytes[written?..],
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Read;

    use super::*;

    #[test]
    fn a_full_pipe_makes_only_the_reader_wait() {
        let (mut outlet, inlet) = std::io::pipe().unwrap();
        let mut tee = Tee::new(Arc::new(inlet.into())).unwrap();
        // The piece is larger than a pipe (pipe(7)).
        let piece = vec![7; 1 << 20];
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
            poll_fn(|context| tee.poll_written(context)).await.unwrap();
            tee.give(&piece).unwrap();
            assert!(poll_fn(|context| Poll::Ready(tee.poll_written(context).is_pending())).await);
            let mut read = vec![0; piece.len()];
            outlet.read_exact(&mut read).unwrap();
            poll_fn(|context| tee.poll_written(context)).await.unwrap();
            assert!(read == piece);
            drop(outlet);
            // A child of another test may have a copy of the read end until its exec.
            let refused = loop {
                tee.give(b"x").unwrap();
                if let Err(errno) = poll_fn(|context| tee.poll_written(context)).await {
                    break errno;
                }
            };
            assert_eq!(refused, Errno::PIPE);
            assert_eq!(poll_fn(|context| tee.poll_written(context)).await, Ok(()));
        });
    }
}
