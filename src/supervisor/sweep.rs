//! Finds, ends and removes the processes and cgroups of pinfolds whose supervisor and guard were both killed.
//!
//! If a supervisor is killed, its guard cleans up, and vice versa. If both are killed within 50 ms, their processes and
//! cgroups can remain. Each start of a [`Supervisor`](crate::Supervisor) ends and removes those that are directly in
//! the cgroup that it uses. [`Sweep`] also searches the cgroups below that, and reports what it found.
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
use rustix::process::{geteuid, getpid};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::cgroup::directory::{Cgroup, populated};
use crate::cgroup::{base, lock, sweep};
use crate::error::{ContainmentErrorKind, Error, Result};
use crate::report::ProcessInfo;
use crate::report::ProcessList;
use crate::sandbox::private_tmp::Parent;

/// The version of the format of [`Swept`].
const VERSION: u32 = 1;

/// The settings for a search for abandoned bases.
#[derive(Clone, Debug)]
#[must_use]
pub struct Sweep {
    cgroup: Option<PathBuf>,
    dry_run: bool,
    bound: Duration,
}

/// The result of a sweep: what was found, and what happened to it. Later versions of pinfold may add fields to version
/// 1 of this format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Swept {
    /// The version of this format: 1.
    pub version: u32,
    /// The directory of the cgroup that was searched, with all cgroups below.
    pub cgroup: String,
    /// Whether this was a dry run.
    pub dry_run: bool,
    /// The abandoned bases and private tmps, in the state in which they were found. An abandoned base inside of another abandoned base
    /// counts as a part of the outer one.
    pub abandoned: Vec<Abandoned>,
    /// Bases that could not be swept: they are locked like those of a living supervisor, but no guard holds the lock.
    #[serde(default)]
    pub locked: Vec<Locked>,
    /// Cgroups that could not be searched.
    pub not_searched: Vec<NotSearched>,
}

/// A base that is locked and has no guard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Locked {
    /// Its directory.
    pub path: String,
    /// The processes that have the directory open. The lock is released when the last of them closes it.
    pub holders: ProcessList,
}

/// The base of a supervisor that is gone, and whose guard is gone too; or the directory for the private tmps of its
/// jobs ([`Sandbox::private_tmp`](crate::Sandbox::private_tmp)).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Abandoned {
    /// Its directory.
    pub path: String,
    /// The user id of its owner.
    pub owner: u32,
    /// Whether any process ran in it, including processes that are not visible in this PID namespace.
    pub populated: bool,
    /// The processes that ran in it.
    pub processes: ProcessList,
    /// What happened to it.
    pub outcome: Outcome,
}

/// What happened to an abandoned base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Outcome {
    /// Nothing: this was a dry run.
    Found,
    /// Its processes were ended, and its directory was removed.
    Removed,
    /// It could not be removed.
    Failed {
        /// The operation and the kernel's error, in words.
        error: String,
        /// Advice for the user, or an empty string.
        advice: String,
    },
}

/// A cgroup that could not be searched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct NotSearched {
    /// Its directory.
    pub path: String,
    /// The kernel's error, in words.
    pub error: String,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { cgroup: None, dry_run: false, bound: Duration::from_secs(10) }
    }
}

impl Sweep {
    /// Returns the default settings: the sweep searches this process's own cgroup and the cgroups below, and removes
    /// abandoned bases. The kill of each base takes 10 s at most.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the cgroup v2 directory to search, together with the cgroups below it.
    pub fn cgroup(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(directory.into());
        self
    }

