//! Exit codes: the codes of the command itself, and those of `timeout`, `env` and shells.

use std::os::unix::fs::PermissionsExt;

use crate::support::{Canary, Run, Scratch, program};

/// The signals whose default action is to stop or to continue the process, or nothing (signal(7)).
const DO_NOT_END: [i32; 8] = [17, 18, 19, 20, 21, 22, 23, 28];

#[test]
#[requires(cgroup)]
fn every_code_passes_through() {
    for code in 0..=255 {
        let ran = Run::new(["sh", "-c", &format!("exit {code}")]).run().assert_code(code);
        assert_eq!(ran.report["exit_code"], code);
        assert_eq!(ran.report["main"]["exited"], code);
        assert_eq!(ran.report["reason"], "exited");
        assert_eq!(ran.stderr, "");
    }
}

#[test]
#[requires(cgroup)]
fn every_signal_is_128_and_its_number() {
    let end_by = program("end_by").into_os_string();
    for signal in (1..=64).filter(|signal| !DO_NOT_END.contains(signal)) {
        let ran = Run::new([end_by.clone(), signal.to_string().into()]).run().assert_code(128 + signal);
        assert_eq!(ran.report["main"]["signalled"]["signal"], signal);
        assert_eq!(ran.report["exit_code"], 128 + signal);
        // pinfold dies of SIGINT too, so that a loop of the calling shell stops.
        assert_eq!(ran.signal, (signal == libc::SIGINT).then_some(signal), "{ran:#?}");
        // A shell prints no message for these two signals either.
        let is_silent = [libc::SIGINT, libc::SIGPIPE].contains(&signal);
        let name = ran.report["main"]["signalled"]["name"].as_str().unwrap();
        assert_eq!((ran.stderr.is_empty(), ran.stderr.contains(name)), (is_silent, !is_silent), "{ran:#?}");
    }
}

