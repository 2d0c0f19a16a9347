//! Messages on standard error about what a sandbox refused.

use crate::Report;
use crate::report::{Denial, Reason};

use super::print_message;

/// The maximum number of denials that are printed. The report lists more.
const MAX_PRINTED: usize = 20;

/// Prints what the sandbox refused to the job. If the job failed without `--explain-denials`, prints a hint instead.
pub fn print_denials(report: &Report) {
    let Some(sandbox) = &report.sandbox else { return };
    let failed = report.reason == Reason::Exited && report.exit_code != 0;
    match &sandbox.denials {
        None if failed => print_hint(),
        Some(denials) if !denials.is_empty() => print_list(denials, sandbox.denials_left_out),
        Some(_) if failed => print_message("pinfold has seen no call that the sandbox refused"),
        _ => {}
    }
}

/// Prints which option shows what the sandbox refused.
pub fn print_hint() {
    print_message("to see what the sandbox refused, add --explain-denials");
}

fn print_list(denials: &[Denial], left_out: u64) {
    for denial in denials.iter().take(MAX_PRINTED) {
        print_message(&format!("the sandbox refused: {denial}"));
    }
    let more = denials.iter().skip(MAX_PRINTED).map(|denial| denial.count).sum::<u64>().saturating_add(left_out);
    if more > 0 {
        print_message(&format!(
            "the sandbox refused {more} more calls; the report (--report) lists up to 100 different denials"
        ));
    }
}
