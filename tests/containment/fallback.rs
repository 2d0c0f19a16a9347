//! pinfold falls back to no cgroup: where a cgroup can be made but takes no process, and what many guards in a row
//! leave.

use crate::support::own_cgroup::OwnCgroup;
use crate::support::surrounding::fresh_user;
use crate::support::{Canary, PINFOLD, Run, Scratch};

/// Returns what root does before and after it becomes a user in a cgroup whose directory belongs to the user and whose
/// list of processes does not, or only for a short time.
fn as_user_in(cgroup: &OwnCgroup, uid: u32, before: &str, pinfold: &str) -> String {
    let user = format!("setpriv --reuid {uid} --regid {uid} --clear-groups");
    format!("{}; procs={}/cgroup.procs; {before}\n{user} {pinfold}", cgroup.enter(), cgroup.path.display())
}

/// Makes a directory for the files that the user writes.
fn user_directory(uid: u32) -> Scratch {
    let directory = Scratch::directory("fallback");
    std::os::unix::fs::chown(directory.path(), Some(uid), Some(uid)).unwrap();
    directory
}

fn results(directory: &Scratch) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(directory.path().join("results")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The first of the jobs that start at once finds out that the cgroup does not work, and all of them run.
#[test]
#[requires(other_users)]
fn several_jobs_at_once_fall_back() {
    let uid = fresh_user();
    let cgroup = OwnCgroup::of(uid);
    let pool = r#""$0" pool -j 4 --results "$D"/results -- sh -c 'echo {}'"#;
    let script = as_user_in(&cgroup, uid, "chown root \"$procs\"", pool);
    for _ in 0..5 {
        let directory = user_directory(uid);
        let mut run = Run::bare(["bash", "-c", &format!("seq 8 | ({script})"), PINFOLD]);
        run.command().env("D", directory.path());
        let ran = run.run().assert_code(0);
        let outcomes = results(&directory);
        assert_eq!(outcomes.len(), 8, "{ran:#?}");
        for one in outcomes {
            assert_eq!(one["report"]["containment"]["kind"], "subreaper", "{one:#}");
            assert_ne!(one["report"]["containment"]["refused"], serde_json::json!([]), "{one:#}");
        }
    }
}

/// The first job that has to run without a cgroup does not touch the jobs that already run in their leaves.
#[test]
#[requires(other_users)]
fn a_cgroup_that_accepts_no_more_processes() {
    let uid = fresh_user();
    let cgroup = OwnCgroup::of(uid);
    let directory = user_directory(uid);
    // The first two jobs run already when the cgroup stops taking processes. Then the third one starts and lets the
    // first one end.
    let lines = r#"mkfifo -m 666 "$D"/runs "$D"/go "$D"/end; cat >"$D"/lines <<'LINES'
echo up >"$D"/runs; read -r line <"$D"/end; echo "told $line"
echo up >"$D"/runs; read -r line <"$D"/go
echo third; echo over >"$D"/end
LINES"#;
    let pool = r#""$0" pool -j 2 --results "$D"/results --shell <"$D"/lines &"#;
    let script = as_user_in(&cgroup, uid, lines, pool);
    let rest = r#"
        exec 8<>"$D"/runs
        read -r up <&8; read -r up <&8
        chown root "$procs"
        echo >"$D"/go
        wait $!"#;
    let mut run = Run::bare(["bash", "-c", &format!("{script}{rest}"), PINFOLD]);
    run.command().env("D", directory.path());
    let ran = run.run().assert_code(0);
    assert!(ran.stdout.contains("told over\n") && ran.stdout.contains("third\n"), "{ran:#?}");
    let outcomes = results(&directory);
    let kinds: Vec<_> = outcomes.iter().map(|one| one["report"]["containment"]["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds.iter().filter(|kind| **kind == "cgroup").count(), 2, "{outcomes:#?}");
    assert_eq!(outcomes.iter().filter(|one| one["report"]["reason"] == "exited").count(), 3, "{outcomes:#?}");
}

/// Each job has its own guards, which are reparented when their parents end. None of them stays a zombie.
#[test]
#[requires(root, program("unshare"))]
fn guards_are_reaped() {
    let zombies = r#"grep -l "^State:.Z" /proc/[0-9]*/status 2>/dev/null | wc -l"#;
    // A process that has just ended is a zombie for a moment.
    let look =
        format!("for look in $(seq 100); do left=$({zombies}); [ $left = 0 ] && break; sleep 0.05; done; echo $left");
    let script = format!(r#"mount -t tmpfs none /sys/fs/cgroup; seq 6 | "$0" pool -j 1 -- sh -c ': {{}}; {look}'"#);
    let words =
        ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", &script, PINFOLD];
    assert_eq!(Run::bare(words).run().assert_code(0).stdout, "0\n".repeat(6));
}

/// pinfold does not rely on a guard if nothing would adopt the guard's orphans: pinfold already had a child when it was
/// started.
#[test]
fn a_killed_guard_beside_a_child() {
    let directory = Scratch::directory("beside");
    let canary = Canary::new();
    let script = r#"mkfifo "$D"/end; cat "$D"/end & exec "$0" run --containment subreaper -- sh -c '
        echo >"$D"/end; setsid sleep 999 & sleep 999 & kill -KILL $PPID; wait'"#;
    let mut run = Run::bare(["bash", "-c", script, PINFOLD]);
    run.command().env("D", directory.path());
    // The warden reports the remaining processes.
    let ran = run.run().assert_code(125);
    ran.assert_names("guard");
    canary.assert_alive();
}

/// Only the guard can report that the last leftover has ended, and a stopped guard cannot.
#[test]
fn a_leftover_that_stops_the_guard() {
    // Soon after the main process has been reaped. Most often the guard has already reported it by then.
    for _ in 0..5 {
        let mut run = Run::new(["--containment", "subreaper", "--leftovers", "wait", "sh", "-c"]);
        run.command().arg("guard=$PPID; (while [ -e /proc/$$ ]; do :; done; kill -STOP $guard) & exit 3");
        let ran = run.run().assert_code(3);
        assert_eq!(ran.report["killed"], false, "{ran:#?}");
    }
}
