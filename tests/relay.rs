//! Where pinfold stands between the command and its reader: nothing that was written is lost without a word.

mod support;

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use support::{Canary, PINFOLD, PublicCopy, Run, Scratch, has_cgroup, has_program, has_root, wait_for};

fn numbers(count: u32) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

/// The deadline is the job's, which was over long before it; its reader takes what it wrote when it likes.
#[test]
fn a_reader_that_is_slower_than_the_deadline_gets_all() {
    if !has_cgroup() {
        return;
    }
    let tee = Scratch::new("tee");
    // Real time has to pass: beyond the deadline, and beyond the patience after one.
    let script = r#""$@" | { sleep 2.5; cat; }; exit ${PIPESTATUS[0]}"#;
    let tee_name = tee.path().to_str().unwrap();
    let ran = Run::in_shell(script, ["-t", "1s", "--tee", tee_name, "--", "seq", "30000"]).run().assert_code(0);
    assert!(ran.stdout == numbers(30_000) && tee.text() == ran.stdout, "{} bytes", ran.stdout.len());
    assert_eq!((&ran.report["reason"], &ran.report["error"]), (&"exited".into(), &serde_json::Value::Null));
    assert_eq!(ran.stderr, "");
}

/// Who was there for the deadline alone is not kept waiting by a reader that takes nothing, and is told what that lost.
#[test]
fn a_reader_that_takes_nothing_is_given_up_after_a_deadline_and_told() {
    if !has_cgroup() {
        return;
    }
    let script = r#"{ "$@"; echo "code $?" >&2; } | { sleep 2.5; wc -c; }"#;
    let options = ["-t", "500ms", "--grace", "0", "--tee", "/dev/null", "--", "yes"];
    let ran = Run::in_shell(script, options).run().assert_code(0);
    let lost = "pinfold: the end of the output was not passed on: its reader has taken nothing for 1s\n";
    assert!(ran.stderr.contains(lost) && ran.stderr.contains("code 124\n"), "{ran:#?}");
    assert!(ran.report["error"].as_str().unwrap().starts_with("the end of the output"), "{ran:#?}");
    assert_eq!((&ran.report["exit_code"], &ran.report["reason"]), (&124.into(), &"deadline".into()));
}

/// Nobody reads, and somebody has had enough of that: the command had succeeded, and pinfold has not.
#[test]
fn a_stop_ends_the_wait_for_a_reader_and_tells_what_that_lost() {
    if !has_cgroup() {
        return;
    }
    let canary = Canary::new();
    let pid_file = Scratch::new("pid");
    let script = format!("echo $$ > {}; exec seq 30000", pid_file.path().display());
    let mut running = Run::new(["--tee", "/dev/null", "--", "sh", "-c", &script]).start();
    let held = running.child.stdout.take();
    let pid = wait_for(|| pid_file.text().trim().parse::<i32>().ok());
    wait_for(|| (!std::path::Path::new(&format!("/proc/{pid}")).exists()).then_some(()));
    // The first may come while pinfold still makes sure that the job is gone: then it is the second that counts.
    wait_for(|| {
        let ended = running.child.try_wait().unwrap().is_some();
        if !ended {
            running.signal(libc::SIGTERM);
            std::thread::sleep(Duration::from_millis(150));
        }
        ended.then_some(())
    });
    let ran = running.finish().assert_code(125);
    let why = "the end of the output was not passed on: SIGTERM came while its reader took its time";
    assert_eq!(ran.stderr, format!("pinfold: {why}\n"));
    assert_eq!((&ran.report["error"], &ran.report["exit_code"]), (&why.into(), &125.into()));
    // The first may even have come before pinfold knew of its end, and have stopped nobody.
    assert!(["exited", "stopped"].contains(&ran.report["reason"].as_str().unwrap()), "{ran:#?}");
    assert_eq!(ran.report["main"]["exited"], 0);
    drop(held);
    canary.assert_alive();
}

