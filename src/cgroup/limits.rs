//! Limits on the resources of a job: plain data, which is checked before any process is started.

use std::path::Path;

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::kernel::rlimit::Rlimit;
use crate::kernel::size::Size;

/// A cgroup v2 controller (the kernel's `admin-guide/cgroup-v2.rst`).
///
/// ```
/// use pinfold::{Controller, Limits};
/// assert_eq!(Limits::new().memory(512 << 20).controllers(), [Controller::Memory]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Controller {
    /// CPU time: `cpu.max`, `cpu.weight`.
    Cpu,
    /// The set of CPUs: `cpuset.cpus`.
    Cpuset,
    /// Block devices: `io.max`, `io.weight`, `io.stat`.
    Io,
    /// Memory and swap: `memory.max` and similar files, `memory.peak`.
    Memory,
    /// Processes and threads: `pids.max`, `pids.peak`.
    Pids,
}

impl Controller {
    pub(crate) const ALL: [Self; 5] = [Self::Cpu, Self::Cpuset, Self::Io, Self::Memory, Self::Pids];

    /// Returns the name of the controller in `cgroup.controllers`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Io => "io",
            Self::Memory => "memory",
            Self::Pids => "pids",
        }
    }
}

impl std::fmt::Display for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Limits on reads from and writes to one block device, each of them per second (`io.max`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoMax {
    /// The device: its file (`/dev/sda`), its number (`MAJOR:MINOR`), or any path, for the disk that contains this
    /// path.
    pub device: String,
    /// Bytes read per second.
    pub rbps: Option<u64>,
    /// Bytes written per second.
    pub wbps: Option<u64>,
    /// Read operations per second.
    pub riops: Option<u64>,
    /// Write operations per second.
    pub wiops: Option<u64>,
}

impl std::str::FromStr for IoMax {
    type Err = Error;

    /// Reads `DEVICE:rbps=10M,wiops=100`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::invalid("I/O limit", text, "write DEVICE:KEY=VALUE[,KEY=VALUE…], with rbps, wbps, riops or wiops")
        };
        let (device, pairs) = text.rsplit_once(':').filter(|(device, _)| !device.is_empty()).ok_or_else(bad)?;
        let mut limit = Self { device: device.into(), ..Self::default() };
        for pair in pairs.split(',') {
            let (key, value) = pair.split_once('=').ok_or_else(bad)?;
            let (place, bytes) = match key {
                "rbps" => (&mut limit.rbps, true),
                "wbps" => (&mut limit.wbps, true),
                "riops" => (&mut limit.riops, false),
                "wiops" => (&mut limit.wiops, false),
                _ => return Err(bad()),
            };
            let value = match (bytes, value.parse::<Size>()) {
                (true, Ok(Size::Bytes(bytes))) => bytes,
                (true, _) => return Err(bad()),
                (false, _) => value.parse().map_err(|_| bad())?,
            };
            if value == 0 || place.replace(value).is_some() {
                return Err(bad());
            }
        }
        Ok(limit)
    }
}

/// Limits on the resources of a job. All limits are set before the command's first instruction, or the spawn fails: a
/// limit that cannot be enforced is an error ([`Error::Limit`]), never a warning.
///
/// The cgroup limits apply to the whole job together. Each of them needs a controller:
/// [`SupervisorBuilder::controllers`](crate::SupervisorBuilder::controllers). Resource limits and niceness apply to each process and are
/// inherited.
///
/// The limits protect against careless jobs. A job that runs as the owner of its cgroup could remove them.
///
/// ```
/// use pinfold::{Limits, Size};
/// let limits = Limits::new().memory("512M".parse::<Size>()?).pids(100).cpus(1.5);
/// # Ok::<(), pinfold::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use]
pub struct Limits {
    pub(crate) memory: Option<Size>,
    pub(crate) memory_high: Option<Size>,
    pub(crate) swap: Option<Size>,
    pub(crate) pids: Option<u64>,
    pub(crate) cpus: Option<f64>,
    pub(crate) cpu_weight: Option<u64>,
    pub(crate) io_weight: Option<u64>,
    pub(crate) io_max: Vec<IoMax>,
    pub(crate) cpuset: Option<String>,
    pub(crate) oom_group: bool,
    pub(crate) rlimits: Vec<Rlimit>,
    pub(crate) nice: Option<i32>,
}

impl Limits {
    /// Returns no limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// Limits the memory, including the page cache (`memory.max`). At this limit, the kernel first reclaims memory of
    /// the job. If that is not enough, its OOM killer ends processes of the job.
    pub fn memory(mut self, size: impl Into<Size>) -> Self {
        self.memory = Some(size.into());
        self
    }

    /// Sets the memory beyond which the kernel slows the job down and reclaims memory from it (`memory.high`).
    pub fn memory_high(mut self, size: impl Into<Size>) -> Self {
        self.memory_high = Some(size.into());
        self
    }

