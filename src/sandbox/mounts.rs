//! The namespaces and mounts of a job: a list of system calls that the supervisor prepares and the child makes.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// One system call of the child. Every string already ends with NUL, as the kernel requires.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// unshare(2) with these flags.
    Unshare(u32),
    /// Writes a map of user or group ids (user_namespaces(7)).
    WriteMap { file: CString, text: Vec<u8> },
    /// Stops mount events between this namespace and the host (MS_PRIVATE, mount_namespaces(7)).
    Private,
    /// Bind-mounts the path onto itself, with all mounts below it. Its flags can then be changed separately.
    Bind(CString),
    /// Makes the mount at the path and all mounts below it read-only, or writable (mount_setattr(2), Linux 5.12).
    ReadOnly { path: CString, read_only: bool },
    /// Mounts an empty tmpfs, and sends a descriptor of it to the supervisor. `rights` are those that the ruleset
    /// grants below it.
    Tmpfs { path: CString, options: CString, rights: u64 },
    /// Covers a directory with an empty one that cannot be read.
    HideDirectory(CString),
    /// Covers a file with /dev/null.
    HideFile(CString),
    /// Turns on the loopback device.
    Loopback,
}

impl Action {
    /// Returns the description of the step for an error message.
    pub fn words(&self) -> String {
        let path = |path: &CStr| path.to_string_lossy().into_owned();
        match self {
            Self::Unshare(flags) if flags & libc::CLONE_NEWUSER as u32 != 0 => "make a user namespace".into(),
            Self::Unshare(_) => "make a namespace".into(),
            Self::WriteMap { file, .. } => format!("write {}", path(file)),
            Self::Private => "make the mounts private".into(),
            Self::Bind(target) => format!("mount {} onto itself", path(target)),
            Self::ReadOnly { path: target, read_only: true } => format!("make {} read-only", path(target)),
            Self::ReadOnly { path: target, .. } => format!("make {} writable", path(target)),
            Self::Tmpfs { path: target, .. } => format!("mount a tmpfs on {}", path(target)),
            Self::HideDirectory(target) | Self::HideFile(target) => format!("hide {}", path(target)),
            Self::Loopback => "turn the loopback device on".into(),
        }
    }
}

/// Returns advice for a step that failed, with a space before it; empty if there is no advice.
pub fn hint(action: &Action, errno: Errno) -> &'static str {
    match (action, errno) {
        (Action::Unshare(_), Errno::NOSPC) => " (see /proc/sys/user/max_user_namespaces)",
        (Action::Unshare(_), Errno::PERM) => {
            " (see kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns, or a container's \
             seccomp profile)"
        }
        (Action::WriteMap { .. } | Action::Private, Errno::PERM | Errno::ACCESS) => {
            " (a security module restricts user namespaces: see kernel.apparmor_restrict_unprivileged_userns)"
        }
        (Action::ReadOnly { .. }, Errno::NOSYS) => " (it needs Linux 5.12)",
        _ => "",
    }
}

/// The ids of a job whose supervisor does not run as root. They stay the same in the job's user namespace.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
}

/// The file system as the job sees it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Whether everything except the paths to write is read-only.
    pub read_only: bool,
    /// Absolute paths, without symbolic links.
    pub writable: Vec<PathBuf>,
    pub hidden: Vec<PathBuf>,
    /// Where an empty file system in memory is mounted, its options, and Landlock's rights below it.
    pub tmpfs: Option<(PathBuf, String, u64)>,
}

impl View {
    fn is_plain(&self) -> bool {
        !self.read_only && self.hidden.is_empty() && self.tmpfs.is_none()
    }
}

