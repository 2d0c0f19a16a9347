//! The code with which the child applies a prepared sandbox, between clone and exec. The child shares the guard's
//! memory, only makes system calls, and allocates nothing.
//!
//! The order, among the child's other steps:
//!
//! 1. [`Confinement::enter`]: the namespaces and mounts, and the bounding set. This comes before the change of the
//!    user, because root needs its capabilities for it, and before the change of the working directory, because
//!    mounts can cover that directory.
//! 2. The change of the user, the exec timer, the death signal.
//! 3. [`drop_privileges`]: the child gives up its capabilities, sets `no_new_privs`, and turns core dumps off.
//! 4. Landlock.
//! 5. The signal mask.
//! 6. [`Confinement::filter`]: the seccomp filters. They come last, because they forbid system calls that the earlier
//!    steps make.
//!
//! The child never changes the `dumpable` flag, because this flag belongs to the memory that it shares with the guard.

#![allow(unsafe_code)]

use std::ffi::CStr;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use super::mounts::Action;
use crate::kernel::landlock;
use crate::kernel::seccomp::Program;
use crate::kernel::socket::send_descriptor;
use crate::kernel::syscall::{call, checked};

/// A prepared sandbox. It is plain data, so that the supervisor can send it to the guard; the ruleset is sent as a
/// descriptor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// The namespaces and mounts.
    pub actions: Vec<Action>,
    /// The seccomp filters, in the order in which they are installed. The kernel runs all of them for each system call,
    /// and the strictest result wins.
    pub filters: Vec<Program>,
    /// The filter that takes the place of pinfold's own, if pinfold explains what the sandbox refuses.
    pub listener: Option<Program>,
}

impl Confinement {
    /// Enters the namespaces, makes the mounts, and empties the capability bounding set. `ruleset` is -1 for a sandbox
    /// without a ruleset. `tmp_socket` is the socket over which the child sends a descriptor of the private tmp, or -1.
    ///
    /// # Safety
    /// Only for a process between clone and exec, because the changes are permanent. The confinement must live until
    /// the exec.
    pub unsafe fn enter(&self, ruleset: RawFd, tmp_socket: RawFd) -> Result<(), i32> {
        // SAFETY: the caller's obligation.
        unsafe {
            for action in &self.actions {
                act(action, ruleset, tmp_socket)?;
            }
            empty_bounding_set()
        }
    }

    /// Installs the seccomp filters. If a filter has a listener, the child sends the listener's descriptor over
    /// `socket`.
    ///
    /// # Safety
    /// The same as for [`enter`](Self::enter).
    pub unsafe fn filter(&self, socket: RawFd) -> Result<(), i32> {
        if let Some(program) = &self.listener {
            // After this, each call that causes a notification waits for the answer of the listener. Of the remaining
            // steps, only exec makes such a call. SAFETY: `no_new_privs` is set; the supervisor is the owner of the
            // listener, which this process does not use.
            unsafe { send_descriptor(socket, program.install_with_listener()? as RawFd)? };
        }
        // SAFETY: `no_new_privs` is set; the caller's obligation.
        self.filters.iter().try_for_each(|filter| unsafe { filter.install() })
    }
}

/// Drops the capabilities, sets `no_new_privs`, and turns core dumps off.
///
/// # Safety
/// The same as for [`Confinement::enter`].
pub unsafe fn drop_privileges() -> Result<(), i32> {
    // SAFETY: the caller's obligation; every call changes only this process.
    unsafe {
        drop_capabilities()?;
        checked(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0])?;
        no_core_dumps()
    }
}

/// Takes one step of the namespaces and mounts.
///
/// # Safety
/// The same as for [`Confinement::enter`].
pub unsafe fn act(action: &Action, ruleset: RawFd, tmp_socket: RawFd) -> Result<(), i32> {
    // SAFETY: every pointer is to a string of the action, which outlives the call; the calls change only this process
    // and its namespaces.
    unsafe {
        match action {
            Action::Unshare(flags) => checked(libc::SYS_unshare, [*flags as usize]).map(drop),
            Action::WriteMap { file, text } => write(file, text),
            Action::Private => mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c""),
            Action::Bind(path) => mount(path, path, c"", libc::MS_BIND | libc::MS_REC, c""),
            Action::ReadOnly { path, read_only } => set_read_only(path, *read_only),
            Action::Tmpfs { path, options, rights } => {
                mount(c"tmpfs", path, c"tmpfs", libc::MS_NOSUID | libc::MS_NODEV, options)?;
                let flags = (libc::O_PATH | libc::O_CLOEXEC) as usize;
                let root = checked(libc::SYS_openat, [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags, 0])?;
                let mut done = Ok(());
                if ruleset >= 0 {
                    done = landlock::allow_beneath(ruleset, root as RawFd, *rights);
                }
                if tmp_socket >= 0 {
                    // If this fails, the report does not contain the size of the private tmp.
                    let _ = send_descriptor(tmp_socket, root as RawFd);
                }
                call(libc::SYS_close, [root]);
                done
            }
            Action::HideDirectory(path) => {
                let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
                mount(c"tmpfs", path, c"tmpfs", flags, c"mode=0,size=4k")
            }
            Action::HideFile(path) => mount(c"/dev/null", path, c"", libc::MS_BIND, c""),
            Action::Loopback => turn_loopback_on(),
        }
    }
}

