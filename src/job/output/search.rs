//! Searches an output for a line, while the output is read.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memchr::memchr;
use memchr::memmem::Finder;
use tokio::sync::watch;

/// The result of a search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing so far.
    NotYet,
    Line,
    /// The output is at its end, or is not read any more, and there was no such line.
    Nothing,
}

/// The searches in one output. The job adds searches to it. The stream passes each piece that it reads to all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Searches(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    list: Vec<Search>,
    /// The stream has read these bytes for a search, and its reader gets them next.
    ahead: VecDeque<u8>,
    is_over: bool,
}

impl Searches {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a search for a line that contains `part`. It begins with the first byte that no reader has received.
    /// Returns the search that exists for the same part, if there is one.
    pub fn start(&self, part: &[u8]) -> watch::Receiver<Found> {
        let mut state = self.lock();
        if let Some(search) = state.list.iter().find(|search| search.finder.needle() == part) {
            return search.found.subscribe();
        }
        let mut search = Search::new(part);
        let receiver = search.found.subscribe();
        let (front, back) = state.ahead.as_slices();
        search.push(front);
        search.push(back);
        if state.is_over {
            search.end();
        }
        state.list.push(search);
        receiver
    }

    /// Adds the next piece of the output to all searches.
    pub fn push(&self, piece: &[u8]) {
        self.lock().list.iter_mut().for_each(|search| search.push(piece));
    }

    /// Ends all searches. The rest of the output counts as a line if the output is at its end (`is_end`).
    pub fn end(&self, is_end: bool) {
        let mut state = self.lock();
        if !std::mem::replace(&mut state.is_over, true) {
            if !is_end {
                // The reader of the stream is gone.
                state.ahead.clear();
            }
            for search in &mut state.list {
                search.is_in_line &= is_end;
                search.end();
            }
        }
    }

    /// Keeps a piece for the reader. The searches have seen it already. Returns how many bytes are kept.
    pub fn keep(&self, piece: &[u8]) -> usize {
        let mut state = self.lock();
        state.ahead.extend(piece);
        state.ahead.len()
    }

    /// Moves kept bytes to the reader, at most `space`. `put` may be called twice.
    pub fn take_kept(&self, space: usize, mut put: impl FnMut(&[u8])) -> usize {
        let mut state = self.lock();
        let length = space.min(state.ahead.len());
        let (front, back) = state.ahead.as_slices();
        let (front, rest) = front.split_at(length.min(front.len()));
        put(front);
        if rest.is_empty() {
            put(&back[..length - front.len()]);
        }
        state.ahead.drain(..length);
        length
    }
}

/// Searches for a line that contains a part, in whatever pieces the output arrives and however long the line is.
#[derive(Debug)]
struct Search {
    finder: Finder<'static>,
    /// The last bytes of the output, in which the part may begin. The part contains no newline, so it does not matter
    /// where lines begin.
    tail: Vec<u8>,
    /// The line so far contains the part.
    is_in_line: bool,
    found: watch::Sender<Found>,
}

impl Search {
    fn new(part: &[u8]) -> Self {
        let finder = Finder::new(part).into_owned();
        Self { finder, tail: Vec::new(), is_in_line: false, found: watch::Sender::new(Found::NotYet) }
    }

    fn push(&mut self, piece: &[u8]) {
        if piece.is_empty() || *self.found.borrow() != Found::NotYet {
            return;
        }
        let mut rest = piece;
        if !self.is_in_line {
            let Some(end) = self.find(piece) else { return };
            self.is_in_line = true;
            rest = &piece[end..];
        }
        if memchr(b'\n', rest).is_some() {
            self.found.send_replace(Found::Line);
        }
    }

    /// Returns the end of the first occurrence of the part in the piece. The occurrence may begin in the tail.
    fn find(&mut self, piece: &[u8]) -> Option<usize> {
        let length = self.finder.needle().len();
        let overlap = length.saturating_sub(1);
        let before = self.tail.len();
        self.tail.extend_from_slice(&piece[..overlap.min(piece.len())]);
        if let Some(at) = self.finder.find(&self.tail) {
            // The tail alone is too short to contain the part. An empty part is found at once.
            return Some((at + length).saturating_sub(before));
        }
        let found = self.finder.find(piece).map(|at| at + length);
        if piece.len() > overlap {
            self.tail.clear();
            self.tail.extend_from_slice(&piece[piece.len() - overlap..]);
        } else {
            self.tail.drain(..self.tail.len().saturating_sub(overlap));
        }
        found
    }

