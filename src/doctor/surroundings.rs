//! The findings about systemd, containers, `/proc` and limits.

use super::facts::{ContainerKind, Facts, Manager, Tried};
use super::{Containment, Finding, Section, Verdict};
use crate::cgroup::NO_PROC;

/// With a lower limit on open files, only a few jobs can run at the same time: each job uses about ten descriptors.
const FEW_FILES: u64 = 256;

pub(super) fn add_findings(facts: &Facts, findings: &mut Vec<Finding>) {
    let has_cgroup = Verdict::of(facts).containment == Containment::Cgroup;
    systemd(facts, has_cgroup, findings);
    containers(facts, findings);
    proc(facts, findings);
    limits(facts, findings);
}

fn systemd(facts: &Facts, has_cgroup: bool, findings: &mut Vec<Finding>) {
    let systemd = &facts.systemd;
    if !systemd.booted && !systemd.system.reachable && !systemd.user.reachable {
        findings.push(Finding::note("systemd", Section::Systemd, "systemd does not run here"));
        return;
    }
    let root = facts.user == 0;
    let run = |user: &str| {
        format!("systemd-run{user} --scope -p Delegate=yes -- pinfold run -- COMMAND uses a cgroup of this manager")
    };
    let mut add = |id: &str, name: &str, manager: &Manager, advice: Option<String>| {
        let socket = manager.socket.as_deref().map(|socket| format!(" ({socket})")).unwrap_or_default();
        let mut finding = if manager.reachable {
            Finding::good(id, Section::Systemd, format!("{name} can be reached{socket}"))
        } else {
            let why = manager.error.as_deref().unwrap_or("for an unknown reason");
            // If a cgroup is available anyway, it is not a problem that the manager can't be reached.
            let new = if has_cgroup { Finding::note } else { Finding::bad };
            new(id, Section::Systemd, format!("{name} can't be reached: {why}{socket}"))
        };
        finding.advice = advice.filter(|_| !has_cgroup);
        findings.push(finding);
    };
    let system = (systemd.system.reachable && root).then(|| run(""));
    add("systemd_system", "systemd's system manager", &systemd.system, system);
    let user = if systemd.user.reachable {
        run(" --user")
    } else {
        format!(
            "log in through PAM (ssh, machinectl shell), or have root call loginctl enable-linger {0}; then export \
             XDG_RUNTIME_DIR=/run/user/{0}",
            facts.user
        )
    };
    add("systemd_user", "systemd's user manager", &systemd.user, Some(user));
}

fn containers(facts: &Facts, findings: &mut Vec<Finding>) {
    let writable = facts.scratch.as_ref().is_some_and(|scratch| scratch.made == Tried::Works);
    if facts.containers.is_empty() {
        findings.push(Finding::note("container", Section::Container, "no sign of a container"));
    }
    for container in &facts.containers {
        let (name, advice) = match &container.kind {
            ContainerKind::Docker => (
                "Docker",
                "docker run --cgroupns=private --security-opt writable-cgroups=true (Docker 28 or later, not rootless), \
                 or --privileged; both on a host with cgroup v2",
            ),
            ContainerKind::Podman => (
                "Podman",
                "podman run --cgroupns=private --security-opt unmask=/sys/fs/cgroup, or --privileged; both on a host with \
                 cgroup v2",
            ),
            ContainerKind::Kubernetes => (
                "Kubernetes",
                "a runtime class whose containerd runtime (2.1 or later) has cgroup_writable = true, or \
                 securityContext.privileged: true",
            ),
            ContainerKind::Lxc => ("LXC", "lxc.mount.auto = cgroup:rw:force in its configuration"),
            ContainerKind::Nspawn => (
                "systemd-nspawn",
                "its unit needs Delegate=yes, as systemd-nspawn@.service has, and cgroup v2 on the host",
            ),
            ContainerKind::Other(name) => (name.as_str(), "configure it to provide a writable cgroup v2 file system"),
        };
        let text = format!("a container of {name} ({})", container.sign);
        findings.push(if writable {
            Finding::good("container", Section::Container, format!("{text}, with a writable cgroup"))
        } else {
            Finding::bad("container", Section::Container, format!("{text}, without a writable cgroup")).advise(advice)
        });
    }
}

fn proc(facts: &Facts, findings: &mut Vec<Finding>) {
    let proc = &facts.proc;
    if !proc.mounted {
        findings.push(Finding::bad("proc", Section::Proc, "/proc is not mounted").advise(NO_PROC));
        return;
    }
    findings.push(Finding::good("proc", Section::Proc, "/proc is mounted"));
    let option = format!("hidepid={}", proc.hidepid);
    findings.push(if proc.shows_others {
        Finding::good("hidepid", Section::Proc, format!("/proc shows other users' processes ({option})"))
    } else {
        Finding::bad("hidepid", Section::Proc, format!("/proc hides other users' processes ({option})")).advise(
            "pinfold can't describe other users' processes in a job (of sudo, for example), and can't find them \
             without a cgroup; as root: mount -o remount,hidepid=0 /proc, or use its option gid= with one of your groups",
        )
    });
    findings.push(if proc.children {
        Finding::good("children", Section::Proc, "/proc/PID/task/TID/children exists")
    } else {
        Finding::note("children", Section::Proc, "/proc/PID/task/TID/children does not exist (CONFIG_PROC_CHILDREN)")
            .advise("not needed: pinfold reads the parents of all processes in /proc instead")
    });
}

fn limits(facts: &Facts, findings: &mut Vec<Finding>) {
    let limits = &facts.limits;
    let section = Section::Limits;
    let number = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let files = format!("open files: {}, at most {} (ulimit -n)", number(limits.files_soft), number(limits.files_hard));
    findings.push(match limits.files_hard {
        Some(hard) if hard < FEW_FILES => {
            Finding::bad("files", section, files).advise("raise it for many jobs at a time: ulimit -Hn, as root")
        }
        _ => Finding::good("files", section, files),
    });
    let root = if facts.user == 0 { ", which does not apply to root" } else { "" };
    let processes = format!("processes of this user: {} (ulimit -u{root})", number(limits.processes));
    findings.push(Finding::note("processes", section, processes));
    let pending = format!("pending signals and timers: {} (ulimit -i)", number(limits.pending_signals));
    findings.push(match limits.pending_signals {
        Some(0) => Finding::bad("pending", section, pending).advise("raise it: the start of a command needs a timer"),
        _ => Finding::good("pending", section, pending),
    });
    if limits.machine_threads.is_some() || limits.machine_pids.is_some() {
        let known = |limit: Option<u64>| limit.map_or("not known".to_owned(), |limit| limit.to_string());
        findings.push(Finding::note(
            "machine",
            section,
            format!(
                "limits of the machine: threads-max {}, pid_max {}",
                known(limits.machine_threads),
                known(limits.machine_pids)
            ),
        ));
    }
}
