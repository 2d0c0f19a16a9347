//! The resource usage of a job, read from its leaf before the leaf is removed.

use std::ffi::CStr;

use rustix::io::{Errno, Result};

use crate::cgroup::directory::Cgroup;
use crate::report::{Figure, Usage};

/// Figures that pinfold measured itself, because the leaf's files may not have them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Measured {
    /// The main process's largest resident set, in bytes.
    pub main_resident_peak: Option<u64>,
    /// The highest memory use that pinfold read when an event came, in bytes.
    pub memory_highest: Option<u64>,
}

impl Usage {
    /// Returns a usage in which no figure is known, for the given reason.
    pub(crate) fn unknown(reason: &str) -> Self {
        Self::with(|_| Figure::unknown(reason))
    }

    /// Returns the usage of a job without a cgroup, which is the usage of the processes that the guard has reaped.
    pub(crate) fn of_reaped(cpu_user: u64, cpu_system: u64, seen: Measured) -> Self {
        let source = "rusage of the processes that the guard has reaped, and of those that these had waited for";
        Self {
            cpu_user_microseconds: Figure::known(cpu_user, source),
            cpu_system_microseconds: Figure::known(cpu_system, source),
            main_resident_peak_bytes: Figure::resident_peak(seen.main_resident_peak),
            ..Self::unknown("without a cgroup this is not counted")
        }
    }

    /// Reads the usage from the files of `leaf`. `controllers` are those that the leaf has; the files of other
    /// controllers do not exist. Also returns whether a file could not be read because descriptors ran out.
    pub(crate) fn read(leaf: &Cgroup, controllers: &str, seen: Measured, with_pressure: bool) -> (Self, bool) {
        let mut files = Files { leaf, controllers, with_pressure, texts: Vec::new() };
        let mut usage = Self::with(|source| files.figure(source));
        usage.main_resident_peak_bytes = Figure::resident_peak(seen.main_resident_peak);
        if let (None, Some(current)) = (usage.memory_peak_bytes.value, usage.memory_current_bytes.value) {
            let highest = current.max(seen.memory_highest.unwrap_or(0));
            usage.memory_peak_bytes = Figure::known(highest, "the highest memory.current that pinfold read");
        }
        let short = files.texts.iter().any(|(_, text)| matches!(text, Err(Errno::MFILE | Errno::NFILE)));
        (usage, short)
    }

    /// Returns a usage. `figure` reads each figure from its source.
    fn with(mut figure: impl FnMut(&Source) -> Figure) -> Self {
        let mut from = |controller, file, key, since| figure(&Source { controller, file, key, since });
        Self {
            cpu_user_microseconds: from("", c"cpu.stat", Key::Flat("user_usec"), ""),
            cpu_system_microseconds: from("", c"cpu.stat", Key::Flat("system_usec"), ""),
            memory_current_bytes: from("memory", c"memory.current", Key::Single, "4.5"),
            memory_peak_bytes: from("memory", c"memory.peak", Key::Single, "5.19"),
            main_resident_peak_bytes: from("", c"", Key::Single, ""),
            swap_current_bytes: from("memory", c"memory.swap.current", Key::Single, "4.5, or does not count swap"),
            swap_peak_bytes: from("memory", c"memory.swap.peak", Key::Single, "6.5, or does not count swap"),
            processes_current: from("pids", c"pids.current", Key::Single, "4.3"),
            processes_peak: from("pids", c"pids.peak", Key::Single, "6.6"),
            forks_refused: from("pids", c"pids.events", Key::Flat("max"), "4.8"),
            io_read_bytes: from("io", c"io.stat", Key::Sum("rbytes"), "4.5"),
            io_written_bytes: from("io", c"io.stat", Key::Sum("wbytes"), "4.5"),
            io_reads: from("io", c"io.stat", Key::Sum("rios"), "4.5"),
            io_writes: from("io", c"io.stat", Key::Sum("wios"), "4.5"),
            cpu_pressure_microseconds: from(
                "",
                c"cpu.pressure",
                Key::Pressure,
                "4.20, or keeps no PSI (boot with psi=1)",
            ),
            memory_pressure_microseconds: from(
                "",
                c"memory.pressure",
                Key::Pressure,
                "4.20, or keeps no PSI (boot with psi=1)",
            ),
            io_pressure_microseconds: from(
                "",
                c"io.pressure",
                Key::Pressure,
                "4.20, or keeps no PSI (boot with psi=1)",
            ),
        }
    }
}

