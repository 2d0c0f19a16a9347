//! Two jobs of one pool: the same user, each in a sandbox of its own.

use serde_json::json;

use super::{USER, secret, text};
use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, Ran, Run, program};

/// What the attacker tries on the victim's process.
const ATTEMPTS: [&str; 20] = [
    "kill_kill",
    "kill_stop",
    "tkill_kill",
    "tgkill_kill",
    "queue_kill",
    "pidfd_kill",
    "trace_attach",
    "trace_seize",
    "memory_file",
    "environ_file",
    "their_root",
    "their_directory",
    "vm_read",
    "vm_write",
    "descriptor",
    "limit_cpu",
    "limit_files",
    "nice_process",
    "schedule_idle",
    "affinity",
];

/// The attempts that work without a sandbox and do not harm the victim.
const HARMLESS: [&str; 4] = ["environ_file", "limit_cpu", "nice_process", "affinity"];

/// The user of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Root, with jobs of another user.
    Root,
    /// An ordinary user, in a cgroup of its own.
    UserWithCgroup,
    /// An ordinary user whose jobs have no cgroups.
    User,
}

/// Runs a victim and its attacker in a pool. Returns what the attacker printed, and asserts that the victim ended by
/// itself.
fn pool(attempts: &[&str], in_sandbox: bool, by: By) -> Ran {
    let (directory, _) = secret();
    let place = text(directory.path());
    let attack = program("sandbox/processes");
    let attack = text(&attack);
    let clone = program("sandbox/kernel");
    let clone = text(&clone);
    let mount = super::leaf::mount().display().to_string();
    // The victim waits until the attacker has opened the other end of the pipe.
    let victim =
        format!("echo $$ $(sed -n s/^0:://p /proc/self/cgroup) >{place}/ready; read done <{place}/done; echo lives");
    let attacker = format!(
        "read pid cgroup <{place}/ready; for attempt in {}; do echo $attempt $({attack} $attempt $pid); done; \
         leaf={mount}$cgroup; [ ! -d $leaf ] || for file in cgroup.kill cgroup.freeze cgroup.procs; do (: >>$leaf/$file) \
         2>/dev/null && echo wrote $file; done; [ ! -d $leaf ] || echo clone3 $({clone} clone3_into_cgroup $leaf); echo \
         >{place}/done",
        attempts.join(" ")
    );
    let job = |script: &str| {
        let mut job = json!({"command": ["sh", "-c", script]});
        if in_sandbox {
            let read = json!(["/proc", mount, attack, clone]);
            job["sandbox"] = json!({"read": read, "write": [place]});
        }
        if by == By::Root {
            job["user"] = json!(format!("{USER}:{USER}"));
        }
        job.to_string()
    };
    let cgroup = if by == By::UserWithCgroup { OwnCgroup::of(USER) } else { OwnCgroup::new() };
    let become_user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups");
    let script = format!(
        "{}; cd /; mkfifo -m 666 {place}/ready {place}/done; exec {} \"$@\" <<'END'\n{}\n{}\nEND",
        cgroup.enter(),
        if by == By::Root { "" } else { &become_user },
        job(&victim),
        job(&attacker)
    );
    let ran = Run::bare(["bash", "-c", &script, "bash", PINFOLD, "pool", "--workers", "2"]).run().assert_code(0);
    assert!(ran.stdout.lines().any(|line| line.ends_with("lives")), "{ran:#?}");
    ran
}

#[test]
#[requires(other_users, sandbox)]
fn a_job_of_a_pool_cannot_reach_another_one() {
    for by in [By::Root, By::UserWithCgroup, By::User] {
        let ran = pool(&ATTEMPTS, true, by);
        for attempt in ATTEMPTS {
            let denied = |line: &str| {
                line.contains(&format!("{attempt} denied EPERM")) || line.contains(&format!("{attempt} denied EACCES"))
            };
            assert!(ran.stdout.lines().any(denied), "{attempt}, by {by:?} {ran:#?}");
        }
        assert!(!ran.stdout.contains("wrote"), "{ran:#?}");
        assert!(by == By::User || ran.stdout.contains("clone3 denied ENOSYS"), "{ran:#?}");
        let without = pool(&HARMLESS, false, by);
        for attempt in HARMLESS {
            assert!(without.stdout.contains(&format!("{attempt} allowed")), "{attempt} {without:#?}");
        }
        assert!(by != By::UserWithCgroup || without.stdout.contains("wrote cgroup.procs"), "{without:#?}");
    }
}
