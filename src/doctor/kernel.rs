//! The findings about the kernel.

use super::facts::{Facts, Scratch, Tried};
use super::{Finding, Section, words};

/// The oldest kernel version that a job can run on.
pub(super) const OLDEST: (u32, u32) = (5, 7);

pub(super) fn add_findings(facts: &Facts, findings: &mut Vec<Finding>) {
    let version = version(&facts.kernel);
    let name = format!("Linux {} ({})", facts.kernel, facts.machine);
    findings.push(match version {
        Some(version) if version < OLDEST => {
            Finding::bad("kernel", Section::Kernel, format!("{name} is too old")).advise("Linux 5.7 or later is needed")
        }
        Some(_) => Finding::good("kernel", Section::Kernel, name),
        None => Finding::note("kernel", Section::Kernel, format!("{name}: pinfold does not understand this version")),
    });
    let joins =
        "not needed: pinfold starts jobs with clone(2), and they join their cgroup before they execute the command";
    let needed = "needed: without it pinfold can't run";
    let calls = &facts.calls;
    let scratch = facts.scratch.as_ref();
    let tried = |what: fn(&Scratch) -> &Tried| match scratch {
        Some(Scratch { made: Tried::Works, .. }) => {
            scratch.map_or_else(Tried::default, |scratch| what(scratch).clone())
        }
        _ => Tried::untried("no cgroup can be made here"),
    };
    let kernel_has = |since| version.is_some_and(|version| version >= since);
    for (id, name, tried, since, without) in [
        ("clone3", "clone3", calls.clone3.clone(), (5, 3), joins),
        ("clone_into_cgroup", "CLONE_INTO_CGROUP", calls.clone_into_cgroup.clone(), (5, 7), joins),
        ("pidfd_open", "pidfd_open", calls.pidfd_open.clone(), (5, 3), needed),
        ("pidfd_send_signal", "pidfd_send_signal", calls.pidfd_send_signal.clone(), (5, 1), needed),
        ("waitid_pidfd", "waitid(P_PIDFD)", calls.waitid_pidfd.clone(), (5, 4), "not needed to run jobs"),
        (
            "pidfd_get_info",
            "PIDFD_GET_INFO",
            calls.pidfd_get_info.clone(),
            (6, 13),
            "not needed: pinfold reads from /proc which cgroup a process is in",
        ),
        ("cgroup_freeze", "cgroup.freeze", tried(|scratch| &scratch.frozen), (5, 2), "needed before Linux 5.14"),
        (
            "cgroup_kill",
            "cgroup.kill",
            tried(|scratch| &scratch.killed),
            (5, 14),
            "not needed: pinfold freezes jobs, and kills their processes one by one",
        ),
    ] {
        findings.push(match tried {
            Tried::Works => Finding::good(id, Section::Kernel, name),
            Tried::Untried(reason) => {
                let has = if kernel_has(since) && id != "clone_into_cgroup" {
                    "; this kernel version should support it"
                } else {
                    ""
                };
                Finding::note(id, Section::Kernel, format!("{name} was not tested: {reason}{has}"))
            }
            Tried::Refused(errno) => {
                let why = if kernel_has(since) {
                    "this kernel version supports it, but a seccomp profile of the container may refuse it".into()
                } else {
                    format!("available since Linux {}.{}", since.0, since.1)
                };
                Finding::bad(id, Section::Kernel, format!("{name}: {}", words(errno)))
                    .advise(format!("{without}; {why}"))
            }
        });
    }
    findings.extend(bug(version, scratch.and_then(|scratch| scratch.kill_sequence_bug)));
}

/// Reports the bug in the kill sequence of cgroups: a process that is cloned into a cgroup starts with the kill
/// sequence number of its parent process's cgroup, and is killed if the number of its own cgroup is different.
fn bug(version: Option<(u32, u32)>, seen: Option<bool>) -> Option<Finding> {
    let (id, section) = ("kill_sequence", Section::Kernel);
    let around = "pinfold works around it: each cgroup has a new name, and a command that was killed at its start is \
                  started again";
    let killed = "a process that is cloned into a cgroup that was killed before";
    match seen {
        Some(true) => {
            let text = format!("{killed} is killed too: a bug of Linux 6.14 and later");
            Some(Finding::bad(id, section, text).advise(format!("{around}; fixed in Linux 7.3")))
        }
        Some(false) => Some(Finding::good(id, section, format!("{killed} stays alive"))),
        None if version.is_some_and(|version| ((6, 14)..(7, 3)).contains(&version)) => {
            let text = format!("{killed} may be killed too: a bug of Linux 6.14 until 7.3");
            Some(Finding::note(id, section, text).advise(around))
        }
        None => None,
    }
}

/// Returns the major and minor number of a kernel release.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|character: char| !character.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(version("6.12.107+deb13-amd64"), Some((6, 12)));
        assert_eq!(version("7.2"), Some((7, 2)));
        assert_eq!(version("5.10-rc1"), Some((5, 10)));
        assert_eq!(version("next"), None);
        assert_eq!(version(""), None);
    }
}
