//! The children of a process, as `/proc` lists them (proc_pid_task(5)).

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, getpid};

use crate::kernel::pidfd::Pidfd;
use crate::kernel::process;

/// Returns the direct children of this process.
///
/// # Errors
/// `ESRCH` if `/proc` shows another PID namespace, or the errno of reading it. An error does not prove that there is no
/// child.
pub(crate) fn own_children() -> Result<Vec<Pid>> {
    process::proc_is_own()?;
    children(getpid())
}

/// Returns whether each child of this process has ended, even if it has not been reaped. For systems where waiting for
/// children is refused.
pub(crate) fn all_children_have_ended() -> bool {
    let has_ended = |pid| Pidfd::open(pid).is_ok_and(|child| child.has_ended());
    own_children().is_ok_and(|children| children.into_iter().all(has_ended))
}

/// Returns the direct children of all threads of a process: from `/proc/PID/task/TID/children` if the kernel has it
/// (CONFIG_PROC_CHILDREN), otherwise by a search through `/proc`. Some children may be missing while children start and
/// end (proc_pid_task(5)). The youngest child comes first: in a chain of processes that each start a child and end,
/// only the youngest is alive.
///
/// # Errors
/// `ENOENT` if the process is gone or `/proc` does not show it; any other errno of reading its list.
pub(crate) fn children(parent: Pid) -> Result<Vec<Pid>> {
    let parent = parent.as_raw_nonzero().get();
    let threads = format!("/proc/{parent}/task");
    let mut all = Vec::new();
    // The link count includes `.`, `..` and one link for each thread.
    let has_one_thread = rustix::fs::stat(&*threads)?.st_nlink == 3;
    if has_one_thread && read_children(&format!("{threads}/{parent}"), &mut all).is_ok() {
        all.reverse();
        return Ok(all);
    }
    all.clear();
    let errno = |error: std::io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    for thread in std::fs::read_dir(threads).map_err(errno)? {
        let thread = thread.map_err(errno)?.path();
        match read_children(&thread.to_string_lossy(), &mut all) {
            // The thread still exists, so the kernel does not have the file `children`.
            Err(Errno::NOENT) if thread.join("stat").exists() => return by_parent(parent),
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            Err(errno) => return Err(errno),
        }
    }
    all.reverse();
    Ok(all)
}

/// Adds the children that one thread has started. Uses as few system calls as possible, because some children end
/// before a slower function could list them.
fn read_children(thread: &str, all: &mut Vec<Pid>) -> Result<()> {
    let file = open(format!("{thread}/children"), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let (mut buffer, mut pid) = ([0; 4096], 0_i32);
    loop {
        let length = rustix::io::read(&file, &mut buffer)?;
        for &byte in &buffer[..length] {
            if byte.is_ascii_digit() {
                pid = pid.wrapping_mul(10).wrapping_add(i32::from(byte - b'0'));
            } else {
                all.extend(Pid::from_raw(pid));
                pid = 0;
            }
        }
        if length == 0 {
            return Ok(());
        }
    }
}

fn by_parent(parent: i32) -> Result<Vec<Pid>> {
    let entries = std::fs::read_dir("/proc").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let all = entries
        .flatten()
        .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
        .filter(|pid| {
            let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
            process::parent(&stat) == Some(parent)
        })
        .collect();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn both_ways_find_the_same_children() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        let own = rustix::process::getpid();
        // Other tests of this process start children of their own.
        assert!(children(own).unwrap().contains(&pid));
        assert!(by_parent(own.as_raw_nonzero().get()).unwrap().contains(&pid));
        assert!(children(pid).unwrap().is_empty());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(!children(own).unwrap().contains(&pid));
        // For a process that is gone, the result is an error and not an empty list.
        assert_eq!(children(pid), Err(Errno::NOENT));
    }
}
