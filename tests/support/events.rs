//! Waits for events of the kernel: the end of a process, a change in a directory, an empty cgroup. Tests wait for these
//! instead of looking again and again.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// How long an expected event may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that a test waits for, also if it is no child of the test. After the end of the process, the pid may belong
/// to another one, so this is made while the process lives.
pub struct Process(Option<OwnedFd>);

impl Process {
    /// A process that is already gone has ended.
    pub fn of(pid: i32) -> Self {
        match pidfd_open(Pid::from_raw(pid).expect("a pid"), PidfdFlags::empty()) {
            Ok(pidfd) => Self(Some(pidfd)),
            Err(Errno::SRCH) => Self(None),
            Err(error) => panic!("pidfd_open of {pid}: {error}"),
        }
    }

    /// Waits until all threads of the process have ended (pidfd_open(2)). Its parent may not have reaped it yet.
    #[track_caller]
    pub fn wait_for_end(&self) {
        let Some(pidfd) = &self.0 else { return };
        assert!(is_ready(pidfd, PollFlags::IN, PATIENCE), "the process did not end within {PATIENCE:?}");
    }
}

/// Waits until the process has ended.
#[track_caller]
pub fn wait_for_end_of(pid: i32) {
    Process::of(pid).wait_for_end();
}

/// Waits until no process has the other end of this pipe open for writing.
#[track_caller]
pub fn wait_for_hang_up(pipe: &impl AsFd) {
    // No events are requested, because poll(2) always reports a hang-up.
    assert!(is_ready(pipe, PollFlags::empty(), PATIENCE), "the pipe is still open after {PATIENCE:?}");
}

/// Waits until `seen` returns a value. It is called again after each change in the directory: of its entries, and of the
/// content of its files (inotify(7)). A directory of cgroup v2 reports the making and the removal of cgroups like this,
/// but no other changes.
#[track_caller]
pub fn wait_in<T>(directory: &Path, mut seen: impl FnMut() -> Option<T>) -> T {
    let watch = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
    let changes = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::DELETE
        | inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::MOVED_FROM
        | inotify::WatchFlags::MOVED_TO;
    inotify::add_watch(&watch, directory, changes | inotify::WatchFlags::ONLYDIR).unwrap();
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = seen() {
            return value;
        }
        let left = end.saturating_duration_since(Instant::now());
        assert!(is_ready(&watch, PollFlags::IN, left), "not within {PATIENCE:?} in {}", directory.display());
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&watch, &mut buffer);
        while events.next().is_ok() {}
    }
}

/// Waits until this file exists. Its directory must exist.
#[track_caller]
pub fn wait_for_file(path: &Path) {
    wait_in(path.parent().unwrap(), || path.exists().then_some(()));
}

/// Waits until no process is in the cgroup or below it: `populated 0` in its `cgroup.events`, of which the kernel sends
/// notifications (cgroup-v2.rst, "Basic Operations"). A cgroup that is removed is empty.
#[track_caller]
pub fn wait_until_empty(cgroup: &Path) {
    let Ok(file) = std::fs::File::open(cgroup.join("cgroup.events")) else { return };
    let is_populated = || {
        let mut text = [0; 256];
        let read = std::os::unix::fs::FileExt::read_at(&file, &mut text, 0);
        read.is_ok_and(|length| String::from_utf8_lossy(&text[..length]).contains("populated 1"))
    };
    while is_populated() {
        assert!(is_ready(&file, PollFlags::PRI, PATIENCE), "{} is not empty within {PATIENCE:?}", cgroup.display());
    }
}

fn is_ready(descriptor: &impl AsFd, events: PollFlags, time: Duration) -> bool {
    let time = Timespec::try_from(time).unwrap();
    loop {
        match poll(&mut [PollFd::new(descriptor, events)], Some(&time)) {
            Err(Errno::INTR) => {}
            ready => return ready.unwrap() == 1,
        }
    }
}
