//! `--stats`: prints for people what the whole job used.

use crate::Report;
use crate::report::Figure;

use crate::cli::explain::size;
use crate::cli::print_message;

/// Prints one line for each kind of resource. It leaves out the figures that this machine does not provide.
pub fn stats(report: &Report) {
    let usage = &report.usage;
    let elapsed = report.phases.gone.unwrap_or_default();
    let seconds = |figure: &Figure| figure.value.map_or_else(|| "?".into(), |us| format!("{:.2}", us as f64 / 1e6));
    let cpu = usage.cpu_user_microseconds.value.zip(usage.cpu_system_microseconds.value);
    let share = cpu.map_or_else(String::new, |(user, system)| {
        format!(", {:.0} % of one CPU", (user + system) as f64 / 1e4 / elapsed.max(0.001))
    });
    print_message(&format!("{}: {elapsed:.2} s elapsed", crate::report::text::printable(&report.name)));
    let (user, system) = (seconds(&usage.cpu_user_microseconds), seconds(&usage.cpu_system_microseconds));
    print_message(&format!("  CPU     {user} s user, {system} s system{share}"));
    let bytes = |figure: &Figure, what: &str| figure.value.map(|value| format!("{} {what}", size(value)));
    let count = |figure: &Figure, what: &str| figure.value.map(|value| format!("{value} {what}"));
    let main = bytes(&usage.main_resident_peak_bytes, "of the main process");
    let swap = bytes(&usage.swap_peak_bytes, "swap").filter(|_| usage.swap_peak_bytes.value != Some(0));
    line("memory", [bytes(&usage.memory_peak_bytes, "peak"), main, swap]);
    let refused = count(&usage.forks_refused, "forks refused").filter(|_| usage.forks_refused.value != Some(0));
    line("tasks", [count(&usage.processes_peak, "peak"), refused, None]);
    let io = [(&usage.io_read_bytes, &usage.io_reads, "read"), (&usage.io_written_bytes, &usage.io_writes, "written")];
    let [read, written] = io.map(|(amount, operations, what)| {
        let operations = operations.value.map_or_else(String::new, |count| format!(" in {count} operations"));
        bytes(amount, what).map(|text| text + &operations)
    });
    line("I/O", [read, written, None]);
    let waited = |figure: &Figure, what: &str| figure.value.map(|us| format!("{:.2} s for {what}", us as f64 / 1e6));
    line(
        "waited",
        [
            waited(&usage.cpu_pressure_microseconds, "CPU"),
            waited(&usage.memory_pressure_microseconds, "memory"),
            waited(&usage.io_pressure_microseconds, "I/O"),
        ],
    );
}

fn line(name: &str, parts: [Option<String>; 3]) {
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    if !parts.is_empty() {
        print_message(&format!("  {name:<7} {}", parts.join(", ")));
    }
}
