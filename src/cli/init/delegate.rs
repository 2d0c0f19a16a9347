//! `pinfold init --delegate`: prepares the container's cgroup so that every pinfold in the container can set limits for
//! its jobs.

use anyhow::{Result, bail};

use crate::cgroup::{self, init_leaf};
use crate::error::{ContainmentErrorKind, Error};

use super::Init;

/// Moves all processes of the container's own cgroup to a leaf below it. Then enables the controllers for all cgroups
/// below it, in which the jobs run.
///
/// # Errors
/// If this process is not PID 1, or if the cgroup is not writable.
pub fn delegate(init: &Init) -> Result<()> {
    if std::process::id() != 1 {
        bail!("--delegate moves all processes of the cgroup, so it is only for PID 1 of a container");
    }
    let own_cgroup =
        cgroup::place(None).map_err(|refused| Error::containment(ContainmentErrorKind::NoCgroup, refused))?;
    // Only the root of the whole cgroup tree has no `cgroup.events`. The root of a cgroup namespace has this file.
    if own_cgroup.events().is_err() {
        bail!("--delegate: this is the machine's root cgroup, not the cgroup of a container");
    }
    let controllers = init_leaf::delegate(&own_cgroup).map_err(|(operation, errno)| Error::System {
        operation: "delegate the controllers of",
        object: own_cgroup.path().display().to_string(),
        source: errno.into(),
        advice: format!("cannot {operation}; the container needs a cgroup of its own (a private cgroup namespace)"),
    })?;
    init.debug(|| format!("controllers for the limits of jobs: {}", controllers.join(", ")));
    Ok(())
}