    /// Limits the swap (`memory.swap.max`). With a [`memory`](Self::memory) limit and without this one, the job gets no swap:
    /// with swap, it could exceed the memory limit and slow down the machine.
    pub fn swap(mut self, size: impl Into<Size>) -> Self {
        self.swap = Some(size.into());
        self
    }

    /// Limits the number of processes and threads at the same time. A fork beyond it fails with `EAGAIN` (`pids.max`).
    pub fn pids(mut self, count: u64) -> Self {
        self.pids = Some(count);
        self
    }

    /// Limits the CPU time per second, in CPUs: 0.5 is half of one CPU. At least 0.01 (`cpu.max`, in periods of 100 ms).
    pub fn cpus(mut self, cpus: f64) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// Sets the weight of the job when jobs compete for CPU time: 1 to 10000, 100 by default (`cpu.weight`).
    pub fn cpu_weight(mut self, weight: u64) -> Self {
        self.cpu_weight = Some(weight);
        self
    }

    /// Sets the weight of the job when jobs compete for I/O, with the same values as [`cpu_weight`](Self::cpu_weight)
    /// (`io.weight`).
    pub fn io_weight(mut self, weight: u64) -> Self {
        self.io_weight = Some(weight);
        self
    }

    /// Adds a limit on a block device (`io.max`).
    pub fn io_max(mut self, limit: IoMax) -> Self {
        self.io_max.push(limit);
        self
    }

    /// Sets the CPUs that the job may use, for example `0-3,7` (`cpuset.cpus`).
    pub fn cpuset(mut self, cpus: impl Into<String>) -> Self {
        self.cpuset = Some(cpus.into());
        self
    }

    /// Sets whether the kernel kills the whole job, and not only one of its processes, when memory runs out
    /// (`memory.oom.group`, Linux 4.19).
    pub fn oom_group(mut self, whole_job: bool) -> Self {
        self.oom_group = whole_job;
        self
    }

    /// Adds a resource limit. Resource limits are set before the user is changed.
    pub fn rlimit(mut self, limit: Rlimit) -> Self {
        self.rlimits.push(limit);
        self
    }

    /// Sets the niceness, from -20 (highest priority, for root) to 19 (setpriority(2)).
    pub fn nice(mut self, niceness: i32) -> Self {
        self.nice = Some(niceness);
        self
    }

    /// Returns the controllers that the limits need, for [`SupervisorBuilder::controllers`](crate::SupervisorBuilder::controllers).
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        let memory = self.memory.is_some() || self.memory_high.is_some() || self.swap.is_some() || self.oom_group;
        [
            (Controller::Cpu, self.cpus.is_some() || self.cpu_weight.is_some()),
            (Controller::Cpuset, self.cpuset.is_some()),
            (Controller::Io, self.io_weight.is_some() || !self.io_max.is_empty()),
            (Controller::Memory, memory),
            (Controller::Pids, self.pids.is_some()),
        ]
        .into_iter()
        .filter_map(|(controller, needed)| needed.then_some(controller))
        .collect()
    }

    /// Checks that all values are valid on this machine. A spawn makes the same check.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the first invalid value.
    pub(crate) fn check(&self) -> Result<()> {
        let page = rustix::param::page_size() as u64;
        for (what, size) in [("memory limit", self.memory), ("memory-high limit", self.memory_high)] {
            if let Some(bytes) = size.and_then(|size| size.bytes_of(machine_memory()))
                && bytes < page
            {
                return Err(Error::invalid(what, bytes.to_string(), format!("it is below a page of {page} bytes")));
            }
        }
        // The kernel's own limit on the number of processes (PID_MAX_LIMIT).
        if let Some(pids) = self.pids
            && !(1..=4_194_304).contains(&pids)
        {
            return Err(Error::invalid("limit on processes", pids.to_string(), "it must be from 1 to 4194304"));
        }
        // The kernel's minimum quota is 1 ms in a period (`min_cfs_quota_period`, kernel/sched/core.c).
        if let Some(cpus) = self.cpus
            && !(0.01..=10_000.0).contains(&cpus)
        {
            return Err(Error::invalid("number of CPUs", cpus.to_string(), "it must be from 0.01 to 10000"));
        }
        for (what, weight) in [("CPU weight", self.cpu_weight), ("I/O weight", self.io_weight)] {
            if let Some(weight) = weight
                && !(1..=10_000).contains(&weight)
            {
                return Err(Error::invalid(what, weight.to_string(), "it must be from 1 to 10000"));
            }
        }
        if let Some(list) = &self.cpuset {
            cpus_of(list).ok_or_else(|| Error::invalid("list of CPUs", list.as_str(), "write it as 0-3,7"))?;
        }
        if let Some(nice) = self.nice
            && !(-20..=19).contains(&nice)
        {
            return Err(Error::invalid("niceness", nice.to_string(), "it must be from -20 to 19"));
        }
        for limit in &self.io_max {
            device_of(&limit.device)?;
        }
        Ok(())
    }
}