/// pinfold reports the death of the command once, and does not repeat the message of another program.
#[test]
#[requires(cgroup)]
fn a_command_that_a_signal_ended_is_reported_in_one_line() {
    let scratch = Scratch::directory("core");
    let cwd = scratch.path().to_str().unwrap();
    for limit in ["0", "unlimited"] {
        let script = format!(r#"ulimit -c {limit} 2>/dev/null; exec "$@""#);
        let options = ["--cwd", cwd, "--name", "the test", "--", "sh", "-c", "kill -SEGV $$"];
        let ran = Run::in_shell(&script, options).run().assert_code(139);
        ran.assert_names("the test");
        ran.assert_names("SIGSEGV");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
        let dumped = ran.report["main"]["signalled"]["core_dumped"] == true;
        assert_eq!(ran.stderr.contains("core dumped"), dumped, "{ran:#?}");
    }
    for (options, job, code, lines) in [
        (&["-q"][..], "kill -KILL $$", 137, 0),
        (&[], "kill -TERM $$", 143, 1),
        // The command's own exit code, though it looks like that of a signal.
        (&[], "exit 139", 139, 0),
        (&["-t", "100ms"], "exec sleep 1000", 124, 1),
        (&["--idle-timeout", "100ms"], "exec sleep 1000", 124, 1),
        (&["--ready", "file:/no/such", "--ready-timeout", "100ms"], "exec sleep 1000", 124, 1),
    ] {
        let ran = Run::new([options, &["--", "sh", "-c", job]].concat()).run().assert_code(code);
        assert_eq!(ran.stderr.lines().count(), lines, "{options:?} {job}: {ran:#?}");
    }
}

/// Keys of a terminal reach a shell and its commands alike. The shell decides by how its command ended.
#[test]
#[requires(cgroup)]
fn an_interrupt_stops_a_shell_loop_too() {
    use std::os::unix::process::CommandExt;
    let canary = Canary::new();
    let script = r#"for turn in 1 2 3; do echo "turn $turn"; "$@"; done; echo after"#;
    let mut run = Run::in_shell(script, ["sh", "-c", "echo ready; exec sleep 1000"]);
    run.command().process_group(0);
    let mut running = run.start();
    assert_eq!((running.line(), running.line()), ("turn 1".into(), "ready".into()));
    let group = -(running.child.id() as i32);
    // SAFETY: this test made the group, and its leader has not been reaped.
    #[allow(unsafe_code)]
    let sent = unsafe { libc::kill(group, libc::SIGINT) };
    assert_eq!(sent, 0);
    let ran = running.finish();
    assert_eq!((ran.signal, ran.stdout.as_str()), (Some(libc::SIGINT), ""), "{ran:#?}");
    canary.assert_alive();
}

#[test]
#[requires(cgroup)]
fn a_deadline_is_124() {
    let canary = Canary::new();
    let ran = Run::new(["--timeout", "200ms", "sleep", "1000"]).run().assert_code(124);
    assert_eq!(ran.report["reason"], "deadline");
    ran.assert_names("sleep");
    ran.assert_names("200ms");
    // The deadline can come at any stage of the start: a process that is born after the stop signal was sent receives
    // it too.
    for timeout in ["1us", "200us", "500us", "1ms", "2ms", "3ms", "4ms", "6ms", "8ms"] {
        let ran = Run::new(["--timeout", timeout, "sleep", "1000"]).run().assert_code(124);
        assert!(ran.elapsed.as_secs() < 5, "{timeout}: {ran:#?}");
    }
    // The same where the command answers the stop signal with exit code 0.
    let ran = Run::new(["--timeout", "1.0", "sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]).run();
    assert_eq!(ran.assert_code(124).report["main"]["exited"], 0);
    canary.assert_alive();
}

#[test]
fn bad_usage_is_125() {
    for args in [vec!["run"], vec!["run", "--no-such-option", "true"], vec!["no-such-command"], vec![]] {
        let mut run = Run::bare([crate::support::PINFOLD]);
        run.command().args(args);
        run.run().assert_code(125);
    }
    for args in [["--help"], ["--version"]] {
        let mut run = Run::bare([crate::support::PINFOLD]);
        run.command().args(args);
        assert_eq!(run.run().assert_code(0).stderr, "");
    }
}

#[test]
#[requires(cgroup)]
fn what_cannot_be_executed_is_126() {
    let scratch = Scratch::directory("exit-126");
    let plain = scratch.path().join("plain");
    std::fs::write(&plain, "#!/bin/sh\nexit 0\n").unwrap();
    let plain = plain.to_str().unwrap();
    for command in ["/", ".", plain, "/etc/passwd/below-a-file"] {
        let ran = Run::new(["--", command]).run().assert_code(126);
        assert!(ran.reported_error().contains(&format!("'{command}'")), "{ran:#?}");
    }
    // The file is in PATH but is not executable: the exit code is that of shells.
    let mut run = Run::new(["--", "plain"]);
    run.command().env("PATH", scratch.path());
    run.run().assert_code(126);
}

#[test]
#[requires(cgroup)]
fn what_is_not_found_is_127() {
    let scratch = Scratch::directory("exit-127");
    let script = scratch.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    for command in ["no-such-command-anywhere", "/no/such/path", "./no-such-file", script.to_str().unwrap(), ""] {
        let ran = Run::new(["--", command]).run().assert_code(127);
        assert!(ran.reported_error().contains(&format!("'{command}'")), "{ran:#?}");
    }
}

/// As execvp(3) does, and so every shell, `env` and `timeout`.
#[test]
#[requires(cgroup)]
fn a_script_without_an_interpreter_line_is_run_by_sh() {
    let scratch = Scratch::directory("script");
    let script = scratch.path().join("script");
    std::fs::write(&script, "echo \"$# $1\"\nexit 9\n").unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let ran = Run::new([script.as_os_str(), "a b".as_ref(), "c".as_ref()]).run().assert_code(9);
    assert_eq!(ran.stdout, "2 a b\n");
    let mut run = Run::new(["script"]);
    run.command().env("PATH", format!("{}:/usr/bin:/bin", scratch.path().display()));
    assert_eq!(run.run().assert_code(9).stdout, "0 \n");
}

/// The arguments are just small enough for pinfold and too large for the command, whose path is longer: the kernel
/// counts the path too.
#[test]
#[requires(cgroup)]
fn arguments_too_large_for_exec_are_126() {
    /// About half of the difference in length between the two paths.
    const SLACK: usize = 1800;
    let scratch = Scratch::directory("too-large");
    let deep = scratch.path().join(vec!["d".repeat(200); 18].join("/"));
    std::fs::create_dir_all(&deep).unwrap();
    std::os::unix::fs::symlink("/bin/true", deep.join("deep-true")).unwrap();
    let path = format!("/usr/bin:/bin:{}", deep.display());
    let mut run = Run::in_shell(r#"unset OLDPWD; ulimit -s 1024; exec "$@""#, ["deep-true"]);
    run.command().env_clear().env("PATH", &path);
    // A stack limit of 1 MiB allows a quarter of that for arguments (execve(2)), including the pointers.
    let fixed = path.len() + 2 * crate::support::PINFOLD.len() + 2 * crate::support::PROJECT.len() + 300;
    let room = 1024 * 1024 / 4 - SLACK - fixed;
    run.command().args(std::iter::repeat_n("a".repeat(999), room / 1008)).arg("b".repeat(room % 1008));
    assert_eq!(run.run().assert_code(126).report["reason"], "spawn_failed");
}
