//! Controllers that were given to the children of a cgroup, and how that is undone. The supervisor gives them
//! (`supervisor::delegation`); the supervisor or the guard, whichever lives longer, takes them back.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};

use crate::cgroup::directory::Cgroup;
use crate::cgroup::limits::Controller;

/// The supervisor's and the guard's own leaf is called this, then as a base: no sweeper takes it for one.
pub(crate) const PREFIX: &str = "pinfold-own-";

/// What was changed, as supervisor and guard both know it: whoever outlives the other undoes it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Undo {
    /// The leaf that supervisor or guard has moved to.
    pub own: Option<String>,
    /// The controllers that were not given before.
    pub given: Vec<String>,
}

impl Undo {
    /// Takes the controllers back, moves whoever is in the own leaf up again, and removes that. Nothing may be left in other
    /// leaves. Twice is as good as once.
    pub fn undo(&self, place: &Cgroup) {
        for controller in &self.given {
            let _ = place.write(c"cgroup.subtree_control", format!("-{controller}").as_bytes());
        }
        let Some(name) = &self.own else { return };
        let Ok(own) = place.open(name) else { return };
        for pid in own.processes().0 {
            let _ = place.write(c"cgroup.procs", pid.to_string().as_bytes());
        }
        drop(own);
        let _ = place.remove(name);
    }
}

/// What the guard does when all that it held is gone. `supervisor`: a pidfd.
pub(crate) fn take_back(place: &Cgroup, undo: &Undo, supervisor: Option<BorrowedFd<'_>>) {
    let free = || exclusive_lock(place);
    let lock = free().or_else(|| {
        // A supervisor that is just dying still holds its lock; otherwise another pinfold's jobs need the controllers.
        let moment = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        let supervisor = supervisor.map(|pidfd| PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
        let ended = supervisor.is_none_or(|pidfd| matches!(poll(&mut [pidfd], Some(&moment)), Ok(1)));
        ended.then(free).flatten()
    });
    if lock.is_some() {
        undo.undo(place);
    }
}

/// A lock of its own file: the directory's means something else ([`crate::cgroup::base`]).
pub(crate) fn lock_file(place: &Cgroup) -> Option<OwnedFd> {
    openat(place, c"cgroup.subtree_control", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

pub(crate) fn exclusive_lock(place: &Cgroup) -> Option<OwnedFd> {
    lock_file(place).filter(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

pub(crate) fn controller_advice(controller: Controller) -> String {
    let known = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let line = known.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.next()? == controller.name()).then(|| fields.map(str::to_owned).collect::<Vec<_>>())
    });
    match line.as_deref() {
        Some([_, _, enabled]) if enabled == "0" => {
            format!("it is switched off at boot: take cgroup_disable={controller} off the kernel command line")
        }
        Some([hierarchy, ..]) if hierarchy != "0" => {
            "it is in use by cgroup v1 here: boot with cgroup_no_v1=all or systemd.unified_cgroup_hierarchy=1".into()
        }
        _ => format!(
            "the cgroup above does not give it: for a user's systemd, 'systemctl edit user@.service' with [Service] Delegate=yes; for a service, Delegate={controller}"
        ),
    }
}

/// Their names, for people.
pub(crate) fn names(controllers: &[Controller]) -> String {
    controllers.iter().map(|controller| controller.name()).collect::<Vec<_>>().join(", ")
}

/// Removes own leaves that nobody is in any more.
pub(crate) fn remove_abandoned(place: &Cgroup, name: &str) {
    if name.strip_prefix(PREFIX).is_some() {
        // One that is in use is busy.
        let _ = place.remove_empty(name);
    }
}