/// Returns the CPUs of a list like `0-3,7`, the kernel's notation; `None` if the text is not such a list.
pub(crate) fn cpus_of(list: &str) -> Option<std::collections::BTreeSet<u32>> {
    const MAX_CPUS: u32 = 65_536;
    let mut cpus = std::collections::BTreeSet::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
        let (first, last): (u32, u32) = (plain(first)?, plain(last)?);
        if first > last || last >= MAX_CPUS {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// Returns the machine's memory, in bytes (sysinfo(2)).
pub(crate) fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram as u64 * u64::from(info.mem_unit)
}

/// Returns the machine's swap, in bytes.
pub(crate) fn machine_swap() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalswap as u64 * u64::from(info.mem_unit)
}

/// Returns `MAJOR:MINOR` of the disk that `device` names or that contains it. It is always the whole disk, because
/// `io.max` does not accept partitions.
pub(crate) fn device_of(device: &str) -> Result<String> {
    let bad = |reason: &str| Error::invalid("device", device, reason);
    let numbers = device.split_once(':').filter(|(major, minor)| {
        [major, minor].iter().all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    });
    let number = match numbers {
        Some(_) => device.to_owned(),
        None => {
            let stat = rustix::fs::stat(device).map_err(|errno: Errno| {
                bad(&format!("{errno}; give a block device of /dev, its MAJOR:MINOR, or a path on it"))
            })?;
            let is_device = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::BlockDevice;
            let number = if is_device { stat.st_rdev } else { stat.st_dev };
            format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number))
        }
    };
    let known = Path::new("/sys/dev/block").join(&number);
    if !known.exists() {
        return Err(bad("it is neither a block device nor a path on one: see lsblk"));
    }
    if !known.join("partition").exists() {
        return Ok(number);
    }
    // /sys/dev/block/8:1 is a link to …/sda/sda1.
    let disk = known.canonicalize().ok().and_then(|path| std::fs::read_to_string(path.parent()?.join("dev")).ok());
    disk.map(|text| text.trim().to_owned()).ok_or_else(|| bad("the disk of this partition was not found in /sys"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("512M", 512 << 20), ("1.5G", 3 << 29), ("4096", 4096), ("1k", 1024), ("2TiB", 2 << 40)] {
            assert_eq!(text.parse::<Size>().unwrap(), Size::Bytes(bytes), "{text}");
        }
        assert_eq!("50%".parse::<Size>().unwrap().bytes_of(1000), Some(500));
        assert_eq!("max".parse::<Size>().unwrap(), Size::Max);
        for text in ["", "5Q", "-1", "M", "1..5G", "101%", "%", "1e3", "99999999999T", "nan", "inf", ".", "5 M", "½"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn io_limits_resource_limits_and_cpu_lists() {
        let io: IoMax = "8:0:rbps=10M,wiops=5".parse().unwrap();
        assert_eq!((io.device.as_str(), io.rbps, io.wiops, io.wbps), ("8:0", Some(10 << 20), Some(5), None));
        for text in ["", "8:0", "/dev/sda", "/dev/sda:", ":rbps=1", "a:rbps=0", "a:rbps=1,rbps=2", "a:x=1", "a:rbps=1%"]
        {
            assert!(text.parse::<IoMax>().is_err(), "{text}");
        }
        let limit: Rlimit = "nofile=1K:unlimited".parse().unwrap();
        assert_eq!((limit.resource, limit.soft, limit.hard), (crate::kernel::rlimit::NOFILE, 1024, u64::MAX));
        for text in ["", "nofile", "nofile=", "files=1", "nofile=2:1", "nofile=x", "nofile=1:2:3", "nofile=5%"] {
            assert!(text.parse::<Rlimit>().is_err(), "{text}");
        }
        assert_eq!(cpus_of("0-2,7\n").unwrap().into_iter().collect::<Vec<_>>(), [0, 1, 2, 7]);
        for text in ["", "a", "3-1", "0-", "-1", "0,,1", "0-99999999", "+1"] {
            assert!(cpus_of(text).is_none(), "{text}");
        }
    }

    #[test]
    fn invalid_limits_are_refused() {
        let limits = |change: fn(&mut Limits)| {
            let mut limits = Limits::default();
            change(&mut limits);
            limits.check().err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(limits(|limits| limits.memory = Some(Size::Bytes(10))).contains("below a page"));
        assert!(limits(|limits| limits.pids = Some(0)).contains("from 1 to"));
        assert!(limits(|limits| limits.cpus = Some(-1.0)).contains("from 0.01"));
        assert!(limits(|limits| limits.cpus = Some(f64::NAN)).contains("from 0.01"));
        assert!(limits(|limits| limits.cpu_weight = Some(0)).contains("from 1 to 10000"));
        assert!(limits(|limits| limits.nice = Some(20)).contains("from -20"));
        assert!(limits(|limits| limits.io_max = vec!["/dev/no-such:rbps=1M".parse().unwrap()]).contains("no-such"));
        assert_eq!(limits(|limits| limits.memory = Some(Size::Max)), "");
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<IoMax>();
            let _ = text.parse::<Rlimit>();
            let _ = cpus_of(&text);
        }
    }
}