/// A pipe that does not block, as Node's and other event loops' are, is full now and then. So it stays: others have it too.
#[test]
fn a_standard_output_that_does_not_block() {
    if !has_cgroup() {
        return;
    }
    let tee = Scratch::new("tee");
    let mut run = Run::new(["--tee", tee.path().to_str().unwrap(), "--", "seq", "100000"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    run.command().stdout(Stdio::from(writer.try_clone().unwrap()));
    let running = run.start();
    // It is full for sure.
    wait_for(|| tee.path().metadata().is_ok_and(|metadata| metadata.len() > 70_000).then_some(()));
    assert!(fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
    drop(writer);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    running.finish().assert_code(0);
    assert!(reading.join().unwrap().unwrap() == numbers(100_000) && tee.text() == numbers(100_000));
}

/// Not as if nobody had wanted to read it.
#[test]
fn a_standard_output_that_takes_nothing() {
    if !has_cgroup() {
        return;
    }
    for (place, why) in [(">/dev/full", "No space left on device"), ("1</dev/null", "Bad file descriptor")] {
        let script = format!(r#"exec "$@" {place}"#);
        let ran = Run::in_shell(&script, ["--tee", "/dev/null", "--", "echo", "lost"]).run().assert_code(125);
        assert!(ran.stderr.starts_with("pinfold: cannot pass the output on: ") && ran.stderr.contains(why), "{ran:#?}");
        assert!(ran.report["error"].as_str().unwrap().contains(why), "{ran:#?}");
        assert_eq!(ran.report["exit_code"], 125);
    }
    // What failed already says so by itself, and the report says this too.
    let failing = ["--tee", "/dev/full", "--", "sh", "-c", "echo out; exit 3"];
    let ran = Run::new(failing).run().assert_code(3);
    assert!(ran.report["error"].as_str().unwrap().contains("cannot also write the output"), "{ran:#?}");
    assert_eq!(ran.report["exit_code"], 3);
}

/// Bad input of any kind changes nothing, and what is not executed writes nothing.
#[test]
fn the_file_of_a_tee_is_emptied_by_a_job_alone() {
    if !has_cgroup() {
        return;
    }
    let log = Scratch::new("log");
    let tee = log.path().to_str().unwrap();
    std::fs::write(log.path(), "of yesterday\n").unwrap();
    for (options, code) in [
        (vec!["--tee", tee, "--cpus", "-1", "--", "true"], 125),
        (vec!["--tee", tee, "--memory", "0", "--", "true"], 125),
        (vec!["--tee", tee, "--cgroup", "/no/such", "--", "true"], 125),
        (vec!["--tee", tee, "--cwd", "/no/such", "--", "true"], 125),
        (vec!["--tee", tee, "--", "no-such-command"], 127),
        (vec!["--tee", tee, "--ready", "file:/etc/passwd/up", "--", "true"], 125),
        (vec!["--tee", tee, "--ready", "port:1", "--ready-notify", tee, "--", "true"], 125),
    ] {
        let ran = Run::new(&options).run().assert_code(code);
        assert_eq!(log.text(), "of yesterday\n", "{options:?}: {ran:#?}");
    }
    // The report would wipe it in the end, by whatever name.
    let link = Scratch::new("link");
    std::os::unix::fs::symlink(log.path(), link.path()).unwrap();
    let by_name = [PINFOLD, "run", "--tee", tee, "--report", link.path().to_str().unwrap(), "--", "true"];
    let script = format!(r#"exec {PINFOLD} run --tee {tee} --report fd:9 -- true 9<>{tee}"#);
    for run in [Run::bare(by_name), Run::bare(["bash", "-c", &script])] {
        let ran = run.run().assert_code(125);
        assert!(ran.stderr.contains("it is the file of --report too"), "{ran:#?}");
        assert_eq!(log.text(), "of yesterday\n", "{ran:#?}");
    }
    let _ = std::fs::remove_file(link.path());
    // Not a file that anything is lost in.
    Run::bare([PINFOLD, "run", "--tee", "/dev/null", "--report", "/dev/null", "--", "true"]).run().assert_code(0);
    Run::new(["--tee", tee, "--", "echo", "today"]).run().assert_code(0);
    assert_eq!(log.text(), "today\n");
}

/// Each option that takes a thread, with one process more and more to be had: no panic, and no job that is not looked after.
#[test]
fn where_no_thread_can_be_had() {
    if !has_cgroup() || !has_root() || !has_program("setpriv") {
        return;
    }
    let copy = PublicCopy::new("threads");
    let options = [vec!["--tee", "/dev/null"], vec!["--pty"], vec!["--idle-timeout", "1m"]];
    for (user, options) in (64_100..).zip(options) {
        let mut said = String::new();
        let ended = (1..32).find(|processes| {
            // Without a shell between: only what pinfold starts is counted.
            let script = format!(
                r#"ulimit -u {processes}; exec setpriv --reuid={user} --regid={user} --clear-groups env RUST_BACKTRACE=1 "$@""#
            );
            let words = [copy.path(), "run", "--containment", "subreaper"].into_iter().chain(options.iter().copied());
            let call = ["bash", "-c", &script, "bash"].into_iter().chain(words).chain(["--", "echo", "ran"]);
            let ran = Run::bare(call).run();
            assert!(!ran.stderr.contains("panicked") && [0, 125].contains(&ran.code), "{ran:#?}");
            assert_eq!(ran.code == 0, ran.stdout.contains("ran"), "{ran:#?}");
            said += &ran.stderr;
            ran.code == 0
        });
        assert!(ended.is_some() && said.contains("start a thread"), "{options:?}: {said}");
    }
}
