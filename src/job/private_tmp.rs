//! The private tmp of a job, from its start to its end: a directory, or a file system in memory that only the job sees.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::fstatfs;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::actor::Actor;
use super::command::Command;
use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::socket::receive_descriptor;
use crate::report::{Figure, NotRemoved};
use crate::sandbox::machine::Machine;
use crate::sandbox::prepare::{Users, needs_tmp_directory};
use crate::sandbox::private_tmp::PrivateTmpDir;
use crate::supervisor::tmp_base::on_thread;

/// The private tmp of one job.
#[derive(Debug)]
pub(super) enum PrivateTmp {
    Directory(PrivateTmpDir),
    /// A file system in memory. The child sends a descriptor of it through this socket.
    Mounted(OwnedFd),
}

/// Returns the users of the job's sandbox.
pub(super) fn users(command: &Command) -> Users {
    Users::of(command.user.as_ref().map(|user| (user.uid, user.gid)))
}

/// Returns whether the job needs a directory of the host for its private tmp.
pub(super) fn needs_directory(command: &Command) -> bool {
    command.sandbox.as_ref().is_some_and(|sandbox| needs_tmp_directory(sandbox, Machine::get()))
}

/// Returns the two ends of the socket for a descriptor of the mounted private tmp.
pub(super) fn socket() -> Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)
        .map_err(|errno| Error::system("socketpair", "for the private tmp", errno, short_of_descriptors(errno)))
}

impl Actor {
    /// Removes the private tmp, and puts its size into the report.
    pub(super) async fn remove_private_tmp(&mut self) {
        let bytes = match self.private_tmp.take().map(|tmp| *tmp) {
            None => return,
            Some(PrivateTmp::Mounted(socket)) => used(&socket),
            Some(PrivateTmp::Directory(tmp)) => match remove(tmp).await {
                Ok(bytes) => Figure::known(bytes, "st_blocks of its files"),
                Err(not_removed) => {
                    self.report.not_removed.push(not_removed);
                    Figure::unknown("not all of its files could be removed")
                }
            },
        };
        if let Some(sandbox) = &mut self.report.sandbox {
            sandbox.private_tmp_bytes = Some(bytes);
        }
    }
}

/// Returns how much the mounted private tmp contains. The descriptor keeps the file system, so this must be dropped.
fn used(socket: &OwnedFd) -> Figure {
    let Some(root) = receive_descriptor(socket) else {
        return Figure::unknown("the job's process did not send a descriptor of it");
    };
    match fstatfs(&root) {
        Ok(stat) if stat.f_blocks > 0 => {
            let used = stat.f_blocks.saturating_sub(stat.f_bfree);
            Figure::known(used * stat.f_bsize.cast_unsigned(), "statfs")
        }
        // tmpfs counts nothing if it has no limit (`shmem_statfs` in mm/shmem.c).
        Ok(_) => Figure::unknown("the file system does not count its blocks"),
        Err(errno) => Figure::unknown(format!("statfs: {errno}")),
    }
}

/// Removes the directory in a thread: one system call can take seconds if it frees the blocks of a big file, and
/// deadlines and other jobs must not wait for it.
async fn remove(tmp: PrivateTmpDir) -> std::result::Result<u64, NotRemoved> {
    if tmp.is_removed_if_empty() {
        return Ok(0);
    }
    let tmp = Arc::new(tmp);
    let theirs = tmp.clone();
    let not_removed = |path: std::path::PathBuf, error: String| NotRemoved { path: path.display().to_string(), error };
    let removed = on_thread(move || {
        let mut removal = theirs.removal().map_err(|errno| (theirs.path().to_owned(), errno))?;
        removal.step(None);
        removal.result().map_err(|(name, errno)| (theirs.path_of(&name), errno))
    });
    match removed.await {
        Some(result) => result.map_err(|(path, errno)| not_removed(path, errno.to_string())),
        None => Err(not_removed(tmp.path().to_owned(), "the thread that removes it has ended".into())),
    }
}
