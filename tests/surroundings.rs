//! Where pinfold finds itself: in namespaces, without `/proc`, with clone3 refused, as another user, with tiny limits, in
//! itself, on a terminal from outside. Everywhere the right exit code, nothing left, an honest report.

mod support;

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use support::pty::Pty;
use support::{Canary, PINFOLD, Ran, Run, Scratch, has, has_cgroup, has_program, has_root, own_cgroup, program};

/// A job that leaves a process behind, in a session of its own.
const LEAVES: [&str; 3] = ["bash", "-c", "setsid sleep 999 & echo ready; exit 3"];
/// One that does not end by itself.
const STAYS: [&str; 3] = ["bash", "-c", "setsid sleep 999 & echo ready; wait"];

/// A surrounding: the script that makes it and then executes `"$@"`, and options for pinfold.
struct Surrounding<'a> {
    script: &'a str,
    options: &'a [&'a str],
}

impl Surrounding<'_> {
    fn run(&self, options: &[&str], words: &[&str]) -> Ran {
        let run = Run::in_shell(self.script, [self.options, options, &["--"], words].concat()).run();
        assert!(run.report.is_object(), "no report: {run:#?}");
        run
    }

    /// One job that leaves somebody behind, one that has to be stopped.
    fn holds(&self) -> [Ran; 2] {
        let canary = Canary::new();
        let left = self.run(&["--grace", "1m"], &LEAVES).assert_code(3);
        assert_eq!(left.report["reason"], "exited", "{left:#?}");
        assert_eq!(left.report["leftovers"]["count"], 1, "{left:#?}");
        // More than it takes anywhere to get to "ready", but on a machine that is too busy: then with more time.
        let stays = |timeout| self.run(&["--grace", "1m", "--timeout", timeout], &STAYS).assert_code(124);
        let mut stopped = stays("500ms");
        if stopped.stdout != "ready\n" {
            stopped = stays("5s");
        }
        assert_eq!(stopped.report["reason"], "deadline", "{stopped:#?}");
        assert_eq!(stopped.report["stopped"]["count"], 2, "{stopped:#?}");
        canary.assert_alive();
        for ran in [&left, &stopped] {
            assert_eq!(ran.stdout, "ready\n", "{ran:#?}");
            assert_eq!(ran.report["error"], serde_json::Value::Null, "{ran:#?}");
            assert_eq!(ran.report["killed"], false, "{ran:#?}");
            assert_eq!(ran.report["containment"]["kind"], "cgroup", "{ran:#?}");
            assert_eq!(ran.report["unkillable"]["count"], 0, "{ran:#?}");
            assert_eq!(ran.report["emigrants"]["count"], 0, "{ran:#?}");
            assert_eq!(ran.report["not_removed"], serde_json::json!([]), "{ran:#?}");
        }
        [left, stopped]
    }
}

fn holds(script: &str) -> [Ran; 2] {
    Surrounding { script, options: &[] }.holds()
}

/// A directory that was made for a test, in the cgroup of the tests.
struct OwnCgroup(PathBuf);

