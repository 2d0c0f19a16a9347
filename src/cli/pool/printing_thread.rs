//! The thread that prints.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::files::{lost, nameless};
use super::gather::Part;
use super::output::{MAX_LINE, Notice, Output, Piece, Recorder};
use super::progress::Progress;
use super::spill::copy as append;
use crate::cli::write::write_all;

/// What the printing thread has.
pub struct PrintingThread {
    streams: [File; 2],
    progress: Progress,
    recorder: Arc<Recorder>,
    notices: UnboundedSender<Notice>,
    /// The outputs that came before their turn. They are in one file: their descriptors and memory are needed for the next jobs.
    put_off: BTreeMap<u64, PutOff>,
    spool: Option<File>,
    spooled: u64,
    /// The bytes that are being copied.
    piece: Vec<u8>,
}

/// Where in the spool an output is: its streams, then its line for the results file.
struct PutOff {
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
            put_off: BTreeMap::new(),
            spool: None,
            spooled: 0,
            piece: vec![0; MAX_LINE],
        })
    }

    /// Prints until no more pieces come.
    ///
    /// # Errors
    /// The first write that fails, `EPIPE` included: nothing more is printed then, and no job that was not printed is recorded.
    pub fn print_all(mut self, mut pieces: UnboundedReceiver<Piece>) -> io::Result<()> {
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Line { stream, bytes, room } => {
                    self.write(stream, &bytes)?;
                    drop(room);
                }
                Piece::Print(output) => self.print(output)?,
                Piece::PutOff { number, output } => self.put_off(number, output),
                Piece::PrintPutOff { number } => self.print_put_off(number)?,
            }
        }
        Ok(())
    }

    fn write(&self, stream: usize, bytes: &[u8]) -> io::Result<()> {
        // It is /dev/null since then, which would take it without an error.
        if pinfold::was_closed(if stream == 0 { 1 } else { 2 }) {
            let name = ["output", "error"][stream];
            return Err(io::Error::other(format!("standard {name} is closed")));
        }
        self.progress.aside(|| write_all(&self.streams[stream], bytes))
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
        // A job that has lost output runs again with --resume.
        if output.parts.iter().all(|part| part.lost.is_none()) {
            self.recorder.record(output.record.as_deref());
        }
        Ok(())
    }

    /// Not `io::copy`: that loses what it has read where a write would block.
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

    fn put_off(&mut self, number: u64, output: Output) {
        match self.spool(output) {
            Ok(put_off) => {
                self.spooled = put_off.at + put_off.streams.iter().sum::<u64>() + put_off.record;
                self.put_off.insert(number, put_off);
            }
            Err(error) => {
                // The next output is appended where this one began.
                if let Some(spool) = &mut self.spool {
                    let _ = spool.set_len(self.spooled);
                }
                let message = format!("some output of a job is lost: {}", lost(&error));
                let _ = self.notices.send(Notice::Failed(message));
            }
        }
    }

    fn spool(&mut self, output: Output) -> io::Result<PutOff> {
        let mut put_off = PutOff { at: self.spooled, streams: [0; 2], record: 0 };
        let spool = match &mut self.spool {
            Some(spool) => spool,
            none => none.insert(nameless().map_err(|error| io::Error::other(format!("{error:#}")))?),
        };
        let mut whole = true;
        for (Part { file, memory, lost }, length) in output.parts.into_iter().zip(&mut put_off.streams) {
            if let Some(mut file) = file {
                *length = append(&mut file, spool)?;
            }
            spool.write_all(&memory)?;
            *length += memory.len() as u64;
            whole &= lost.is_none();
        }
        if let Some(record) = output.record.filter(|_| whole) {
            spool.write_all(&record)?;
            put_off.record = record.len() as u64;
        }
        Ok(put_off)
    }

    fn print_put_off(&mut self, number: u64) -> io::Result<()> {
        // An output that is not there could not be kept, which was reported.
        let Some(PutOff { at, streams, record }) = self.put_off.remove(&number) else { return Ok(()) };
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
        if self.put_off.is_empty() {
            spool.set_len(0)?;
            self.spooled = 0;
        }
        self.spool = Some(spool);
        Ok(())
    }
}
