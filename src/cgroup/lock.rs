//! Finds bases that an unrelated program has locked: neither the base's supervisor nor a guard has the base open. Any
//! process that may open a directory can lock it.

use std::collections::HashMap;
use std::path::Path;

use rustix::process::Pid;

use super::base;
use super::directory::Cgroup;
use super::sweep::claim;
use crate::kernel::process;

/// The processes that have a base open, grouped by the name of the base. Processes that `/proc` hides are missing.
#[derive(Debug, Default)]
pub(crate) struct Open(HashMap<String, Vec<Holder>>);

#[derive(Clone, Debug)]
struct Holder {
    pid: Pid,
    is_guard: bool,
}

impl Open {
    /// Searches the descriptors of all processes whose descriptors this process may list (proc_pid_fd(5)).
    pub fn now() -> Self {
        let mut all = HashMap::<String, Vec<Holder>>::new();
        if process::proc_is_own().is_err() {
            return Self(all);
        }
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)) else {
                continue;
            };
            for descriptor in std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten() {
                let Ok(target) = std::fs::read_link(descriptor.path()) else { continue };
                // No two bases have the same name.
                let name = target.file_name().and_then(|name| name.to_str()).filter(|name| base::is_name(name));
                let Some(name) = name else { continue };
                let holders = all.entry(name.to_owned()).or_default();
                if holders.iter().all(|holder| holder.pid != pid) {
                    let command = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                    holders.push(Holder { pid, is_guard: command.trim_end() == base::GUARD_NAME });
                }
            }
        }
        Self(all)
    }

    /// Returns the processes that have the locked base `name` open, if none of them is a guard or the supervisor of
    /// this base. Otherwise the list is empty. It is also empty if the processes are not visible, for example in
    /// another PID namespace.
    pub fn foreign_holders(&self, name: &str) -> Vec<Pid> {
        let holders = self.0.get(name).map(Vec::as_slice).unwrap_or_default();
        let is_own = |holder: &Holder| holder.is_guard || base::supervisor_of(name) == Some(holder.pid);
        if holders.iter().any(is_own) { Vec::new() } else { holders.iter().map(|holder| holder.pid).collect() }
    }
}

/// Returns the bases directly in `place` that are locked and have no guard, with the processes that have them open.
pub(crate) fn without_guard(place: &Cgroup) -> Vec<(String, Vec<Pid>)> {
    let names = place.children().unwrap_or_default().into_iter().filter(|name| base::is_name(name));
    let locked: Vec<_> = names.filter(|name| matches!(claim(place, name), Ok(None))).collect();
    if locked.is_empty() {
        return Vec::new();
    }
    let open = Open::now();
    let path = |name: &str| Path::new(place.path()).join(name).display().to_string();
    let with_holders = locked.into_iter().map(|name| (path(&name), open.foreign_holders(&name)));
    with_holders.filter(|(_, foreign_holders)| !foreign_holders.is_empty()).collect()
}
