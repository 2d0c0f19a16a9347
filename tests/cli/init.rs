//! `pinfold init`: as PID 1 of a namespace, compared with tini, dumb-init and catatonit, and as the parent of a command
//! under another init.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::process::{Command, Stdio};

use crate::support::pty::Pty;
use crate::support::{Canary, PINFOLD, Run, Running, Scratch, has, needs, program, wait_for};

pub(super) const NAMESPACE: [&str; 4] = ["unshare", "--pid", "--fork", "--mount-proc"];
pub(super) const OURS: &[&str] = &[PINFOLD, "init", "--"];
const PEERS: [&[&str]; 3] = [&["tini", "--"], &["dumb-init", "--"], &["catatonit", "--"]];

/// Returns all signals that can be forwarded, which excludes those that glibc reserves for itself.
fn passable() -> impl Iterator<Item = i32> {
    (1..=31).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD].contains(signal)).chain(35..=64)
}

/// Returns the command in a new PID namespace, with `init` as its first process.
fn in_namespace<W: AsRef<str>>(init: &[&str], words: &[W]) -> Run {
    let words = words.iter().map(AsRef::as_ref);
    Run::bare(NAMESPACE.into_iter().chain(init.iter().copied()).chain(words).map(OsString::from))
}

pub(super) fn path_of(program_name: &str) -> String {
    program(program_name).to_str().unwrap().to_owned()
}

/// Returns the only child of a process, as soon as it has one.
pub(super) fn child_of(pid: u32) -> u32 {
    wait_for(|| {
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    })
}

/// Returns the namespace's first process, as a pid outside it: the child of unshare(1), which is a child of the warden.
fn first_process(running: &Running) -> u32 {
    child_of(child_of(running.child.id()))
}

pub(super) fn send(pid: u32, signal: i32) {
    // SAFETY: signals a process of this test that is not reaped yet, because its job still writes to us.
    #[allow(unsafe_code)]
    let sent = unsafe { libc::kill(pid as i32, signal) };
    assert_eq!(sent, 0, "{signal}");
}

pub(super) fn state_of(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or('-')
}

#[test]
#[requires(namespaces)]
fn ten_thousand_orphans_are_reaped() {
    let orphans = path_of("orphans");
    for init in std::iter::once(OURS).chain(PEERS.into_iter().filter(|peer| has(needs::program(peer[0])))) {
        let ran = in_namespace(init, &[&orphans, "10000"]).run().assert_code(0);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("none of 10000 left\n", ""), "{init:?}");
        println!("{init:?}: {:?}", ran.elapsed);
    }
    // -w prints which processes they were.
    let ran = in_namespace(&[PINFOLD, "init", "-w", "--"], &[&orphans, "3"]).run().assert_code(0);
    let reaped = ran.stderr.lines().filter(|line| line.starts_with("pinfold init: reaped the orphan "));
    assert_eq!((reaped.count(), ran.stderr.lines().count()), (3, 3), "{ran:#?}");
    if has(needs::cgroup()) {
        let ran = Run::bare([PINFOLD, "init", "--", &orphans, "10000"]).run().assert_code(0);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("none of 10000 left\n", ""));
    }
}

#[test]
#[requires(namespaces)]
fn every_signal_arrives_once() {
    for options in [&[][..], &["-g"], &["--setsid"]] {
        let init: Vec<&str> = [PINFOLD, "init"].iter().chain(options).copied().collect();
        let mut running = in_namespace(&init, &[path_of("signals"), "64".into()]).start();
        assert_eq!(running.line(), "ready");
        let init = first_process(&running);
        let stops = [libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        for signal in passable().filter(|signal| options != ["--setsid"] || !stops.contains(signal)) {
            send(init, signal);
            assert_eq!(running.line(), signal.to_string(), "{options:?}");
        }
        let ran = running.finish().assert_code(0);
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""), "a signal arrived twice");
    }
}

