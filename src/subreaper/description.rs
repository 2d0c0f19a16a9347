//! The description of a job that has no cgroup. It is in a memfd of the supervisor (memfd_create(2)), which vanishes
//! with the supervisor. Another process of the same user finds it through `/proc/PID/fd`.
//!
//! The content: one letter for the state, the pid of the main process in 10 characters, a newline, and the JSON form of
//! [`Description`]. A reader never sees a part of a change, because each change writes the letter last, and the letter
//! is one byte.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::MemfdFlags;
use rustix::io::{Result, pwrite};
use rustix::process::Pid;

use crate::kernel::memfd;
use crate::report::Description;

/// The name of the memfd. `/proc/PID/fd` shows it as `/memfd:pinfold-job (deleted)`.
const NAME: &CStr = c"pinfold-job";
#[cfg(feature = "cli")]
const LINK: &str = "/memfd:pinfold-job (deleted)";

const STARTING: u8 = b'n';
const RUNNING: u8 = b'r';
const STOPPING: u8 = b's';
const PID_WIDTH: usize = 10;

/// The record of one job, in a memfd of this process.
#[derive(Debug)]
pub(crate) struct MemfdRecord(OwnedFd);

impl MemfdRecord {
    /// Records a job that is about to start.
    pub fn new(description: &Description) -> Result<Self> {
        let text = format!("{}{:PID_WIDTH$}\n{}", char::from(STARTING), "", description.to_json());
        memfd::containing(NAME, MemfdFlags::CLOEXEC, text.as_bytes()).map(Self)
    }

    /// Records the pid of the main process.
    pub fn record_main(&self, pid: Pid) -> Result<()> {
        pwrite(&self.0, format!("{:PID_WIDTH$}", pid.as_raw_nonzero()).as_bytes(), 1)?;
        pwrite(&self.0, &[RUNNING], 0).map(drop)
    }

    /// Records that pinfold is stopping the job.
    pub fn record_stop(&self) -> Result<()> {
        pwrite(&self.0, &[STOPPING], 0).map(drop)
    }
}

/// A description that another process has recorded.
#[cfg(feature = "cli")]
#[derive(Debug)]
pub(crate) struct Found {
    pub description: Description,
    pub main: Option<Pid>,
    pub stopping: bool,
}

/// Returns the descriptions that the process `supervisor` has recorded. Returns an empty list if this process may not
/// read the descriptors of the other one (proc_pid_fd(5)).
#[cfg(feature = "cli")]
pub(crate) fn of(supervisor: Pid) -> Vec<Found> {
    let mut all = Vec::new();
    let directory = format!("/proc/{}/fd", supervisor.as_raw_nonzero());
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if std::fs::read_link(&path).is_ok_and(|link| link.as_os_str() == LINK) {
            all.extend(std::fs::read(path).ok().and_then(|text| parse(&text)));
        }
    }
    all
}

#[cfg(feature = "cli")]
fn parse(text: &[u8]) -> Option<Found> {
    let (head, json) = text.split_at_checked(PID_WIDTH + 2)?;
    let description = Description::from_json(json)?;
    let main = std::str::from_utf8(&head[1..=PID_WIDTH]).ok()?.trim();
    Some(Found { description, main: main.parse().ok().and_then(Pid::from_raw), stopping: head[0] == STOPPING })
}

#[cfg(all(test, feature = "cli"))]
mod tests {
    use super::*;
    use crate::report::SupervisorKind;

    #[test]
    fn a_description_is_found_while_its_descriptor_is_open() {
        let own = rustix::process::getpid();
        let description = Description {
            version: crate::report::DESCRIPTION_VERSION,
            name: format!("described-{}", own.as_raw_nonzero()),
            command: vec!["sleep".into(), "9".into()],
            kind: SupervisorKind::Run,
            supervisor: own.as_raw_nonzero().get(),
            guard: 7,
            started: 1.5,
            stop_signal: 15,
            grace: 10.0,
            kill_bound: 10.0,
            signal_to_main: false,
            sandboxed: false,
        };
        let find = || of(own).into_iter().find(|found| found.description == description);
        let record = MemfdRecord::new(&description).unwrap();
        let found = find().unwrap();
        assert_eq!((found.main, found.stopping), (None, false));
        record.record_main(own).unwrap();
        assert_eq!(find().unwrap().main, Some(own));
        record.record_stop().unwrap();
        let found = find().unwrap();
        assert_eq!((found.main, found.stopping), (Some(own), true));
        drop(record);
        assert!(find().is_none());
    }
}
