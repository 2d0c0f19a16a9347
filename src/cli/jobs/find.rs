//! Finds the supervisors on this machine and their jobs. Supervisors with cgroups are found by their bases, and
//! supervisors without a cgroup by their guards.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::process::Pid;

use crate::cgroup::base::{self, GUARD_NAME};
use crate::cgroup::directory::{Cgroup, state};
use crate::cgroup::sweep::claim;
use crate::cgroup::{open_visible, read_file};
use crate::error::{Error, Result};
use crate::kernel::locks::Flocks;
use crate::kernel::{mount, process};
use crate::report::{ContainmentKind, Description, SupervisorKind};
use crate::subreaper::description;

/// The minimum age of an abandoned base. A supervisor first makes its base and then locks it, so a younger base without
/// a lock may belong to a supervisor that is starting.
const MIN_ABANDONED_AGE: Duration = Duration::from_secs(2);

/// One supervisor.
#[derive(Debug)]
pub(crate) struct Supervisor {
    /// Its pid in this PID namespace. `None` if it is not visible here, or if it has ended.
    pub pid: Option<Pid>,
    /// The user id of its owner.
    pub owner: u32,
    /// Its base; `None` without a cgroup. Another user's base cannot be opened, and then only its path is known.
    pub base: Option<PathBuf>,
    /// Whether both the supervisor and the guard have ended.
    pub abandoned: bool,
    pub jobs: Vec<Job>,
}

/// One job.
#[derive(Debug)]
pub(crate) struct Job {
    /// `None` if the supervisor has not recorded it: the job is starting, or the supervisor has an earlier version of
    /// pinfold, which does not record its jobs.
    pub description: Option<Description>,
    /// The main process. `None` until the command has been executed, and for a supervisor in another PID namespace.
    pub main: Option<Pid>,
    /// Whether the command has been executed.
    pub started: bool,
    pub stopping: bool,
    pub frozen: bool,
    pub containment: Containment,
}

/// The containment of a job.
#[derive(Debug)]
pub(crate) enum Containment {
    Leaf(Cgroup),
    /// The guard of this one job.
    Guard(Pid),
}

impl Supervisor {
    /// Returns the kind of the supervisor, if the record of a job contains it.
    pub fn kind(&self) -> Option<SupervisorKind> {
        self.jobs.iter().find_map(|job| job.description.as_ref()).map(|description| description.kind)
    }

    pub fn containment(&self) -> ContainmentKind {
        if self.base.is_some() { ContainmentKind::Cgroup } else { ContainmentKind::Subreaper }
    }

    /// Returns the command line of the supervisor, if `/proc` shows it.
    pub fn command_line(&self) -> String {
        self.pid.and_then(crate::report::ProcessInfo::read).map(|info| info.command_line).unwrap_or_default()
    }
}

impl Job {
    /// Returns its name, for messages. The name is empty if the supervisor has not recorded the job.
    pub fn name(&self) -> &str {
        self.description.as_ref().map(|description| description.name.as_str()).unwrap_or_default()
    }
}

/// Returns the supervisors of all users whose bases and guards are visible here, those in a cgroup first. A job that
/// starts or ends meanwhile may be missing.
///
/// # Errors
/// [`Error::System`] if `/proc` cannot be read.
pub(crate) fn all() -> Result<Vec<Supervisor>> {
    process::proc_is_own().map_err(|errno| {
        Error::system("read", "/proc", errno, "mount /proc for this PID namespace (unshare --mount-proc)")
    })?;
    let locks = Flocks::now().unwrap_or_default();
    let mut all = Vec::new();
    for tree in trees() {
        search(tree, &mut |parent, name| all.extend(with_base(parent, name, &locks)));
    }
    let known: HashSet<_> = all.iter().filter_map(|supervisor| supervisor.pid).collect();
    all.extend(without_cgroup(&known));
    Ok(all)
}

/// Returns the roots of the cgroup2 trees that are mounted here.
fn trees() -> Vec<Cgroup> {
    let mounts = read_file("/proc/self/mountinfo").map(|text| mount::cgroup2_mounts(&text)).unwrap_or_default();
    let mut trees = Vec::<Cgroup>::new();
    // Of several mounts of one tree, the loop takes the first one. So the list begins with mounts of the whole tree,
    // which show more than bind mounts of a part. Among equal ones, the latest comes first, because it can hide earlier
    // ones.
    let mut mounts: Vec<_> = mounts.into_iter().rev().collect();
    mounts.sort_by_key(|mount| mount.root.components().count());
    for mount in mounts {
        let Ok(tree) = open_visible(&mount.point) else { continue };
        let device = |tree: &Cgroup| fstat(tree).map(|stat| stat.st_dev);
        if trees.iter().all(|known| device(known) != device(&tree)) {
            trees.push(tree);
        }
    }
    trees
}

/// Calls `found` with each base in the tree, and with the cgroup in which it was made.
fn search(tree: Cgroup, found: &mut dyn FnMut(&Cgroup, &str)) {
    let mut open = vec![(tree.names().unwrap_or_default(), tree)];
    while let Some((names, cgroup)) = open.last_mut() {
        let Some(name) = names.pop() else {
            open.pop();
            continue;
        };
        if let Some(name) = name.to_str().filter(|name| base::is_name(name)) {
            found(cgroup, name);
        }
        // The command of a job may be pinfold, which has a base of its own below the job's leaf.
        if let Ok(below) = cgroup.open(&name) {
            open.push((below.names().unwrap_or_default(), below));
        }
    }
}