/// Compares which signals each init forwards: no other init forwards one that pinfold does not forward.
#[test]
#[requires(namespaces)]
fn side_by_side_signals() {
    let passed_on = |init: &[&str]| -> BTreeSet<i32> {
        let mut running = in_namespace(init, &[path_of("signals"), "63".into()]).start();
        assert_eq!(running.line(), "ready");
        let pid = first_process(&running);
        // The last of all pending signals: it arrives after the signal that was sent before it.
        let mark = 64;
        let mut seen = BTreeSet::new();
        for signal in passable().filter(|&signal| signal < 63) {
            send(pid, signal);
            send(pid, mark);
            let line = running.line();
            if line != mark.to_string() {
                assert_eq!(line, signal.to_string(), "{init:?}");
                assert_eq!(running.line(), mark.to_string(), "{init:?}");
                seen.insert(signal);
            }
        }
        send(pid, 63);
        running.finish().assert_code(0);
        seen
    };
    let ours = passed_on(OURS);
    assert!(ours.iter().copied().eq(passable().filter(|&signal| signal < 63)));
    for peer in PEERS.into_iter().filter(|peer| has(needs::program(peer[0]))) {
        // Another test covers the special way in which dumb-init handles job control signals.
        let peer: Vec<&str> = if peer[0] == "dumb-init" { vec!["dumb-init", "-c"] } else { peer.to_vec() };
        let theirs = passed_on(&peer);
        assert!(theirs.is_subset(&ours), "{peer:?}: {theirs:?}");
        println!("{peer:?} does not pass on {:?}", ours.difference(&theirs).collect::<Vec<_>>());
    }
}

/// Compares all 256 exit codes, and ends by signals, with each init in its own namespaces.
#[test]
#[requires(namespaces)]
fn side_by_side_exit_codes() {
    let script = r#"for code in $(seq 0 255); do unshare --pid --fork "$@" sh -c "exit $code"; printf '%s ' $?; done
        for signal in 1 2 3 6 9 11 15 34 64; do unshare --pid --fork "$@" sh -c "kill -$signal \$\$"; printf '%s ' $?; done
        unshare --pid --fork "$@" /nosuch/program 2>/dev/null; printf '%s ' $?"#;
    let codes = |init: &[&str]| {
        let ran = Run::bare(["bash", "-c", script, "bash"].into_iter().chain(init.iter().copied())).run();
        ran.assert_code(0).stdout
    };
    let ours = codes(OURS);
    let expected: Vec<String> = (0..=255)
        .chain([1, 2, 3, 6, 9, 11, 15, 34, 64].map(|signal| 128 + signal))
        .chain([127])
        .map(|code: i32| code.to_string())
        .collect();
    assert_eq!(ours.split_whitespace().collect::<Vec<_>>(), expected);
    for peer in PEERS.into_iter().filter(|peer| has(needs::program(peer[0]))) {
        let theirs = codes(peer);
        // The inits differ in the code for a program that does not exist: dumb-init returns 2, catatonit 1.
        let all_but_last = |codes: &str| codes.trim_end().rsplit_once(' ').unwrap().0.to_owned();
        assert_eq!(all_but_last(&theirs), all_but_last(&ours), "{peer:?}");
    }
}

#[test]
#[requires(namespaces)]
fn nothing_is_left_and_remaining_processes_are_signalled() {
    let canary = Canary::new();
    // A process that handles SIGTERM gets the time for it. A process that ignores SIGTERM does not delay the end.
    let script = "mkfifo $D/up; exec 3<>$D/up
        setsid sh -c 'trap \"echo told; exit\" TERM; echo up >$D/up; while :; do sleep 0.02; done' &
        (setsid setsid sh -c 'trap \"\" TERM; echo up >$D/up; exec sleep 1000' &)
        read one <&3; read two <&3; exit 7";
    for (mode, namespace) in [("pid 1", true), ("cgroup", false), ("subreaper", false)] {
        if mode == "cgroup" && !has(needs::cgroup()) {
            continue;
        }
        let scratch = Scratch::directory("leftovers");
        let words = ["bash", "-c", script];
        let mut run = if namespace { in_namespace(OURS, &words) } else { Run::bare(OURS.iter().chain(&words)) };
        run.command().env("D", scratch.path());
        if !namespace {
            run.command().env("PINFOLD_CONTAINMENT", mode);
        }
        let ran = run.run().assert_code(7);
        assert_eq!(ran.stdout, "told\n", "{mode}");
        assert!(ran.elapsed.as_secs() < 10, "{mode} {ran:#?}");
    }
    canary.assert_alive();
}

