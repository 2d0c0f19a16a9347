//! What holds one job: its leaf, or, without a cgroup, the guard whose descendants it is.

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

    /// The processes of the job, as they are now.
    /// Those that could be found, and the first error on the way.
    pub fn processes(&self) -> (Vec<Pid>, Result<()>) {
        match self {
            Self::Leaf(leaf) => leaf.cgroup().processes(),
            Self::Guard(link) => Descendants::of(link.pid).processes(),
        }
    }

    /// Sends the `signals`, one after another, to every process until a pass finds nobody new; `found` sees each once, before
    /// its signals. Tells whether there was an end to it within `passes`.
    pub fn signal_all(&self, signals: &[Signal], scans: ScanLimits, found: impl FnMut(Pid)) -> Result<bool> {
        self.signal_those(signals, scans, |_| true, found)
    }

    /// The same, to those that are `wanted`.
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

    /// Lets every process run again that a freeze holds.
    pub fn thaw(&self) -> Result<()> {
        match self {
            Self::Leaf(leaf) => leaf.cgroup().thaw(),
            Self::Guard(_) => Ok(()),
        }
    }

    /// Does `work` with the descriptors that are kept for the end of a job.
    pub fn with_reserve<T>(&self, work: impl FnOnce(&Self) -> T) -> T {
        match self {
            Self::Leaf(leaf) => leaf.with_reserve(|| work(self)),
            Self::Guard(_) => work(self),
        }
    }
}
