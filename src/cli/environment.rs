//! pinfold's settings in the environment, for every subcommand. An empty variable counts as unset.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::report::ContainmentKind;
use crate::{Error, Result, Supervisor, SupervisorBuilder};

use super::run::ContainmentArg;

/// The cgroup v2 directory for the bases, if there is no `--cgroup`.
const CGROUP: &str = "PINFOLD_CGROUP";

/// The containment of the jobs, if there is no `--containment`.
const CONTAINMENT: &str = "PINFOLD_CONTAINMENT";

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Returns the directory of the option, or else that of the environment.
pub fn cgroup(option: Option<&Path>) -> Option<PathBuf> {
    option.map(Path::to_owned).or_else(|| variable(CGROUP).map(PathBuf::from))
}

/// Returns the containment of the option, or else that of the environment; `None` if pinfold chooses.
///
/// # Errors
/// [`Error::Invalid`], with the name and the value of the variable.
pub fn containment(option: Option<ContainmentArg>) -> Result<Option<ContainmentKind>> {
    if let Some(containment) = option {
        return Ok(containment.kind());
    }
    let Some(value) = variable(CONTAINMENT) else { return Ok(None) };
    let value = value.to_string_lossy();
    match ContainmentArg::from_str(&value, true) {
        Ok(containment) => Ok(containment.kind()),
        Err(_) => Err(Error::Invalid {
            what: CONTAINMENT,
            value: value.into_owned(),
            advice: "write auto, cgroup or subreaper".into(),
        }),
    }
}

/// Returns a builder of a supervisor with the settings of the options and of the environment.
///
/// # Errors
/// Those of [`containment`].
pub fn supervisor(
    cgroup_option: Option<&Path>,
    containment_option: Option<ContainmentArg>,
) -> Result<SupervisorBuilder> {
    let mut builder = Supervisor::builder();
    if let Some(cgroup) = cgroup(cgroup_option) {
        builder = builder.cgroup(cgroup);
    }
    if let Some(kind) = containment(containment_option)? {
        builder = builder.containment(kind);
    }
    Ok(builder)
}
