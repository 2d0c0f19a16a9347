//! Messages for people about what a sandbox refused.

use crate::Report;
use crate::report::{Denial, Reason};

use super::print_message;

/// The most refusals that are printed. The report lists more.
const PRINTED: usize = 20;

/// Prints what the sandbox refused to the job, or how to find it out if the job has failed.
pub fn explain(report: &Report) {
    let Some(sandbox) = &report.sandbox else { return };
    let failed = report.reason == Reason::Exited && report.exit_code != 0;
    match &sandbox.denials {
        None if failed => hint(),
        Some(denials) if !denials.is_empty() => list(denials, sandbox.denials_left_out),
        Some(_) if failed => print_message("the sandbox refused nothing that pinfold looks at"),
        _ => {}
    }
}

/// Prints how to find out what the sandbox refused.
pub fn hint() {
    print_message("to see what the sandbox refused, add --explain-denials");
}

fn list(denials: &[Denial], left_out: u64) {
    for denial in denials.iter().take(PRINTED) {
        print_message(&format!("the sandbox refused: {denial}"));
    }
    let more = denials.iter().skip(PRINTED).map(|denial| denial.count).sum::<u64>().saturating_add(left_out);
    if more > 0 {
        print_message(&format!("the sandbox refused {more} more calls; a report (--report) lists 100 of them"));
    }
}
