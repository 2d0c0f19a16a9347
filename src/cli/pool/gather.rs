//! Collects the output of a job until the job has ended: a small output in memory, a larger one on the disk.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use crate::output::OutputStream;

use super::output::{Ended, Printer};
use super::spill::Spill;

/// The least number of bytes that are read at a time.
const MIN_READ: usize = 16 * 1024;

/// The output of a job to one stream.
#[derive(Default)]
pub struct Part {
    /// The beginning of the output, where it was moved to the disk.
    pub file: Option<File>,
    /// The rest.
    pub memory: Vec<u8>,
    /// Why a part of the output is lost.
    pub lost: Option<String>,
}

impl Part {
    pub fn is_empty(&self) -> bool {
        self.file.is_none() && self.memory.is_empty() && self.lost.is_none()
    }

    /// Reads the stream to its end. When memory holds more than `limit` bytes, they are moved to the disk.
    ///
    /// # Errors
    /// Why a part of the output is lost.
    async fn gather(&mut self, mut stream: OutputStream, limit: usize, spill: &Spill) -> Result<(), String> {
        // One read adds at most this many bytes, so memory holds at most the sum of the limit and this number.
        // Smaller reads would cost too much time.
        let at_once = limit.max(MIN_READ);
        let mut spilled = None;
        let mut result = Ok(());
        loop {
            let memory = &mut self.memory;
            match stream.read_at_most(at_once, |piece| memory.extend_from_slice(piece)).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    result = result.and(Err(format!("cannot read it: {error}")));
                    break;
                }
            }
            if self.memory.len() > limit {
                let bytes = std::mem::take(&mut self.memory);
                // If a part is lost, pinfold still reads the rest until it stops the job. Otherwise the job's writes
                // would block.
                if result.is_ok() {
                    result = spill.append(spilled.get_or_insert_default(), bytes).await;
                }
            }
        }
        if let Some(spilled) = spilled {
            match spill.finish(spilled).await {
                Ok(file) => self.file = file,
                Err(why) => result = result.and(Err(why)),
            }
        }
        result
    }
}

/// Collects the output of all attempts of one job, and prints it when the job has ended and its streams have been read.
pub struct Collector {
    printer: Arc<Printer>,
    /// The job's line in the input.
    line: usize,
    /// The task that reads a stream of an attempt locks the part of this stream until the stream ends. So the output of
    /// the next attempt comes after the output of this one.
    parts: [tokio::sync::Mutex<Part>; 2],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    reading: usize,
    ended: Option<Ended>,
}

impl Collector {
    pub fn new(printer: Arc<Printer>, line: usize) -> Arc<Self> {
        Arc::new(Self { printer, line, parts: Default::default(), state: Mutex::default() })
    }

    /// Starts to read a stream of an attempt that has begun. The output is printed when the job has ended.
    pub fn gather(self: &Arc<Self>, stream: OutputStream, number: usize) {
        let own = self.begin();
        tokio::spawn(async move {
            let mut part = own.parts[number].lock().await;
            let (limit, spill) = own.printer.spill();
            if let Err(why) = part.gather(stream, limit, spill).await {
                own.report_loss(&mut part, &why);
            }
            drop(part);
            own.end_reading();
        });
    }

    /// Starts to print a stream of an attempt that has begun, each line as soon as it is read. Each line begins with
    /// the tag.
    pub fn follow(self: &Arc<Self>, stream: OutputStream, number: usize, tag: Option<&str>) {
        let own = self.begin();
        let tag = tag.map(|tag| format!("{}\t", crate::report::text::printable(tag)).into_bytes()).unwrap_or_default();
        tokio::spawn(async move {
            let mut part = own.parts[number].lock().await;
            if let Err(error) = own.printer.follow(stream, number, &tag).await {
                own.report_loss(&mut part, &format!("cannot read it: {error}"));
            }
            drop(part);
            own.end_reading();
        });
    }

    /// Reports lost output, once for each job: the first reason is enough.
    fn report_loss(&self, part: &mut Part, why: &str) {
        if part.lost.is_none() {
            self.printer.fail(format!("a part of the output of the job in line {} is lost: {why}", self.line));
            part.lost = Some(why.into());
        }
    }

    fn begin(self: &Arc<Self>) -> Arc<Self> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).reading += 1;
        self.clone()
    }

    fn end_reading(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.reading -= 1;
        if state.reading == 0
            && let Some(ended) = state.ended.take()
        {
            drop(state);
            self.print(ended);
        }
    }

    /// Prints the output of a job that has ended, as soon as its streams have been read.
    pub fn end(&self, ended: Ended) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.reading > 0 {
            state.ended = Some(ended);
            return;
        }
        drop(state);
        self.print(ended);
    }

    fn print(&self, ended: Ended) {
        // All readers have ended, so none of them holds a lock.
        let take = |part: &tokio::sync::Mutex<Part>| part.try_lock().map(|mut part| std::mem::take(&mut *part));
        let parts = self.parts.each_ref().map(|part| take(part).unwrap_or_default());
        self.printer.print(parts, ended);
    }
}
