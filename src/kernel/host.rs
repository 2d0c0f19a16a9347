//! The state that a job should inherit from its host, the program that uses the library: its credentials, and other
//! settings that exec keeps. The guard has the host's state from the time when the guard was started; the host can
//! change its own state later.

#![allow(unsafe_code)]

use std::io::Read;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernel::syscall::{call, checked};
use crate::kernel::{inherited, rlimit};

/// The state of the calling thread, and the state that all threads of the process share.
#[derive(Clone, Debug)]
pub(crate) struct HostState {
    credentials: Credentials,
    settings: Option<Settings>,
}

/// Credentials (credentials(7)), capabilities (capabilities(7)), and the root directory. The root directory belongs
/// here because it decides which file a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Credentials {
    /// Real, effective, saved.
    users: [u32; 3],
    groups: [u32; 3],
    supplementary: Vec<u32>,
    /// Effective, permitted, inheritable.
    capabilities: [u64; 3],
    root: Option<(u64, u64)>,
}

/// Settings that are not credentials. The guard applies to each job the settings that the host has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Settings {
    umask: Option<u32>,
    nice: Option<i32>,
    affinity: Vec<u8>,
    no_new_privs: bool,
    rlimits: Vec<Limit>,
}

/// The number of a resource, its soft limit and its hard limit.
type Limit = (u32, u64, u64);

/// The settings that a host has changed since its guard was started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChangedSettings {
    pub umask: Option<u32>,
    pub nice: Option<i32>,
    pub affinity: Option<Vec<u8>>,
    pub no_new_privs: bool,
    pub rlimits: Vec<Limit>,
}

impl HostState {
    /// Reads the current state.
    pub fn now() -> Self {
        Self { settings: Some(Settings::now()), ..Self::credentials_now() }
    }

    /// Reads only the current credentials. This is enough for a guard that was forked by a program that does nothing
    /// except supervise.
    pub fn credentials_now() -> Self {
        Self { credentials: Credentials::now(), settings: None }
    }

    /// Refuses a caller whose credentials differ from those of the guard (`self`), because the job would get the
    /// guard's credentials instead of the caller's.
    pub fn check_credentials(&self, caller: &Self) -> Result<()> {
        match self.credentials.difference(&caller.credentials) {
            None => Ok(()),
            Some(what) => Err(Error::HostChanged { what }),
        }
    }

    /// Returns the settings of the caller that differ from those of the guard (`self`).
    pub fn changed(&self, caller: &Self) -> ChangedSettings {
        match (&self.settings, &caller.settings) {
            (Some(before), Some(now)) if before != now => ChangedSettings {
                umask: now.umask.filter(|_| now.umask != before.umask),
                nice: now.nice.filter(|_| now.nice != before.nice),
                affinity: Some(&now.affinity).filter(|_| now.affinity != before.affinity).cloned(),
                no_new_privs: now.no_new_privs && !before.no_new_privs,
                rlimits: now.rlimits.iter().filter(|limit| !before.rlimits.contains(limit)).copied().collect(),
            },
            _ => ChangedSettings::default(),
        }
    }
}

impl Credentials {
    fn now() -> Self {
        let (mut users, mut groups) = ([0; 3], [0; 3]);
        // SAFETY: each call writes three integers, which outlive it (getresuid(2), getresgid(2)). These are direct
        // system calls, because a C library that caches ids would not notice that a thread has changed its own ids.
        unsafe {
            let [real, effective, saved] = &mut users;
            libc::syscall(libc::SYS_getresuid, &raw mut *real, &raw mut *effective, &raw mut *saved);
            let [real, effective, saved] = &mut groups;
            libc::syscall(libc::SYS_getresgid, &raw mut *real, &raw mut *effective, &raw mut *saved);
        }
        Self {
            users,
            groups,
            supplementary: supplementary_groups(),
            capabilities: capabilities(),
            root: rustix::fs::stat(c"/").ok().map(|root| (root.st_dev, root.st_ino)),
        }
    }

    fn difference(&self, caller: &Self) -> Option<String> {
        let ids = |[real, effective, saved]: [u32; 3]| format!("{real}/{effective}/{saved}");
        let differ = |what: &str, guard: String, caller: String| Some(format!("{what} were {guard}, now {caller}"));
        if self.users != caller.users {
            differ("user ids (real/effective/saved)", ids(self.users), ids(caller.users))
        } else if self.groups != caller.groups {
            differ("group ids (real/effective/saved)", ids(self.groups), ids(caller.groups))
        } else if self.supplementary != caller.supplementary {
            let groups = |groups: &[u32]| format!("{groups:?}");
            differ("supplementary groups", groups(&self.supplementary), groups(&caller.supplementary))
        } else if self.capabilities != caller.capabilities {
            let sets =
                |[effective, permitted, inheritable]: [u64; 3]| format!("{effective:x}/{permitted:x}/{inheritable:x}");
            differ("capabilities (effective/permitted/inheritable)", sets(self.capabilities), sets(caller.capabilities))
        } else if self.root != caller.root {
            Some("the root directory is another one (chroot)".into())
        } else {
            None
        }
    }
}

