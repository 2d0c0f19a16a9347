//! The containment that `pinfold run` would use, and why.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::facts::{Facts, Place, Scratch, Systemd, Tried};
use super::{kernel, words};
use crate::cgroup::base;
use crate::error::{SpawnError, SpawnStage};
use crate::report::{ContainmentKind, Refusal};

/// How `pinfold run` can hold jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub enum Containment {
    /// A cgroup v2 for each job.
    Cgroup,
    /// A guard for each job. All orphaned processes of a job become children of its guard.
    Subreaper,
    /// It can't hold jobs.
    Nothing,
}

/// What `pinfold run` would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct Verdict {
    /// The containment that it would use.
    pub containment: Containment,
    /// The cgroup in which it would make the cgroups of jobs; null if that would be a new scope from systemd, or if it
    /// would not use a cgroup.
    pub cgroup: Option<String>,
    /// The reason, in words.
    pub why: String,
    /// The stronger containments that are not available, each with the reason and with advice.
    pub refused: Vec<Refusal>,
}

impl Verdict {
    pub(super) fn of(facts: &Facts) -> Self {
        match facts.containment {
            Some(ContainmentKind::Subreaper) => {
                // pinfold does not look for a cgroup, and ignores a requested one.
                let (place, systemd) = (Place::default(), Systemd::default());
                let mut verdict = Self::strongest(&Facts { place, systemd, scratch: None, ..facts.clone() });
                if verdict.containment == Containment::Subreaper {
                    verdict.why = "PINFOLD_CONTAINMENT requests it".into();
                }
                verdict
            }
            Some(ContainmentKind::Cgroup) => match Self::strongest(facts) {
                verdict if verdict.containment == Containment::Subreaper => Self {
                    containment: Containment::Nothing,
                    why: "no cgroup is available, and PINFOLD_CONTAINMENT allows nothing else".into(),
                    ..verdict
                },
                verdict => verdict,
            },
            None => Self::strongest(facts),
        }
    }

    /// Returns what `pinfold run` would do if it could choose.
    fn strongest(facts: &Facts) -> Self {
        let mut refused = facts.place.refused.clone();
        let place = facts.place.directory.clone();
        // A job can be started without a cgroup only if the failure was about the cgroup.
        let mut is_about_the_cgroup = true;
        if let (Some(place), Some(scratch)) = (&place, &facts.scratch)
            && let Some((refusal, about)) = refusal(place, scratch)
        {
            refused.push(refusal);
            is_about_the_cgroup = about;
        }
        let usable = place.is_some() && refused.is_empty();
        let scope = !usable && !facts.place.requested && is_about_the_cgroup && has_scopes(facts);
        let needed = [&facts.calls.pidfd_open, &facts.calls.pidfd_send_signal];
        let requested = facts.place.requested;
        let (containment, why) = if kernel::version(&facts.kernel).is_some_and(|version| version < kernel::OLDEST) {
            (Containment::Nothing, "Linux 5.7 or later is needed")
        } else if needed.into_iter().any(|tried| matches!(tried, Tried::Refused(_))) {
            (Containment::Nothing, "pidfds, which pinfold needs to hold processes, do not work here")
        } else if usable {
            (Containment::Cgroup, "a cgroup can be made and a process started in it")
        } else if requested {
            (Containment::Nothing, "the requested cgroup can't be used")
        } else if scope {
            // A scope gives the strongest containment, so there is no stronger one to report.
            refused.clear();
            (Containment::Cgroup, "pinfold's own cgroup can't be used; pinfold asks systemd for a scope")
        } else if !is_about_the_cgroup {
            (Containment::Nothing, "no process can be started")
        } else if let Some(refusal) = &facts.subreaper {
            refused.push(refusal.clone());
            (Containment::Nothing, "no cgroup is available, and without one the processes of a job can't be found")
        } else {
            (Containment::Subreaper, "no cgroup is available")
        };
        let cgroup = place.filter(|_| containment == Containment::Cgroup && !scope);
        Self { containment, cgroup, why: why.into(), refused }
    }
}

/// Returns whether pinfold can request a scope from systemd: root uses the system manager, a user the user's own
/// manager.
fn has_scopes(facts: &Facts) -> bool {
    let manager = if facts.user == 0 { &facts.systemd.system } else { &facts.systemd.user };
    cfg!(feature = "systemd") && facts.systemd.booted && manager.reachable
}

/// Returns why pinfold can't use this cgroup, although it can open it, in the words of the error of `pinfold run`. The
/// second value is whether a job could be started without this cgroup. Returns `None` if the cgroup can be used.
pub(super) fn refusal(place: &str, scratch: &Scratch) -> Option<(Refusal, bool)> {
    match (&scratch.made, &scratch.cloned, &scratch.joined) {
        (Tried::Refused(errno), ..) => {
            let advice = base::advice(Errno::from_raw_os_error(*errno));
            Some((Refusal::new(place, format!("cannot make a cgroup in it: {}", words(*errno)), advice), true))
        }
        (_, Tried::Works, _) => None,
        // If the kernel or a seccomp profile refuses clone3, pinfold uses the second way: the process joins the cgroup.
        (_, Tried::Refused(errno), joined) if is_refused_call(*errno) => match joined {
            Tried::Refused(errno) => Some(spawn_refusal(place, SpawnStage::JoinCgroup, *errno)),
            _ => None,
        },
        (_, Tried::Refused(errno), _) => Some(spawn_refusal(place, SpawnStage::Clone, *errno)),
        (_, Tried::Untried(_), _) => None,
    }
}

/// Returns whether `clone3` itself failed, and not only its use with this cgroup.
fn is_refused_call(errno: i32) -> bool {
    [libc::ENOSYS, libc::EPERM, libc::EINVAL, libc::E2BIG].contains(&errno)
}

fn spawn_refusal(place: &str, stage: SpawnStage, errno: i32) -> (Refusal, bool) {
    let errno = Errno::from_raw_os_error(errno);
    let error = SpawnError { stage, source: errno.into(), program: "a process".into(), cwd: None, denials: Vec::new() };
    let (text, advice) = (error.to_string(), error.advice());
    let reason = text.strip_suffix(&format!(" ({advice})")).unwrap_or(&text);
    (Refusal::new(place, reason, advice), error.is_about_the_cgroup())
}
