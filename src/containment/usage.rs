//! What a job used, read from its leaf before that is removed.

use serde::{Deserialize, Serialize};

use super::cgroup::Cgroup;

/// One figure, with where it comes from, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Figure {
    /// The value in the unit of the field, or null where this machine can't tell.
    pub value: Option<u64>,
    /// The file or call that it was read from, or the reason why there is none.
    pub source: String,
}

impl Figure {
    fn known(value: u64, source: &str) -> Self {
        Self { value: Some(value), source: source.into() }
    }

    fn unknown(reason: impl Into<String>) -> Self {
        Self { value: None, source: reason.into() }
    }

    fn resident_peak(bytes: Option<u64>) -> Self {
        bytes
            .map_or_else(|| Self::unknown("the main process was not seen to end"), |bytes| Self::known(bytes, "rusage"))
    }
}

/// What the whole job used, ended processes included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Usage {
    /// CPU time in user mode, in microseconds: `user_usec` of the leaf's `cpu.stat`, which needs no controller
    /// (the kernel's admin-guide/cgroup-v2.rst).
    pub cpu_user_microseconds: Figure,
    /// CPU time in the kernel, in microseconds: `system_usec` of `cpu.stat`.
    pub cpu_system_microseconds: Figure,
    /// Highest memory use, in bytes: `memory.peak` (memory controller, Linux 5.19).
    pub memory_peak_bytes: Figure,
    /// Largest resident set of the main process or of one that it waited for, in bytes (getrusage(2)).
    pub main_resident_peak_bytes: Figure,
    /// Most processes and threads at once: `pids.peak` (pids controller, Linux 6.6).
    pub processes_peak: Figure,
    /// Bytes read from block devices: the sum of `rbytes` over all devices in `io.stat` (io controller).
    pub io_read_bytes: Figure,
    /// Bytes written to block devices: the sum of `wbytes` over all devices in `io.stat` (io controller).
    pub io_written_bytes: Figure,
}

impl Usage {
    pub(crate) fn unknown(reason: &str) -> Self {
        let figure = || Figure::unknown(reason);
        Self {
            cpu_user_microseconds: figure(),
            cpu_system_microseconds: figure(),
            memory_peak_bytes: figure(),
            main_resident_peak_bytes: figure(),
            processes_peak: figure(),
            io_read_bytes: figure(),
            io_written_bytes: figure(),
        }
    }

    /// Without a cgroup: what the guard has reaped.
    pub(crate) fn of_reaped(cpu_user: u64, cpu_system: u64, main_resident_peak: Option<u64>) -> Self {
        let source = "rusage of the processes that the guard has reaped, with those that these had waited for";
        Self {
            cpu_user_microseconds: Figure::known(cpu_user, source),
            cpu_system_microseconds: Figure::known(cpu_system, source),
            main_resident_peak_bytes: Figure::resident_peak(main_resident_peak),
            ..Self::unknown("there is no cgroup that would count it")
        }
    }

    /// `controllers` are those that the leaf has: the files of others are not there.
    pub(crate) fn read(leaf: &Cgroup, controllers: &str, main_resident_peak: Option<u64>) -> Self {
        let has = |controller: &str| controllers.split_ascii_whitespace().any(|known| known == controller);
        let cpu = leaf.read(c"cpu.stat");
        let time = |key: &str| match &cpu {
            Ok(text) => value_of(text, key).map_or_else(
                || Figure::unknown(format!("cpu.stat has no {key}")),
                |value| Figure::known(value, "cpu.stat"),
            ),
            Err(errno) => Figure::unknown(format!("cpu.stat: {errno}")),
        };
        let single =
            |file: &std::ffi::CStr, controller: &str, since: &str| match has(controller).then(|| leaf.read(file)) {
                None => Figure::unknown(format!("the {controller} controller is not enabled in this cgroup")),
                Some(Ok(text)) => text.trim().parse().map_or_else(
                    |_| Figure::unknown(format!("{} says {}", file.to_string_lossy(), text.trim())),
                    |value| Figure::known(value, &file.to_string_lossy()),
                ),
                Some(Err(_)) => Figure::unknown(format!("the kernel is older than {since}")),
            };
        let io = has("io").then(|| leaf.read_whole(c"io.stat"));
        let bytes = |key: &str| match &io {
            Some(Ok(text)) => Figure::known(sum_of(text, key), "io.stat"),
            Some(Err(errno)) => Figure::unknown(format!("io.stat: {errno}")),
            None => Figure::unknown("the io controller is not enabled in this cgroup"),
        };
        Self {
            cpu_user_microseconds: time("user_usec"),
            cpu_system_microseconds: time("system_usec"),
            memory_peak_bytes: single(c"memory.peak", "memory", "5.19"),
            main_resident_peak_bytes: Figure::resident_peak(main_resident_peak),
            processes_peak: single(c"pids.peak", "pids", "6.6"),
            io_read_bytes: bytes("rbytes"),
            io_written_bytes: bytes("wbytes"),
        }
    }
}

/// The value of `key` in a flat keyed file (`KEY VALUE` lines).
fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// The sum over all devices of `key=VALUE` in a nested keyed file.
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