    /// Sets whether the sweep only searches. Such a sweep changes nothing, with one exception: a supervisor that is
    /// making its base at the same moment may have to try a second time.
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }

    /// Sets how long the kill of each base may take before it counts as failed.
    pub fn kill_bound(mut self, bound: Duration) -> Self {
        self.bound = bound;
        self
    }

    /// Searches for abandoned bases and removes them. Blocks until that is done.
    ///
    /// The sweep changes only directories with the name of a base, and of these only those whose lock shows that
    /// supervisor and guard are gone, in whatever PID namespace they were (flock(2)). It ends processes with
    /// `cgroup.kill`, which a fork cannot escape (cgroups(7), Linux 5.14). On older kernels it freezes the processes
    /// and kills them one by one.
    ///
    /// # Errors
    /// [`Error::Containment`] if there is no cgroup v2 to search. A base that could not be removed is not an error but
    /// an [`Outcome::Failed`].
    pub fn run(&self) -> Result<Swept> {
        let top = cgroup::visible(self.cgroup.as_deref())
            .map_err(|refusals| Error::containment(ContainmentErrorKind::NoCgroupToSearch, refusals))?;
        let mut swept = Swept {
            version: VERSION,
            cgroup: top.path().display().to_string(),
            dry_run: self.dry_run,
            abandoned: Vec::new(),
            locked: Vec::new(),
            not_searched: Vec::new(),
        };
        let mut locked = Vec::new();
        // One descriptor for each level: the open directory, with the names of its children that are still to be
        // searched.
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
                    // This is usually the base of a living supervisor. One of its jobs may contain the base of a
                    // pinfold that was killed, so the search continues below.
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
        swept.abandoned.extend(self.end_private_tmps());
        let open = if locked.is_empty() { lock::Open::default() } else { lock::Open::now() };
        for (path, name) in locked {
            let foreign_holders = open.foreign_holders(&name);
            if !foreign_holders.is_empty() {
                let mut holders = ProcessList::default();
                foreign_holders.into_iter().for_each(|pid| holders.add(pid));
                swept.locked.push(Locked { path: path.display().to_string(), holders });
            }
        }
        Ok(swept)
    }

    /// Removes abandoned private tmps; in a dry run only finds them.
    fn end_private_tmps(&self) -> Vec<Abandoned> {
        let mut all = Vec::new();
        for parent in Parent::all() {
            for name in parent.candidates().into_iter().flatten().flatten() {
                let Some(found) = parent.claim(&name) else { continue };
                let outcome = match if self.dry_run { None } else { Some(found.remove(&parent)) } {
                    None => Outcome::Found,
                    Some(Ok(())) => Outcome::Removed,
                    Some(Err(errno)) => {
                        Outcome::Failed { error: format!("cannot remove it: {errno}"), advice: String::new() }
                    }
                };
                all.push(Abandoned {
                    path: found.path(&parent).display().to_string(),
                    owner: geteuid().as_raw(),
                    populated: false,
                    processes: ProcessList::default(),
                    outcome,
                });
            }
        }
        all
    }

    /// Ends an abandoned base; in a dry run only describes it.
    fn end(&self, parent: &Cgroup, name: &str, base: Cgroup) -> Abandoned {
        if self.dry_run {
            // The lock is released at once, because a supervisor that is just making this base needs it.
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
            refuse("this process itself runs in it", "run the sweep from outside of it")
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
        match sweep::kill_and_wait(base, self.bound) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(Errno::BUSY) => {
                return Err((format!("end the processes in it within {} s", self.bound.as_secs_f64()), Errno::BUSY));
            }
            Err(errno) => return Err(("kill the processes in it".into(), errno)),
        }
        sweep::remove(parent, name, self.bound).map_err(|(path, errno)| (format!("remove {}", path.display()), errno))
    }
}

/// Returns whether this kernel can kill a cgroup whose processes are not visible here.
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
    /// Returns whether something could not be removed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        !self.locked.is_empty() || self.abandoned.iter().any(|base| matches!(base.outcome, Outcome::Failed { .. }))
    }

    /// Returns this as one line of JSON, without the newline.
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
        // ENOENT and ENODEV: its owner has removed the cgroup meanwhile.
        if !matches!(errno, Errno::NOENT | Errno::NODEV) {
            self.not_searched.push(NotSearched { path: path.display().to_string(), error: errno.to_string() });
        }
    }
}
