//! The options of `pinfold run` for the command's output, without a terminal: pinfold forwards it completely, limits
//! it, or ends the job.

use std::process::Stdio;

use crate::support::{PINFOLD, Ran, Run, Scratch};

fn sh(options: &[&str], script: &str) -> Ran {
    Run::new(options.iter().chain(&["--", "sh", "-c", script])).run()
}

#[test]
#[requires(cgroup)]
fn an_idle_timeout() {
    let ran = sh(&["--idle-timeout", "300ms"], "echo out; echo err >&2; sleep 999").assert_code(124);
    assert_eq!((ran.stdout.as_str(), &ran.report["reason"]), ("out\n", &"idle".into()));
    assert_eq!(ran.stderr, "err\npinfold: sh was stopped: it had written nothing for 300ms\n");
    // Output on either stream counts, and a job that writes in time is left alone.
    let script = "for i in 1 2 3 4 5 6; do sleep 0.25; echo $i >&$((1 + i % 2)); done; exit 3";
    let ran = sh(&["--idle-timeout", "1s"], script).assert_code(3);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("2\n4\n6\n", "1\n3\n5\n"));
}

/// If the reader does not read, the reader is idle and not the command.
#[test]
#[requires(cgroup)]
fn a_reader_that_waits() {
    let script = r#""$@" | { sleep 1.5; wc -c; }; exit ${PIPESTATUS[0]}"#;
    let ran = Run::in_shell(script, ["--idle-timeout", "400ms", "--", "head", "-c", "3000000", "/dev/zero"]).run();
    assert_eq!((ran.code, ran.stdout.trim()), (0, "3000000"), "{ran:#?}");
}

#[test]
#[requires(cgroup)]
fn a_tee_and_a_bound() {
    let file = Scratch::new("tee");
    let tee = file.path().to_str().unwrap();
    let ran = sh(&["--tee", tee], "echo one; echo two >&2; cat; exit 3").assert_code(3);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("one\n", "two\n"));
    let mut lines: Vec<_> = file.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["one", "two"]);

    // The file contains the whole output.
    let ran = sh(&["--tee", tee, "--max-output", "2K"], "seq 100000; echo err >&2").assert_code(0);
    let all: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(file.text().len(), all.len() + 4);
    let left_out = format!("\n[... {} bytes left out ...]\n", all.len() - 2048);
    let (first, last) = ran.stdout.split_once(&left_out).unwrap_or_else(|| panic!("{}", ran.stdout));
    assert_eq!((first, last), (&all[..1024], &all[all.len() - 1024..]));
    assert_eq!(ran.stderr, "err\n");

    let ran = sh(&["--tee", "/no/such/file"], "echo never").assert_code(125);
    assert!(ran.stderr.contains("/no/such/file") && ran.stdout.is_empty(), "{}", ran.stderr);
    assert_eq!(ran.report["reason"], "spawn_failed");
    let ran = sh(&["--tee", "/dev/full"], "echo out").assert_code(125);
    assert!(ran.stdout == "out\n" && ran.reported_error().contains("No space left on device"), "{ran:#?}");
}

/// A process holds the pipe and none reads it: the deadline still ends the job.
#[test]
#[requires(cgroup)]
fn a_tee_that_takes_nothing() {
    let pipe = Scratch::new("tee-pipe");
    let tee = pipe.path().to_str().unwrap();
    let script = r#"mkfifo "$6" && exec 9<>"$6" && exec "$@""#;
    let ran = Run::in_shell(script, ["--tee", tee, "-t", "300ms", "--grace", "1m", "--", "yes"]).run().assert_code(124);
    assert_eq!(ran.report["reason"], "deadline", "{ran:#?}");
    // The output that the file has accepted has also reached standard output.
    assert!(ran.stdout.starts_with("y\ny\n"), "{}", ran.stdout.len());
}

/// If a reader goes away, the writer ends, as without pinfold. pinfold does not wait beyond the deadline for a reader
/// that never reads.
#[test]
#[requires(cgroup)]
fn readers_that_go_or_stay() {
    let script = r#""$@" | head -n 1; exit ${PIPESTATUS[0]}"#;
    let ran = Run::in_shell(script, ["--tee", "/dev/null", "--", "yes"]).run();
    assert_eq!((ran.code, ran.stdout.as_str()), (128 + libc::SIGPIPE, "y\n"), "{ran:#?}");
    let mut run = Run::bare([PINFOLD, "run", "--tee", "/dev/null", "--timeout", "500ms", "--", "yes"]);
    run.command().stdout(Stdio::piped());
    let mut running = run.start();
    let held = running.child.stdout.take();
    assert_eq!(running.finish().assert_code(124).signal, None);
    drop(held);
}

#[test]
#[requires(cgroup)]
fn readiness() {
    let directory = Scratch::directory("ready");
    let (notified, up) = (directory.path().join("told"), directory.path().join("up"));
    let (notified_name, up_name) = (notified.to_str().unwrap(), up.to_str().unwrap());
    // The job writes the line in pieces.
    let script =
        format!("printf 'list'; sleep 0.1; echo ening; until [ -s {notified_name} ]; do sleep 0.02; done; exit 3");
    let options = ["--ready", "line:listening", "--ready-notify", notified_name];
    assert_eq!(sh(&options, &script).assert_code(3).stdout, "listening\n");
    assert_eq!(std::fs::read_to_string(&notified).unwrap(), "ready\n");
    std::fs::remove_file(&notified).unwrap();
    let script = format!(": > {up_name}; until [ -s {notified_name} ]; do sleep 0.02; done");
    let what = format!("file:{up_name}");
    sh(&["--ready", &what, "--ready-notify", notified_name], &script).assert_code(0);

    let ran = sh(&["--ready", "file:/no/such", "--ready-timeout", "200ms"], "sleep 999").assert_code(124);
    ran.assert_names("/no/such");
    ran.assert_names("200ms");
    let ran = sh(&["--ready", "line:never", "--ready-timeout", "200ms"], "sleep 999").assert_code(124);
    ran.assert_names("'never'");
    let ran = sh(&["--ready", "nonsense"], "true").assert_code(125);
    ran.assert_names("line:TEXT");
}
