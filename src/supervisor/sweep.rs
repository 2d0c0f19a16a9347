//! What pinfolds have left whose supervisor and guard were both killed: found, ended, removed.
//!
//! A supervisor that is killed is cleaned up after by its guard, and the other way round. Where both are killed within
//! 50 ms, their processes and cgroups stay. Each start of a [`Supervisor`](crate::Supervisor) removes what was left right
//! in the cgroup that it uses; [`Sweep`] looks below that too, and tells what it found.
//!
//! ```no_run
//! use pinfold::sweep::{Outcome, Sweep};
//!
//! let swept = Sweep::new().dry_run(true).run()?;
//! for base in &swept.abandoned {
//!     assert_eq!(base.outcome, Outcome::Found);
//!     println!("{} is abandoned, with {} processes in it", base.path, base.processes.count);
//! }
//! # Ok::<(), pinfold::Error>(())
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{Access, AtFlags, FlockOperation, accessat, flock, fstat};
use rustix::io::Errno;
use rustix::process::getpid;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::cgroup::directory::{Cgroup, populated};
use crate::cgroup::{base, lock, sweep};
use crate::error::{Error, Result};
use crate::report::ProcessInfo;
use crate::report::ProcessList;

/// The version of [`Swept`]'s format.
pub const VERSION: u32 = 1;

/// How to look for what was left.
#[derive(Clone, Debug)]
#[must_use]
pub struct Sweep {
    cgroup: Option<PathBuf>,
    dry_run: bool,
    bound: Duration,
}

/// What was found, and what became of it. The first format is version 1; fields may be added to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Swept {
    /// [`VERSION`].
    pub version: u32,
    /// The directory of the cgroup that was looked in, and below.
    pub cgroup: String,
    /// Whether it was only looked.
    pub dry_run: bool,
    /// The abandoned bases, each as it was found. One that lies in another one is part of that.
    pub abandoned: Vec<Abandoned>,
    /// Bases that could not be swept: they are locked as if they were alive, but no guard holds the lock.
    #[serde(default)]
    pub locked: Vec<Locked>,
    /// Cgroups that could not be looked into.
    pub not_searched: Vec<NotSearched>,
}

/// A base that is locked and has no guard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Locked {
    /// Its directory.
    pub path: String,
    /// The processes that have it open. The lock is gone when none of them has.
    pub holders: ProcessList,
}

/// The base of a supervisor that is gone, as its guard is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Abandoned {
    /// Its directory.
    pub path: String,
    /// The user that it belongs to.
    pub owner: u32,
    /// Whether anything ran in it, processes included that this PID namespace does not show.
    pub populated: bool,
    /// The processes that ran in it.
    pub processes: ProcessList,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of an abandoned base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing: a dry run.
    Found,
    /// Its processes were ended, its directory removed.
    Removed,
    /// It could not be removed.
    Failed {
        /// The operation and the kernel's answer, in words.
        error: String,
        /// What the person can do about it; empty where there is nothing to say.
        advice: String,
    },
}

/// A cgroup that could not be looked into.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NotSearched {
    /// Its directory.
    pub path: String,
    /// The kernel's answer, in words.
    pub error: String,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { cgroup: None, dry_run: false, bound: Duration::from_secs(10) }
    }
}

