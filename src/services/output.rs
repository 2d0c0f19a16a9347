//! The output of services: pinfold keeps the last lines for later readers, and offers a stream of all lines.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::{mpsc, watch};

use crate::job::output::Line;

/// How many lines of a service pinfold keeps.
const MAX_LINES: usize = 1000;

/// How many bytes of these lines pinfold keeps. It keeps the last line even if that is longer.
const MAX_BYTES: usize = 1024 * 1024;

/// How many lines a reader of [`OutputLines`] may be behind, before it delays the services.
const MAX_BEHIND: usize = 256;

/// A line of the output of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutputLine {
    /// The service.
    pub service: Arc<str>,
    /// The line.
    pub line: Arc<Line>,
}

/// All lines of the services from now on ([`Services::output`](crate::services::Services::output)). A [`Stream`].
#[derive(Debug)]
pub struct OutputLines(mpsc::Receiver<OutputLine>);

impl OutputLines {
    /// Waits for the next line; `None` when the services are gone.
    ///
    /// Cancel-safe: no line is lost.
    pub async fn next_line(&mut self) -> Option<OutputLine> {
        self.0.recv().await
    }
}

impl Stream for OutputLines {
    type Item = OutputLine;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<OutputLine>> {
        self.0.poll_recv(context)
    }
}

/// The last lines of services, and the lines that follow ([`Services::follow`](crate::services::Services::follow)). A
/// slow reader delays no service: it misses lines instead.
#[derive(Debug)]
pub struct Follow {
    tails: Arc<Tails>,
    /// The services, and the number of the next line of each one.
    next: Vec<(usize, u64)>,
    latest: watch::Receiver<Latest>,
}

impl Follow {
    /// Returns the lines that pinfold has read since the last call, in the order in which it read them, and how many
    /// lines this reader has missed. Waits until there is a line. Returns `None` when all services have been stopped.
    ///
    /// Cancel-safe.
    pub async fn next_lines(&mut self) -> Option<(Vec<OutputLine>, u64)> {
        loop {
            let is_closed = self.latest.borrow_and_update().is_closed;
            let (lines, missed) = self.lines_so_far();
            if !lines.is_empty() || missed > 0 {
                return Some((lines, missed));
            }
            if is_closed {
                return None;
            }
            self.latest.changed().await.ok()?;
        }
    }

    /// Returns the lines that pinfold has read since the last call, and how many lines this reader has missed, without
    /// waiting.
    pub fn lines_so_far(&mut self) -> (Vec<OutputLine>, u64) {
        let (mut lines, mut missed) = (Vec::new(), 0);
        for (service, next) in &mut self.next {
            let tail = self.tails.lock(*service);
            let first = tail.first;
            missed += first.saturating_sub(*next);
            let known = usize::try_from(next.saturating_sub(first)).unwrap_or(usize::MAX);
            lines.extend(tail.lines.iter().skip(known).cloned());
            *next = first + tail.lines.len() as u64;
        }
        lines.sort_by_key(|(number, _)| *number);
        (lines.into_iter().map(|(_, line)| line).collect(), missed)
    }
}

/// How many lines all services have printed, and whether their output has ended.
#[derive(Clone, Copy, Debug, Default)]
struct Latest {
    number: u64,
    /// No further line will come.
    is_closed: bool,
}

/// The last lines of each service.
#[derive(Debug)]
pub(super) struct Tails {
    tails: Vec<Mutex<Tail>>,
    /// Changes with each line.
    latest: watch::Sender<Latest>,
    readers: Mutex<Vec<mpsc::Sender<OutputLine>>>,
}

#[derive(Debug, Default)]
struct Tail {
    /// The lines, each with its number among the lines of all services.
    lines: VecDeque<(u64, OutputLine)>,
    /// The number of the first kept line among the lines of this service.
    first: u64,
    bytes: usize,
}

impl Tails {
    pub fn new(services: usize) -> Self {
        Self {
            tails: (0..services).map(|_| Mutex::default()).collect(),
            latest: watch::Sender::new(Latest::default()),
            readers: Mutex::default(),
        }
    }

