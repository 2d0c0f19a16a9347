//! Messages on standard error about how a job ended.

use std::time::Duration;

use crate::report::text::{counted, printable};
use crate::report::{MainEnd, ProcessList, Reason};
use crate::{Report, Signal};

use super::print_message;

/// The settings that the messages need. The report does not contain them.
pub struct Settings {
    pub timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub quiet: bool,
    pub verbose: bool,
}

/// Prints on standard error how the job ended.
pub fn explain(report: &Report, settings: &Settings) {
    explain_failures(report);
    if !settings.quiet {
        explain_end(report, settings);
    }
}

/// Prints what pinfold could not end or remove, and whether the guard was killed.
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

/// Returns a message about filters that pinfold ended before they had finished, if there were any. `timeout` and `init`
/// print no message about other leftovers.
pub fn unfinished_filters(report: &Report) -> Option<String> {
    report.unfinished_filters.then(|| leftovers(report))
}

fn leftovers(report: &Report) -> String {
    let outcome = match (report.killed, report.phases.stopping) {
        (true, _) => "killed now",
        (false, Some(_)) => "ended now",
        (false, None) => "waited for",
    };
    format!("{} left {} behind, {outcome}", printable(&report.name), processes(&report.leftovers))
}

/// Returns a message about the signal that ended the command. Returns `None` if another message already reports the end
/// (a deadline, the OOM killer). Also returns `None` for SIGPIPE and SIGINT, because a shell prints nothing about these
/// signals either. (After SIGINT, pinfold itself ends by SIGINT.)
fn signal_that_ended(report: &Report) -> Option<String> {
    let main = report.main.as_ref()?;
    let MainEnd::Signalled { signal, core_dumped, .. } = main else { return None };
    let is_known = matches!(report.reason, Reason::Oom | Reason::GuardLost);
    let is_quiet = [libc::SIGPIPE, libc::SIGINT].contains(signal);
    if is_known || is_quiet || report.exit_code != main.exit_code() {
        return None;
    }
    let name = Signal::from_number(*signal)?;
    Some(format!("{} was ended by {name}{}", printable(&report.name), if *core_dumped { " (core dumped)" } else { "" }))
}

fn explain_end(report: &Report, settings: &Settings) {
    let name = printable(&report.name);
    let how = if report.killed { "killed" } else { "stopped" };
    let time = |limit: Option<Duration>| humantime::format_duration(limit.unwrap_or_default());
    if let Some(message) = signal_that_ended(report) {
        print_message(&message);
    }
    if report.reason == Reason::Deadline {
        print_message(&format!("{name} was {how} at its deadline of {}", time(settings.timeout)));
    }
    if report.reason == Reason::Idle {
        print_message(&format!("{name} was {how}: it had written nothing for {}", time(settings.idle_timeout)));
    }
    if let Some(oom) = &report.oom {
        let victims: Vec<_> =
            oom.victims.iter().take(3).map(|victim| format!("{} {}", victim.pid, printable(&victim.name))).collect();
        let victims = if victims.is_empty() { String::new() } else { format!(" ({})", victims.join(", ")) };
        let peak =
            report.usage.memory_peak_bytes.value.map_or_else(String::new, |bytes| format!(" at {}", size(bytes)));
        if report.reason == Reason::Oom {
            print_message(&format!("{name} ran out of memory{peak} and was killed{victims}"));
        } else {
            let killed = counted(usize::try_from(oom.kills).unwrap_or(usize::MAX), "process");
            print_message(&format!("{name} ran out of memory{peak}: the kernel killed {killed}{victims}"));
        }
    }
    if report.leftovers.count > 0 {
        print_message(&leftovers(report));
    }
    if report.emigrants.count > 0 {
        let is_unkillable = |pid| report.unkillable.processes.iter().any(|process| process.pid == pid);
        let all_ended = !report.emigrants.processes.iter().any(|emigrant| is_unkillable(emigrant.pid));
        let outcome = if all_ended { "killed now" } else { "not all could be killed" };
        print_message(&format!("{} had left its cgroup, {outcome}", processes(&report.emigrants)));
    }
    if settings.verbose {
        print_message(&format!("{name} {} ({})", how_it_ended(report), containment(report)));
    }
}

/// Returns how the main process ended, and why.
fn how_it_ended(report: &Report) -> String {
    let how = match &report.main {
        Some(MainEnd::Exited(code)) => format!("exited with code {code}"),
        Some(MainEnd::Signalled { name, .. }) => format!("was ended by {name}"),
        None => "ended, and pinfold does not know how".to_owned(),
    };
    let why = match report.reason {
        Reason::Oom => " because it ran out of memory",
        Reason::Deadline => " at its deadline",
        Reason::Idle => " at its idle timeout",
        Reason::Stopped => " after a stop request",
        Reason::Killed => " after a kill request",
        Reason::GuardLost => " after its guard was killed",
        Reason::Exited | Reason::SpawnFailed | Reason::Cancelled => "",
    };
    how + why
}

/// Returns the containment that held the job.
fn containment(report: &Report) -> String {
    match &report.containment.cgroup {
        Some(cgroup) => format!("cgroup {}", printable(cgroup)),
        None => "no cgroup: the guard held it as subreaper".to_owned(),
    }
}

/// Returns the number of processes and the first few of them.
pub fn processes(processes: &ProcessList) -> String {
    const SHOWN: usize = 3;
    let mut text = counted(processes.len(), "process");
    let shown: Vec<_> = processes.processes.iter().take(SHOWN).map(ToString::to_string).collect();
    if !shown.is_empty() {
        let more = if processes.count as usize > shown.len() { ", …" } else { "" };
        text.push_str(&format!(" ({}{more})", shown.join(", ")));
    }
    text
}

/// Formats a number of bytes for people, in units that are powers of 1024.
pub fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut units = ["B", "KiB", "MiB", "GiB", "TiB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    for larger in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" || value >= 100.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes() {
        for (bytes, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (64 << 20, "64.0 MiB"), (1 << 50, "1024 TiB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