/// Returns the supervisor of a base. Returns `None` if the base is gone.
fn with_base(parent: &Cgroup, name: &str, locks: &Flocks) -> Option<Supervisor> {
    let path = parent.path().join(name);
    let base = match parent.open(name) {
        Ok(base) => base,
        Err(Errno::ACCESS | Errno::PERM) => {
            let metadata = std::fs::symlink_metadata(&path).ok()?;
            let pid = locked_by(locks, metadata.ino());
            return Some(Supervisor {
                pid,
                owner: metadata.uid(),
                base: Some(path),
                abandoned: false,
                jobs: Vec::new(),
            });
        }
        Err(_) => return None,
    };
    let stat = fstat(&base).ok()?;
    let pid = locked_by(locks, stat.st_ino);
    let abandoned = pid.is_none() && is_old(stat.st_ctime as u64) && is_abandoned(parent, name);
    let mut jobs = match job(base) {
        Ok(one) => vec![one],
        Err(base) => {
            let names = base.children().unwrap_or_default();
            let leaves = names.iter().filter(|name| name.starts_with("job-")).filter_map(|name| base.open(name).ok());
            // The supervisor makes the leaf of the next job in advance. That leaf contains no job, and is left out.
            leaves.filter_map(|leaf| job(leaf).ok()).collect()
        }
    };
    for job in &mut jobs {
        // If the supervisor is in another PID namespace, the recorded pids do not name the same processes here.
        if pid.zip(job.description.as_ref()).is_some_and(|(pid, known)| pid.as_raw_nonzero().get() != known.supervisor)
        {
            job.main = None;
        }
    }
    Some(Supervisor { pid, owner: stat.st_uid, base: Some(path), abandoned, jobs })
}

/// Returns the pid of the supervisor that has locked a base, if it is still running. The guard has locked the base too;
/// it is recognized by its process name.
fn locked_by(locks: &Flocks, inode: u64) -> Option<Pid> {
    locks.of(inode).iter().copied().find(|&pid| {
        let path = format!("/proc/{}", pid.as_raw_nonzero());
        std::fs::read_to_string(path + "/comm").is_ok_and(|name| name.trim_end() != GUARD_NAME)
    })
}

fn is_old(changed: u64) -> bool {
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(changed))
        .and_then(|changed| SystemTime::now().duration_since(changed).ok())
        .is_some_and(|age| age > MIN_ABANDONED_AGE)
}

/// Returns whether no process has locked the base. To find out, this function locks the base for a moment.
fn is_abandoned(parent: &Cgroup, name: &str) -> bool {
    matches!(claim(parent, name), Ok(Some(_)))
}

/// Returns the job that is in the cgroup. Gives the cgroup back as the error if no job is in it.
fn job(cgroup: Cgroup) -> std::result::Result<Job, Cgroup> {
    let description = cgroup.description();
    let Ok(state) = cgroup.events().and_then(state) else { return Err(cgroup) };
    if description.is_none() && (!state.populated || !cgroup.children().unwrap_or_default().is_empty()) {
        return Err(cgroup);
    }
    let main = cgroup.described_main();
    Ok(Job {
        main,
        started: main.is_some(),
        stopping: cgroup.is_being_stopped(),
        frozen: state.frozen,
        description,
        containment: Containment::Leaf(cgroup),
    })
}

/// Returns the supervisors that have jobs without a cgroup, except the `known` ones.
fn without_cgroup(known: &HashSet<Pid>) -> Vec<Supervisor> {
    let mut seen = known.clone();
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)) else { continue };
        if name_of(pid).as_deref() != Some(GUARD_NAME) {
            continue;
        }
        let Some(supervisor) = supervisor_of_guard(pid).filter(|&supervisor| seen.insert(supervisor)) else { continue };
        let Ok(owner) = std::fs::metadata(supervisor_path(supervisor)).map(|metadata| metadata.uid()) else { continue };
        let jobs: Vec<_> = description::of(supervisor)
            .into_iter()
            .filter_map(|found| {
                let guard = Pid::from_raw(found.description.guard)?;
                Some(Job {
                    description: Some(found.description),
                    main: found.main,
                    started: found.main.is_some(),
                    stopping: found.stopping,
                    frozen: false,
                    containment: Containment::Guard(guard),
                })
            })
            .collect();
        if !jobs.is_empty() {
            all.push(Supervisor { pid: Some(supervisor), owner, base: None, abandoned: false, jobs });
        }
    }
    all
}

fn supervisor_path(pid: Pid) -> PathBuf {
    Path::new("/proc").join(pid.as_raw_nonzero().to_string())
}

fn name_of(pid: Pid) -> Option<String> {
    let name = std::fs::read_to_string(supervisor_path(pid).join("comm")).ok()?;
    Some(name.trim_end().to_owned())
}

/// Returns the supervisor of a guard. A job without a cgroup can have two nested guards, so this is the first ancestor
/// with another process name.
pub(super) fn supervisor_of_guard(guard: Pid) -> Option<Pid> {
    let mut pid = guard;
    for _ in 0..4 {
        let stat = std::fs::read(supervisor_path(pid).join("stat")).ok()?;
        pid = Pid::from_raw(process::parent(&stat)?)?;
        if name_of(pid)? != GUARD_NAME {
            return Some(pid);
        }
    }
    None
}
