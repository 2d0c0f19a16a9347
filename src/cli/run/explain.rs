//! Messages for people about a job that is over.

use crate::cli::{print_message, processes};
use crate::report::text::printable;
use crate::report::{MainEnd, Reason, exit_code_of_signal};
use crate::{Report, Signal};

use super::args::Args;
use super::stats::size;

/// Prints on standard error how the job ended.
pub fn explain(args: &Args, report: &Report) {
    explain_failures(report);
    if args.quiet {
        return;
    }
    explain_end(args, report);
}

/// Prints which promises pinfold could not keep.
pub fn explain_failures(report: &Report) {
    if report.unkillable.count > 0 {
        print_message(&format!("could not end {}", processes(&report.unkillable)));
    }
    for left in &report.not_removed {
        print_message(&format!("could not remove {}: {}", printable(&left.path), left.error));
    }
    if report.reason == Reason::GuardLost {
        print_message("the guard process was killed; the job has been ended");
    }
}

/// Returns a message about the signal that ended the command, where only the exit code shows that signal. Returns
/// `None` where another message reports the end (a deadline, the OOM killer), and for the signals about which a shell
/// prints nothing either: SIGPIPE, and SIGINT, by which pinfold ends too.
fn signal_that_ended(report: &Report) -> Option<String> {
    let Some(MainEnd::Signalled { signal, core_dumped, .. }) = &report.main else { return None };
    let is_known = matches!(report.reason, Reason::Oom | Reason::GuardLost);
    let is_quiet = [libc::SIGPIPE, libc::SIGINT].contains(signal);
    if is_known || is_quiet || report.exit_code != exit_code_of_signal(*signal) {
        return None;
    }
    let name = Signal::from_number(*signal)?;
    Some(format!("{} was ended by {name}{}", printable(&report.name), if *core_dumped { " (core dumped)" } else { "" }))
}

fn explain_end(args: &Args, report: &Report) {
    let name = printable(&report.name);
    if let Some(message) = signal_that_ended(report) {
        print_message(&message);
    }
    if report.reason == Reason::Deadline {
        let timeout = args.timeout.unwrap_or_default();
        let how = if report.killed { "killed" } else { "stopped" };
        print_message(&format!("{} was {how} at its deadline of {}", name, humantime::format_duration(timeout)));
    }
    if report.reason == Reason::Idle {
        let timeout = args.streams.idle_timeout.unwrap_or_default();
        let how = if report.killed { "killed" } else { "stopped" };
        print_message(&format!(
            "{} was {how}: it had written nothing for {}",
            name,
            humantime::format_duration(timeout)
        ));
    }
    if let Some(oom) = &report.oom {
        let victims: Vec<_> =
            oom.victims.iter().take(3).map(|victim| format!("{} {}", victim.pid, printable(&victim.name))).collect();
        let victims = if victims.is_empty() { String::new() } else { format!(" ({})", victims.join(", ")) };
        let peak =
            report.usage.memory_peak_bytes.value.map_or_else(String::new, |bytes| format!(" at {}", size(bytes)));
        if report.reason == Reason::Oom {
            print_message(&format!("{} ran out of memory{peak} and was killed{victims}", report.name));
        } else {
            print_message(&format!("{} ran out of memory{peak}: {} of its processes killed{victims}", name, oom.kills));
        }
    }
    if report.leftovers.count > 0 {
        let fate = match (report.killed, report.phases.stopping) {
            (true, _) => "killed now",
            (false, Some(_)) => "ended now",
            (false, None) => "waited for",
        };
        print_message(&format!("{} left {} behind, {fate}", name, processes(&report.leftovers)));
    }
    if report.emigrants.count > 0 {
        let lives = |pid| report.unkillable.processes.iter().any(|process| process.pid == pid);
        let all_ended = !report.emigrants.processes.iter().any(|emigrant| lives(emigrant.pid));
        let fate = if all_ended { "killed now" } else { "not all could be killed" };
        print_message(&format!("{} had left its cgroup, {fate}", processes(&report.emigrants)));
    }
    if args.verbose {
        print_message(&format!(
            "{:?}, {:?} in {}",
            report.reason,
            report.main,
            printable(report.containment.cgroup.as_deref().unwrap_or("no cgroup, held by the guard as subreaper"))
        ));
    }
}
