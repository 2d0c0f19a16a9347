//! The description of a job in extended attributes of its cgroup: in the namespace "user.", which cgroup2 has since Linux
//! 5.7 ("kernfs: Add option to enable user xattrs"). The attributes vanish with the directory. Only the owner of the
//! directory can set them (xattr(7)).

use std::ffi::CStr;

#[cfg(feature = "cli")]
use rustix::fs::fgetxattr;
use rustix::fs::{XattrFlags, fsetxattr};
#[cfg(feature = "cli")]
use rustix::io::Errno;
use rustix::io::Result;
use rustix::process::Pid;

use super::directory::Cgroup;
use crate::report::Description;

const DESCRIPTION: &CStr = c"user.pinfold.job";
const MAIN: &CStr = c"user.pinfold.main";
const STOPPING: &CStr = c"user.pinfold.stopping";

impl Cgroup {
    /// Records the description of the job that this cgroup holds.
    ///
    /// # Errors
    /// `EOPNOTSUPP` before Linux 5.7.
    pub fn describe(&self, description: &Description) -> Result<()> {
        fsetxattr(self, DESCRIPTION, description.to_json().as_bytes(), XattrFlags::empty())
    }

    /// Records the pid of the main process, in the PID namespace of the supervisor.
    pub fn describe_main(&self, pid: Pid) -> Result<()> {
        fsetxattr(self, MAIN, pid.as_raw_nonzero().to_string().as_bytes(), XattrFlags::empty())
    }

    /// Records that pinfold is stopping the job.
    pub fn describe_stop(&self) -> Result<()> {
        fsetxattr(self, STOPPING, b"1", XattrFlags::empty())
    }
}

#[cfg(feature = "cli")]
impl Cgroup {
    /// Returns the description of the job that this cgroup holds, if it holds one.
    pub fn description(&self) -> Option<Description> {
        Description::from_json(&self.attribute(DESCRIPTION).ok()?)
    }

    /// Returns the recorded pid of the main process.
    pub fn described_main(&self) -> Option<Pid> {
        Pid::from_raw(std::str::from_utf8(&self.attribute(MAIN).ok()?).ok()?.parse().ok()?)
    }

    /// Returns whether pinfold has recorded that it is stopping the job.
    pub fn is_being_stopped(&self) -> bool {
        self.attribute(STOPPING).is_ok()
    }

    fn attribute(&self, name: &CStr) -> Result<Vec<u8>> {
        let mut value = vec![0; 16 * 1024];
        let length = fgetxattr(self, name, &mut value)?;
        value.truncate(length);
        if value.is_empty() { Err(Errno::NODATA) } else { Ok(value) }
    }
}
