//! Undoes the delegation of controllers to the children of a cgroup. The supervisor delegates the controllers
//! (`supervisor::delegation`). The supervisor or the guard, whichever lives longer, undoes this.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};

use crate::cgroup::directory::Cgroup;
use crate::cgroup::limits::Controller;
use crate::kernel::poll;

/// The first part of the name of a leaf that contains the supervisor or the guard itself. The rest of the name is as in
/// the name of a base. This prefix differs from that of a base, so that no sweep takes the leaf for a base.
pub(crate) const PREFIX: &str = "pinfold-own-";

/// The changes to undo. The supervisor and the guard both know these changes; the process that lives longer undoes
/// them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Undo {
    /// The name of the leaf that the supervisor or the guard has moved to.
    pub own: Option<String>,
    /// The controllers that were not delegated before.
    pub delegated: Vec<String>,
}

impl Undo {
    /// Disables the controllers for the child cgroups, moves the supervisor or the guard from its own leaf back to the
    /// cgroup above, and removes that leaf. Other leaves must contain no process. A second call has no further effect.
    pub fn undo(&self, place: &Cgroup) {
        for controller in &self.delegated {
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

/// Undoes the delegation, unless another pinfold still uses it. Call this function when all jobs, leaves and the base
/// of the guard are gone. `supervisor` is a pidfd.
pub(crate) fn undo_if_unused(place: &Cgroup, undo: &Undo, supervisor: Option<BorrowedFd<'_>>) {
    let free = || exclusive_lock(place);
    let lock = free().or_else(|| {
        // A supervisor that is ending may still hold its lock: this function waits a moment for its end. Otherwise
        // another pinfold holds a lock, because its jobs still need the controllers.
        const MOMENT: Duration = Duration::from_millis(50);
        let supervisor = supervisor.map(|pidfd| PollFd::from_borrowed_fd(pidfd, PollFlags::IN));
        let ended = supervisor.is_none_or(|pidfd| poll::wait(&mut [pidfd], Some(MOMENT)).unwrap_or(false));
        ended.then(free).flatten()
    });
    if lock.is_some() {
        undo.undo(place);
    }
}

/// Opens the file whose lock protects the delegation. A lock on the directory itself has another meaning
/// ([`crate::cgroup::base`]).
pub(crate) fn lock_file(place: &Cgroup) -> Option<OwnedFd> {
    openat(place, c"cgroup.subtree_control", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
}

/// Takes the exclusive lock of the delegation. Returns `None` if another process holds a lock.
pub(crate) fn exclusive_lock(place: &Cgroup) -> Option<OwnedFd> {
    lock_file(place).filter(|file| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok())
}

/// Returns what to do if `controller` is not available.
pub(crate) fn controller_advice(controller: Controller) -> String {
    let known = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let line = known.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.next()? == controller.name()).then(|| fields.map(str::to_owned).collect::<Vec<_>>())
    });
    match line.as_deref() {
        Some([_, _, enabled]) if enabled == "0" => {
            format!("it is switched off at boot: remove cgroup_disable={controller} from the kernel command line")
        }
        Some([hierarchy, ..]) if hierarchy != "0" => {
            "it is in use by cgroup v1 here: boot with cgroup_no_v1=all or systemd.unified_cgroup_hierarchy=1".into()
        }
        _ => format!(
            "the parent cgroup does not provide it: for a user's systemd, 'systemctl edit user@.service' with [Service] Delegate=yes; for a service, Delegate={controller}"
        ),
    }
}

/// Returns the names of the controllers, for messages.
pub(crate) fn names(controllers: &[Controller]) -> String {
    controllers.iter().map(|controller| controller.name()).collect::<Vec<_>>().join(", ")
}

/// Removes the cgroup `name` if its name is that of a leaf for a supervisor or guard itself ([`PREFIX`]), and if it
/// contains no process any more.
pub(crate) fn remove_abandoned(place: &Cgroup, name: &str) {
    if name.strip_prefix(PREFIX).is_some() {
        // If a process is still in the leaf, the kernel refuses this with EBUSY, and the leaf stays.
        let _ = place.remove_empty(name);
    }
}
