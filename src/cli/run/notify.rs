//! `--ready-notify`: pinfold writes the line "ready", or "failed" if the job will never be ready.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::cli::report_sink::{Destination, are_same};
use crate::cli::{open_output, print_message, thread, write};
use crate::kernel::adopt::adopt;

/// How long pinfold waits, after the run, for a reader that has not taken the line yet. A shell starts both programs at
/// about the same time, so the reader may start later than pinfold.
const READER_TIMEOUT: Duration = Duration::from_secs(1);

/// The destination of the line, and whether the line was sent.
#[derive(Debug)]
pub struct Notify {
    /// For messages.
    name: String,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Waiting(Place),
    /// A thread writes the line, and sends the result to this receiver.
    Sent(Receiver<io::Result<()>>),
    Over,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Descriptor(File),
}

impl Notify {
    /// Takes over a descriptor. Call this before the job exists, because the job would inherit the descriptor. A file
    /// is opened only when there is something to write.
    ///
    /// # Errors
    /// For a descriptor that is not open for writing, or that the caller did not hand to pinfold.
    pub fn open(destination: Destination) -> crate::Result<Self> {
        let (place, name) = match destination {
            Destination::File(path) => {
                let name = crate::report::text::printable_path(&path).into_owned();
                (Place::File(path), name)
            }
            Destination::Stdout => (Place::Descriptor(adopt(1)?.into()), "standard output".into()),
            Destination::Stderr => {
                let copy = io::stderr().as_fd().try_clone_to_owned();
                let copy = copy.map_err(|error| super::streams::not_opened(Path::new("/dev/stderr"), &error))?;
                (Place::Descriptor(copy.into()), "standard error".into())
            }
            Destination::Descriptor(number) => {
                (Place::Descriptor(adopt(number)?.into()), format!("descriptor {number}"))
            }
        };
        Ok(Self { name, state: Mutex::new(State::Waiting(place)) })
    }

    /// Returns whether the destination is this same file.
    pub fn is_same_file(&self, other: &File) -> bool {
        match &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Waiting(Place::File(path)) => are_same(path.metadata(), other.metadata()),
            State::Waiting(Place::Descriptor(file)) => are_same(file.metadata(), other.metadata()),
            State::Sent(_) | State::Over => false,
        }
    }

    /// Empties a regular file, so that a reader does not mistake the "ready" of an earlier run for that of this run.
    ///
    /// # Errors
    /// The error of open(2) or ftruncate(2). A file that does not exist is not an error.
    pub fn empty(&self) -> io::Result<()> {
        let State::Waiting(Place::File(path)) = &*self.state.lock().unwrap_or_else(PoisonError::into_inner) else {
            return Ok(());
        };
        if !path.is_file() {
            return Ok(());
        }
        OpenOptions::new().write(true).truncate(true).open(path).map(drop)
    }

    /// Sends the line, once. A thread writes it, because a FIFO that has no reader yet, or a full pipe, blocks.
    pub fn send(&self, is_ready: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let place = match std::mem::replace(&mut *state, State::Over) {
            State::Waiting(place) => place,
            sent => {
                *state = sent;
                return;
            }
        };
        let (sender, done) = mpsc::channel();
        let line = if is_ready { "ready\n" } else { "failed\n" };
        match thread::start("to notify", move || drop(sender.send(write(place, line.as_bytes())))) {
            Ok(_) => *state = State::Sent(done),
            Err(error) => print_message(&format!("cannot write to {}: {error}", self.name)),
        }
    }

    /// Ends the notification after the run: sends "failed" if nothing was sent before, and waits one second for a
    /// reader.
    pub fn finish(&self) {
        self.send(false);
        let state = std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), State::Over);
        let State::Sent(done) = state else { return };
        match done.recv_timeout(READER_TIMEOUT) {
            Ok(Ok(())) | Err(RecvTimeoutError::Disconnected) => {}
            Ok(Err(error)) => {
                print_message(&format!("cannot write to {}, so its reader may wait forever: {error}", self.name))
            }
            Err(RecvTimeoutError::Timeout) => print_message(&format!("no process reads {}", self.name)),
        }
    }
}

/// Writes the line and closes the destination, so that its reader finds the end of the file.
fn write(place: Place, line: &[u8]) -> io::Result<()> {
    match place {
        // This open blocks until the FIFO has a reader (fifo(7)).
        Place::File(path) if open_output::is_fifo(&path) => File::options().write(true).open(path)?.write_all(line),
        Place::File(path) => {
            let file = open_output::open(&path)?;
            if file.metadata()?.is_file() {
                file.set_len(0)?;
            }
            write::write_all(file, line)
        }
        Place::Descriptor(file) => write::write_all(file, line),
    }
}
