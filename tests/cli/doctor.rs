//! `pinfold doctor`: the text for the facts of many machines, and whether the text is true on this machine.
//!
//! `tests/machines/*.json` are the `facts` of `pinfold doctor --json` on real machines. A machine that is not available
//! is described by one of these files and by the fields that a test changes.

use std::path::Path;
use std::process::{Command, Output};

use pinfold::doctor::{
    Ancestor, Container, ContainerKind, Containment, Examination, Facts, Manager, Mark, Systemd, Tried, examine,
};

use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, PublicCopy, has, needs, program};

fn machine(name: &str) -> Facts {
    let path = format!("{}/tests/machines/{name}.json", crate::support::PROJECT);
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
    add("no limits", &good, &|facts| facts.limits = pinfold::doctor::Limits::default());
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

fn doctor(prefix: &[&str], options: &[&str]) -> Output {
    let mut words = prefix.to_vec();
    words.extend([PINFOLD, "doctor"]);
    words.extend(options);
    Command::new(words[0]).args(&words[1..]).output().unwrap()
}

fn json(output: &Output) -> Examination {
    assert!(output.stderr.is_empty(), "{output:#?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts that the doctor's statement about the containment is what `pinfold run` then does, with the same words.
fn assert_true(prefix: &[&str]) -> Examination {
    assert_true_of(PINFOLD, prefix)
}

fn assert_true_of(pinfold: &str, prefix: &[&str]) -> Examination {
    let call = |options: &[&str]| {
        let words = [prefix, &[pinfold], options].concat();
        Command::new(words[0]).args(&words[1..]).output().unwrap()
    };
    let printed = call(&["doctor", "--json"]);
    let examination = json(&printed);
    assert_eq!(Examination::of(examination.facts.clone()), examination);
    let ran = call(&["run", "--report", "-", "--", "true"]);
    let verdict = &examination.verdict;
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap_or_default();
    let kind = report["containment"]["kind"].as_str();
    let (code, expected) = match verdict.containment {
        Containment::Cgroup => (0, Some("cgroup")),
        Containment::Subreaper => (1, Some("subreaper")),
        _ => (1, None),
    };
    assert_eq!((printed.status.code(), kind), (Some(code), expected), "{verdict:#?} {ran:#?}");
    let refused = serde_json::to_value(&verdict.refused).unwrap();
    let runs = &report["containment"]["refused"];
    match kind {
        // Where a process could not join the cgroup, the report refers to the command `pinfold doctor`.
        Some(_) if runs[0]["advice"] == "see pinfold doctor" => assert_eq!(refused[0]["tried"], runs[0]["tried"]),
        Some(_) => assert_eq!(&refused, runs, "{verdict:#?}"),
        None => {
            let said = String::from_utf8_lossy(&ran.stderr);
            for refused in &verdict.refused {
                assert!(said.contains(&refused.to_string()), "{refused} is not in {said}");
            }
        }
    }
    examination
}

fn mark(examination: &Examination, id: &str) -> Option<Mark> {
    examination.findings.iter().find(|finding| finding.id == id).map(|finding| finding.mark)
}

#[test]
fn it_is_true_here() {
    let examination = assert_true(&[]);
    assert_eq!(examination.version, 1);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    assert_eq!(examination.facts.kernel, kernel.trim());
    assert_eq!(
        examination.facts.limits.machine_pids,
        std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().ok()
    );
    if has(needs::cgroup()) {
        assert_eq!(
            examination.verdict.cgroup,
            Some(crate::support::own_cgroup().to_str().unwrap().trim_end_matches('/').into())
        );
        assert_eq!(examination.facts.scratch.as_ref().unwrap().removed, Tried::Works);
    }
    let text = doctor(&[], &[]);
    assert_eq!(String::from_utf8(text.stdout).unwrap(), Examination::of(examination.facts).to_text());
}

/// In a cgroup of the test's own: the doctor removes everything that it tries out, and the library gives the same
/// answer as the command.
#[test]
#[requires(cgroup, root)]
fn it_changes_nothing() {
    let own = OwnCgroup::new();
    let place = own.path.clone();
    let printed = doctor(&[], &["--json", "--cgroup", place.to_str().unwrap()]);
    let examined = examine(Some(&place));
    assert_eq!(own.directories(), 0);
    assert_eq!(json(&printed).verdict, examined.verdict);
    assert_eq!(examined.verdict.cgroup.as_deref(), place.to_str());
    let scratch = examined.facts.scratch.unwrap();
    assert_eq!((scratch.made, scratch.joined, scratch.removed), (Tried::Works, Tried::Works, Tried::Works));
    // No child of the doctor's clones is left either; they send no SIGCHLD.
    // SAFETY: waits only for such children, and nothing else here has any.
    assert_eq!(unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WCLONE | libc::WNOHANG) }, -1);

    drop(own);
    let gone = doctor(&[], &["--json", "--cgroup", place.to_str().unwrap()]);
    assert_eq!(gone.status.code(), Some(1));
    let refused = json(&gone).verdict.refused;
    assert_eq!(refused[0].advice, "it must be the directory of a cgroup v2");
}

#[test]
#[requires(cgroup, root, program("unshare"))]
fn it_is_true_where_the_cgroup_file_system_is_read_only_or_absent() {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2")).unwrap();
    let point = line.split(' ').nth(1).unwrap();
    let script = |setup: &str| format!("{setup} && exec \"$@\"");
    let read_only = script(&format!("mount -o remount,bind,ro {point}"));
    let examination = assert_true(&["unshare", "--mount", "sh", "-c", &read_only, "sh"]);
    assert_eq!(mark(&examination, "read_only"), Some(Mark::Bad));
    assert_eq!(examination.verdict.containment, Containment::Subreaper);

    let absent = script("umount -l /sys/fs/cgroup");
    let examination = assert_true(&["unshare", "--mount", "sh", "-c", &absent, "sh"]);
    assert_eq!(mark(&examination, "mounts"), Some(Mark::Bad));

    let examination = assert_true(&["unshare", "--cgroup"]);
    assert_eq!(examination.facts.mounts.namespaced, Some(true));

    // Below the mount of /proc there may be the mount of another PID namespace.
    let no_proc = script("while umount -l /proc 2>/dev/null; do :; done");
    let examination = assert_true(&["unshare", "--mount", "sh", "-c", &no_proc, "sh"]);
    assert_eq!(mark(&examination, "proc"), Some(Mark::Bad));
    assert_eq!(examination.verdict.containment, Containment::Nothing);
    assert_true(&["unshare", "--fork", "--pid"]);
}

/// The root contains only the program and its libraries.
#[test]
#[requires(root, program("unshare"))]
fn it_is_true_in_a_root_without_sys_and_proc() {
    let script = "mount -t tmpfs none /mnt && cd /mnt && mkdir -p usr lib lib64 bin dev work \
        && mount --rbind /usr usr && mount --rbind /lib lib && mount --rbind /lib64 lib64 && mount --rbind /bin bin \
        && mkdir -p .$PROJECT && mount --rbind $PROJECT .$PROJECT && mount --rbind /dev dev && exec chroot . \"$@\"";
    let script = script.replace("$PROJECT", crate::support::PROJECT);
    let examination = assert_true(&["unshare", "--mount", "sh", "-c", &script, "sh"]);
    assert_eq!(examination.verdict.containment, Containment::Nothing);
    assert_eq!(examination.facts.place.refused[0].advice, "mount /proc, or name a cgroup with --cgroup DIR");
}

#[test]
#[requires(root, program("setpriv"))]
fn it_is_true_for_a_user_who_may_write_nothing() {
    let copy = PublicCopy::new("doctor");
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", copy.path(), "doctor", "--json"];
    let printed = Command::new("setpriv").args(user).output().unwrap();
    assert_eq!(printed.status.code(), Some(1));
    let examination = json(&printed);
    assert_eq!((examination.facts.user, examination.verdict.containment), (65534, Containment::Subreaper));
    if has(needs::cgroup()) {
        assert_eq!(mark(&examination, "own"), Some(Mark::Bad));
        assert!(examination.verdict.refused[0].reason.starts_with("this user can't make a directory in it"));
    }
}

/// With a cgroup that is delegated by hand, as README.md describes, and with one step of it left out.
#[test]
#[requires(cgroup, root, program("setpriv"))]
fn it_is_true_for_a_user_with_a_delegated_cgroup() {
    let own = OwnCgroup::new();
    let place = &own.path;
    let copy = PublicCopy::new("delegated");
    let user = "exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let script = format!("echo $$ >{}/cgroup.procs && {user}", place.display());
    let prefix = ["sh", "-c", &script, "sh"];
    let tell = |chowned: &[&str]| {
        for file in chowned {
            std::os::unix::fs::chown(place.join(file), Some(65534), Some(65534)).unwrap();
        }
        let examination = assert_true_of(copy.path(), &prefix);
        let marks = ["own", "delegated", "scratch"].map(|id| mark(&examination, id));
        (examination.verdict.containment, marks, examination.facts.cgroup.unwrap().owner)
    };
    let nothing = tell(&[]);
    let half = tell(&["."]);
    let whole = tell(&["cgroup.procs"]);
    let (good, bad) = (Some(Mark::Good), Some(Mark::Bad));
    assert_eq!(nothing, (Containment::Subreaper, [bad, bad, None], 0));
    assert_eq!(half, (Containment::Subreaper, [good, bad, bad], 65534));
    assert_eq!(whole, (Containment::Cgroup, [good, good, good], 65534));
}

/// The variable that restricts `pinfold run` restricts the answer too.
#[test]
fn it_is_true_with_a_requested_containment() {
    let examination = assert_true(&["env", "PINFOLD_CONTAINMENT=subreaper"]);
    assert_eq!((examination.verdict.containment, examination.verdict.cgroup.as_ref()), (Containment::Subreaper, None));
    assert!(examination.to_text().contains("uses: subreaper (PINFOLD_CONTAINMENT requests it)"));
    // pinfold ignores a requested cgroup then.
    let ignored = assert_true(&["env", "PINFOLD_CONTAINMENT=Subreaper", "PINFOLD_CGROUP=/no/such"]);
    assert_eq!(ignored.verdict, examination.verdict);
    let impossible = assert_true(&["env", "PINFOLD_CONTAINMENT=cgroup", "PINFOLD_CGROUP=/no/such"]);
    assert_eq!(impossible.verdict.containment, Containment::Nothing);
    if has(needs::cgroup()) {
        let cgroup = assert_true(&["env", "PINFOLD_CONTAINMENT=cgroup"]);
        assert_eq!(cgroup.verdict.containment, Containment::Cgroup);
    }
    let unset = assert_true(&["env", "PINFOLD_CONTAINMENT=", "PINFOLD_CGROUP="]);
    assert_eq!(unset.facts.containment, None);
    assert_eq!(assert_true(&["env", "PINFOLD_CONTAINMENT=auto"]).verdict, unset.verdict);
    for invalid in ["luck", "cgroup2", " "] {
        let refused = doctor(&["env", &format!("PINFOLD_CONTAINMENT={invalid}")], &[]);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!((refused.status.code(), refused.stdout.len()), (Some(125), 0), "{refused:#?}");
        assert!(said.contains("PINFOLD_CONTAINMENT") && said.contains(&format!("'{invalid}'")), "{said}");
    }
}

/// Where there is no cgroup, and no other containment is allowed.
#[test]
#[requires(root, program("unshare"))]
fn it_is_true_without_the_only_containment_that_is_allowed() {
    let script = "umount -l /sys/fs/cgroup && PINFOLD_CONTAINMENT=cgroup exec \"$@\"";
    let examination = assert_true(&["unshare", "--mount", "sh", "-c", script, "sh"]);
    assert_eq!(examination.verdict.containment, Containment::Nothing);
    assert!(examination.verdict.why.contains("PINFOLD_CONTAINMENT"), "{:#?}", examination.verdict);
}

/// As under the seccomp profiles of older container managers.
#[test]
#[requires(cgroup)]
fn it_is_true_without_clone3() {
    let refuse = program("refuse");
    let examination = assert_true(&[refuse.to_str().unwrap(), "clone3", &libc::ENOSYS.to_string()]);
    assert_eq!(examination.facts.calls.clone3, Tried::Refused(libc::ENOSYS));
    assert_eq!(mark(&examination, "clone3"), Some(Mark::Bad));
    let scratch = examination.facts.scratch.as_ref().unwrap();
    assert_eq!((&scratch.cloned, &scratch.joined), (&Tried::Refused(libc::ENOSYS), &Tried::Works));
    // The doctor tried them with a process that had joined.
    assert_eq!((&scratch.frozen, &scratch.removed), (&Tried::Works, &Tried::Works));
    assert_eq!(examination.verdict.containment, Containment::Cgroup);
}

#[test]
fn a_failed_write_to_standard_output_is_reported() {
    let full = Command::new("sh").args(["-c", "exec \"$0\" doctor >/dev/full", PINFOLD]).output().unwrap();
    assert_eq!(full.status.code(), Some(125));
    assert!(
        String::from_utf8_lossy(&full.stderr).starts_with("pinfold: cannot write to standard output: "),
        "{full:#?}"
    );
    assert!(Path::new("/dev/full").exists());
}
