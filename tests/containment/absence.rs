//! pinfold reports that no process is left only when it has proof. An error, an unreadable list, or a process that
//! `/proc` hides is no proof.

use std::path::Path;

use crate::support::own_cgroup::OwnCgroup;
use crate::support::{Canary, PINFOLD, PublicCopy, Ran, Run, Scratch, program};

/// Much longer than these runs take, and much shorter than the time that their jobs would run without an end.
const BOUNDED: f64 = 15.0;

fn bounded(ran: Ran) -> Ran {
    assert!(ran.elapsed.as_secs_f64() < BOUNDED * crate::support::slowness(), "{ran:#?}");
    ran
}

/// Returns the report that was written to this file.
fn report(file: &Scratch) -> serde_json::Value {
    serde_json::from_str(&file.text()).unwrap_or_default()
}

/// Runs pinfold under a seccomp filter that refuses a call, with a job that leaves a process and a job that leaves
/// none.
fn refused(call: &str, errno: i32, containment: &str) -> Vec<Ran> {
    let jobs = ["true", "trap '' TERM; sleep 997 & exit 3"];
    let runs = jobs.map(|job| {
        let words = [call, &errno.to_string(), PINFOLD, "run", "--containment", containment, "--", "sh", "-c", job];
        let mut run = Run::bare([program("refuse").as_os_str()]);
        run.command().args(words);
        // The warden asserts that no process and no directory is left.
        bounded(run.run().assert_code(125))
    });
    runs.into()
}

#[test]
#[each_containment]
fn a_refused_waitid_is_an_error_before_anything_starts(containment: &str) {
    let canary = Canary::new();
    for errno in [libc::EPERM, libc::ENOSYS, libc::EACCES] {
        for ran in refused("waitid", errno, containment) {
            ran.assert_names("waitid");
            ran.assert_names("seccomp");
        }
    }
    canary.assert_alive();
}

#[test]
#[each_containment]
fn a_waitid_that_fails_while_a_job_runs_ends_the_job_with_an_error(containment: &str) {
    let canary = Canary::new();
    for errno in [libc::EPERM, libc::ENOMEM] {
        for ran in refused("reaping-waitid", errno, containment) {
            ran.assert_names("guard");
        }
    }
    canary.assert_alive();
}

/// A process whose executable file is unreadable cannot be traced, and `hidepid` hides such a process from an ordinary
/// user.
#[test]
#[requires(root, program("unshare"), program("setpriv"))]
fn a_process_that_proc_hides_is_a_leftover() {
    let directory = Scratch::directory("hidden");
    let hidden = directory.path().join("hidden");
    std::fs::copy(program("escape_deaf"), &hidden).unwrap();
    let copy = PublicCopy::new("hidden");
    for hidepid in ["hidepid=1", "hidepid=2"] {
        let script = format!(
            "chmod 755 {directory}; chmod 111 {hidden}; chmod 666 {directory}/report
             mount -t proc -o {hidepid} proc /proc || exit 9
             exec setpriv --reuid 65534 --regid 65534 --clear-groups {copy} run --containment subreaper --grace 200ms \
               --report {directory}/report -- sh -c '{hidden} exit deaf-to-all; exit 0'",
            directory = directory.path().display(),
            hidden = hidden.display(),
            copy = copy.path(),
        );
        std::fs::write(directory.path().join("report"), "").unwrap();
        let ran = bounded(Run::bare(["unshare", "--mount", "sh", "-c", &script]).run().assert_code(0));
        assert!(ran.stdout.contains("ready"), "{ran:#?}");
        let text = std::fs::read_to_string(directory.path().join("report")).unwrap();
        let reported: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&reported["leftovers"]["count"], &reported["killed"]),
            (&1.into(), &true.into()),
            "{hidepid}: {reported:#}"
        );
        assert_eq!(reported["unkillable"]["count"], 0, "{hidepid}: {reported:#}");
    }
}

/// Where `/proc` is not usable, the guard cannot find a process that has left the cgroup. It must not report that the
/// job is empty.
#[test]
#[requires(root, cgroup, program("unshare"))]
fn an_emigrant_without_a_usable_proc_is_reported() {
    let out = OwnCgroup::new().littered();
    let place = crate::support::own_cgroup();
    let set_ups = [
        ("another PID namespace's", ":"),
        ("none", "mount -t tmpfs none /proc"),
        ("an empty directory", "mkdir /tmp/empty-$$; mount --bind /tmp/empty-$$ /proc; rmdir /tmp/empty-$$"),
    ];
    for (name, set_up) in set_ups {
        let file = Scratch::new("report");
        let job = format!(
            "(echo 0 >{}/cgroup.procs; trap '' TERM; echo ready; exec sleep 996) & read go",
            out.path.display()
        );
        let script = format!("{set_up}; exec \"$@\"");
        let mut run = Run::bare(["unshare", "--mount", "--pid", "--fork", "sh", "-c", &script, "sh", PINFOLD, "run"]);
        run.command().args(["--kill-bound", "500ms", "--cgroup"]).arg(&place).arg("--report").arg(file.path());
        run.command().args(["--", "bash", "-c", &format!("coproc {{ {job}; }}; read line <&${{COPROC[0]}}; exit 0")]);
        let ran = bounded(run.run().assert_code(122));
        let reported = report(&file);
        assert_eq!(reported["unkillable"]["count"], 1, "{name}: {ran:#?} {reported:#}");
        assert!(reported["error"].as_str().is_some_and(|error| error.contains("/proc")), "{name}: {reported:#}");
    }
}

#[test]
#[requires(root, cgroup, program("setpriv"))]
fn a_leaf_that_its_job_made_unreadable_is_listed_killed_and_removed() {
    let copy = PublicCopy::new("modes");
    let directory = Scratch::directory("modes");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(directory.path(), mode).unwrap();
    for what in
        ["$leaf", "$leaf/cgroup.procs $leaf/cgroup.kill", "$leaf/below $leaf", "$leaf/below/cgroup.procs $leaf/below"]
    {
        let place = OwnCgroup::of(65534);
        let file = directory.path().join("report");
        let job = format!(
            r#"leaf={place}/$(sed 's,.*/\(pinfold-[^/]*.*\),\1,' /proc/self/cgroup | tail -n 1); mkdir $leaf/below
            trap "" TERM; sleep 996 & sleep 995 & chmod 000 {what} && echo done"#,
            place = place.path.display()
        );
        let script = format!("{}; exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"", place.enter());
        let mut run =
            Run::bare(["sh", "-c", &script, "sh", copy.path(), "run", "--require", "cgroup", "--grace", "100ms"]);
        run.command().arg("--report").arg(&file).args(["--", "sh", "-c", &job]);
        let ran = bounded(run.run().assert_code(0));
        assert_eq!(ran.stdout, "done\n", "{ran:#?}");
        let reported: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(
            (&reported["leftovers"]["count"], &reported["killed"]),
            (&2.into(), &true.into()),
            "{what}: {reported:#}"
        );
        assert_eq!(
            (&reported["not_removed"], &reported["error"]),
            (&serde_json::json!([]), &().into()),
            "{what}: {reported:#}"
        );
        assert!(!Path::new(reported["containment"]["cgroup"].as_str().unwrap()).exists(), "{what}: {reported:#}");
        std::fs::remove_file(&file).unwrap();
    }
}