    /// Ends the search. At the end of an output, the rest counts as a line.
    fn end(&mut self) {
        let found = if self.is_in_line { Found::Line } else { Found::Nothing };
        self.found.send_if_modified(|before| {
            let is_open = *before == Found::NotYet;
            if is_open {
                *before = found;
            }
            is_open
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns after how many bytes, in pieces of `size`, the search has found the line.
    fn found_at(text: &[u8], part: &[u8], size: usize) -> Option<usize> {
        let mut search = Search::new(part);
        let found = text.chunks(size).position(|piece| {
            search.push(piece);
            *search.found.borrow() == Found::Line
        });
        found.map(|at| ((at + 1) * size).min(text.len()))
    }

    /// Which lines contain the part. The library and the command share this search, so the rule is the same in both.
    #[test]
    fn a_line_that_contains_the_part() {
        let long = [vec![b'x'; 3_000_000], b"up\n".to_vec()].concat();
        // For each text and part: how many bytes are needed until the line is found.
        let table: [(&[u8], &[u8], Option<usize>); 14] = [
            (b"lis\ntening\nis listening on 7\nrest", b"listening", Some(29)),
            (b"listening", b"listening", None),
            (b"list\nening\n", b"listening", None),
            (b"uup\n", b"up", Some(4)),
            (b"ababac\n", b"abac", Some(7)),
            (b"Up\n", b"up", None),
            (b"up\r\n", b"up", Some(4)),
            (b"up\r\n", b"up\r", Some(4)),
            (b"up\rdone\r", b"up", None),
            (b"\xff\xfeup\xff\n", b"up\xff", Some(6)),
            (b"\0up\0\n", b"up", Some(5)),
            (b"\n", b"", Some(1)),
            (b"x", b"", None),
            (&long, b"xup", Some(3_000_003)),
        ];
        for (text, part, expected) in table {
            let sizes = if text.len() > 100 { vec![1_000, 16_384, text.len()] } else { (1..=text.len()).collect() };
            for size in sizes {
                let rounded = expected.map(|at| (at.div_ceil(size) * size).min(text.len()));
                let text_start = String::from_utf8_lossy(&text[..text.len().min(40)]);
                assert_eq!(found_at(text, part, size), rounded, "{text_start:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn the_end_of_the_output_ends_a_line() {
        for (text, is_end, expected) in [
            (&b"x\nup"[..], true, Found::Line),
            (b"x\nup", false, Found::Nothing),
            (b"up?\nx", false, Found::Line),
            (b"x", true, Found::Nothing),
        ] {
            let searches = Searches::default();
            let found = searches.start(b"up");
            searches.push(text);
            searches.end(is_end);
            assert_eq!(*found.borrow(), expected);
            // A later search for the same part has the same result. A search for another part finds nothing, because it
            // begins after the output that was read.
            assert_eq!(*searches.start(b"up").borrow(), expected);
            assert_eq!(*searches.start(b"u").borrow(), Found::Nothing);
        }
    }

    #[test]
    fn kept_output_is_searched_and_read() {
        let searches = Searches::default();
        assert_eq!(searches.keep(b"one\ntw"), 6);
        assert_eq!(*searches.start(b"one").borrow(), Found::Line);
        let two = searches.start(b"two");
        searches.push(b"o\n");
        assert_eq!(searches.keep(b"o\n"), 8);
        assert_eq!(*two.borrow(), Found::Line);
        let mut read = Vec::new();
        while searches.take_kept(3, |bytes| read.extend_from_slice(bytes)) > 0 {}
        assert_eq!(read, b"one\ntwo\n");
        // A search that begins now does not see what the reader has received.
        assert_eq!(*searches.start(b"ne").borrow(), Found::NotYet);
    }
}
