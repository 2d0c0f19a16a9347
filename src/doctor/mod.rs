//! Examines what this machine allows: which containment a job would get and why, and what you can do to get a stronger
//! one.
//!
//! [`examine`] gathers the facts about the machine once. The [`Examination`] and its text follow from them.
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
mod sandbox;
mod surroundings;
#[cfg(test)]
mod tests;
mod text;
mod verdict;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::report::ContainmentKind;
use facts::Facts;
pub use verdict::{Containment, Verdict};

/// The version of [`Examination`]'s format.
pub const VERSION: u32 = 1;

/// The facts, the findings that follow from them, and the verdict. Later versions of pinfold may add fields to version
/// 1 of this format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Examination {
    /// The version of this format: 1.
    pub version: u32,
    /// What `pinfold run` would do here.
    pub verdict: Verdict,
    /// The findings, in the order in which they are printed.
    pub findings: Vec<Finding>,
    /// The facts from which the verdict and the findings follow.
    facts: Facts,
}

/// One statement about the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Finding {
    /// Identifies the finding. It stays the same when the text changes.
    pub id: String,
    /// The section that the finding belongs to.
    pub section: Section,
    /// Whether this is good for jobs.
    pub mark: Mark,
    /// The statement in words.
    pub text: String,
    /// Advice for the user, or why the user need not do anything.
    pub advice: Option<String>,
}

/// The subject of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
#[allow(missing_docs)] // The names are sufficient.
pub enum Section {
    Kernel,
    Cgroup,
    Systemd,
    Container,
    Proc,
    Limits,
    Sandbox,
}

/// Whether a finding is good for jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Mark {
    /// As it should be.
    Good,
    /// Missing, or not as it should be.
    Bad,
    /// Neither good nor bad: a fact.
    Note,
}

/// Examines this machine. If `cgroup` is given, it is used in place of this process's own cgroup, as with
/// [`SupervisorBuilder::cgroup`](crate::SupervisorBuilder::cgroup).
///
/// The examination leaves nothing changed. It makes a cgroup where pinfold would make the cgroup of a job, starts
/// processes in it that do nothing, and removes the cgroup again. It connects to the sockets of systemd, but sends
/// nothing. It never fails: the findings report what it could not find out.
#[must_use]
pub fn examine(cgroup: Option<&Path>) -> Examination {
    examine_for(cgroup, None)
}

/// The same as [`examine`], where only this containment is allowed.
pub(crate) fn examine_for(cgroup: Option<&Path>, containment: Option<ContainmentKind>) -> Examination {
    Examination::of(Facts { containment, ..Facts::gather(cgroup) })
}

impl Examination {
    /// Draws the conclusions from these facts, which may be those of another machine.
    fn of(facts: Facts) -> Self {
        let mut findings = Vec::new();
        kernel::add_findings(&facts, &mut findings);
        cgroup::add_findings(&facts, &mut findings);
        surroundings::add_findings(&facts, &mut findings);
        sandbox::add_findings(&facts, &mut findings);
        Self { version: VERSION, verdict: Verdict::of(&facts), findings, facts }
    }

    /// Returns the examination as one line of JSON, without the newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Serialization can't fail: every field has a JSON form.
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

/// Returns the errno in words.
fn words(errno: i32) -> String {
    rustix::io::Errno::from_raw_os_error(errno).to_string()
}
