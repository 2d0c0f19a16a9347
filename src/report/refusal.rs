//! A containment that this machine does not offer.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::text::printable;

/// A way to hold jobs that this machine does not offer, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Refusal {
    /// What was tried.
    pub tried: String,
    /// Why it can't be used.
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
