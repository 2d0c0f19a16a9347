//! What a job used.

use serde::{Deserialize, Serialize};

/// One figure, with its source, or with the reason why it is not available.
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
    /// The value, in the unit of the field; null if it is not available on this machine.
    pub value: Option<u64>,
    /// The file or system call that the value was read from, or the reason why there is no value.
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
        bytes.map_or_else(
            || Self::unknown("it is not known how the main process ended"),
            |bytes| Self::known(bytes, "rusage"),
        )
    }
}

/// The resource usage of the whole job, including processes that have ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Usage {
    /// CPU time in user mode, in microseconds: `user_usec` of `cpu.stat` in the leaf (the job's cgroup). It needs no
    /// controller (the kernel's admin-guide/cgroup-v2.rst).
    pub cpu_user_microseconds: Figure,
    /// CPU time in the kernel, in microseconds: `system_usec` of `cpu.stat`.
    pub cpu_system_microseconds: Figure,
    /// Memory in use when pinfold read this file, including page cache, in bytes: `memory.current` (memory controller).
    pub memory_current_bytes: Figure,
    /// Highest memory use, in bytes: `memory.peak` (memory controller, Linux 5.19). On older kernels: the highest
    /// `memory.current` that pinfold read when a limit was reached and at the end of the job; the source then mentions
    /// this.
    pub memory_peak_bytes: Figure,
    /// Largest resident set of the main process, or of a child that the main process waited for, in bytes
    /// (getrusage(2)).
    pub main_resident_peak_bytes: Figure,
    /// Swap in use when pinfold read this file, in bytes: `memory.swap.current` (memory controller).
    pub swap_current_bytes: Figure,
    /// Highest swap use, in bytes: `memory.swap.peak` (memory controller, Linux 6.5).
    pub swap_peak_bytes: Figure,
    /// Processes and threads when pinfold read this file: `pids.current` (pids controller).
    pub processes_current: Figure,
    /// Highest number of processes and threads at the same time: `pids.peak` (pids controller, Linux 6.6).
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
    /// Time in which at least one process was ready and waited for a CPU, in microseconds: `some` of `cpu.pressure`
    /// (PSI, the kernel's accounting/psi.rst). It needs no controller. A report contains this figure and the next two
    /// only if the caller requested them ([`Command::measure_pressure`](crate::Command::measure_pressure)).
    pub cpu_pressure_microseconds: Figure,
    /// Time in which at least one process waited for memory, in microseconds: `some` of `memory.pressure`.
    pub memory_pressure_microseconds: Figure,
    /// Time in which at least one process waited for I/O, in microseconds: `some` of `io.pressure`.
    pub io_pressure_microseconds: Figure,
}