impl OwnCgroup {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = own_cgroup().join(format!("surroundings-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// The same, handed over to a user (cgroups(7), "Delegation").
    fn of(uid: u32) -> Self {
        let delegated = Self::new();
        for path in [delegated.0.clone(), delegated.0.join("cgroup.procs")] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        delegated
    }

    /// A script that enters it.
    fn enter(&self) -> String {
        format!("echo $$ >{}/cgroup.procs || exit 98", self.0.display())
    }

    fn directories(&self) -> usize {
        std::fs::read_dir(&self.0).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let removed = std::fs::remove_dir(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", self.0.display());
    }
}

/// Of this test only, so that nobody else's processes count against its limits.
fn fresh_user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    200_000 + std::process::id() % 10_000 * 10 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A script that becomes a user, with a report that this user can write.
fn become_user(uid: u32) -> String {
    format!(r#": >"$4"; chmod 666 "$4"; exec setpriv --reuid {uid} --regid {uid} --clear-groups "$@""#)
}

fn has_other_users() -> bool {
    if !(has_cgroup() && has_root() && has_program("setpriv")) {
        return false;
    }
    let reached = |path: &str| {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", "65534", "--clear-groups", "test", "-x", path]).status().unwrap().success()
    };
    has(
        "reach",
        reached(PINFOLD) && reached(env!("CARGO_TARGET_TMPDIR")),
        "no other user can reach the build directory",
    )
}

fn has_unshare() -> bool {
    has_cgroup() && has_root() && has_program("unshare")
}

// Namespaces.

#[test]
fn as_pid_1() {
    if !has_unshare() {
        return;
    }
    holds(r#"exec unshare --pid --fork --mount-proc "$@""#);
    // PID 1 can't be ended by a signal that it does not catch.
    let ran = Surrounding { script: r#"exec unshare --pid --fork --mount-proc "$@""#, options: &[] };
    let ran = ran.run(&[], &["bash", "-c", "kill -INT $$"]);
    assert_eq!((ran.code, ran.signal), (130, None), "{ran:#?}");
}

#[test]
fn in_namespaces() {
    if !has_unshare() {
        return;
    }
    holds(r#"exec unshare --user --map-root-user "$@""#);
    holds(r#"exec unshare --mount "$@""#);
    holds(r#"exec unshare --cgroup "$@""#);
    holds(r#"exec unshare --user --map-root-user --cgroup --mount --uts --ipc --net --pid --fork --mount-proc "$@""#);
}

/// In a cgroup namespace of its own, with a mount that shows no more than that.
#[test]
fn below_the_root_of_a_cgroup_namespace() {
    if !has_unshare() {
        return;
    }
    let cgroup = OwnCgroup::new();
    let enter = format!("{}; exec unshare --cgroup --mount", cgroup.enter());
    let mount = Scratch::directory("cgroup2");
    let mount = mount.path().to_str().unwrap();
    holds(&format!(r#"{enter} bash -c 'mount -t cgroup2 none {mount} && exec "$@"' bash "$@""#));
    assert_eq!(cgroup.directories(), 0);
    // What is mounted outside does not tell where in it the namespace begins; a directory that was named helps.
    let script = format!(r#"{enter} "$@""#);
    let outside = Surrounding { script: &script, options: &[] };
    let ran = outside.run(&["--require", "cgroup"], &LEAVES).assert_code(125);
    assert!(ran.stderr.contains("not this process's cgroup") && ran.stdout.is_empty(), "{ran:#?}");
    assert_eq!(outside.run(&[], &LEAVES).assert_code(3).report["containment"]["kind"], "subreaper");
    Surrounding { script: &script, options: &["--cgroup", cgroup.0.to_str().unwrap()] }.holds();
    assert_eq!(cgroup.directories(), 0);
}

// Without /proc, or with less of it.

const NO_PROC: [&str; 2] = [
    r#"exec unshare --mount bash -c 'umount -l /proc; exec "$@"' bash "$@""#,
    r#"exec unshare --mount bash -c 'mount -t tmpfs none /proc; exec "$@"' bash "$@""#,
];

#[test]
fn without_proc() {
    if !has_unshare() {
        return;
    }
    let own = own_cgroup();
    for script in NO_PROC {
        let ran = Surrounding { script, options: &["--cgroup", own.to_str().unwrap()] }.holds();
        for process in [&ran[0].report["leftovers"]["processes"][0], &ran[1].report["stopped"]["processes"][0]] {
            assert_eq!((&process["command_line"], &process["state"]), (&"[unknown]".into(), &"?".into()), "{ran:#?}");
            assert!(process["pid"].as_i64().unwrap() > 0 && process["parent"] == 0, "{ran:#?}");
        }
    }
}

#[test]
fn without_proc_and_without_a_cgroup_that_was_named() {
    if !has_unshare() {
        return;
    }
    for script in NO_PROC {
        let ran = Surrounding { script, options: &[] }.run(&[], &LEAVES).assert_code(125);
        assert!(ran.stderr.contains("mount /proc, or name a cgroup with --cgroup DIR"), "{ran:#?}");
        assert_eq!((ran.stdout.as_str(), &ran.report["reason"]), ("", &"spawn_failed".into()), "{ran:#?}");
    }
}

/// `/proc` hides what may not be traced; a program that may not be read is that.
#[test]
fn with_a_proc_that_hides_processes() {
    if !(has_unshare() && has_other_users()) {
        return;
    }
    let directory = Scratch::directory("unreadable");
    let hidden = directory.path().join("sleep");
    let path = std::env::var_os("PATH").unwrap();
    let sleep = std::env::split_paths(&path).map(|path| path.join("sleep")).find(|sleep| sleep.exists()).unwrap();
    std::fs::copy(sleep, &hidden).unwrap();
    std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(0o111)).unwrap();
    let cgroup = OwnCgroup::of(65534);
    let script = format!(
        "{}; mount --make-rprivate / && mount -t proc -o hidepid=2 proc /proc || exit 98; {}",
        cgroup.enter(),
        become_user(65534)
    );
    let script = format!("exec unshare --mount bash -c '{script}' bash \"$@\"");
    // The main process ends when the other one is the hidden program, which has taken its end of the pipe with it.
    let job = format!("exec 9> >(exec {} 999); exec 9>&-; sleep 0.2; exit 3", hidden.display());
    let ran =
        Surrounding { script: &script, options: &[] }.run(&["--grace", "1m"], &["bash", "-c", &job]).assert_code(3);
    assert_eq!(ran.report["leftovers"]["count"], 1, "{ran:#?}");
    assert_eq!(ran.listed("leftovers"), "[unknown]\n", "{ran:#?}");
    assert!(ran.stderr.contains("bash left 1 process") && ran.stderr.contains("ended now"), "{ran:#?}");
}

// Refused.

#[test]
fn with_clone3_refused() {
    if !has_cgroup() {
        return;
    }
    let refuse = program("refuse_clone3");
    for errno in [libc::ENOSYS, libc::EPERM] {
        for ran in holds(&format!(r#"exec {} {errno} "$@""#, refuse.display())) {
            assert_eq!(ran.report["containment"]["born"], "joined", "{ran:#?}");
        }
    }
    for ran in holds(r#"exec "$@""#) {
        assert_eq!(ran.report["containment"]["born"], "cloned", "{ran:#?}");
    }
}

// Somebody else.

#[test]
fn as_another_user() {
    if !has_other_users() {
        return;
    }
    let uid = fresh_user();
    let cgroup = OwnCgroup::of(uid);
    holds(&format!("{}; {}", cgroup.enter(), become_user(uid)));
    assert_eq!(cgroup.directories(), 0);
    // Where nothing was delegated, the reasons are told, in the report too.
    let script = become_user(uid);
    let undelegated = Surrounding { script: &script, options: &[] };
    let ran = undelegated.run(&["--require", "cgroup"], &LEAVES).assert_code(125);
    assert!(ran.stderr.contains("Delegate=yes") && ran.stdout.is_empty(), "{ran:#?}");
    let containment = &ran.report["containment"];
    assert_eq!((&containment["kind"], &containment["cgroup"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert!(containment["refused"][0]["reason"].as_str().unwrap().contains("can't make a directory"), "{ran:#?}");
    let ran = undelegated.run(&[], &LEAVES).assert_code(3);
    assert_eq!(
        (&ran.report["containment"]["kind"], &ran.report["leftovers"]["count"]),
        (&"subreaper".into(), &1.into())
    );
    assert_eq!(ran.report["containment"]["refused"], containment["refused"], "{ran:#?}");
}

// Tiny limits.

/// From some number on everything works, and below it nothing is started.
#[test]
fn with_few_descriptors() {
    if !has_other_users() {
        return;
    }
    let uid = fresh_user();
    let cgroup = OwnCgroup::of(uid);
    let close = "for fd in /proc/$$/fd/*; do fd=${fd##*/}; [ $fd -lt 3 ] || eval \"exec $fd>&-\"; done";
    let mut least = None;
    for limit in (5..28).chain([40, 64]) {
        let script = format!("{}; {close}; ulimit -n {limit}; {}", cgroup.enter(), become_user(uid));
        let job = "ulimit -Sn; ulimit -Hn; trap 'echo told; exit 0' TERM; sleep 999 & sleep 999 & wait";
        let options = ["--timeout", "300ms", "--grace", "1m"];
        let ran = Surrounding { script: &script, options: &[] }.run(&options, &["bash", "-c", job]);
        if ran.code == 125 {
            assert_eq!(least, None, "{limit}: {ran:#?}");
            assert!(ran.stdout.is_empty() && ran.stderr.contains("ulimit -Hn"), "{limit}: {ran:#?}");
            assert_eq!(ran.report["reason"], "spawn_failed", "{limit}: {ran:#?}");
            continue;
        }
        least.get_or_insert(limit);
        let ran = ran.assert_code(124);
        // The job's own limit is the caller's, hard and soft.
        assert_eq!(ran.stdout, format!("{limit}\n{limit}\ntold\n"), "{ran:#?}");
        assert_eq!(ran.report["stopped"]["count"], 3, "{limit}: {ran:#?}");
        assert!(ran.listed("stopped").contains("sleep 999\nsleep 999"), "{limit}: {ran:#?}");
        assert_eq!(ran.report["error"], serde_json::Value::Null, "{limit}: {ran:#?}");
        // And leftovers, with cgroups that the job made itself: more than there are descriptors.
        let script = format!("{}; {close}; ulimit -n {limit}; {}", cgroup.enter(), become_user(uid));
        let job = r#"read -r own </proc/self/cgroup; while [ "${own#0::}" = "$own" ]; do read -r own; done </proc/self/cgroup
            cd "$0/${own##*/}" || exit 98; mkdir $(seq 50) || exit 98
            for at in 1 25 50; do bash -c "echo \$\$ >$at/cgroup.procs && echo in \$\$ && exec sleep 999" >&2 & done
            until [ "$(cat 1/cgroup.procs 25/cgroup.procs 50/cgroup.procs | wc -l)" = 3 ]; do :; done; exit 3"#;
        let words = ["bash", "-c", job, cgroup.0.to_str().unwrap()];
        let ran = Surrounding { script: &script, options: &[] }.run(&["--grace", "1m"], &words).assert_code(3);
        assert_eq!(ran.report["leftovers"]["count"], 3, "{limit}: {ran:#?}");
        assert_eq!((&ran.report["stopped"]["count"], &ran.report["killed"]), (&3.into(), &false.into()), "{ran:#?}");
        assert_eq!(ran.report["not_removed"], serde_json::json!([]), "{limit}: {ran:#?}");
    }
    println!("the least number of descriptors is {least:?}");
    assert!(least.is_some_and(|least| least <= 24), "{least:?}");
}

#[test]
fn with_few_processes() {
    if !has_other_users() {
        return;
    }
    let uid = fresh_user();
    let cgroup = OwnCgroup::of(uid);
    for limit in 0..6 {
        let script = format!("{}; ulimit -u {limit}; {}", cgroup.enter(), become_user(uid));
        let ran = Surrounding { script: &script, options: &[] }.run(&[], &["sh", "-c", "ulimit -u 2>&1; exit 3"]);
        // pinfold, its guard, the shell.
        if limit < 3 {
            let ran = ran.assert_code(125);
            assert!(ran.stderr.contains("ulimit -u") && ran.stdout.is_empty(), "{limit}: {ran:#?}");
            assert_eq!(ran.report["reason"], "spawn_failed", "{limit}: {ran:#?}");
        } else {
            assert_eq!(ran.assert_code(3).stderr, "");
        }
    }
    let script = format!("{}; ulimit -u 5; {}", cgroup.enter(), become_user(uid));
    holds(&script);
}

/// A program that is not optimised needs more than the 20 KiB that the release build needs.
#[test]
fn with_a_small_stack() {
    if !has_cgroup() {
        return;
    }
    holds(r#"ulimit -s 256; exec "$@""#);
    let script = r#"ulimit -s 256; exec "$@""#;
    let ran = Surrounding { script, options: &[] }.run(&[], &["bash", "-c", "ulimit -Ss; ulimit -Hs"]).assert_code(0);
    assert_eq!(ran.stdout, "256\n256\n");
}

// Among its like.

#[test]
fn in_itself() {
    if !has_cgroup() {
        return;
    }
    let words = |inner: [&'static str; 3]| [&[PINFOLD, "run", "--"], inner.as_slice()].concat();
    let plain = Surrounding { script: r#"exec "$@""#, options: &[] };
    let ran = plain.run(&["--grace", "1m"], &words(LEAVES)).assert_code(3);
    // The inner one has seen to it.
    assert_eq!((ran.stdout.as_str(), &ran.report["leftovers"]["count"]), ("ready\n", &0.into()), "{ran:#?}");
    assert!(ran.stderr.contains("bash left 1 process"), "{ran:#?}");
    let mut stopped = plain.run(&["--grace", "1m", "--timeout", "500ms"], &words(STAYS)).assert_code(124);
    if stopped.stdout.is_empty() {
        stopped = plain.run(&["--grace", "1m", "--timeout", "5s"], &words(STAYS)).assert_code(124);
    }
    assert_eq!((stopped.stdout.as_str(), &stopped.report["killed"]), ("ready\n", &false.into()), "{stopped:#?}");
    // Ten deep.
    let deep: Vec<&str> = (0..10).flat_map(|_| [PINFOLD, "run", "--"]).chain(LEAVES).collect();
    let ran = plain.run(&[], &deep).assert_code(3);
    assert_eq!(ran.report["leftovers"]["count"], 0, "{ran:#?}");
}

// What the caller ignores.

#[test]
fn with_signals_ignored_by_the_caller() {
    if !has_cgroup() {
        return;
    }
    let mut running =
        Run::in_shell(r#"trap '' INT QUIT HUP; exec "$@""#, ["sh", "-c", "echo ready; read line; sleep 999 & exit 3"]);
    let (input, give) = std::io::pipe().unwrap();
    running.command().stdin(input);
    let mut running = running.start();
    assert_eq!(running.line(), "ready");
    let pinfold = running.pinfold_pid();
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        // SAFETY: pinfold, which its warden has not reaped: its job waits for us.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::kill(pinfold, signal) };
        assert_eq!(sent, 0);
    }
    drop(give);
    let ran = running.finish().assert_code(3);
    assert_eq!((&ran.report["reason"], &ran.report["leftovers"]["count"]), (&"exited".into(), &1.into()), "{ran:#?}");
}

// A terminal from outside.

/// The session and the process group have no number there (getsid(2), getpgrp(2) say 0).
#[test]
fn on_a_terminal_of_another_pid_namespace() {
    if !has_unshare() {
        return;
    }
    let report = Scratch::new("pty");
    let mut shell = Pty::shell();
    let unshare = format!("unshare --pid --fork --mount-proc $PINFOLD run --report {}", report.path().display());
    let told = |report: &Scratch| serde_json::from_str::<serde_json::Value>(&report.text()).unwrap();

    shell.line(&format!(
        "{unshare} -- bash -c 'sleep 999 & trap \"echo got it; exit 5\" INT; echo up; wait'; echo code $?"
    ));
    shell.expect("\nup");
    shell.send("\x03");
    shell.expect("got it");
    shell.expect("code 5");
    shell.expect("ready> ");
    assert_eq!((&told(&report)["reason"], &told(&report)["unkillable"]["count"]), (&"exited".into(), &0.into()));

    shell.line(&format!("{unshare} -- sh -c 'echo up; exec sleep 999'; echo code $?"));
    shell.expect("\nup");
    shell.send("\x03");
    shell.expect("code 130");
    shell.expect("ready> ");

    shell.line(&format!("{unshare} --timeout 500ms -- sh -c 'read line; exit 5'; echo code $?"));
    shell.expect("code 124");
    shell.expect("ready> ");
    assert_eq!(told(&report)["reason"], "deadline");
    shell.line(&format!("{unshare} -- sh -c 'read line; echo got=$line'"));
    shell.send("hello\n");
    shell.expect("got=hello");
    shell.expect("ready> ");
    // The settings come back where the job could not see to it itself.
    shell.line("before=$(stty -a)");
    shell.expect("ready> ");
    shell.line(&format!("{unshare} --timeout 500ms -- sh -c 'stty raw; echo it is raw; sleep 999'"));
    shell.expect("it is raw");
    shell.expect("ready> ");
    shell.line("test \"$before\" = \"$(stty -a)\" && echo it is the same");
    shell.expect("\nit is the same");
    assert!(!Path::new(OsStr::new(told(&report)["containment"]["cgroup"].as_str().unwrap())).exists());
    shell.exit();
}