    fn lock(&self, service: usize) -> MutexGuard<'_, Tail> {
        self.tails[service].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a line, and waits until each reader of [`OutputLines`] has room for it.
    ///
    /// Cancel-safe, except that some of the readers may miss the line.
    pub async fn push(&self, service: usize, name: &Arc<str>, line: Line) {
        let line = OutputLine { service: name.clone(), line: Arc::new(line) };
        self.latest.send_modify(|latest| {
            latest.number += 1;
            let mut tail = self.lock(service);
            tail.bytes += line.line.bytes.len();
            tail.lines.push_back((latest.number, line.clone()));
            while tail.lines.len() > MAX_LINES || tail.bytes > MAX_BYTES && tail.lines.len() > 1 {
                let Some((_, old)) = tail.lines.pop_front() else { break };
                tail.bytes -= old.line.bytes.len();
                tail.first += 1;
            }
        });
        for reader in self.readers() {
            // A reader that is gone is removed with the next call of `readers`.
            let _ = reader.send(line.clone()).await;
        }
    }

    fn readers(&self) -> Vec<mpsc::Sender<OutputLine>> {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|reader| !reader.is_closed());
        readers.clone()
    }

    pub fn listen(&self) -> OutputLines {
        let (sender, receiver) = mpsc::channel(MAX_BEHIND);
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        OutputLines(receiver)
    }

    /// Ends the streams of lines.
    pub fn close(&self) {
        self.latest.send_modify(|latest| latest.is_closed = true);
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Returns the last lines of a service.
    pub fn last(&self, service: usize, count: usize) -> Vec<OutputLine> {
        let tail = self.lock(service);
        let skipped = tail.lines.len().saturating_sub(count);
        tail.lines.iter().skip(skipped).map(|(_, line)| line.clone()).collect()
    }

    /// Follows these services, beginning with the last `count` lines of each of them.
    pub fn follow(self: &Arc<Self>, services: &[usize], count: usize) -> Follow {
        let latest = self.latest.subscribe();
        let next = |&service: &usize| {
            let tail = self.lock(service);
            (service, tail.first + tail.lines.len().saturating_sub(count) as u64)
        };
        Follow { tails: self.clone(), next: services.iter().map(next).collect(), latest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: impl Into<Vec<u8>>) -> Line {
        Line { at: std::time::SystemTime::now(), bytes: text.into(), complete: true }
    }

    #[tokio::test]
    async fn a_slow_reader_misses_lines_and_learns_how_many() {
        let tails = Arc::new(Tails::new(2));
        let names: [Arc<str>; 2] = ["a".into(), "b".into()];
        for number in 0..5 {
            tails.push(number % 2, &names[number % 2], line(number.to_string())).await;
        }
        let text = |lines: &[OutputLine]| lines.iter().map(|line| line.line.text().into_owned()).collect::<String>();
        assert_eq!(text(&tails.last(0, 2)), "24");
        let mut follow = tails.follow(&[0, 1], 10);
        let (lines, missed) = follow.next_lines().await.unwrap();
        assert_eq!((text(&lines).as_str(), missed), ("01234", 0));
        let mut only_new = tails.follow(&[1], 0);
        for _ in 0..MAX_LINES + 7 {
            tails.push(1, &names[1], line("x")).await;
        }
        let (lines, missed) = follow.next_lines().await.unwrap();
        assert_eq!((lines.len(), missed), (MAX_LINES, 7));
        assert_eq!(only_new.next_lines().await.unwrap().1, 7);
        assert_eq!(follow.lines_so_far(), (Vec::new(), 0));
        tails.close();
        assert!(follow.next_lines().await.is_none());
    }

    #[tokio::test]
    async fn few_large_lines_are_kept() {
        let tails = Tails::new(1);
        for _ in 0..5 {
            tails.push(0, &"a".into(), line(vec![b'x'; MAX_BYTES / 2])).await;
        }
        assert_eq!(tails.last(0, 10).len(), 2);
    }
}
