//! The findings about the promises of a sandbox.

use super::facts::Facts;
use super::{Finding, Section};
use crate::report::PromiseState;

pub(super) fn add_findings(facts: &Facts, findings: &mut Vec<Finding>) {
    for one in &facts.sandbox {
        let promise = one.promise;
        let id = format!("sandbox_{promise}");
        findings.push(match &one.state {
            PromiseState::Held { by } => Finding::good(&id, Section::Sandbox, format!("{promise}: held by {by}")),
            PromiseState::Waived { reason } => {
                Finding::bad(&id, Section::Sandbox, format!("{promise}: nothing here holds it: {reason}"))
                    .advise(format!("pinfold run --sandbox --waive {promise} runs without this promise"))
            }
            PromiseState::NotPromised { reason } => {
                Finding::note(&id, Section::Sandbox, format!("{promise}: {reason}"))
            }
        });
    }
    // The facts of older versions have no promises and nothing about refusals.
    if !facts.sandbox.is_empty() {
        let id = "sandbox_explain_denials";
        findings.push(match &facts.denials_refused {
            None => Finding::good(id, Section::Sandbox, "--explain-denials works: a listener of the seccomp filter"),
            Some(reason) => Finding::note(id, Section::Sandbox, format!("--explain-denials does not work: {reason}")),
        });
    }
}
