//! `pinfold doctor`: whether what it says is true on this machine. `src/doctor/tests.rs` tests its text for many machines.

use std::path::Path;
use std::process::{Command, Output};

use pinfold::doctor::{Containment, Examination, Mark, examine};
use serde_json::{Value, json};

use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, PublicCopy, has, needs, program};

fn doctor(prefix: &[&str], options: &[&str]) -> Output {
    let mut words = prefix.to_vec();
    words.extend([PINFOLD, "doctor"]);
    words.extend(options);
    Command::new(words[0]).args(&words[1..]).output().unwrap()
}

fn parsed(output: &Output) -> Examination {
    assert!(output.stderr.is_empty(), "{output:#?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the facts, which the library has only in its JSON.
fn facts(examination: &Examination) -> Value {
    serde_json::from_str::<Value>(&examination.to_json()).unwrap()["facts"].take()
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
    let examination = parsed(&printed);
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
    let facts = facts(&examination);
    assert_eq!(facts["kernel"], kernel.trim());
    let pid_max: u64 = std::fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
    assert_eq!(facts["limits"]["machine_pids"], pid_max);
    if has(needs::cgroup()) {
        assert_eq!(
            examination.verdict.cgroup,
            Some(crate::support::own_cgroup().to_str().unwrap().trim_end_matches('/').into())
        );
        assert_eq!(facts["scratch"]["removed"], "works");
    }
    let text = doctor(&[], &[]);
    assert_eq!(String::from_utf8(text.stdout).unwrap(), examination.to_text());
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
    assert_eq!(parsed(&printed).verdict, examined.verdict);
    assert_eq!(examined.verdict.cgroup.as_deref(), place.to_str());
    let scratch = &facts(&examined)["scratch"];
    assert_eq!(["made", "joined", "removed"].map(|step| scratch[step] == "works"), [true; 3], "{scratch}");
    // No child of the doctor's clones is left either; they send no SIGCHLD.
    // SAFETY: waits only for such children, and nothing else here has any.
    assert_eq!(unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::__WCLONE | libc::WNOHANG) }, -1);

    drop(own);
    let gone = doctor(&[], &["--json", "--cgroup", place.to_str().unwrap()]);
    assert_eq!(gone.status.code(), Some(1));
    let refused = parsed(&gone).verdict.refused;
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
    assert_eq!(facts(&examination)["mounts"]["namespaced"], true);

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
    let refused = &facts(&examination)["place"]["refused"][0];
    assert_eq!(refused["advice"], "mount /proc, or name a cgroup with --cgroup DIR");
}

#[test]
#[requires(root, program("setpriv"))]
fn it_is_true_for_a_user_who_may_write_nothing() {
    let copy = PublicCopy::new("doctor");
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", copy.path(), "doctor", "--json"];
    let printed = Command::new("setpriv").args(user).output().unwrap();
    assert_eq!(printed.status.code(), Some(1));
    let examination = parsed(&printed);
    assert_eq!(examination.verdict.containment, Containment::Subreaper);
    assert_eq!(facts(&examination)["user"], 65534);
    if has(needs::cgroup()) {
        assert_eq!(mark(&examination, "own"), Some(Mark::Bad));
        assert_eq!(examination.verdict.refused.len(), 1);
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
        (examination.verdict.containment, marks, facts(&examination)["cgroup"]["owner"].as_u64().unwrap())
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
    assert!(facts(&unset)["containment"].is_null());
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
    let facts = facts(&examination);
    assert_eq!(facts["calls"]["clone3"], json!({ "refused": libc::ENOSYS }));
    assert_eq!(mark(&examination, "clone3"), Some(Mark::Bad));
    let scratch = &facts["scratch"];
    assert_eq!(scratch["cloned"], json!({ "refused": libc::ENOSYS }));
    // The doctor tried the rest with a process that had joined.
    assert_eq!(["joined", "frozen", "removed"].map(|step| scratch[step] == "works"), [true; 3], "{scratch}");
    assert_eq!(examination.verdict.containment, Containment::Cgroup);
}

#[test]
fn a_failed_write_to_standard_output_is_reported() {
    let full = Command::new("sh").args(["-c", "exec \"$0\" doctor >/dev/full", PINFOLD]).output().unwrap();
    assert_eq!(full.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&full.stderr).contains("No space left on device"), "{full:#?}");
    assert!(Path::new("/dev/full").exists());
}
