//! Captures the beginning and the end of an output that may be endless.

use std::borrow::Cow;
use std::collections::VecDeque;

/// How much of a stream is kept: its beginning, which shows what was done, and its end, which shows what went wrong.
///
/// ```
/// use pinfold::output::CaptureLimit;
/// let mut command = pinfold::Command::new("make");
/// command.stdout(pinfold::Stdio::piped()).capture(CaptureLimit::ends(4096, 64 * 1024));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureLimit {
    first: usize,
    last: usize,
}

impl CaptureLimit {
    /// Returns a limit that keeps the first `first` bytes and the last `last` bytes.
    #[must_use]
    pub const fn ends(first: usize, last: usize) -> Self {
        Self { first, last }
    }

    /// Returns a limit that keeps everything. The job then determines how much memory is used.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { first: usize::MAX, last: 0 }
    }
}

impl Default for CaptureLimit {
    /// Returns the default limit: the first and the last 512 KiB.
    fn default() -> Self {
        Self::ends(512 * 1024, 512 * 1024)
    }
}

/// The kept part of a stream, and the number of bytes that were dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    limit: CaptureLimit,
    first: Vec<u8>,
    last: VecDeque<u8>,
    total: u64,
}

impl Captured {
    /// Returns an empty capture.
    pub(crate) fn new(limit: CaptureLimit) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Adds the next bytes of the stream.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.limit.first.saturating_sub(self.first.len());
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.first.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.limit.last)..];
        let over = (self.last.len() + rest.len()).saturating_sub(self.limit.last);
        self.last.drain(..over);
        self.last.extend(rest);
    }

    /// Returns the number of bytes that were added.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Returns how many of these bytes were dropped: those between the beginning and the end.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.total - (self.first.len() + self.last.len()) as u64
    }

    /// Returns the kept bytes. Nothing marks the place where bytes were dropped.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (front, back) = self.last.as_slices();
        [&self.first, front, back].concat()
    }

    /// The same as [`to_bytes`](Self::to_bytes), but without a copy if only the beginning of the stream is kept.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = self.first;
        bytes.extend(self.last);
        bytes
    }

    /// Returns the kept bytes as text for people: invalid UTF-8 is replaced, and a line states how many bytes were left
    /// out.
    #[must_use]
    pub fn text(&self) -> String {
        let (front, back) = self.last.as_slices();
        let last = [front, back].concat();
        if self.dropped() == 0 {
            // Decoded in one piece, because a character may be split between the two parts.
            return String::from_utf8_lossy(&[self.first.as_slice(), &last].concat()).into_owned();
        }
        let (first, last): (Cow<str>, Cow<str>) =
            (String::from_utf8_lossy(&self.first), String::from_utf8_lossy(&last));
        format!("{first}\n[... {} bytes left out ...]\n{last}", self.dropped())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// For every division into pieces, the beginning and the end are kept, and the counts are right.
        #[test]
        fn both_ends_are_kept(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            first in 0_usize..60,
            last in 0_usize..60,
        ) {
            let all = chunks.concat();
            let mut captured = Captured::new(CaptureLimit::ends(first, last));
            chunks.iter().for_each(|chunk| captured.push(chunk));
            let head = &all[..first.min(all.len())];
            let rest = &all[head.len()..];
            let tail = &rest[rest.len().saturating_sub(last)..];
            prop_assert_eq!(captured.to_bytes(), [head, tail].concat());
            prop_assert_eq!(captured.total(), all.len() as u64);
            prop_assert_eq!(captured.dropped(), (rest.len() - tail.len()) as u64);
        }
    }

    #[test]
    fn the_text_says_how_much_is_missing() {
        let mut captured = Captured::new(CaptureLimit::ends(3, 4));
        captured.push(b"one two three");
        assert_eq!((captured.total(), captured.dropped()), (13, 6));
        assert_eq!(captured.text(), "one\n[... 6 bytes left out ...]\nhree");
        assert_eq!(captured.into_bytes(), b"onehree");
    }

    #[test]
    fn unlimited_keeps_all() {
        let mut captured = Captured::new(CaptureLimit::unlimited());
        for _ in 0..100 {
            captured.push(&[7; 100_000]);
        }
        assert_eq!((captured.to_bytes().len(), captured.dropped()), (10_000_000, 0));
    }
}
