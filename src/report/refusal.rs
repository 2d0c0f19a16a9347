//! Why pinfold can't use one way to hold jobs on this machine.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::printable;

/// One way to hold jobs that pinfold can't use on this machine, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Refusal {
    /// What pinfold tried.
    pub tried: String,
    /// Why pinfold can't use it.
    pub reason: String,
    /// Advice for the user.
    pub advice: String,
}

impl Refusal {
    pub(crate) fn new(tried: impl Into<String>, reason: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { tried: tried.into(), reason: reason.into(), advice: advice.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", printable(&self.tried), printable(&self.reason), printable(&self.advice))
    }
}
