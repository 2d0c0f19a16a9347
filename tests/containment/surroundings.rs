//! pinfold in unusual environments: in namespaces, without `/proc`, with clone3 refused, as another user, in itself, on
//! a terminal from outside. In each of them the exit code is right, nothing is left, and the report is true.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::own_cgroup::OwnCgroup;
use crate::support::pty::Pty;
use crate::support::surrounding::{LEAVES, STAYS, Surrounding, become_user, fresh_user, holds};
use crate::support::{Canary, PINFOLD, Run, Scratch, own_cgroup, program};

// Namespaces.

#[test]
#[requires(cgroup, root, program("unshare"))]
fn as_pid_1() {
    holds(r#"exec unshare --pid --fork --mount-proc "$@""#);
    // A signal that PID 1 does not catch cannot end it.
    let ran = Surrounding { script: r#"exec unshare --pid --fork --mount-proc "$@""#, options: &[] };
    let ran = ran.run(&[], &["bash", "-c", "kill -INT $$"]);
    assert_eq!((ran.code, ran.signal), (130, None), "{ran:#?}");
}

#[test]
#[requires(cgroup, root, program("unshare"))]
fn in_namespaces() {
    holds(r#"exec unshare --user --map-root-user "$@""#);
    holds(r#"exec unshare --mount "$@""#);
    let all = "exec unshare --user --map-root-user --cgroup --mount --uts --ipc --net --pid --fork --mount-proc";
    if std::fs::read_to_string("/proc/self/cgroup").unwrap().contains("0::/\n") {
        holds(r#"exec unshare --cgroup "$@""#);
        holds(&format!(r#"{all} "$@""#));
        return;
    }
    // A mount of the outside does not show where the namespace begins (see below). As container runtimes do, this test
    // makes a mount inside.
    let mount = Scratch::directory("cgroup2");
    let mount = format!(r#"bash -c 'mount -t cgroup2 none {} && exec "$@"' bash"#, mount.path().display());
    holds(&format!(r#"exec unshare --cgroup --mount {mount} "$@""#));
    holds(&format!(r#"{all} {mount} "$@""#));
}

/// In its own cgroup namespace, with a mount that shows only that namespace.
#[test]
#[requires(cgroup, root, program("unshare"))]
fn below_the_root_of_a_cgroup_namespace() {
    let cgroup = OwnCgroup::new();
    let enter = format!("{}; exec unshare --cgroup --mount", cgroup.enter());
    let mount = Scratch::directory("cgroup2");
    let mount = mount.path().to_str().unwrap();
    holds(&format!(r#"{enter} bash -c 'mount -t cgroup2 none {mount} && exec "$@"' bash "$@""#));
    assert_eq!(cgroup.directories(), 0);
    // A mount from outside does not show where the namespace begins. It helps to name a directory.
    let script = format!(r#"{enter} "$@""#);
    let outside = Surrounding { script: &script, options: &[] };
    let ran = outside.run(&["--require", "cgroup"], &LEAVES).assert_code(125);
    assert_eq!((ran.stdout.as_str(), &ran.report["reason"]), ("", &"spawn_failed".into()), "{ran:#?}");
    assert_eq!(outside.run(&[], &LEAVES).assert_code(3).report["containment"]["kind"], "subreaper");
    Surrounding { script: &script, options: &["--cgroup", cgroup.path.to_str().unwrap()] }.holds();
    assert_eq!(cgroup.directories(), 0);
}

// Without /proc, or with a restricted one.

const NO_PROC: [&str; 2] = [
    r#"exec unshare --mount bash -c 'while umount -l /proc 2>/dev/null; do :; done; exec "$@"' bash "$@""#,
    r#"exec unshare --mount bash -c 'mount -t tmpfs none /proc; exec "$@"' bash "$@""#,
];

#[test]
#[requires(cgroup, root, program("unshare"))]
fn without_proc() {
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
#[requires(cgroup, root, program("unshare"))]
fn without_proc_and_without_a_cgroup_that_was_named() {
    for script in NO_PROC {
        let ran = Surrounding { script, options: &[] }.run(&[], &LEAVES).assert_code(125);
        ran.assert_names("--cgroup DIR");
        assert_eq!((ran.stdout.as_str(), &ran.report["reason"]), ("", &"spawn_failed".into()), "{ran:#?}");
    }
}

/// `/proc` hides processes that may not be traced, for example those of a program that may not be read.
#[test]
#[requires(cgroup, root, program("unshare"), other_users)]
fn with_a_proc_that_hides_processes() {
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
    // When the main process exits, the other process has executed the hidden program. So /proc does not show that it
    // has an end of the pipe.
    let job = format!("exec 9> >(exec {} 999); exec 9>&-; sleep 0.2; exit 3", hidden.display());
    let ran =
        Surrounding { script: &script, options: &[] }.run(&["--grace", "1m"], &["bash", "-c", &job]).assert_code(3);
    assert_eq!(ran.report["leftovers"]["count"], 1, "{ran:#?}");
    assert_eq!(ran.listed("leftovers"), "[unknown]\n", "{ran:#?}");
    ran.assert_names(ran.report["leftovers"]["processes"][0]["pid"].to_string());
}

// clone3 is refused.

#[test]
#[requires(cgroup)]
fn with_clone3_refused() {
    let refuse = program("refuse");
    for errno in [libc::ENOSYS, libc::EPERM] {
        for ran in holds(&format!(r#"exec {} clone3 {errno} "$@""#, refuse.display())) {
            assert_eq!(ran.report["containment"]["born"], "joined", "{ran:#?}");
        }
    }
    for ran in holds(r#"exec "$@""#) {
        assert_eq!(ran.report["containment"]["born"], "cloned", "{ran:#?}");
    }
}

// As another user.

#[test]
#[requires(other_users)]
fn as_another_user() {
    let uid = fresh_user();
    let cgroup = OwnCgroup::of(uid);
    holds(&format!("{}; {}", cgroup.enter(), become_user(uid)));
    assert_eq!(cgroup.directories(), 0);
    // Where nothing was delegated, pinfold reports the reasons, also in the report.
    let script = become_user(uid);
    let undelegated = Surrounding { script: &script, options: &[] };
    let ran = undelegated.run(&["--require", "cgroup"], &LEAVES).assert_code(125);
    ran.assert_names("Delegate=yes");
    assert_eq!(ran.stdout, "");
    let containment = &ran.report["containment"];
    assert_eq!((&containment["kind"], &containment["cgroup"]), (&serde_json::Value::Null, &serde_json::Value::Null));
    assert_ne!(containment["refused"][0]["reason"], "", "{ran:#?}");
    let ran = undelegated.run(&[], &LEAVES).assert_code(3);
    assert_eq!(
        (&ran.report["containment"]["kind"], &ran.report["leftovers"]["count"]),
        (&"subreaper".into(), &1.into())
    );
    assert_eq!(ran.report["containment"]["refused"], containment["refused"], "{ran:#?}");
}

// Inside another pinfold.

#[test]
#[requires(cgroup)]
fn in_another_pinfold() {
    let words = |inner: [&'static str; 3]| [&[PINFOLD, "run", "--"], inner.as_slice()].concat();
    let plain = Surrounding { script: r#"exec "$@""#, options: &[] };
    let ran = plain.run(&["--grace", "1m"], &words(LEAVES)).assert_code(3);
    // The inner pinfold has ended it already.
    assert_eq!((ran.stdout.as_str(), &ran.report["leftovers"]["count"]), ("ready\n", &0.into()), "{ran:#?}");
    ran.assert_names("bash");
    let mut stopped = plain.run(&["--grace", "1m", "--timeout", "500ms"], &words(STAYS)).assert_code(124);
    if stopped.stdout.is_empty() {
        stopped = plain.run(&["--grace", "1m", "--timeout", "5s"], &words(STAYS)).assert_code(124);
    }
    assert_eq!((stopped.stdout.as_str(), &stopped.report["killed"]), ("ready\n", &false.into()), "{stopped:#?}");
    // Ten pinfolds inside each other.
    let deep: Vec<&str> = (0..10).flat_map(|_| [PINFOLD, "run", "--"]).chain(LEAVES).collect();
    let ran = plain.run(&[], &deep).assert_code(3);
    assert_eq!(ran.report["leftovers"]["count"], 0, "{ran:#?}");
}

// The caller ignores signals.

#[test]
#[requires(cgroup)]
fn with_signals_ignored_by_the_caller() {
    let mut running =
        Run::in_shell(r#"trap '' INT QUIT HUP; exec "$@""#, ["sh", "-c", "echo ready; read line; sleep 999 & exit 3"]);
    let (input, give) = std::io::pipe().unwrap();
    running.command().stdin(input);
    let mut running = running.start();
    assert_eq!(running.line(), "ready");
    let pinfold = running.pinfold_pid();
    for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
        // SAFETY: signals pinfold, which its warden has not reaped, because its job waits for us.
        #[allow(unsafe_code)]
        let sent = unsafe { libc::kill(pinfold, signal) };
        assert_eq!(sent, 0);
    }
    drop(give);
    let ran = running.finish().assert_code(3);
    assert_eq!((&ran.report["reason"], &ran.report["leftovers"]["count"]), (&"exited".into(), &1.into()), "{ran:#?}");
}

// A terminal of another PID namespace.

/// The session and the process group have no number there (getsid(2) and getpgrp(2) return 0).
#[test]
#[requires(cgroup, root, program("unshare"))]
fn on_a_terminal_of_another_pid_namespace() {
    let report = Scratch::new("pty");
    let mut shell = Pty::shell();
    let unshare = format!("unshare --pid --fork --mount-proc $PINFOLD run --report {}", report.path().display());
    let parsed = |report: &Scratch| serde_json::from_str::<serde_json::Value>(&report.text()).unwrap();

    shell.line(&format!(
        "{unshare} -- bash -c 'sleep 999 & trap \"echo got it; exit 5\" INT; echo up; wait'; echo code $?"
    ));
    shell.expect("\nup");
    shell.send("\x03");
    shell.expect("got it");
    shell.expect("code 5");
    shell.expect("ready> ");
    assert_eq!((&parsed(&report)["reason"], &parsed(&report)["unkillable"]["count"]), (&"exited".into(), &0.into()));

    shell.line(&format!("{unshare} -- sh -c 'echo up; exec sleep 999'; echo code $?"));
    shell.expect("\nup");
    shell.send("\x03");
    shell.expect("code 130");
    shell.expect("ready> ");

    shell.line(&format!("{unshare} --timeout 500ms -- sh -c 'read line; exit 5'; echo code $?"));
    shell.expect("code 124");
    shell.expect("ready> ");
    assert_eq!(parsed(&report)["reason"], "deadline");
    shell.line(&format!("{unshare} -- sh -c 'read line; echo got=$line'"));
    shell.send("hello\n");
    shell.expect("got=hello");
    shell.expect("ready> ");
    // The terminal's settings are restored where the job could not do it itself.
    shell.line("before=$(stty -a)");
    shell.expect("ready> ");
    shell.line(&format!("{unshare} --timeout 500ms -- sh -c 'stty raw; echo it is raw; sleep 999'"));
    shell.expect("it is raw");
    shell.expect("ready> ");
    shell.line("test \"$before\" = \"$(stty -a)\" && echo it is the same");
    shell.expect("\nit is the same");
    assert!(!Path::new(OsStr::new(parsed(&report)["containment"]["cgroup"].as_str().unwrap())).exists());
    shell.exit();
}

// Mounts on cgroups.

/// A file system that root's job mounts on its own cgroups is not part of the job: pinfold signals no process there and
/// removes no directory.
#[test]
#[requires(cgroup, root, program("unshare"))]
fn with_a_mount_on_the_jobs_own_cgroup() {
    let cgroup = OwnCgroup::new().littered();
    let other = cgroup.path.join("other");
    std::fs::create_dir(&other).unwrap();
    let canary = Canary::new();
    std::fs::write(other.join("cgroup.procs"), canary.pid().to_string()).unwrap();
    let files = Scratch::directory("mounted");
    let empty = files.path().join("empty");
    std::fs::create_dir(&empty).unwrap();

    let job = r#"read -r own </proc/self/cgroup; while [ "${own#0::}" = "$own" ]; do read -r own; done </proc/self/cgroup
        cd "$0/${own##*/}" && mkdir files kin && mount --bind "$1" files && mount --bind "$0/other" kin || exit 98
        setsid sleep 999 & exit 3"#;
    let place = cgroup.path.to_str().unwrap();
    // The mounts end with their namespace. Then the directories that pinfold names can be removed.
    let script =
        r#"unshare --mount "$@"; code=$?; cd "$6" && rmdir pinfold-*/files pinfold-*/kin pinfold-*; exit $code"#;
    let words = ["bash", "-c", job, place, files.path().to_str().unwrap()];
    let ran = Surrounding { script, options: &["--cgroup", place] }.run(&["--grace", "1m"], &words).assert_code(3);
    canary.assert_alive();
    assert!(empty.is_dir(), "{ran:#?}");
    assert_eq!((&ran.report["leftovers"]["count"], &ran.report["killed"]), (&1.into(), &false.into()), "{ran:#?}");
    let left = ran.report["not_removed"][0].clone();
    assert!(["/files", "/kin"].iter().any(|end| left["path"].as_str().unwrap().ends_with(end)), "{ran:#?}");
    assert!(left["error"].as_str().unwrap().contains("cross-device"), "{ran:#?}");
    // pinfold also reports that it could not look for some processes.
    assert!(ran.report["error"].is_string(), "{ran:#?}");
}
