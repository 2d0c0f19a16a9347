//! Pipes that a process keeps open: the reader gets its end of file, the output is complete, and nothing waits forever.

use std::io::Read;

use crate::support::{Canary, Run, Scratch, has, needs, wait_for};

/// Runs with each available shell: shells differ in how they exit, wait and replace themselves.
fn in_each_shell(holds: impl Fn(&str)) {
    let canary = Canary::new();
    ["bash", "dash"].into_iter().filter(|shell| has(needs::program(shell))).for_each(holds);
    canary.assert_alive();
}

/// The reader of `pinfold … cat` gets its end of file at the deadline, whichever process of the job holds the pipe.
#[test]
#[requires(cgroup)]
fn a_pipe_ends_at_the_deadline() {
    in_each_shell(|shell| {
        for script in [
            "sleep 1000; true",
            "sleep 1000 & wait",
            "(sleep 1000)",
            "sleep 1000 | cat",
            "(sleep 1000 &) ; sleep 1000",
            "setsid sleep 1000 & wait",
            "trap '' TERM; sleep 1000; sleep 1000",
        ] {
            let pipeline = r#""$@" | cat; exit ${PIPESTATUS[0]}"#;
            let options = ["--timeout", "500ms", "--grace", "300ms", shell, "-c", script];
            let ran = Run::in_shell(pipeline, options).run().assert_code(124);
            assert!((0.5..3.0).contains(&ran.elapsed.as_secs_f64()), "{shell}: {script}: {ran:#?}");
            assert_eq!(ran.report["reason"], "deadline");
        }
    });
}

/// The job gets the whole timeout as written: two seconds, and no grace period follows.
#[test]
#[requires(cgroup)]
fn two_seconds_are_two_seconds() {
    let options = ["--timeout", "2s", "sh", "-c", "sleep 20; true"];
    let ran = Run::in_shell(r#""$@" | cat; exit ${PIPESTATUS[0]}"#, options).run().assert_code(124);
    assert!((2.0..3.5).contains(&ran.elapsed.as_secs_f64()), "{ran:#?}");
}

#[test]
#[requires(cgroup)]
fn a_leftover_that_holds_stdout_does_not_delay_the_return() {
    in_each_shell(|shell| {
        // Until the child has executed its program, it is a copy of the shell.
        let script = "echo before; sleep 1000 & until tr '\\0' ' ' </proc/$!/cmdline | grep -qx 'sleep 1000 '; do :; done; \
            echo after; exit 0";
        let ran = Run::new([shell, "-c", script]).run().assert_code(0);
        assert_eq!(ran.stdout, "before\nafter\n");
        assert!(ran.elapsed.as_secs_f64() < 2.0, "{ran:#?}");
        assert_eq!(ran.report["leftovers"]["count"], 1);
        assert!(ran.listed("leftovers").contains("sleep 1000"), "{ran:#?}");
        // A shell captures the output, as many scripts do.
        let captured = Run::in_shell(r#"x=$("$@"); echo "<$x>""#, ["sh", "-c", script]).run().assert_code(0);
        assert_eq!(captured.stdout, "<before\nafter>\n");
    });
}

/// The job blocks in its write. pinfold does not block, although there is no room for its own message either.
#[test]
#[requires(cgroup)]
fn a_flood_that_is_not_read_ends_at_its_deadline() {
    let canary = Canary::new();
    let mut running = Run::new(["--timeout", "500ms", "sh", "-c", "yes & yes >&2 & wait"]).start();
    let status = running.child.wait().unwrap();
    assert_eq!(status.code(), Some(124));
    let ran = running.finish();
    assert!((0.5..2.0).contains(&ran.report["phases"]["gone"].as_f64().unwrap()), "{:#?}", ran.report);
    // The earlier output is there, as much of it as fits into a pipe.
    assert!(ran.stdout.starts_with("y\ny\n") && ran.stdout.len() >= 4096, "{}", ran.stdout.len());
    canary.assert_alive();
}

#[test]
#[requires(cgroup)]
fn a_reader_that_has_gone() {
    let ran = Run::in_shell(r#""$@" | head -1; exit ${PIPESTATUS[0]}"#, ["sh", "-c", "yes; echo $? >&2; exit 5"]);
    let ran = ran.run().assert_code(5);
    // `yes` has the default action for SIGPIPE, as without pinfold.
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("y\n", "141\n"));
    let ran = Run::in_shell(r#""$@" | true; exit ${PIPESTATUS[0]}"#, ["yes"]).run();
    assert_eq!(ran.code, 128 + libc::SIGPIPE, "{ran:#?}");
}

#[test]
#[requires(cgroup)]
fn much_output_is_unharmed() {
    const BYTES: usize = 64 * 1024 * 1024;
    let script = r#"set -o pipefail; "$@" | cksum"#;
    let produce = ["sh", "-c", "yes 0123456789abcdef | head -c 67108864"];
    let with = Run::in_shell(script, produce).run().assert_code(0).stdout;
    let without = Run::bare(["sh", "-c", "yes 0123456789abcdef | head -c 67108864 | cksum"]).run().stdout;
    assert!(with.contains(&BYTES.to_string()), "{with}");
    assert_eq!(with, without);
}

/// Data goes both ways at once, through the job itself.
#[test]
#[requires(cgroup)]
fn input_reaches_the_job() {
    let mut run = Run::new(["cat"]);
    run.command().stdin(std::process::Stdio::piped());
    let mut running = run.start();
    let mut stdin = running.child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, b"hello\n").unwrap();
    assert_eq!(running.line(), "hello");
    drop(stdin);
    running.finish().assert_code(0);
}

/// No process of pinfold holds the caller's pipe: the pipe ends with the job, before the caller of pinfold has waited.
#[test]
#[requires(cgroup)]
fn the_guard_holds_no_pipe() {
    // The main process closes its output and continues to run: the reader must not have to wait for it.
    let go_on = Scratch::new("go-on");
    rustix::fs::mkfifoat(rustix::fs::CWD, go_on.path(), 0o600.into()).unwrap();
    let script = format!("echo said; exec >&- 2>&-; read -r line <{}", go_on.path().display());
    let mut running = Run::in_shell(r#"exec "$@" 2>/dev/null"#, ["sh", "-c", &script]).start();
    assert_eq!(running.line(), "said");
    let pinfold = running.pinfold_pid();
    // pinfold itself keeps its standard output, as every parent of a command in a pipeline does. Its guard must not
    // keep it.
    let guard: i32 = wait_for(|| {
        let children = std::fs::read_to_string(format!("/proc/{pinfold}/task/{pinfold}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    });
    // The guard closes the descriptors that it passed to the job as soon as it runs again.
    wait_for(|| {
        let held = std::fs::read_dir(format!("/proc/{guard}/fd")).unwrap().flatten();
        let held = held.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        (!held.into_iter().any(|target| target.to_string_lossy().starts_with("pipe:"))).then_some(())
    });
    std::fs::write(go_on.path(), "go\n").unwrap();
    let mut rest = String::new();
    running.child.stdout.as_mut().unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    running.finish().assert_code(0);
}
