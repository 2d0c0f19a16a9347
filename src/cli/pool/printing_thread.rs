//! The thread that prints the jobs' output.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::cli::write::write_all;
use crate::kernel::inherited;

use super::files::{create_unnamed, store_error};
use super::gather::Part;
use super::output::{MAX_LINE, Notice, Output, Piece, Recorder};
use super::progress::Progress;
use super::spill::append_file;

/// The state of the printing thread. pinfold uses a thread, because a write to standard output blocks until the reader
/// reads, and because the outputs must keep their order, which tokio's blocking pool does not promise.
pub struct PrintingThread {
    streams: [File; 2],
    progress: Progress,
    recorder: Arc<Recorder>,
    notices: UnboundedSender<Notice>,
    /// The outputs of jobs that ended before their turn. All are in one file, because the next jobs need the
    /// descriptors and the memory.
    deferred: BTreeMap<u64, Deferred>,
    spool: Option<File>,
    spooled: u64,
    /// The buffer for copies.
    piece: Vec<u8>,
}

/// The position of an output in the spool file, and the lengths of its streams and of its line for the results file. In
/// the spool file, they follow one another in this order.
struct Deferred {
    at: u64,
    streams: [u64; 2],
    record: u64,
}

impl PrintingThread {
    pub fn new(progress: Progress, recorder: Arc<Recorder>, notices: UnboundedSender<Notice>) -> io::Result<Self> {
        Ok(Self {
            streams: [
                io::stdout().as_fd().try_clone_to_owned()?.into(),
                io::stderr().as_fd().try_clone_to_owned()?.into(),
            ],
            progress,
            recorder,
            notices,
            deferred: BTreeMap::new(),
            spool: None,
            spooled: 0,
            piece: vec![0; MAX_LINE],
        })
    }

    /// Prints all pieces until the channel closes.
    ///
    /// # Errors
    /// The error of the first write that fails, including `EPIPE`. Then nothing more is printed, and a job that was not
    /// printed is not recorded.
    pub fn print_all(mut self, mut pieces: UnboundedReceiver<Piece>) -> io::Result<()> {
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Lines { stream, bytes, room } => {
                    self.write(stream, &bytes)?;
                    drop(room);
                }
                Piece::Print(output) => self.print(output)?,
                Piece::Defer { number, output } => self.defer(number, output),
                Piece::PrintDeferred { number } => self.print_deferred(number)?,
            }
        }
        Ok(())
    }

    fn write(&self, stream: usize, bytes: &[u8]) -> io::Result<()> {
        // A stream that was closed at the start is now /dev/null, and a write to it would succeed.
        if inherited::was_closed(if stream == 0 { 1 } else { 2 }) {
            let name = ["output", "error"][stream];
            return Err(io::Error::other(format!("standard {name} is closed")));
        }
        self.progress.suspend(|| write_all(&self.streams[stream], bytes))
    }

    fn print(&mut self, mut output: Output) -> io::Result<()> {
        for (stream, part) in output.parts.iter_mut().enumerate() {
            if let Some(file) = &mut part.file {
                file.rewind()?;
                self.copy(file, stream)?;
            }
            if !part.memory.is_empty() {
                self.write(stream, &part.memory)?;
            }
        }
        // A job that has lost output is not recorded, so that --resume runs it again.
        if output.parts.iter().all(|part| part.lost.is_none()) {
            self.recorder.record(output.record.as_deref());
        }
        Ok(())
    }

    /// Prints a file. Does not use `io::copy`, which loses the bytes that it has read if a write would block.
    fn copy(&mut self, from: &mut impl Read, stream: usize) -> io::Result<()> {
        loop {
            match from.read(&mut self.piece) {
                Ok(0) => return Ok(()),
                Ok(length) => self.write(stream, &self.piece[..length])?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn defer(&mut self, number: u64, output: Output) {
        match self.spool(output) {
            Ok(deferred) => {
                self.spooled = deferred.at + deferred.streams.iter().sum::<u64>() + deferred.record;
                self.deferred.insert(number, deferred);
            }
            Err(error) => {
                // pinfold truncates the file, so that the next output begins where this one began.
                if let Some(spool) = &mut self.spool {
                    let _ = spool.set_len(self.spooled);
                }
                let message = format!("a part of a job's output is lost: {}", store_error(&error));
                let _ = self.notices.send(Notice::Failed(message));
            }
        }
    }

    fn spool(&mut self, output: Output) -> io::Result<Deferred> {
        let mut deferred = Deferred { at: self.spooled, streams: [0; 2], record: 0 };
        let spool = match &mut self.spool {
            Some(spool) => spool,
            none => none.insert(create_unnamed().map_err(|error| io::Error::other(crate::cli::message_of(&error)))?),
        };
        let mut whole = true;
        for (Part { file, memory, lost }, length) in output.parts.into_iter().zip(&mut deferred.streams) {
            if let Some(mut file) = file {
                *length = append_file(&mut file, spool)?;
            }
            spool.write_all(&memory)?;
            *length += memory.len() as u64;
            whole &= lost.is_none();
        }
        if let Some(record) = output.record.filter(|_| whole) {
            spool.write_all(&record)?;
            deferred.record = record.len() as u64;
        }
        Ok(deferred)
    }

    fn print_deferred(&mut self, number: u64) -> io::Result<()> {
        // An output that is missing here could not be stored. pinfold has reported that.
        let Some(Deferred { at, streams, record }) = self.deferred.remove(&number) else { return Ok(()) };
        let Some(mut spool) = self.spool.take() else { return Ok(()) };
        spool.seek(SeekFrom::Start(at))?;
        for (stream, length) in streams.into_iter().enumerate() {
            self.copy(&mut (&mut spool).take(length), stream)?;
        }
        if record > 0 {
            let mut line = Vec::new();
            (&mut spool).take(record).read_to_end(&mut line)?;
            self.recorder.record(Some(&line));
        }
        if self.deferred.is_empty() {
            spool.set_len(0)?;
            self.spooled = 0;
        }
        self.spool = Some(spool);
        Ok(())
    }
}
