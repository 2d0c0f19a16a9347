//! pinfold's settings in the environment, for every command: an empty variable is the same as an unset one.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use pinfold::report::ContainmentKind;
use pinfold::{Builder, Error, Result, Supervisor};

use super::run::ContainmentArg;

/// The cgroup v2 directory for the bases, where `--cgroup` names none.
const CGROUP: &str = "PINFOLD_CGROUP";

/// What holds the jobs, where `--containment` does not say it.
const CONTAINMENT: &str = "PINFOLD_CONTAINMENT";

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The directory of the option, else that of the environment.
pub fn cgroup(option: Option<&Path>) -> Option<PathBuf> {
    option.map(Path::to_owned).or_else(|| variable(CGROUP).map(PathBuf::from))
}

/// The containment of the option, else that of the environment; `None` where any will do.
///
/// # Errors
/// [`Error::Invalid`], which names the variable and its value.
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

/// A supervisor as the options and the environment describe it.
///
/// # Errors
/// As those of [`containment`].
pub fn supervisor(cgroup_option: Option<&Path>, containment_option: Option<ContainmentArg>) -> Result<Builder> {
    let mut builder = Supervisor::builder();
    if let Some(cgroup) = cgroup(cgroup_option) {
        builder = builder.cgroup(cgroup);
    }
    if let Some(kind) = containment(containment_option)? {
        builder = builder.containment(kind);
    }
    Ok(builder)
}
