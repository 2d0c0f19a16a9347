//! The text for the facts of many machines.
//!
//! `tests/machines/*.json` are the `facts` of `pinfold doctor --json` on real machines. A machine that is not available
//! is described by one of these files and by the fields that a test changes.

use super::facts::{Ancestor, Container, ContainerKind, Limits, Manager, Systemd, Tried};
use super::{Containment, Examination, Facts};

fn machine(name: &str) -> Facts {
    let path = format!("{}/tests/machines/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn the_text_for_real_machines() {
    for (name, containment) in [
        ("hybrid", Containment::Cgroup),
        ("linux_5_10_delegated", Containment::Cgroup),
        ("linux_7_2", Containment::Cgroup),
        ("systemd_user", Containment::Cgroup),
        ("systemd_not_delegated", Containment::Cgroup),
        ("read_only", Containment::Subreaper),
        ("v1_only", Containment::Subreaper),
        ("no_proc", Containment::Nothing),
    ] {
        let examination = Examination::of(machine(name));
        assert_eq!(examination.verdict.containment, containment, "{name}");
        let read: Examination = serde_json::from_str(&examination.to_json()).unwrap();
        assert_eq!(read, examination, "{name}");
        insta::assert_snapshot!(name, examination.to_text());
    }
}

/// Returns the lines that differ from those of the unchanged machine.
fn changed(facts: &Facts, change: impl FnOnce(&mut Facts)) -> String {
    let before = Examination::of(facts.clone()).to_text();
    let mut facts = facts.clone();
    change(&mut facts);
    let after = Examination::of(facts).to_text();
    let lines = after.lines().filter(|line| !before.lines().any(|there| there == *line));
    lines.map(|line| format!("{line}\n")).collect()
}

fn container(facts: &mut Facts, kind: ContainerKind) {
    facts.containers = vec![Container { kind, sign: "a sign".into() }];
}

#[test]
fn lines_that_differ_from_a_real_machine() {
    let (good, read_only) = (machine("linux_7_2"), machine("read_only"));
    let mut text = String::new();
    let mut add = |title: &str, facts: &Facts, change: &dyn Fn(&mut Facts)| {
        let changed = changed(facts, change);
        assert_ne!(changed, "", "{title}");
        text.push_str(&format!("# {title}\n{changed}\n"));
    };
    let errno = |errno: i32| Tried::Refused(errno);

    add("Linux 5.4", &good, &|facts| facts.kernel = "5.4.0".into());
    add("a kernel with another kind of name", &good, &|facts| facts.kernel = "next".into());
    add("clone3 refused by seccomp", &good, &|facts| {
        facts.calls.clone3 = errno(libc::ENOSYS);
        facts.calls.clone_into_cgroup = errno(libc::ENOSYS);
        facts.scratch.as_mut().unwrap().cloned = errno(libc::ENOSYS);
    });
    add("no pidfd", &good, &|facts| facts.calls.pidfd_open = errno(libc::ENOSYS));
    add("a fixed kernel", &good, &|facts| facts.scratch.as_mut().unwrap().kill_sequence_bug = Some(false));
    add("cgroup.procs not delegated", &good, &|facts| {
        facts.user = 1000;
        facts.cgroup.as_mut().unwrap().procs_writable = false;
        facts.scratch.as_mut().unwrap().cloned = errno(libc::EACCES);
    });
    add("--cgroup from elsewhere", &good, &|facts| {
        facts.user = 1000;
        facts.place.requested = true;
        facts.cgroup.as_mut().unwrap().ancestor =
            Some(Ancestor { directory: "/sys/fs/cgroup".into(), procs_writable: false });
        facts.scratch.as_mut().unwrap().cloned = errno(libc::EACCES);
    });
    add("a threaded cgroup", &good, &|facts| {
        facts.cgroup.as_mut().unwrap().kind = Some("threaded".into());
        facts.scratch.as_mut().unwrap().cloned = errno(libc::EOPNOTSUPP);
    });
    add("no more cgroups", &good, &|facts| {
        facts.cgroup.as_mut().unwrap().limits = [("cgroup.max.descendants".into(), 0), ("pids.max".into(), 9)].into();
        facts.scratch.as_mut().unwrap().made = errno(libc::EAGAIN);
    });
    add("no more processes", &good, &|facts| facts.scratch.as_mut().unwrap().cloned = errno(libc::EAGAIN));
    add("controllers given on", &good, &|facts| {
        facts.cgroup.as_mut().unwrap().subtree_control = vec!["memory".into(), "pids".into()];
    });
    add("no swap accounting", &good, &|facts| facts.cgroup.as_mut().unwrap().swap = Some(false));
    add("a trial that is left", &good, &|facts| facts.scratch.as_mut().unwrap().removed = errno(libc::EBUSY));
    add("/proc of another PID namespace", &read_only, &|facts| {
        facts.subreaper = serde_json::from_str(r#"{"tried": "the guard as subreaper", "reason": "/proc shows another PID namespace", "advice": "mount one of this namespace: unshare --mount-proc"}"#).unwrap();
    });
    for kind in [
        ContainerKind::Docker,
        ContainerKind::Podman,
        ContainerKind::Kubernetes,
        ContainerKind::Lxc,
        ContainerKind::Nspawn,
        ContainerKind::Other("wsl".into()),
    ] {
        add(&format!("{kind:?}, read-only"), &read_only, &|facts| container(facts, kind.clone()));
    }
    add("Podman, writable", &good, &|facts| container(facts, ContainerKind::Podman));
    add("no user manager", &machine("systemd_not_delegated"), &|facts| {
        facts.systemd.user = Manager { error: Some("XDG_RUNTIME_DIR is not set".into()), ..Manager::default() };
    });
    add("no systemd at all", &machine("systemd_not_delegated"), &|facts| facts.systemd = Systemd::default());
    add("/proc hides", &good, &|facts| (facts.proc.shows_others, facts.proc.hidepid) = (false, "2".into()));
    add("no children in /proc", &good, &|facts| facts.proc.children = false);
    add("low limits", &good, &|facts| {
        (facts.user, facts.limits.files_hard, facts.limits.processes) = (1000, Some(64), Some(10));
        facts.limits.pending_signals = Some(0);
    });
    add("no limits", &good, &|facts| facts.limits = Limits::default());
    insta::assert_snapshot!("differences", text);
}

#[test]
fn facts_of_other_versions_and_nothing_at_all_can_be_judged() {
    let nothing: Facts = serde_json::from_str("{}").unwrap();
    let examination = Examination::of(nothing);
    assert_eq!(examination.verdict.containment, Containment::Subreaper);
    assert!(examination.to_text().contains("no cgroup file system is mounted here"));
    let more = r#"{"kernel": "99.1", "a field of tomorrow": 1}"#;
    assert_eq!(serde_json::from_str::<Facts>(more).unwrap().kernel, "99.1");
}