fn supplementary_groups() -> Vec<u32> {
    let mut groups = vec![0; 32];
    loop {
        // SAFETY: the list has as many places as the call is given (getgroups(2)).
        let count = unsafe { libc::getgroups(groups.len() as i32, groups.as_mut_ptr()) };
        match usize::try_from(count) {
            Ok(count) => {
                groups.truncate(count);
                return groups;
            }
            // NGROUPS_MAX.
            Err(_) if groups.len() < 65536 => groups.resize(65536, 0),
            Err(_) => return Vec::new(),
        }
    }
}

/// Returns the capabilities of the calling thread (capget(2)); no capabilities if the call is refused.
fn capabilities() -> [u64; 3] {
    /// `_LINUX_CAPABILITY_VERSION_3` (include/uapi/linux/capability.h): two parts of 32 bits each.
    const VERSION: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION, 0];
    let mut parts = [[0_u32; 3]; 2];
    // SAFETY: both have the kernel's layout for this version, and outlive the call.
    unsafe { libc::syscall(libc::SYS_capget, &raw const header, &raw mut parts) };
    std::array::from_fn(|set| u64::from(parts[0][set]) | u64::from(parts[1][set]) << 32)
}

impl Settings {
    fn now() -> Self {
        // SAFETY: no memory is touched. A direct system call: its result is 20 minus the niceness, so a negative value
        // is always an error (getpriority(2), "C library/kernel differences").
        let nice = unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, 0) };
        let mut affinity = vec![0_u8; 128];
        // SAFETY: the mask has as many bytes as the call is given (sched_getaffinity(2)). The result is the number of
        // bytes that the kernel has written.
        let length = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, affinity.len(), affinity.as_mut_ptr()) };
        affinity.truncate(usize::try_from(length).unwrap_or(0));
        Self {
            umask: umask(),
            nice: (nice > 0).then(|| 20 - nice as i32),
            affinity,
            // SAFETY: no memory is touched (PR_GET_NO_NEW_PRIVS(2const)).
            no_new_privs: unsafe { libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) } == 1,
            rlimits: inherited::followed_limits()
                .filter_map(|resource| rlimit::limit(resource).map(|(soft, hard)| (resource, soft, hard)))
                .collect(),
        }
    }
}

/// Reads the umask from `/proc/self/status` (proc_pid_status(5), Linux 4.7). No system call only reads it: umask(2)
/// also changes it, for all threads.
fn umask() -> Option<u32> {
    let mut text = [0; 512];
    let length = std::fs::File::open("/proc/self/status").ok()?.read(&mut text).ok()?;
    let line = text[..length].split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"Umask:\t"))?;
    u32::from_str_radix(std::str::from_utf8(line).ok()?, 8).ok()
}

impl ChangedSettings {
    /// Applies the settings to this process, which is a job's process before it executes the command. If the kernel
    /// refuses a setting, that setting stays as it is. Only a refused `no_new_privs` is an error; its errno is
    /// returned.
    ///
    /// # Safety
    /// Runs in a process that shares the guard's memory, including its `errno`: only direct system calls are allowed.
    pub unsafe fn apply(&self) -> std::result::Result<(), i32> {
        // SAFETY: each setting belongs to this process, not to the guard; the mask and the limits outlive the calls.
        unsafe {
            if let Some(umask) = self.umask {
                call(libc::SYS_umask, [umask as usize]);
            }
            if let Some(nice) = self.nice {
                call(libc::SYS_setpriority, [libc::PRIO_PROCESS as usize, 0, nice as usize]);
            }
            if let Some(mask) = &self.affinity {
                call(libc::SYS_sched_setaffinity, [0, mask.len(), mask.as_ptr() as usize]);
            }
            for &(resource, rlim_cur, rlim_max) in &self.rlimits {
                let limit = libc::rlimit64 { rlim_cur, rlim_max };
                call(libc::SYS_prlimit64, [0, resource as usize, &raw const limit as usize, 0]);
            }
            if self.no_new_privs {
                checked(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changed_settings_are_found() {
        let before = HostState::now();
        assert_eq!(before.changed(&HostState::now()), ChangedSettings::default());
        before.check_credentials(&HostState::now()).unwrap();
        let settings = before.settings.clone().unwrap();
        assert!(settings.umask.is_some() && settings.nice.is_some() && settings.rlimits.len() > 10, "{settings:?}");
        assert!(settings.affinity.iter().any(|&byte| byte != 0));
        let with = |settings| HostState { settings: Some(settings), ..before.clone() };
        let nicer = with(Settings { nice: settings.nice.map(|nice| nice + 1), ..settings.clone() });
        assert_eq!(
            before.changed(&nicer),
            ChangedSettings { nice: nicer.settings.as_ref().unwrap().nice, ..ChangedSettings::default() }
        );
        let mut lower = settings.clone();
        lower.rlimits[3].1 = 1;
        assert_eq!(before.changed(&with(lower.clone())).rlimits, [lower.rlimits[3]]);
        assert_eq!(HostState::credentials_now().changed(&nicer), ChangedSettings::default());
    }
}