/// # Safety
/// The same as for [`Confinement::enter`].
unsafe fn mount(source: &CStr, target: &CStr, kind: &CStr, flags: libc::c_ulong, data: &CStr) -> Result<(), i32> {
    let [source, target, kind, data] = [source, target, kind, data].map(|text| text.as_ptr() as usize);
    // SAFETY: the strings outlive the call (mount(2)).
    unsafe { checked(libc::SYS_mount, [source, target, kind, flags as usize, data]) }.map(drop)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

/// # Safety
/// The same as for [`Confinement::enter`].
unsafe fn set_read_only(path: &CStr, read_only: bool) -> Result<(), i32> {
    /// The same number on all architectures.
    const MOUNT_SETATTR: libc::c_long = 442;
    const READ_ONLY: u64 = 1;
    const RECURSIVE: usize = 0x8000;
    let (set, clear) = if read_only { (READ_ONLY, 0) } else { (0, READ_ONLY) };
    let attributes = MountAttributes { set, clear, ..MountAttributes::default() };
    let (path, size) = (path.as_ptr() as usize, size_of::<MountAttributes>());
    let arguments = [libc::AT_FDCWD as usize, path, RECURSIVE, &raw const attributes as usize, size];
    // SAFETY: the structure has the kernel's layout, and outlives the call.
    unsafe { checked(MOUNT_SETATTR, arguments) }.map(drop)
}

/// Writes a file of /proc in one call, as maps of ids require.
///
/// # Safety
/// The same as for [`Confinement::enter`].
unsafe fn write(file: &CStr, text: &[u8]) -> Result<(), i32> {
    let flags = (libc::O_WRONLY | libc::O_CLOEXEC) as usize;
    // SAFETY: the path and the text outlive the calls.
    unsafe {
        let file = checked(libc::SYS_openat, [libc::AT_FDCWD as usize, file.as_ptr() as usize, flags, 0])?;
        let written = checked(libc::SYS_write, [file, text.as_ptr() as usize, text.len()]);
        call(libc::SYS_close, [file]);
        written.map(drop)
    }
}

/// # Safety
/// The same as for [`Confinement::enter`].
unsafe fn turn_loopback_on() -> Result<(), i32> {
    // SAFETY: `ifreq` is made of integers and arrays, so all-zero is valid; it outlives the calls (netdevice(7)).
    unsafe {
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC) as usize;
        let socket = checked(libc::SYS_socket, [libc::AF_INET as usize, kind, 0])?;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        let done = checked(libc::SYS_ioctl, [socket, libc::SIOCSIFFLAGS as usize, &raw const request as usize]);
        call(libc::SYS_close, [socket]);
        done.map(drop)
    }
}

/// Empties the capability bounding set, if this process has permission: then no program file can add a capability
/// (capabilities(7)). Without permission, `no_new_privs` has the same effect.
///
/// # Safety
/// The same as for [`Confinement::enter`].
pub unsafe fn empty_bounding_set() -> Result<(), i32> {
    for capability in 0..64 {
        // SAFETY: an attribute of this process only (PR_CAPBSET_DROP in prctl(2)).
        match unsafe { checked(libc::SYS_prctl, [libc::PR_CAPBSET_DROP as usize, capability, 0, 0, 0]) } {
            Ok(_) => {}
            // The kernel does not have this capability, or the process does not have CAP_SETPCAP.
            Err(libc::EINVAL | libc::EPERM) => break,
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// `_LINUX_CAPABILITY_VERSION_3` (capget(2)).
const CAPABILITIES: u32 = 0x2008_0522;

/// Gives up all capabilities of this process, including those that an executed program would inherit.
///
/// # Safety
/// The same as for [`Confinement::enter`].
unsafe fn drop_capabilities() -> Result<(), i32> {
    let header = [CAPABILITIES, 0];
    // The effective, permitted and inheritable sets: first their lower halves, then the upper ones (capset(2)).
    let none = [0_u32; 6];
    // SAFETY: attributes of this process only; the arrays have the kernel's layout and outlive the call. Without
    // inheritable capabilities there are no ambient ones.
    unsafe { checked(libc::SYS_capset, [header.as_ptr() as usize, none.as_ptr() as usize]) }.map(drop)
}

/// Turns core dumps off. The limit is 1 byte and not 0, because the kernel ignores a limit of 0 if it passes core dumps
/// to a program (core(5), `do_coredump` in fs/coredump.c).
///
/// # Safety
/// The same as for [`Confinement::enter`].
unsafe fn no_core_dumps() -> Result<(), i32> {
    let set = |size: u64| {
        let limit = libc::rlimit64 { rlim_cur: size, rlim_max: size };
        // SAFETY: the structure outlives the call; the number 0 names this process.
        unsafe { checked(libc::SYS_prlimit64, [0, libc::RLIMIT_CORE as usize, &raw const limit as usize, 0]) }
    };
    match set(1) {
        // The hard limit is 0 already.
        Err(libc::EPERM) => set(0).map(drop),
        done => done.map(drop),
    }
}