impl Sweep {
    /// Looks in this process's own cgroup and below, and removes what it finds; each within 10 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks in this cgroup v2 directory and below.
    pub fn cgroup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(directory.into());
        self
    }

    /// Only looks. A supervisor that is just making its base may have to try a second time; nothing else changes.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// How long a kill of each may take, until it counts as failed.
    pub fn kill_bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Looks, and removes what it finds. Blocks until that is done.
    ///
    /// Only directories with the name of a base are touched, and of these only the ones whose lock tells that supervisor and
    /// guard are gone, in whatever PID namespace they were (flock(2)). Processes are ended with `cgroup.kill`, which no fork
    /// can race against (cgroups(7), Linux 5.14; frozen and killed one by one before that).
    ///
    /// # Errors
    /// [`Error::NoCgroupSeen`] where there is no cgroup v2 to look in. What could not be removed is no error but an
    /// [`Outcome::Failed`].
    pub fn run(&self) -> Result<Swept> {
        let top = cgroup::visible(self.cgroup.as_deref()).map_err(Error::NoCgroupSeen)?;
        let mut swept = Swept {
            version: VERSION,
            cgroup: top.path().display().to_string(),
            dry_run: self.dry_run,
            abandoned: Vec::new(),
            locked: Vec::new(),
            not_searched: Vec::new(),
        };
        let mut locked = Vec::new();
        // One descriptor a level: what is open, and what is left to be looked at right below it.
        let mut open = vec![(swept.names_in(&top), top)];
        while let Some((names, cgroup)) = open.last_mut() {
            let Some(name) = names.pop() else {
                open.pop();
                continue;
            };
            if let Some(name) = name.to_str().filter(|name| base::is_name(name)) {
                match sweep::claim(cgroup, name) {
                    Ok(Some(base)) => {
                        swept.abandoned.push(self.end(cgroup, name, base));
                        continue;
                    }
                    // Alive, as a rule. A pinfold inside its job may be dead.
                    Ok(None) => locked.push((cgroup.path().join(name), name.to_owned())),
                    Err(Errno::NOENT | Errno::NODEV) => continue,
                    Err(errno) => {
                        swept.not_searched(&cgroup.path().join(name), errno);
                        continue;
                    }
                }
            }
            match cgroup.open(&name) {
                Ok(below) => open.push((swept.names_in(&below), below)),
                Err(errno) => swept.not_searched(&cgroup.path().join(&name), errno),
            }
        }
        let open = if locked.is_empty() { lock::Open::default() } else { lock::Open::now() };
        for (path, name) in locked {
            let strangers = open.strangers(&name);
            if !strangers.is_empty() {
                let mut holders = ProcessList::default();
                strangers.into_iter().for_each(|pid| holders.add(pid));
                swept.locked.push(Locked { path: path.display().to_string(), holders });
            }
        }
        Ok(swept)
    }

    /// Ends an abandoned base, or looks at it only.
    fn end(&self, parent: &Cgroup, name: &str, base: Cgroup) -> Abandoned {
        if self.dry_run {
            // At once: whoever is just making it needs its lock.
            let _ = flock(&base, FlockOperation::NonBlockingUnlock);
        }
        let pids = base.processes().0;
        let mut processes = ProcessList::default();
        for &pid in &pids {
            processes.add(pid);
        }
        let owner = fstat(&base).map_or(0, |stat| stat.st_uid);
        let populated = base.events().and_then(populated).unwrap_or(!pids.is_empty());
        let refuse = |error: &str, advice: &str| Outcome::Failed { error: error.into(), advice: advice.into() };
        let outcome = if self.dry_run {
            Outcome::Found
        } else if pids.contains(&getpid()) {
            refuse("this very process runs in it", "run the sweep from outside of it")
        } else if populated && pids.is_empty() && !has_kill(&base) {
            refuse(
                "its processes are in another PID namespace, and this kernel has no cgroup.kill (Linux 5.14)",
                "run the sweep in that namespace, or in one above it",
            )
        } else {
            match self.remove(parent, name, &base) {
                Ok(()) => Outcome::Removed,
                Err((operation, errno)) => failed(&operation, errno, owner, &base),
            }
        };
        Abandoned { path: base.path().display().to_string(), owner, populated, processes, outcome }
    }

    fn remove(&self, parent: &Cgroup, name: &str, base: &Cgroup) -> std::result::Result<(), (String, Errno)> {
        match sweep::end(base, self.bound) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(Errno::BUSY) => {
                return Err((format!("end what runs in it within {} s", self.bound.as_secs_f64()), Errno::BUSY));
            }
            Err(errno) => return Err(("kill what runs in it".into(), errno)),
        }
        sweep::remove(parent, name, self.bound).map_err(|(path, errno)| (format!("remove {}", path.display()), errno))
    }
}

/// Whether this kernel can kill a cgroup without being shown who is in it.
fn has_kill(base: &Cgroup) -> bool {
    accessat(base, c"cgroup.kill", Access::EXISTS, AtFlags::empty()).is_ok()
}

fn failed(operation: &str, errno: Errno, owner: u32, base: &Cgroup) -> Outcome {
    let advice = match errno {
        Errno::ACCESS | Errno::PERM => format!("it belongs to user {owner}: run the sweep as that user, or as root"),
        Errno::ROFS => "the cgroup file system is mounted read-only here: run the sweep outside".into(),
        Errno::BUSY => {
            let mut left = Vec::new();
            for pid in base.processes().0 {
                let Some(process) = ProcessInfo::read_unkillable(pid) else { continue };
                let wchan = process.wchan.as_deref().map(|wchan| format!(", in {wchan}")).unwrap_or_default();
                left.push(format!("{process} (state {}{wchan})", process.state));
            }
            if left.is_empty() { String::new() } else { format!("still there: {}", left.join(", ")) }
        }
        _ => String::new(),
    };
    Outcome::Failed { error: format!("cannot {operation}: {errno}"), advice }
}

impl Swept {
    /// Whether something could not be removed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        !self.locked.is_empty() || self.abandoned.iter().any(|base| matches!(base.outcome, Outcome::Failed { .. }))
    }

    /// This as one line of JSON, without the newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Every field has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    fn names_in(&mut self, cgroup: &Cgroup) -> Vec<OsString> {
        cgroup.names().unwrap_or_else(|errno| {
            self.not_searched(cgroup.path(), errno);
            Vec::new()
        })
    }

    fn not_searched(&mut self, path: &Path, errno: Errno) {
        // Removed meanwhile, by its owner.
        if !matches!(errno, Errno::NOENT | Errno::NODEV) {
            self.not_searched.push(NotSearched { path: path.display().to_string(), error: errno.to_string() });
        }
    }
}
