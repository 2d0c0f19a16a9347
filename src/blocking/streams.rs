//! What a job tells, writes and reads, for programs without tokio.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Driver;
use crate::job::output;
use crate::job::output::Line;

/// The events of a job, as an iterator that waits.
#[derive(Debug)]
pub struct Events {
    inner: crate::supervisor::events::Events,
    driver: Driver,
}

impl Events {
    pub(super) fn new(inner: crate::supervisor::events::Events, driver: &Driver) -> Self {
        Self { inner, driver: driver.clone() }
    }
}

impl Iterator for Events {
    type Item = crate::supervisor::events::Event;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next_event())
    }
}

/// The events of all jobs of a supervisor, as an iterator that waits.
#[derive(Debug)]
pub struct JobEvents {
    inner: crate::supervisor::events::JobEvents,
    driver: Driver,
}

impl JobEvents {
    pub(super) fn new(inner: crate::supervisor::events::JobEvents, driver: &Driver) -> Self {
        Self { inner, driver: driver.clone() }
    }
}

impl Iterator for JobEvents {
    type Item = crate::supervisor::events::JobEvent;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next_event())
    }
}

/// What a job writes, as a reader: [`output::OutputStream`].
#[derive(Debug)]
pub struct OutputStream {
    inner: output::OutputStream,
    driver: Driver,
}

impl OutputStream {
    pub(super) fn new(inner: output::OutputStream, driver: &Driver) -> Self {
        Self { inner, driver: driver.clone() }
    }

    /// Line by line.
    #[must_use]
    pub fn lines(self) -> Lines {
        Lines { inner: self.inner.lines(), driver: self.driver }
    }
}

impl io::Read for OutputStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.driver.wait(self.inner.read(buffer))
    }
}

/// The lines of an output, as an iterator that waits: [`output::Lines`].
#[derive(Debug)]
pub struct Lines {
    inner: output::Lines,
    driver: Driver,
}

impl Lines {
    /// Hands out lines of more than `max` bytes in pieces, instead of those of more than 1 MiB. At least 1.
    #[must_use]
    pub fn max_line(self, max: usize) -> Self {
        Self { inner: self.inner.max_line(max), ..self }
    }
}

impl Iterator for Lines {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next_line()).transpose()
    }
}

/// What a job reads, as a writer: [`output::InputStream`]. Dropped, it is the end of that.
#[derive(Debug)]
pub struct InputStream {
    inner: output::InputStream,
    driver: Driver,
}

impl InputStream {
    pub(super) fn new(inner: output::InputStream, driver: &Driver) -> Self {
        Self { inner, driver: driver.clone() }
    }
}

impl io::Write for InputStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.driver.wait(self.inner.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
