//! Moves output that is too large for the memory to the disk. A separate thread writes it, so a slow disk delays the
//! jobs that write, but not the deadlines and signals of the others.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::cli::thread;

use super::files::{create_unnamed, store_error};

/// The largest number of pieces that wait for the disk.
const MAX_WAITING: usize = 32;

enum Request {
    Write {
        file: Arc<Mutex<Spilled>>,
        bytes: Vec<u8>,
        _room: OwnedSemaphorePermit,
    },
    /// Reports when everything before this request is written.
    Flush(oneshot::Sender<()>),
}

/// The part of an output that is on the disk.
#[derive(Default)]
pub struct Spilled {
    file: Option<File>,
    failed: Option<String>,
}

/// The thread that writes to the disk. It starts with the first piece. The printing thread can't do this too: while the
/// reader of standard output reads nothing, the outputs still have to go to the disk.
pub struct Spill {
    requests: OnceLock<UnboundedSender<Request>>,
    room: Arc<Semaphore>,
}

impl Default for Spill {
    fn default() -> Self {
        Self { requests: OnceLock::new(), room: Arc::new(Semaphore::new(MAX_WAITING)) }
    }
}

impl Spill {
    fn requests(&self) -> Result<&UnboundedSender<Request>, String> {
        if let Some(requests) = self.requests.get() {
            return Ok(requests);
        }
        let (sender, mut receiver) = unbounded_channel();
        let work = move || {
            while let Some(request) = receiver.blocking_recv() {
                match request {
                    Request::Write { file, bytes, _room } => {
                        file.lock().unwrap_or_else(PoisonError::into_inner).write(&bytes);
                    }
                    Request::Flush(flushed) => drop(flushed.send(())),
                }
            }
        };
        thread::start("to move output to the disk", work).map_err(|error| error.to_string())?;
        Ok(self.requests.get_or_init(|| sender))
    }

    /// Appends these bytes. It waits while too many pieces wait for the disk.
    ///
    /// # Errors
    /// Why this output, or an earlier piece of it, could not be written.
    pub async fn append(&self, file: &Arc<Mutex<Spilled>>, bytes: Vec<u8>) -> Result<(), String> {
        let requests = self.requests()?;
        let room = self.room.clone().acquire_owned().await.map_err(|error| error.to_string())?;
        if let Some(failed) = &file.lock().unwrap_or_else(PoisonError::into_inner).failed {
            return Err(failed.clone());
        }
        let request = Request::Write { file: file.clone(), bytes, _room: room };
        requests.send(request).map_err(|_| "the thread that writes to the disk has ended".to_owned())
    }

    /// Waits until the whole output is written, and returns its file.
    ///
    /// # Errors
    /// Why a part of it could not be written.
    pub async fn finish(&self, file: Arc<Mutex<Spilled>>) -> Result<Option<File>, String> {
        let (flush, flushed) = oneshot::channel();
        let ended = |_| "the thread that writes to the disk has ended".to_owned();
        self.requests()?.send(Request::Flush(flush)).map_err(|_| ended(()))?;
        flushed.await.map_err(|_| ended(()))?;
        let Spilled { file, failed } = &mut *file.lock().unwrap_or_else(PoisonError::into_inner);
        failed.take().map_or(Ok(file.take()), Err)
    }
}

impl Spilled {
    fn write(&mut self, bytes: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => match create_unnamed() {
                Ok(file) => none.insert(file),
                Err(error) => return self.failed = Some(crate::cli::message_of(&error)),
            },
        };
        if let Err(error) = file.write_all(bytes) {
            self.failed = Some(store_error(&error));
        }
    }
}

/// Appends the whole content of a file to another file.
pub fn append_file(from: &mut File, to: &mut File) -> io::Result<u64> {
    use std::io::Seek;
    from.rewind()?;
    io::copy(from, to)
}
