//! The destination of the command's output: one of pinfold's standard streams.

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::time::Instant;

use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

use crate::cli::{print_message, thread, write};
use crate::kernel::inherited;

/// The number of bytes in one write.
const PIECE: usize = 16 * 1024;

/// The largest write to a pipe that is atomic: the data of other writers does not come between its bytes (PIPE_BUF in
/// pipe(7)).
const PIPE_BUF: usize = 4096;

/// The number of pieces that may wait for the reader of pinfold's output. When there are more, the command waits.
const WAITING: usize = 8;

/// A message that says which output was lost and why. It keeps the first loss only.
#[derive(Clone)]
pub struct Trouble(watch::Sender<Option<String>>);

impl Trouble {
    pub fn none() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Prints the message, and keeps it for the report and the exit code.
    pub fn report(&self, what: String) {
        print_message(&what);
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

/// One of pinfold's standard streams. A separate thread writes to it, because a write may block.
pub struct Outlet {
    pieces: mpsc::Sender<Vec<u8>>,
    /// Completes when all output has been written, or when a write has failed.
    over: oneshot::Receiver<io::Result<()>>,
    /// A copy of the stream's descriptor, where it is a pipe: the kernel reports that the pipe has lost its last reader
    /// (EPOLLERR, epoll_ctl(2)).
    pipe: Option<AsyncFd<OwnedFd>>,
}

/// Why an outlet takes no more.
pub enum Refused {
    /// Its reader has closed it, as `head` does. No output is lost: the reader wanted no more.
    ByItsReader,
    /// A write failed. All output that the command writes from now on is lost.
    By(String),
}

impl Outlet {
    /// Starts the thread. `outer` is the standard stream `number`; `taken` receives the time of each successful write.
    ///
    /// # Errors
    /// `EMFILE` where no descriptor is available for a copy of the stream, `EAGAIN` where no thread can be started.
    pub fn new(number: i32, outer: BorrowedFd<'_>, taken: watch::Sender<Instant>) -> crate::Result<Self> {
        let outer = outer.try_clone_to_owned().map_err(|error| crate::Error::System {
            operation: "copy",
            object: "a standard stream".into(),
            errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
            advice: "see ulimit -n".into(),
        })?;
        // A stream that was closed at the start is now /dev/null, to which every write succeeds.
        let closed = inherited::was_closed(number);
        let outer = File::from(outer);
        let is_pipe = outer.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo());
        // Where pinfold cannot watch the pipe, the next write finds that its reader is gone.
        let pipe = is_unnamed_pipe(&outer).then(|| outer.try_clone().ok().and_then(watched)).flatten();
        let (sender, mut pieces) = mpsc::channel::<Vec<u8>>(WAITING);
        let (done, over) = oneshot::channel();
        thread::start("to forward the output", move || {
            let written = write_pieces(&mut pieces, is_pipe, |part| {
                if closed {
                    return Err(io::Error::other("it was closed when pinfold was started"));
                }
                write::write_all(&outer, part)?;
                taken.send_replace(Instant::now());
                Ok(())
            });
            // Dropped before the result is sent, so that the command's pipe is closed too.
            drop(pieces);
            let _ = done.send(written);
        })?;
        Ok(Self { pieces: sender, over, pipe })
    }

    /// Hands a piece to the thread, and waits while too many pieces wait there. Where the thread takes no more, the
    /// piece is dropped, and [`close`](Self::close) returns the reason.
    pub async fn send(&self, piece: &[u8]) {
        if !piece.is_empty() {
            let _ = self.pieces.send(piece.to_vec()).await;
        }
    }

    /// Waits until a write has failed or the pipe has no reader. Cancel-safe.
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

    /// Waits until all output has been written.
    ///
    /// # Errors
    /// Why the rest of the output could not be written.
    pub async fn close(self) -> Result<(), Refused> {
        drop(self.pieces);
        match self.over.await {
            Ok(Err(error)) if error.kind() != io::ErrorKind::BrokenPipe => Err(Refused::By(error.to_string())),
            Ok(Err(_)) => Err(Refused::ByItsReader),
            Ok(Ok(())) | Err(_) => Ok(()),
        }
    }
}

/// Writes all pieces, and complete lines in one write where possible. Other programs may write to the same place, and
/// their lines must not come into the middle of these lines.
fn write_pieces(
    pieces: &mut mpsc::Receiver<Vec<u8>>,
    is_pipe: bool,
    mut write: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let at_once = if is_pipe { PIPE_BUF } else { PIECE };
    // Always begins at the beginning of a line.
    let mut held = Vec::new();
    loop {
        match pieces.try_recv() {
            Ok(piece) => held.extend_from_slice(&piece),
            // The end of this line has not arrived, and may take long to arrive.
            Err(_) => {
                for part in held.chunks(at_once) {
                    write(part)?;
                }
                held.clear();
                match pieces.blocking_recv() {
                    Some(piece) => held = piece,
                    None => return Ok(()),
                }
            }
        }
        let mut written = 0;
        while let Some(length) = whole_lines(&held[written..], at_once) {
            write(&held[written..written + length])?;
            written += length;
        }
        held.drain(..written);
    }
}

/// Returns the length of the complete lines that fit into one write. A line longer than that is cut anyway, so it is
/// written in larger parts, which cost less. Returns `None` where there is only the beginning of a line.
fn whole_lines(bytes: &[u8], at_once: usize) -> Option<usize> {
    let is_end = |byte: &u8| *byte == b'\n';
    let (first, rest) = bytes.split_at(bytes.len().min(at_once));
    if let Some(at) = first.iter().rposition(is_end) {
        return Some(at + 1);
    }
    if first.len() < at_once {
        return None;
    }
    let rest = &rest[..rest.len().min(PIECE)];
    Some(first.len() + rest.iter().position(is_end).map_or(rest.len(), |at| at + 1))
}

/// Returns whether the file is a pipe without a name. Another process may open a named one for reading again.
fn is_unnamed_pipe(file: &File) -> bool {
    /// The kernel's file system for pipes without a name (include/uapi/linux/magic.h).
    const PIPEFS_MAGIC: u64 = 0x5049_5045;
    rustix::fs::fstatfs(file).is_ok_and(|stat| stat.f_type as u64 == PIPEFS_MAGIC)
}

#[allow(unsafe_code)]
fn watched(pipe: File) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps its one descriptor open for as long as the AsyncFd owns it.
    unsafe { AsyncFd::register_with_interest(pipe.into(), Interest::ERROR) }.ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In whatever pieces the output arrives, nothing is lost, no write is too large, and a line that fits into one
        /// write is written in one.
        #[test]
        fn lines_are_written_whole(
            lines in prop::collection::vec(0_usize..9000, 0..12),
            cuts in prop::collection::vec(1_usize..20_000, 1..12),
        ) {
            let all: Vec<u8> = lines.iter().flat_map(|&length| [vec![b'x'; length], vec![b'\n']].concat()).collect();
            let (sender, mut pieces) = mpsc::channel(64);
            let (mut rest, mut cuts) = (&all[..], cuts.iter().cycle());
            while let Some(&cut) = cuts.next().filter(|_| !rest.is_empty()) {
                let (piece, later) = rest.split_at(cut.min(rest.len()));
                // The last place in the channel takes all of the rest.
                let piece = if sender.capacity() == 1 { rest } else { piece };
                sender.try_send(piece.to_vec()).unwrap();
                rest = if sender.capacity() == 0 { &[] } else { later };
            }
            drop(sender);
            let mut parts = Vec::new();
            write_pieces(&mut pieces, true, |part| {
                parts.push(part.to_vec());
                Ok(())
            })
            .unwrap();
            prop_assert!(parts.concat() == all);
            prop_assert!(parts.iter().all(|part| part.len() <= PIPE_BUF + PIECE));
            let mut at = 0;
            for part in &parts {
                at += part.len();
                let line = all[..at].iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
                let length = all[line..].iter().position(|&byte| byte == b'\n').map_or(0, |end| end + 1);
                prop_assert!(line == at || length > PIPE_BUF, "a line of {length} bytes is cut");
                let is_long = part.iter().position(|&byte| byte == b'\n').is_none_or(|end| end + 1 == part.len());
                prop_assert!(part.len() <= PIPE_BUF || is_long, "lines in a write of {} bytes", part.len());
            }
        }
    }
}
