//! Where the output of the command is passed on to: one of our standard streams.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

use crate::cli::{tell, thread, write_out};

/// So much is written at a time.
const PIECE: usize = 16 * 1024;

/// Pieces that may wait for the reader of our output; then the command waits.
const WAITING: usize = 8;

/// What output was lost and why, in words; the first loss only.
#[derive(Clone)]
pub struct Trouble(watch::Sender<Option<String>>);

impl Trouble {
    pub fn none() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Prints it, and keeps it for the report and the exit code.
    pub fn report(&self, what: String) {
        tell(&what);
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(what);
            is_first
        });
    }

    pub fn first(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// One of our standard streams. A thread of its own writes to it: a write may block.
pub struct Outlet {
    pieces: mpsc::Sender<Vec<u8>>,
    /// Set when all has been written, or a write has failed.
    over: oneshot::Receiver<io::Result<()>>,
    /// A copy of it, where it is a pipe: the kernel reports when it has no reader any more (EPOLLERR, epoll_ctl(2)).
    pipe: Option<AsyncFd<OwnedFd>>,
}

/// Why an outlet takes no more.
pub enum Refused {
    /// Its reader has closed it, as `head` does. That is no loss: the reader wanted no more.
    ByItsReader,
    /// A write failed: what the command writes from here on is lost.
    By(String),
}

impl Outlet {
    /// `outer` is the standard stream `number`; `taken` is set whenever a write has succeeded.
    ///
    /// # Errors
    /// `EMFILE` where there is no descriptor for a copy of it, `EAGAIN` where there is no thread.
    pub fn new(number: i32, outer: BorrowedFd<'_>, taken: watch::Sender<Instant>) -> pinfold::Result<Self> {
        let outer = outer.try_clone_to_owned().map_err(|error| pinfold::Error::System {
            operation: "copy",
            object: "a standard stream".into(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            advice: "see ulimit -n".into(),
        })?;
        // Since then /dev/null is there, which takes everything.
        let closed = pinfold::was_closed(number);
        let outer = File::from(outer);
        // What is not watched is found out by the next write.
        let pipe = is_unnamed_pipe(&outer).then(|| outer.try_clone().ok().and_then(watched)).flatten();
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(WAITING);
        let (done, over) = oneshot::channel();
        thread::start("to pass the output on", move || {
            let mut written = Ok(());
            'pieces: while let Some(piece) = pieces.blocking_recv() {
                if closed {
                    written = Err(io::Error::other("it was closed when pinfold was started"));
                    break;
                }
                // The end of a bounded output may be a large one.
                for part in piece.chunks(PIECE) {
                    written = write_out::write_all(&outer, part);
                    if written.is_err() {
                        break 'pieces;
                    }
                    taken.send_replace(Instant::now());
                }
            }
            // First: the command finds its end closed too.
            drop(pieces);
            let _ = done.send(written);
        })?;
        Ok(Self { pieces: sender, over, pipe })
    }

    /// Hands a piece to the thread, and waits while too many wait there. Where it takes no more, the piece is dropped, and
    /// [`close`](Self::close) says why.
    pub async fn pass(&self, piece: &[u8]) {
        if !piece.is_empty() {
            let _ = self.pieces.send(piece.to_vec()).await;
        }
    }

    /// Waits until a write has failed, or the pipe has no reader. Cancel-safe.
    pub async fn refused(&self) {
        let no_reader = async {
            match &self.pipe {
                Some(pipe) => drop(pipe.ready(Interest::ERROR).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.pieces.closed() => {}
            () = no_reader => {}
        }
    }

    /// Waits until all has been written.
    pub async fn close(self) -> Result<(), Refused> {
        drop(self.pieces);
        match self.over.await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(Refused::By(error.to_string())),
            Ok(Err(_)) => Err(Refused::ByItsReader),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}

/// Another process may open a named one for reading again.
fn is_unnamed_pipe(file: &File) -> bool {
    /// The kernel's file system of pipes without a name (include/uapi/linux/magic.h).
    const PIPEFS_MAGIC: u64 = 0x5049_5045;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type as u64 == PIPEFS_MAGIC)
}

#[allow(unsafe_code)]
fn watched(pipe: File) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its one descriptor open for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(pipe.into(), Interest::ERROR) }.ok()
}