/// The file and the key of a figure.
struct Source {
    /// The controller that the file belongs to; empty for the files that every cgroup has.
    controller: &'static str,
    file: &'static CStr,
    key: Key,
    /// The kernel version that introduced the file.
    since: &'static str,
}

/// The part of the file that is the figure.
#[derive(Clone, Copy)]
enum Key {
    /// The whole file.
    Single,
    /// The value of a line `KEY VALUE`.
    Flat(&'static str),
    /// The sum over all devices of `KEY=VALUE`.
    Sum(&'static str),
    /// The value of `total=` in the line `some`.
    Pressure,
}

/// The files of a leaf, each of which is read once.
struct Files<'a> {
    leaf: &'a Cgroup,
    controllers: &'a str,
    with_pressure: bool,
    texts: Vec<(&'static CStr, Result<String>)>,
}

impl Files<'_> {
    fn figure(&mut self, &Source { controller, file, key, since }: &Source) -> Figure {
        if file.is_empty() {
            return Figure::unknown("");
        }
        if !controller.is_empty() && !self.controllers.split_ascii_whitespace().any(|known| known == controller) {
            // This is the usual case for most figures. `concat` is faster than `format!` by some microseconds for each
            // job.
            return Figure::unknown(["the ", controller, " controller is not enabled in this cgroup"].concat());
        }
        if matches!(key, Key::Pressure) && !self.with_pressure {
            return Figure::unknown("not requested (Command::measure_pressure)");
        }
        let name = file.to_string_lossy();
        let known = self.texts.iter().position(|(known, _)| *known == file).unwrap_or_else(|| {
            let text = match key {
                // These files have a line for each device, so they can be long.
                Key::Sum(_) => self.leaf.read_whole(file),
                Key::Single | Key::Flat(_) | Key::Pressure => self.leaf.read(file),
            };
            self.texts.push((file, text));
            self.texts.len() - 1
        });
        let text = match &self.texts[known].1 {
            Ok(text) => text,
            Err(Errno::NOENT | Errno::OPNOTSUPP) if !since.is_empty() => {
                return Figure::unknown(format!("{name}: the kernel is older than {since}"));
            }
            Err(errno) => return Figure::unknown(format!("{name}: {errno}")),
        };
        let value = match key {
            Key::Single => text.trim().parse().ok(),
            Key::Flat(key) => value_of(text, key),
            Key::Sum(key) => Some(sum_of(text, key)),
            Key::Pressure => text.lines().find(|line| line.starts_with("some ")).map(|line| sum_of(line, "total")),
        };
        value.map_or_else(
            || Figure::unknown(format!("{name} does not contain this value")),
            |value| Figure::known(value, &name),
        )
    }
}

/// Returns the value of `key` in a flat keyed file (`KEY VALUE` lines).
pub(crate) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// Returns the sum over all devices of `key=VALUE` in a nested keyed file.
fn sum_of(text: &str, key: &str) -> u64 {
    text.split_ascii_whitespace()
        .filter_map(|pair| pair.split_once('=').filter(|(name, _)| *name == key)?.1.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keyed_files() {
        assert_eq!(value_of("usage_usec 9\nuser_usec 5\n", "user_usec"), Some(5));
        assert_eq!(value_of("user_usecs 5\n", "user_usec"), None);
        assert_eq!(sum_of("8:0 rbytes=1 wbytes=2\n8:16 rbytes=10 wbytes=20 rios=1\n", "rbytes"), 11);
    }
}
