//! What a sandbox refused to a job.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::printable;

/// Something that the sandbox refused to the job, once or several times. Only a sandbox with
/// [`explain_denials`](crate::Sandbox::explain_denials) reports this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Denial {
    /// The kind of the attempt.
    pub kind: DenialKind,
    /// The object of the attempt: a path, a port, a socket, a process, …; invalid UTF-8 is replaced. Empty if the name
    /// of the system call describes the attempt completely.
    pub object: String,
    /// The system call.
    pub call: String,
    /// How often it was refused.
    pub count: u64,
    /// Options of `pinfold run`, each of which would grant it. Empty if no option does.
    pub granted_by: Vec<String>,
}

/// The kinds of attempts that a sandbox can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DenialKind {
    /// Read a file, or list a directory.
    Read,
    /// Write to an existing file, or truncate it.
    Write,
    /// Execute a program.
    Execute,
    /// Make a file, a directory, a link or a socket at a path.
    Create,
    /// Remove a file or a directory.
    Remove,
    /// Rename a file or a directory, or make a second link to a file.
    Rename,
    /// Change the mode, owner, times or extended attributes of a file.
    Attributes,
    /// Connect to a port or a Unix socket.
    Connect,
    /// Listen on a port.
    Listen,
    /// Make a socket.
    Socket,
    /// Send a signal to a process outside of the job.
    Signal,
    /// Trace a process outside of the job, or use its memory or descriptors.
    Trace,
    /// Another system call that the sandbox forbids.
    Call,
}

impl Denial {
    /// Creates the denial of one call.
    pub(crate) fn new(kind: DenialKind, object: impl Into<String>, call: &str, granted_by: Vec<String>) -> Self {
        Self { kind, object: object.into(), call: call.into(), count: 1, granted_by }
    }
}

/// Writes one line for people. Text of the job in it is safe to print.
impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let object = printable(&self.object);
        let call = printable(&self.call);
        match self.kind {
            DenialKind::Read => write!(f, "read {object}")?,
            DenialKind::Write => write!(f, "write {object}")?,
            DenialKind::Execute => write!(f, "execute {object}")?,
            DenialKind::Create => write!(f, "make {object}")?,
            DenialKind::Remove => write!(f, "remove {object}")?,
            DenialKind::Rename => write!(f, "move or link {object}")?,
            DenialKind::Attributes => write!(f, "change the attributes of {object}")?,
            DenialKind::Connect => write!(f, "connect to {object}")?,
            DenialKind::Listen => write!(f, "listen on {object}")?,
            DenialKind::Socket => write!(f, "make a socket ({object})")?,
            DenialKind::Signal => write!(f, "send a signal to {object}")?,
            DenialKind::Trace => write!(f, "trace {object}")?,
            DenialKind::Call if object.is_empty() => write!(f, "call {call}")?,
            DenialKind::Call => write!(f, "call {call} with {object}")?,
        }
        match (self.kind, self.count) {
            (DenialKind::Call, 1) => {}
            (DenialKind::Call, count) => write!(f, " ({count} times)")?,
            (_, 1) => write!(f, " ({call})")?,
            (_, count) => write!(f, " ({call}, {count} times)")?,
        }
        match self.granted_by.split_last() {
            None => f.write_str("; no option grants it"),
            Some((last, [])) => write!(f, "; grant it with {}", printable(last)),
            Some((last, others)) => {
                write!(f, "; grant it with {} or {}", printable(&others.join(", ")), printable(last))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_people() {
        let mut read = Denial::new(DenialKind::Read, "/a\u{1b}[2J\n", "openat", vec!["--read X".into()]);
        assert_eq!(read.to_string(), r"read /a\033[2J\n (openat); grant it with --read X");
        read.count = 3;
        read.granted_by = ["a", "b", "c"].map(String::from).to_vec();
        assert_eq!(read.to_string(), r"read /a\033[2J\n (openat, 3 times); grant it with a, b or c");
        let call = Denial::new(DenialKind::Call, "CLONE_NEWUSER", "unshare", Vec::new());
        assert_eq!(call.to_string(), "call unshare with CLONE_NEWUSER; no option grants it");
        let call = Denial { count: 2, ..Denial::new(DenialKind::Call, "", "mount", Vec::new()) };
        assert_eq!(call.to_string(), "call mount (2 times); no option grants it");
    }
}
