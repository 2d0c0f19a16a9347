//! What this machine allows: which containment a job would get, why, and what to do for a stronger one.
//!
//! [`Facts`] are gathered once ([`Facts::gather`]); the [`Examination`] and its text are pure functions of them, so that the
//! facts of one machine can be judged on another.
//!
//! ```
//! use pinfold::doctor::{Containment, examine};
//!
//! let examination = examine(None);
//! if examination.verdict.containment != Containment::Cgroup {
//!     println!("{}", examination.to_text());
//! }
//! ```

mod cgroup;
mod facts;

mod gather;
mod kernel;
mod probe;
mod probe_child;
mod surroundings;
mod text;
mod verdict;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use facts::{
    Ancestor, Calls, Cgroup, Container, ContainerKind, Facts, Limits, Manager, Mount, Mounts, Place, Proc, Scratch,
    Systemd, Tried,
};
pub use verdict::{Containment, Verdict};

/// The version of [`Examination`]'s format.
pub const VERSION: u32 = 1;

/// The facts, what they mean, and what follows. The first format is version 1; fields may be added to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Examination {
    /// [`VERSION`].
    pub version: u32,
    /// What `pinfold run` would do here.
    pub verdict: Verdict,
    /// One thing each, in the order in which they are told.
    pub findings: Vec<Finding>,
    /// What all of this follows from.
    pub facts: Facts,
}

/// One thing about the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Finding {
    /// Which thing; it stays the same whatever the text says.
    pub id: String,
    /// What it is about.
    pub section: Section,
    /// Whether it is good for jobs.
    pub mark: Mark,
    /// The thing in words.
    pub text: String,
    /// What the person can do about it; or, where nothing needs to be done, why not.
    pub advice: Option<String>,
}

/// What a finding is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
#[allow(missing_docs)] // Their names say it.
pub enum Section {
    Kernel,
    Cgroup,
    Systemd,
    Container,
    Proc,
    Limits,
}

/// Whether a thing is good for jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Mark {
    /// It is as it should be.
    Good,
    /// It is missing, or not as it should be.
    Bad,
    /// Neither: a fact.
    Note,
}

/// Looks at this machine. `cgroup` stands for this process's own cgroup where it is given, as with
/// [`Builder::cgroup`](crate::Builder::cgroup).
///
/// It changes nothing: where a job's cgroup would be made, one is made for a moment, with a process that does nothing, and
/// removed; sockets of systemd are connected to, and nothing is sent. It never fails: what can't be found out is said.
#[must_use]
pub fn examine(cgroup: Option<&Path>) -> Examination {
    Examination::of(Facts::gather(cgroup))
}

impl Examination {
    /// Judges these facts.
    #[must_use]
    pub fn of(facts: Facts) -> Self {
        let mut findings = Vec::new();
        kernel::judge(&facts, &mut findings);
        cgroup::judge(&facts, &mut findings);
        surroundings::judge(&facts, &mut findings);
        Self { version: VERSION, verdict: Verdict::of(&facts), findings, facts }
    }

    /// This as one line of JSON, without the newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Every field has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl Finding {
    fn new(id: &str, section: Section, mark: Mark, text: impl Into<String>) -> Self {
        Self { id: id.into(), section, mark, text: text.into(), advice: None }
    }

    fn good(id: &str, section: Section, text: impl Into<String>) -> Self {
        Self::new(id, section, Mark::Good, text)
    }

    fn bad(id: &str, section: Section, text: impl Into<String>) -> Self {
        Self::new(id, section, Mark::Bad, text)
    }

    fn note(id: &str, section: Section, text: impl Into<String>) -> Self {
        Self::new(id, section, Mark::Note, text)
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// The errno in words.
fn words(errno: i32) -> String {
    rustix::io::Errno::from_raw_os_error(errno).to_string()
}
