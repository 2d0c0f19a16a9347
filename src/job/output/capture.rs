//! What is kept of an output that may be endless.

use std::borrow::Cow;
use std::collections::VecDeque;

/// How much of a stream is kept: its beginning, which tells what was done, and its end, which tells what went wrong.
///
/// ```
/// use pinfold::output::CaptureLimit;
/// let mut command = pinfold::Command::new("make");
/// command.stdout(pinfold::Stdio::Piped).capture(CaptureLimit::ends(4096, 64 * 1024));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CaptureLimit {
    first: usize,
    last: usize,
}

impl CaptureLimit {
    /// The first and the last so many bytes.
    #[must_use]
    pub const fn ends(first: usize, last: usize) -> Self {
        Self { first, last }
    }

    /// All of it. The job decides then how much memory that takes.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self { first: usize::MAX, last: 0 }
    }
}

impl Default for CaptureLimit {
    /// The first and the last 512 KiB.
    fn default() -> Self {
        Self::ends(512 * 1024, 512 * 1024)
    }
}

/// What was kept of a stream, and how much was not.
///
/// ```
/// use pinfold::output::{CaptureLimit, Captured};
/// let mut captured = Captured::new(CaptureLimit::ends(3, 4));
/// captured.push(b"one two three");
/// assert_eq!((captured.total(), captured.dropped()), (13, 6));
/// assert_eq!(captured.to_bytes(), b"onehree");
/// assert_eq!(captured.text(), "one\n[... 6 bytes left out ...]\nhree");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Captured {
    limit: CaptureLimit,
    first: Vec<u8>,
    last: VecDeque<u8>,
    total: u64,
}

impl Captured {
    /// Nothing yet.
    #[must_use]
    pub fn new(limit: CaptureLimit) -> Self {
        Self { limit, ..Self::default() }
    }

    /// Adds what was written next.
    pub fn push(&mut self, bytes: &[u8]) {
        self.total += bytes.len() as u64;
        let room = self.limit.first.saturating_sub(self.first.len());
        let (first, rest) = bytes.split_at(room.min(bytes.len()));
        self.first.extend_from_slice(first);
        let rest = &rest[rest.len().saturating_sub(self.limit.last)..];
        let over = (self.last.len() + rest.len()).saturating_sub(self.limit.last);
        self.last.drain(..over);
        self.last.extend(rest);
    }

    /// How many bytes were written.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// How many of them were not kept: those between beginning and end.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.total - (self.first.len() + self.last.len()) as u64
    }

    /// What was kept, without a mark where something was dropped.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (front, back) = self.last.as_slices();
        [&self.first, front, back].concat()
    }

    /// What was kept, as text for people: invalid UTF-8 is replaced, and a line says how much was left out.
    #[must_use]
    pub fn text(&self) -> String {
        let (front, back) = self.last.as_slices();
        let last = [front, back].concat();
        if self.dropped() == 0 {
            // In one piece: a character may lie across the two.
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
        /// However it is cut: the beginning, the end, and the right count.
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
    fn unlimited_keeps_all() {
        let mut captured = Captured::new(CaptureLimit::unlimited());
        for _ in 0..100 {
            captured.push(&[7; 100_000]);
        }
        assert_eq!((captured.to_bytes().len(), captured.dropped()), (10_000_000, 0));
    }
}
