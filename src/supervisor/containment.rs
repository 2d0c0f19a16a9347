//! The containment of one job: its leaf, or, without a cgroup, the guard from which it descends.

use std::sync::Arc;

use rustix::io::Result;
use rustix::process::Pid;

use crate::cgroup::leaf::Leaf;
use crate::kernel::scan::ScanLimits;
use crate::kernel::signal::Signal;
use crate::subreaper::descendants::Descendants;
use crate::supervisor::link::Link;

#[derive(Debug)]
pub(crate) enum JobContainment {
    Leaf(Leaf),
    /// A guard that has no other job.
    Guard(Arc<Link>),
}

impl JobContainment {
    pub fn leaf(&self) -> Option<&Leaf> {
        match self {
            Self::Leaf(leaf) => Some(leaf),
            Self::Guard(_) => None,
        }
    }

    /// Returns the processes of the job that the search found, and the first error of the search.
    pub fn processes(&self) -> (Vec<Pid>, Result<()>) {
        match self {
            Self::Leaf(leaf) => leaf.cgroup().processes(),
            Self::Guard(link) => Descendants::of(link.pid).processes(),
        }
    }

    /// Sends the `signals`, one after another, to every process until a scan finds no new process. `found` receives
    /// each process once, before its signals. Returns whether there was such a scan within the limits `scans`.
    pub fn signal_all(&self, signals: &[Signal], scans: ScanLimits, found: impl FnMut(Pid)) -> Result<bool> {
        self.signal_those(signals, scans, |_| true, found)
    }

    /// Does the same for the processes for which `wanted` returns true.
    pub fn signal_those(
        &self,
        signals: &[Signal],
        scans: ScanLimits,
        wanted: impl Fn(Pid) -> bool,
        found: impl FnMut(Pid),
    ) -> Result<bool> {
        match self {
            Self::Leaf(leaf) => leaf.cgroup().signal_those(signals, scans, wanted, found),
            Self::Guard(link) => Descendants::of(link.pid).signal_those(signals, scans, wanted, found),
        }
    }

    /// Thaws the job, so that processes that were frozen run again.
    pub fn thaw(&self) -> Result<()> {
        match self {
            Self::Leaf(leaf) => leaf.cgroup().thaw(),
            Self::Guard(_) => Ok(()),
        }
    }

    /// Calls `work` after releasing the descriptors that are reserved for the end of a job.
    pub fn with_reserve<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        match self {
            Self::Leaf(leaf) => leaf.with_reserve(|| work(self)),
            Self::Guard(_) => work(self),
        }
    }
}