/// Returns the calls for the namespaces of a job. `ids` is for a caller without privileges, which first needs a user
/// namespace; `None` is for root, which changes the user after these calls.
pub fn calls(view: &View, own_network: bool, ids: Option<Ids>) -> Vec<Action> {
    let mut flags = 0;
    if view.read_only {
        flags |= libc::CLONE_NEWIPC;
    }
    if !view.is_plain() {
        flags |= libc::CLONE_NEWNS;
    }
    if own_network {
        flags |= libc::CLONE_NEWNET;
    }
    if flags == 0 {
        return Vec::new();
    }
    let mut calls = Vec::new();
    match ids {
        None => calls.push(Action::Unshare(flags as u32)),
        Some(Ids { uid, gid }) => {
            calls.push(Action::Unshare((flags | libc::CLONE_NEWUSER) as u32));
            // The kernel accepts a group map only after "deny" was written (user_namespaces(7)).
            for (file, text) in [
                (c"/proc/self/setgroups", "deny".to_owned()),
                (c"/proc/self/uid_map", format!("{uid} {uid} 1")),
                (c"/proc/self/gid_map", format!("{gid} {gid} 1")),
            ] {
                calls.push(Action::WriteMap { file: file.to_owned(), text: text.into_bytes() });
            }
        }
    }
    if !view.is_plain() {
        calls.push(Action::Private);
    }
    if view.read_only {
        let writable = || view.writable.iter().map(|path| c_string(path));
        calls.extend(writable().map(Action::Bind));
        calls.push(Action::ReadOnly { path: c"/".to_owned(), read_only: true });
        calls.extend(writable().map(|path| Action::ReadOnly { path, read_only: false }));
    }
    if let Some((path, options, rights)) = &view.tmpfs {
        let options = CString::new(options.as_str()).unwrap_or_default();
        calls.push(Action::Tmpfs { path: c_string(path), options, rights: *rights });
    }
    // These come last, so that no later mount covers them.
    for path in &view.hidden {
        let target = c_string(path);
        calls.push(if path.is_dir() { Action::HideDirectory(target) } else { Action::HideFile(target) });
    }
    if own_network {
        calls.push(Action::Loopback);
    }
    calls
}

/// Returns the path for the kernel. The policy's validation has refused paths with NUL.
fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

fn own_ids() -> Option<Ids> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    (!uid.is_root()).then(|| Ids { uid: uid.as_raw(), gid: gid.as_raw() })
}

/// Returns calls that show whether a job can have mounts of its own.
pub fn probe_of_mounts() -> Vec<Action> {
    calls(&View { read_only: true, ..View::default() }, false, own_ids())
}

/// Returns calls that show whether a job can have a network of its own.
pub fn probe_of_network() -> Vec<Action> {
    calls(&View::default(), true, own_ids())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: Option<Ids> = Some(Ids { uid: 1000, gid: 100 });

    #[test]
    fn no_namespace_without_a_need() {
        assert_eq!(calls(&View::default(), false, USER), []);
        let writable = View { writable: vec!["/srv".into()], ..View::default() };
        assert_eq!(calls(&writable, false, USER), []);
    }

    #[test]
    fn paths_to_write_become_writable_after_everything_became_read_only() {
        let view = View { read_only: true, writable: vec!["/srv".into()], ..View::default() };
        let all = calls(&view, false, USER);
        let text: Vec<_> = all.iter().map(Action::words).collect();
        assert_eq!(
            text,
            [
                "make a user namespace",
                "write /proc/self/setgroups",
                "write /proc/self/uid_map",
                "write /proc/self/gid_map",
                "make the mounts private",
                "mount /srv onto itself",
                "make / read-only",
                "make /srv writable",
            ]
        );
        assert!(matches!(&all[2], Action::WriteMap { text, .. } if text == b"1000 1000 1"));
    }

    #[test]
    fn root_needs_no_user_namespace() {
        let view = View { hidden: vec!["/etc".into(), "/etc/passwd".into()], ..View::default() };
        let all = calls(&view, true, None);
        assert_eq!(all[0], Action::Unshare((libc::CLONE_NEWNS | libc::CLONE_NEWNET) as u32));
        let hidden = [Action::HideDirectory(c"/etc".to_owned()), Action::HideFile(c"/etc/passwd".to_owned())];
        assert_eq!(all[2..], [&hidden[..], &[Action::Loopback]].concat());
    }
}
