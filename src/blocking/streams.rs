//! The events, the outputs and the input of a job, for programs without tokio.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Driver;
use crate::job::output;
use crate::job::output::Line;

/// The events of a job, as a blocking iterator.
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

/// The events of all jobs of a supervisor, as a blocking iterator.
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

/// An output of a job, as a blocking reader: [`output::OutputStream`].
#[derive(Debug)]
pub struct OutputStream {
    inner: output::OutputStream,
    driver: Driver,
}

impl OutputStream {
    pub(super) fn new(inner: output::OutputStream, driver: &Driver) -> Self {
        Self { inner, driver: driver.clone() }
    }

    pub(super) fn into_inner(self) -> output::OutputStream {
        self.inner
    }

    /// Returns the lines of the output.
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

/// The lines of an output, as a blocking iterator: [`output::Lines`].
#[derive(Debug)]
pub struct Lines {
    inner: output::Lines,
    driver: Driver,
}

impl Lines {
    /// Sets the maximum length of a line in bytes: the iterator returns longer lines in pieces. At least 1; 1 MiB by
    /// default.
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

/// The input of a job, as a blocking writer: [`output::InputStream`]. Dropping it ends the input.
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
