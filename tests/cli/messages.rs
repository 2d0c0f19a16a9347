//! Text from outside in pinfold's messages: none of its escape sequences or newlines reaches a terminal, whichever
//! command prints it.

use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use crate::support::{PINFOLD, Run, Scratch, has, needs};

/// It clears the screen, starts a new line, forges a message of pinfold, and reverses the text direction of the rest. The
/// new line begins with spaces, as the further lines of a message do, which only the quoting of each value escapes.
const HOSTILE: &str = "x\u{1b}[2J\r\n  pinfold: all good\u{9b}1m\u{202e}\u{7f}";

fn assert_harmless(text: &str, what: &str) {
    // `timeout` quotes as coreutils does, which does not escape direction marks.
    let turns = |character| character == '\u{202e}' && !what.starts_with("timeout");
    let acts = |character: char| character.is_control() && !"\n\t".contains(character) || turns(character);
    assert!(!text.chars().any(acts), "{what}: {}", text.escape_debug());
    assert!(!text.lines().any(|line| line.trim_start().starts_with("pinfold: all good")), "{what}: {text}");
}

/// Runs pinfold with these words, and asserts that its output is harmless and contains the text, quoted.
fn assert_quoted<S: AsRef<std::ffi::OsStr>>(words: &[S], environment: &[(&str, &str)], input: &str) {
    let what = words.iter().map(|word| word.as_ref().to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ");
    let mut run = Run::bare([std::ffi::OsStr::new(PINFOLD)].into_iter().chain(words.iter().map(AsRef::as_ref)));
    let stdin = Scratch::new("input");
    std::fs::write(stdin.path(), input).unwrap();
    run.command().stdin(Stdio::from(std::fs::File::open(stdin.path()).unwrap())).envs(environment.iter().copied());
    let ran = run.run();
    let printed = format!("{}\n{}", ran.stdout, ran.stderr);
    assert_harmless(&printed, &what);
    assert!(printed.contains(r"\033[2J"), "{what}: {printed}");
    assert!(printed.contains("pinfold: all good"), "it is not named: {what}: {printed}");
}

#[test]
fn words_of_the_command_line_are_quoted() {
    let with = |before: &str| format!("{before}{HOSTILE}");
    // A sandbox cannot restrict root.
    let user: &[&str] = if rustix::process::geteuid().is_root() { &["--user", "nobody"] } else { &[] };
    let sandboxed = |option: &str| {
        let words = [&["sandbox"], user, &[option]].concat();
        words.into_iter().map(str::to_owned).chain([with("/no/such/"), "true".to_owned()]).collect()
    };
    for words in [
        vec![HOSTILE.to_owned()],
        vec![format!("run\u{7}{HOSTILE}"), "true".into()],
        vec!["run".into(), with("--")],
        vec!["run".into(), "--timeout".into(), HOSTILE.into(), "true".into()],
        vec!["run".into(), "--timeout".into(), with("1 "), "true".into()],
        vec!["run".into(), "--grace".into(), with("-1"), "true".into()],
        vec!["run".into(), "--signal-to".into(), HOSTILE.into(), "true".into()],
        vec!["run".into(), "--stop-signal".into(), HOSTILE.into(), "true".into()],
        vec!["run".into(), "--memory".into(), HOSTILE.into(), "true".into()],
        vec!["run".into(), "--pids".into(), HOSTILE.into(), "true".into()],
        vec!["run".into(), "--io-max".into(), with("/dev/x"), "true".into()],
        vec!["run".into(), "--user".into(), HOSTILE.into(), "true".into()],
        vec!["run".into(), "--env".into(), with("="), "true".into()],
        vec!["run".into(), "--env-remove".into(), with("a="), "true".into()],
        vec!["run".into(), "--ready".into(), HOSTILE.into(), "true".into()],
        vec!["run".into(), "--report".into(), with("/no/such/"), "true".into()],
        vec!["run".into(), "--report".into(), with("fd:"), "true".into()],
        vec!["run".into(), "--tee".into(), with("/no/such/"), "true".into()],
        vec!["run".into(), "--cgroup".into(), with("/no/such/"), "true".into()],
        vec!["pool".into(), with("--jobs=/no/such/")],
        vec!["pool".into(), "--results".into(), with("/no/such/")],
        vec!["serve".into(), HOSTILE.into()],
        vec!["sweep".into(), "--cgroup".into(), with("/no/such/")],
        vec!["sweep".into(), HOSTILE.into()],
        vec!["doctor".into(), "--cgroup".into(), with("/no/such/")],
        sandboxed("--read"),
        sandboxed("--write"),
        sandboxed("--seccomp"),
        vec!["sandbox".into(), "--waive".into(), HOSTILE.into(), "true".into()],
        vec!["stop".into(), HOSTILE.into()],
        vec!["kill".into(), HOSTILE.into()],
        vec!["signal".into(), HOSTILE.into(), "x".into()],
        vec!["signal".into(), "TERM".into(), HOSTILE.into()],
        vec!["freeze".into(), HOSTILE.into()],
        vec!["wait".into(), HOSTILE.into()],
        vec!["wait".into(), "--timeout".into(), HOSTILE.into(), "x".into()],
        vec!["stats".into(), HOSTILE.into()],
        vec!["exec".into(), HOSTILE.into(), "true".into()],
        vec!["init".into(), "-p".into(), HOSTILE.into(), "--".into(), "true".into()],
        #[cfg(feature = "watch")]
        vec!["watch".into(), "-w".into(), with("/no/such/"), "--".into(), "true".into()],
    ] {
        assert_quoted(&words, &[], "");
    }
}

#[test]
fn variables_and_names_of_commands_are_quoted() {
    for words in [["run", "true"], ["timeout", "1"], ["init", "true"]] {
        let words: Vec<_> = words.into_iter().chain((words[0] == "timeout").then_some("true")).collect();
        assert_quoted(&words, &[("PINFOLD_CONTAINMENT", HOSTILE)], "");
        assert_quoted(&words, &[("PINFOLD_CGROUP", HOSTILE)], "");
    }
    if !has(needs::cgroup()) {
        return;
    }
    for words in [
        vec!["run", HOSTILE],
        vec!["run", "--cwd", HOSTILE, "true"],
        vec!["run", "--stats", "--name", HOSTILE, "true"],
        vec!["run", "--verbose", "--name", HOSTILE, "--timeout", "100ms", "sleep", "1000"],
        vec!["run", "--name", HOSTILE, "--idle-timeout", "100ms", "sleep", "1000"],
        vec!["run", "--name", HOSTILE, "--ready", "file:/no/such", "--ready-timeout", "100ms", "sleep", "1000"],
        vec!["timeout", "1", HOSTILE],
        vec!["init", HOSTILE],
    ] {
        assert_quoted(&words, &[], "");
    }
}

/// An easy way to forge a message of pinfold: a leftover whose command line looks like one.
#[test]
#[requires(cgroup)]
fn what_a_job_calls_itself_is_quoted() {
    let script = "(exec -a \"$0\" sleep 1000) & until grep -q 'all good' /proc/$!/cmdline; do :; done";
    assert_quoted(&["run", "bash", "-c", script, HOSTILE], &[], "");
    let script = "exec -a \"$0\" sleep 1000";
    assert_quoted(&["run", "--name", HOSTILE, "--timeout", "100ms", "bash", "-c", script, HOSTILE], &[], "");
}

#[test]
#[requires(cgroup)]
fn jobs_of_a_pool_are_quoted() {
    let job = serde_json::json!({"command": ["sh", "-c", "echo line; exit 3"], "name": HOSTILE}).to_string();
    assert_quoted(&["pool", "--output", "stream", "--tag"], &[], &format!("{job}\n"));
    assert_quoted(&["pool"], &[], &format!("{job}\n"));
    let job = serde_json::json!({"command": ["true"], HOSTILE: 1}).to_string();
    assert_quoted(&["pool"], &[], &format!("{job}\n"));
    let job = serde_json::json!({"command": [HOSTILE]}).to_string();
    assert_quoted(&["pool"], &[], &format!("{job}\n"));
}

/// The jobs of other pinfolds can have any name.
#[test]
#[requires(cgroup)]
fn jobs_that_another_pinfold_runs_are_quoted() {
    let jobs = [(); 2].map(|()| {
        let mut job = Run::new(["--name", HOSTILE, "--", "sh", "-c", "echo up; read line", HOSTILE]);
        job.command().stdin(Stdio::piped());
        let mut job = job.start();
        assert_eq!(job.line(), "up");
        job
    });
    assert_quoted(&["ps"], &[], "");
    assert_quoted(&["stats"], &[], "");
    // Two jobs have the name.
    assert_quoted(&["stop", HOSTILE], &[], "");
    let pid = jobs[0].pinfold_pid().to_string();
    assert_quoted(&["exec", &pid, HOSTILE], &[], "");
    assert_quoted(&["exec", "--cwd", HOSTILE, &pid, "true"], &[], "");
    for mut job in jobs {
        drop(job.child.stdin.take());
        job.finish();
    }
}

/// The message contains the value, although its encoding is unknown.
#[test]
fn a_value_that_is_not_utf8_is_named() {
    let bad = std::ffi::OsStr::from_bytes(b"b\xffd");
    for option in ["--timeout", "--stop-signal", "--signal-to", "--name", "--pids"] {
        let ran =
            Run::bare([PINFOLD.as_ref(), "run".as_ref(), option.as_ref(), bad, "true".as_ref()]).run().assert_code(125);
        assert!(ran.stderr.contains(r"b\377d") || ran.stderr.contains("b\u{fffd}d"), "{ran:#?}");
    }
    let ran = Run::bare([PINFOLD.as_ref(), "pool".as_ref(), "--timeout".as_ref(), bad]).run().assert_code(125);
    assert!(ran.stderr.contains(r"b\377d"), "{ran:#?}");
}
