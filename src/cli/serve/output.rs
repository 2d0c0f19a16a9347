//! Sends the output of a job to the caller, as far as the caller allows.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::watch;

use super::event::Message;
use super::request::{OutputMode, OutputName};
use super::writer::EventWriter;
use crate::output::{OutputStream, Splitter};

/// The longest piece of a line. A longer line is sent in several pieces.
const MAX_LINE: usize = 64 * 1024;

/// The longest piece of output in one `data` event, which docs/serve.md promises.
const MAX_DATA: usize = 16 * 1024;

/// What the caller allows for one output of a job.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// The number of bytes that pinfold may still send. `None` is no limit.
    credit: Option<u64>,
    /// The caller wants no more of this output.
    is_closed: bool,
}

/// Lets an output through as far as the caller allows. It keeps its state from one attempt to the next.
#[derive(Clone, Debug)]
pub struct Gate(Arc<watch::Sender<Flow>>);

impl Gate {
    pub fn new(credit: Option<u64>) -> Self {
        Self(Arc::new(watch::Sender::new(Flow { credit, is_closed: false })))
    }

    /// Allows this many more bytes.
    pub fn add(&self, bytes: u64) {
        self.0.send_modify(|flow| flow.credit = flow.credit.map(|credit| credit.saturating_add(bytes)));
    }

    /// Removes the limit, because the caller can send no more credit.
    pub fn remove_limit(&self) {
        self.0.send_modify(|flow| flow.credit = None);
    }

    /// Returns whether the number of bytes is limited.
    pub fn is_limited(&self) -> bool {
        self.0.borrow().credit.is_some()
    }

    pub fn close(&self) {
        self.0.send_modify(|flow| flow.is_closed = true);
    }

    /// Waits until some bytes may be sent, and returns their number; `None` if the output is closed. Cancel-safe.
    async fn available(&self) -> Option<usize> {
        let mut flow = self.0.subscribe();
        // Can't fail: the sender is in `self`.
        let flow = *flow.wait_for(|flow| flow.is_closed || flow.credit != Some(0)).await.ok()?;
        let credit = flow.credit.map_or(usize::MAX, |credit| usize::try_from(credit).unwrap_or(usize::MAX));
        (!flow.is_closed).then_some(credit)
    }

    fn is_closed(&self) -> bool {
        self.0.borrow().is_closed
    }

    async fn closed(&self) {
        let _ = self.0.subscribe().wait_for(|flow| flow.is_closed).await;
    }

    fn use_up(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.0.send_modify(|flow| flow.credit = flow.credit.map(|credit| credit.saturating_sub(bytes)));
    }
}

/// Where the output of a job goes.
#[derive(Clone)]
pub struct Follower {
    pub writer: EventWriter,
    pub id: Arc<str>,
    pub stream: OutputName,
    pub gate: Gate,
}

impl Follower {
    /// Sends the output until its end, or until the caller closes it. The stream is then closed.
    pub async fn follow(self, stream: OutputStream, mode: OutputMode) {
        match mode {
            OutputMode::Lines => self.follow_lines(stream).await,
            OutputMode::Data | OutputMode::None => self.follow_data(stream).await,
        }
    }

    /// Sends each line as soon as it is read. The lines of one read go to the writer together.
    async fn follow_lines(&self, mut stream: OutputStream) {
        let (id, stream_name) = (&*self.id, self.stream);
        let mut splitter = Splitter::new(MAX_LINE);
        loop {
            let read = tokio::select! {
                biased;
                () = self.gate.closed() => return,
                read = stream.read_piece(|piece| splitter.push(piece)) => read,
            };
            let Ok(length) = read else { return };
            let mut events = Vec::new();
            while let Some((line, complete)) = splitter.next(length == 0) {
                EventWriter::add(
                    &mut events,
                    &match std::str::from_utf8(line) {
                        Ok(text) => Message::Output { id, stream: stream_name, line: text, complete },
                        Err(_) => Message::OutputBytes { id, stream: stream_name, bytes: line, complete },
                    },
                );
                if events.len() >= MAX_LINE && !self.send_events(&mut events).await {
                    return;
                }
            }
            if !self.send_events(&mut events).await || length == 0 {
                return;
            }
        }
    }

    /// Sends these events when there is space for them. Returns `false`, and sends nothing, if the caller has closed the
    /// output.
    async fn send_events(&self, events: &mut Vec<u8>) -> bool {
        if !events.is_empty() {
            self.writer.ready().await;
            if self.gate.is_closed() {
                return false;
            }
            self.writer.send_all(events);
            events.clear();
        }
        true
    }

    /// Sends each piece as soon as it is read. Reads a piece only when pinfold can send it, so that pinfold keeps no
    /// output in memory: the rest stays in the job's pipe.
    async fn follow_data(&self, mut stream: OutputStream) {
        let mut piece = Vec::new();
        while let Some(credit) = self.gate.available().await {
            self.writer.ready().await;
            let read = tokio::select! {
                biased;
                () = self.gate.closed() => break,
                read = stream.read_at_most(credit.min(MAX_DATA), |bytes| piece.extend_from_slice(bytes)) => read,
            };
            if !read.is_ok_and(|length| length > 0) {
                break;
            }
            self.gate.use_up(piece.len());
            self.send_data(&piece);
            piece = Vec::new();
        }
        drop(stream);
        self.writer.send(&Message::Eof { id: &self.id, stream: self.stream });
    }

    fn send_data(&self, piece: &[u8]) {
        let text = std::str::from_utf8(piece).ok().filter(|text| text.bytes().all(is_short_in_json));
        let base64 = if text.is_none() { Some(STANDARD.encode(piece)) } else { None };
        self.writer.send(&Message::Data { id: &self.id, stream: self.stream, text, base64 });
    }
}

/// Returns whether a byte of text takes at most two bytes in JSON. Most control characters take six (RFC 8259, section
/// 7). They are rare in text, except in the output for terminals.
fn is_short_in_json(byte: u8) -> bool {
    byte >= b' ' || matches!(byte, b'\t' | b'\n' | b'\r' | 0x08 | 0x0c | 0x1b)
}