/// The container has no /proc, no /dev, no writable place, and a seccomp filter.
#[test]
#[requires(namespaces)]
fn in_a_bare_container() {
    let root = Scratch::directory("root");
    let script = r#"set -e
        mount -t tmpfs tmpfs $R; mkdir $R/usr $R/tests $R/bin_of_ours
        for link in bin lib lib64 sbin; do [ ! -L /$link ] || cp -a /$link $R/; [ -L /$link ] || { mkdir -p $R/$link; mount --rbind /$link $R/$link; }; done
        mount --rbind /usr $R/usr; mount --bind $TESTS $R/tests; mount --bind $BIN $R/bin_of_ours
        for at in usr tests bin_of_ours; do mount -o remount,bind,ro $R/$at; done
        mount -o remount,ro $R
        exec chroot $R /tests/strict_container /bin_of_ours/pinfold init -v -- /bin/sh -c '
            test ! -e /proc/self && test ! -e /dev/null && ! (: > /x) 2>&- || exit 9
            /usr/bin/setsid -f /usr/bin/sleep 1000 || exit 8
            trap "exit 42" HUP; kill -HUP 1; while :; do sleep 0.02; done'"#;
    let container = program("strict_container");
    let mut run = Run::bare(["unshare", "--pid", "--fork", "--mount", "bash", "-c", script]);
    run.command().env("R", root.path()).env("TESTS", container.parent().unwrap());
    run.command().env("BIN", std::path::Path::new(PINFOLD).parent().unwrap());
    let ran = run.run().assert_code(42);
    ran.assert_names("SIGHUP");
}

#[test]
fn valid_and_invalid_options() {
    let said = |words: &[&str]| {
        let out = Command::new(PINFOLD).arg("init").args(words).output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap())
    };
    assert!(said(&["-h"]).1.starts_with("Usage: pinfold init "));
    assert_eq!(said(&["--version"]), (Some(0), format!("pinfold init {}\n", env!("CARGO_PKG_VERSION"))));
    assert!(said(&["-l"]).1.contains("MIT License"));
    for words in [&["-x"][..], &[], &["-e", "256", "true"], &["-r", "15", "true"], &["-p", "FOO", "true"]] {
        let (code, message) = said(words);
        assert!(code == Some(125) && message.starts_with("pinfold init: "), "{words:?}: {message}");
    }
    if !has(needs::cgroup()) {
        return;
    }
    assert_eq!(said(&["-e", "143", "-e", "3", "sh", "-c", "exit 3"]).0, Some(0));
    assert_eq!(said(&["-e", "143", "sh", "-c", "kill $$"]).0, Some(0));
    assert_eq!(said(&["nosuch"]).0, Some(127));
    assert_eq!(said(&["/"]).0, Some(126));
}

/// `-p`: the command receives a signal when the parent ends.
#[test]
#[requires(cgroup)]
fn the_parents_end() {
    let parent = format!("{PINFOLD} init -p SIGUSR2 -- {} 12 & echo $! >$OWN; read line; exit 0", path_of("signals"));
    // Its own parent is gone, so only the warden can wait for it.
    let ended =
        "until grep -q '^State:.Z' /proc/$(cat $OWN)/status 2>/dev/null || ! test -e /proc/$(cat $OWN); do :; done";
    let script = format!("bash -c \"$1\"; read line; {ended}; exit 0");
    let mut run = Run::bare(["bash", "-c", &script, "bash", &parent]);
    let own = Scratch::new("own");
    run.command().env("OWN", own.path());
    run.command().stdin(Stdio::piped());
    let mut running = run.start();
    assert_eq!(running.line(), "ready");
    let stdin = running.child.stdin.as_mut().unwrap();
    stdin.write_all(b"end\n").unwrap();
    assert_eq!(running.line(), "12");
    running.child.stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
    running.finish().assert_code(0);
}

/// As PID 1 of a container with a terminal: the command has the terminal, and Ctrl-C sends exactly one SIGINT.
#[test]
#[requires(namespaces)]
fn with_a_terminal() {
    for options in [&[][..], &["--setsid"]] {
        let mut command = Command::new(NAMESPACE[0]);
        command.args(&NAMESPACE[1..]).args(["setsid", "-c", PINFOLD, "init"]).args(options);
        command.args([
            "--",
            "bash",
            "-c",
            "trap 'echo interrupted; exit 5' INT; tty; echo up; read line </dev/tty; echo got $line; read line",
        ]);
        let mut pty = Pty::start(command);
        pty.expect("/dev/pts/");
        pty.expect("up");
        pty.send("typed\n");
        pty.expect("got typed");
        pty.send("\x03");
        pty.expect("interrupted");
        assert_eq!(pty.wait().code(), Some(5), "{options:?}");
    }
}
