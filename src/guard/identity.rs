//! Environment variables that hold the identity of the process for which they are set: passed sockets (`LISTEN_PID`,
//! sd_listen_fds(3)), the watchdog (`WATCHDOG_PID`, sd_watchdog_enabled(3)), and `SYSTEMD_EXEC_PID` (systemd.exec(5)).
//! systemd sets them for the process that it executes. If they name the supervisor, pinfold replaces the value with the
//! identity of the command's process, so that the command accepts them.

#![allow(unsafe_code)]

use std::ffi::c_char;

use rustix::process::{PidfdFlags, getpid, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::kernel::syscall::{call, checked};

/// The kind of identity in such a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Identity {
    Pid,
    /// The inode number of the process's pidfd (Linux 6.9, pidfs).
    PidfdId,
}

const VARIABLES: [(&[u8], Identity); 4] = [
    (b"LISTEN_PID", Identity::Pid),
    (b"LISTEN_PIDFDID", Identity::PidfdId),
    (b"WATCHDOG_PID", Identity::Pid),
    (b"SYSTEMD_EXEC_PID", Identity::Pid),
];

/// Room for the longest number and its NUL, in bytes.
const ROOM: usize = 21;

/// Returns the positions of the variables that hold the identity of this process. Each element of the environment is
/// `NAME=value` and NUL. Variables for which `except` returns true are left out.
pub fn of_this_process<'a>(
    environment: impl Iterator<Item = &'a [u8]>,
    except: impl Fn(&[u8]) -> bool,
) -> Vec<(usize, Identity)> {
    let is_own = |(place, entry): (usize, &'a [u8])| {
        let of = |(name, _): &&(&[u8], Identity)| entry.strip_prefix(*name).is_some_and(|rest| rest.starts_with(b"="));
        let (name, identity) = VARIABLES.iter().find(of)?;
        let value = entry[name.len() + 1..].strip_suffix(b"\0")?;
        let value: u64 = std::str::from_utf8(value).ok()?.parse().ok()?;
        (!except(entry) && value == own(*identity)?).then_some((place, *identity))
    };
    environment.enumerate().filter_map(is_own).collect()
}

fn own(identity: Identity) -> Option<u64> {
    match identity {
        Identity::Pid => Some(std::process::id().into()),
        Identity::PidfdId => Some(rustix::fs::fstat(pidfd_open(getpid(), PidfdFlags::empty()).ok()?).ok()?.st_ino),
    }
}

/// One variable, with room for a longer value.
pub struct Variable {
    text: Vec<u8>,
    value_at: usize,
    identity: Identity,
}

impl Variable {
    /// Copies an entry of the environment, with its NUL.
    pub fn new(entry: &[u8], identity: Identity) -> Self {
        let value_at = entry.iter().position(|&byte| byte == b'=').map_or(entry.len(), |at| at + 1);
        let mut text = entry.to_vec();
        text.resize(entry.len().max(value_at + ROOM), 0);
        Self { text, value_at, identity }
    }

    /// Returns a pointer to the entry, valid as long as `self` lives. [`write`](Self::write) changes the text in place.
    pub fn as_ptr(&mut self) -> *const c_char {
        self.text.as_mut_ptr().cast_const().cast()
    }

    /// Writes the identity of the calling process, without an allocation. If the kernel does not provide it, the value
    /// stays unchanged.
    pub fn write(&mut self) {
        let Some(mut number) = calling(self.identity) else { return };
        let mut digits = [0; ROOM - 1];
        let mut first = digits.len();
        loop {
            first -= 1;
            // A digit fits into a byte.
            digits[first] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break;
            }
        }
        let digits = &digits[first..];
        if let Some(value) = self.text.get_mut(self.value_at..) {
            value.fill(0);
            value[..digits.len()].copy_from_slice(digits);
        }
    }
}

/// Returns the identity of the calling process. Uses only system calls: the process shares the guard's memory, and the
/// C library may keep errno and the pid there.
fn calling(identity: Identity) -> Option<u64> {
    // SAFETY: no memory is passed.
    let pid = unsafe { checked(libc::SYS_getpid, []) }.ok()?;
    if identity == Identity::Pid {
        return u64::try_from(pid).ok();
    }
    // SAFETY: all-zero is valid for plain data. The kernel fills in a structure of this size, which outlives the call.
    // The descriptor belongs to this process, and is closed here.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        let pidfd = checked(libc::SYS_pidfd_open, [pid, 0]).ok()?;
        let done = checked(libc::SYS_fstat, [pidfd, &raw mut status as usize]);
        call(libc::SYS_close, [pidfd]);
        done.ok().map(|_| status.st_ino)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_of_this_process_are_found_and_replaced() {
        let own_pid = std::process::id();
        let id = own(Identity::PidfdId).unwrap();
        let entries: Vec<Vec<u8>> = [
            "A=1".to_owned(),
            format!("LISTEN_PID={own_pid}"),
            format!("LISTEN_PIDX={own_pid}"),
            format!("WATCHDOG_PID={}", own_pid + 1),
            format!("LISTEN_PIDFDID={id}"),
            format!("SYSTEMD_EXEC_PID={own_pid} "),
            "SYSTEMD_EXEC_PID=".to_owned(),
        ]
        .into_iter()
        .map(|entry| [entry.as_bytes(), b"\0"].concat())
        .collect();
        let found = of_this_process(entries.iter().map(Vec::as_slice), |entry| entry.starts_with(b"SYSTEMD"));
        assert_eq!(found, [(1, Identity::Pid), (4, Identity::PidfdId)]);
        for (entry, identity, written) in [
            ("LISTEN_PID=1", Identity::Pid, format!("LISTEN_PID={own_pid}")),
            ("LISTEN_PID=123456789012345678901234567890", Identity::Pid, format!("LISTEN_PID={own_pid}")),
            ("LISTEN_PIDFDID=7", Identity::PidfdId, format!("LISTEN_PIDFDID={id}")),
        ] {
            let mut variable = Variable::new(&[entry.as_bytes(), b"\0"].concat(), identity);
            variable.write();
            let text = std::ffi::CStr::from_bytes_until_nul(&variable.text).unwrap();
            assert_eq!(text.to_str().unwrap(), written);
        }
    }
}
