//! What a job used.

use serde::{Deserialize, Serialize};

/// One figure, with where it comes from, or why there is none.
///
/// ```
/// # use pinfold::{Command, Error, Report};
/// let report = Report::of_failed_spawn(&Command::new("make"), &Error::GuardLost);
/// let figure = &report.usage.memory_peak_bytes;
/// assert_eq!((figure.value, figure.source.as_str()), (None, "the command was not started"));
/// ```
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
    pub(crate) fn known(value: u64, source: &str) -> Self {
        Self { value: Some(value), source: source.into() }
    }

    pub(crate) fn unknown(reason: impl Into<String>) -> Self {
        Self { value: None, source: reason.into() }
    }

    pub(crate) fn resident_peak(bytes: Option<u64>) -> Self {
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
    /// Memory in use when this was read, page cache included, in bytes: `memory.current` (memory controller).
    pub memory_current_bytes: Figure,
    /// Highest memory use, in bytes: `memory.peak` (memory controller, Linux 5.19). On older kernels the highest
    /// `memory.current` that was seen when a limit was hit and at the end, which the source says.
    pub memory_peak_bytes: Figure,
    /// Largest resident set of the main process or of one that it waited for, in bytes (getrusage(2)).
    pub main_resident_peak_bytes: Figure,
    /// Swap in use when this was read, in bytes: `memory.swap.current` (memory controller).
    pub swap_current_bytes: Figure,
    /// Highest swap use, in bytes: `memory.swap.peak` (memory controller, Linux 6.5).
    pub swap_peak_bytes: Figure,
    /// Processes and threads when this was read: `pids.current` (pids controller).
    pub processes_current: Figure,
    /// Most processes and threads at once: `pids.peak` (pids controller, Linux 6.6).
    pub processes_peak: Figure,
    /// Forks that failed because of the limit on processes: `max` of `pids.events` (pids controller).
    pub forks_refused: Figure,
    /// Bytes read from block devices: the sum of `rbytes` over all devices in `io.stat` (io controller).
    pub io_read_bytes: Figure,
    /// Bytes written to block devices: the sum of `wbytes`.
    pub io_written_bytes: Figure,
    /// Read operations on block devices: the sum of `rios`.
    pub io_reads: Figure,
    /// Write operations on block devices: the sum of `wios`.
    pub io_writes: Figure,
    /// Time in which some process was ready and waited for a CPU, in microseconds: `some` of `cpu.pressure` (PSI, the kernel's
    /// accounting/psi.rst; needs no controller). In a report only where it was asked for
    /// ([`Command::measure_pressure`](crate::Command::measure_pressure)), as are the next two.
    pub cpu_pressure_microseconds: Figure,
    /// Time in which some process waited for memory, in microseconds: `some` of `memory.pressure`.
    pub memory_pressure_microseconds: Figure,
    /// Time in which some process waited for I/O, in microseconds: `some` of `io.pressure`.
    pub io_pressure_microseconds: Figure,
}
