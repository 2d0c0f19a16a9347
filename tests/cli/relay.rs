//! pinfold forwards output between the command and its reader: it loses no output without reporting it.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::support::events::{wait_for_end_of, wait_in};
use crate::support::{Canary, PINFOLD, PublicCopy, Run, Scratch, wait_for};

fn numbers(count: u32) -> String {
    (1..=count).map(|number| format!("{number}\n")).collect()
}

/// The deadline limits the job, which ends long before it. The reader may take the output later.
#[test]
#[requires(cgroup)]
fn a_reader_that_is_slower_than_the_deadline_gets_all() {
    let tee = Scratch::new("tee");
    // More than pinfold's pipe holds, and no more than the two pipes and the buffers of at least 4 KiB between them.
    // The test has to wait in real time: beyond the deadline, and beyond the time that pinfold waits for the reader
    // after a deadline.
    let script = r#""$@" | { sleep 2.5; cat; }; exit ${PIPESTATUS[0]}"#;
    let tee_name = tee.path().to_str().unwrap();
    let ran = Run::in_shell(script, ["-t", "1s", "--tee", tee_name, "--", "seq", "25000"]).run().assert_code(0);
    assert!(ran.stdout == numbers(25_000) && tee.text() == ran.stdout, "{} bytes", ran.stdout.len());
    assert_eq!((&ran.report["reason"], &ran.report["error"]), (&"exited".into(), &serde_json::Value::Null));
    assert_eq!(ran.stderr, "");
}

/// After a deadline pinfold does not wait long for a reader that takes nothing, and reports what was lost.
#[test]
#[requires(cgroup)]
fn a_reader_that_takes_nothing_is_given_up_after_a_deadline_and_reported() {
    let script = r#"{ "$@"; echo "code $?" >&2; } | { sleep 2.5; wc -c; }"#;
    let options = ["-t", "500ms", "--grace", "0", "--tee", "/dev/null", "--", "yes"];
    let ran = Run::in_shell(script, options).run().assert_code(0);
    ran.assert_names("code 124\n");
    assert!(ran.reported_error().contains("1s"), "{ran:#?}");
    assert_eq!((&ran.report["exit_code"], &ran.report["reason"]), (&124.into(), &"deadline".into()));
}

/// No process reads the output, and a signal ends the wait: the command succeeded, but pinfold fails.
#[test]
#[requires(cgroup)]
fn a_stop_ends_the_wait_for_a_reader_and_reports_the_loss() {
    let canary = Canary::new();
    // More than pinfold's pipe holds, and no more than the two pipes and the buffers of at least 4 KiB between them.
    let script = "echo $$ >&2; exec seq 25000";
    let mut running = Run::new(["--tee", "/dev/null", "--", "sh", "-c", script]).start();
    let held = running.child.stdout.take();
    wait_for_end_of(running.error_line().parse().unwrap());
    // The first signal may come while pinfold still verifies that the job is gone. Then the second signal ends the
    // wait.
    wait_for(|| {
        running.signal(libc::SIGTERM);
        running.ends_within(Duration::from_millis(150)).then_some(())
    });
    let ran = running.finish().assert_code(125);
    assert!(ran.reported_error().contains("SIGTERM") && ran.stderr.lines().count() == 1, "{ran:#?}");
    assert_eq!(ran.report["exit_code"], 125);
    // The first signal may even have come before pinfold noticed the job's end, and then stopped nothing.
    assert!(["exited", "stopped"].contains(&ran.report["reason"].as_str().unwrap()), "{ran:#?}");
    assert_eq!(ran.report["main"]["exited"], 0);
    drop(held);
    canary.assert_alive();
}

/// A non-blocking pipe, as Node and other event loops use, is full at times. pinfold leaves it non-blocking, because
/// other processes share it.
#[test]
#[requires(cgroup)]
fn a_standard_output_that_does_not_block() {
    let directory = Scratch::directory("tee");
    let tee = directory.path().join("tee");
    let mut run = Run::new(["--tee", tee.to_str().unwrap(), "--", "seq", "100000"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    run.command().stdout(Stdio::from(writer.try_clone().unwrap()));
    let running = run.start();
    // When the copy has this length, the pipe is full.
    wait_in(directory.path(), || tee.metadata().is_ok_and(|metadata| metadata.len() > 70_000).then_some(()));
    assert!(fcntl_getfl(&writer).unwrap().contains(OFlags::NONBLOCK));
    drop(writer);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    running.finish().assert_code(0);
    assert!(reading.join().unwrap().unwrap() == numbers(100_000));
    assert!(std::fs::read_to_string(&tee).unwrap() == numbers(100_000));
}

/// Writes to both streams in turn, often.
const IN_TURN: &str = "i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i + 1)); done";

fn in_turn() -> String {
    (0..300).map(|at| format!("out {at}\nerr {at}\n")).collect()
}

/// Standard output and standard error that lead to the same place stay one stream: as `2>&1`, opened twice to append, a
/// pipe, a terminal.
#[test]
#[requires(cgroup)]
fn streams_to_the_same_place_keep_their_order() {
    let (place, tee) = (Scratch::new("place"), Scratch::new("tee"));
    let place_name = place.path().to_str().unwrap();
    let tee_name = tee.path().to_str().unwrap();
    let options = [["--tee", tee_name], ["--idle-timeout", "1m"], ["--max-output", "1M"], ["--ready", "line:out 7"]];
    for (at, option) in options.into_iter().enumerate() {
        let mut redirections = vec![">P 2>&1", ">>P 2>>P", "2>&1 | cat >P", ">&2 2>P.unused"];
        redirections.truncate(if at == 0 { 3 } else { 1 });
        for redirection in redirections {
            let script = format!("rm -f P; \"$@\" {redirection}").replace('P', place_name);
            Run::in_shell(&script, option.iter().chain(&["--", "sh", "-c", IN_TURN])).run().assert_code(0);
            assert!(place.text() == in_turn(), "{option:?} {redirection}: {}", place.text());
            assert!(at > 0 || tee.text() == in_turn(), "{redirection}");
        }
    }
    // Two different places stay two streams.
    let script = format!("\"$@\" >{place_name}");
    let ran = Run::in_shell(&script, ["--tee", tee_name, "--", "sh", "-c", IN_TURN]).run().assert_code(0);
    let of = |word: &str| -> String { (0..300).map(|at| format!("{word} {at}\n")).collect() };
    assert!(place.text() == of("out") && ran.stderr == of("err"));
}

/// A closed stream accepts no output: what the command writes there is lost, which pinfold reports; the file of --tee
/// has all of it.
#[test]
#[requires(cgroup)]
fn output_to_a_closed_stream_is_reported_as_lost() {
    let tee = Scratch::new("tee");
    let tee_name = tee.path().to_str().unwrap();
    // If the message's own stream, standard error, is closed too, only the exit code and the report show the loss.
    for (redirection, stream) in [(">&-", 1), ("2>&-", 2), (">&- 2>&-", 1), ("<&- >&-", 1)] {
        let script = format!(r#"exec "$@" {redirection}"#);
        let job = format!("seq 30000 >&{stream}");
        let ran = Run::in_shell(&script, ["--tee", tee_name, "--", "sh", "-c", &job]).run().assert_code(125);
        assert!(tee.text() == numbers(30_000), "{redirection}: {} bytes", tee.text().len());
        assert!(ran.report["error"].is_string(), "{ran:#?}");
        assert_eq!((ran.stderr.is_empty(), &ran.report["exit_code"]), (redirection.contains("2>"), &125.into()));
        // The command wrote nothing, so nothing was lost.
        Run::in_shell(&script, ["--tee", tee_name, "--", "true"]).run().assert_code(0);
    }
}

/// A full disk is different from a reader that closes its pipe: pinfold closes the pipe to the command, and does not
/// report the resulting end by SIGPIPE as the command's own. With --tee, the file has all of the output.
#[test]
#[requires(cgroup, root, program("unshare"))]
fn output_to_a_full_disk_is_reported_as_lost() {
    let ran = Run::in_shell(r#"exec "$@" >/dev/full"#, ["--idle-timeout", "1m", "--", "yes"]).run().assert_code(125);
    assert!(ran.report["error"].as_str().unwrap().contains("No space left"), "{ran:#?}");
    let tee = Scratch::new("tee");
    let options = ["--tee", tee.path().to_str().unwrap(), "--", "seq", "100000"];
    Run::in_shell(r#"exec "$@" >/dev/full"#, options).run().assert_code(125);
    assert!(tee.text() == numbers(100_000), "{} bytes", tee.text().len());
    // A small disk that fills up in the middle: the copy ends there, and standard output has everything.
    let script = r#"exec unshare --mount sh -ec 'mount -t tmpfs -o size=64k tmpfs /mnt; exec "$@"' sh "$@""#;
    let ran = Run::in_shell(script, ["--tee", "/mnt/tee", "--", "seq", "100000"]).run().assert_code(125);
    assert!(ran.stdout == numbers(100_000) && ran.stderr.contains("No space left"), "{}", ran.stderr);
}

/// The command finds its pipe closed at its next write, as without pinfold, and the copy has everything that it wrote
/// before.
#[test]
#[requires(cgroup, program("python3"))]
fn a_reader_that_has_gone_ends_the_command_and_the_copy_is_whole() {
    let tee = Scratch::new("tee");
    let tee_name = tee.path().to_str().unwrap();
    // The job waits until its pipe has no reader (POLLERR in poll(2)), and writes nothing for that.
    let job = "import select; poll = select.poll(); poll.register(1, 0); poll.poll(); print('never read', flush=True)";
    let script = r#"{ "$@"; echo "code $?" >&2; } | true"#;
    for option in [["--tee", tee_name], ["--idle-timeout", "1m"]] {
        let ran = Run::in_shell(script, option.iter().chain(&["--", "python3", "-c", job])).run().assert_code(0);
        assert!(ran.stderr.contains("BrokenPipeError"), "{ran:#?}");
    }
    // One write that the pipe accepts at once, to a FIFO whose reader has already gone: the copy has all of it.
    let fifo = Scratch::new("fifo");
    let script = r#"mkfifo F; true <F & exec 8>F; wait; "$@" >&8 8>&-"#.replace('F', fifo.path().to_str().unwrap());
    let job = "import os; os.write(1, b'x' * 60000)";
    Run::in_shell(&script, ["--tee", tee_name, "--", "python3", "-c", job]).run().assert_code(0);
    assert_eq!(tee.text().len(), 60_000);
    // The copy goes to a FIFO, whose reader begins when the command has written everything. The FIFO is open before pinfold
    // starts, because pinfold waits only one second for a reader.
    let directory = Scratch::directory("copy");
    let script = r#"cd D; mkfifo out copy; true <out & exec 8>out; wait; python3 -c '
import fcntl, os, time
copy = os.open("copy", os.O_RDONLY | os.O_NONBLOCK)
os.set_blocking(copy, True)
fcntl.fcntl(copy, 1031, 4096) # F_SETPIPE_SZ
open("opened", "w")
while not os.path.exists("written"): time.sleep(0.01)
count = 0
while piece := os.read(copy, 65536): count += len(piece)
print(count)' & until [ -e opened ]; do sleep 0.01; done; "$@" >&8 8>&- || touch written; wait"#;
    let script = script.replace("cd D", &format!("cd {}", directory.path().display()));
    let job = "import os; os.write(1, b'x' * 60000); open('written', 'w')";
    let ran = Run::in_shell(&script, ["--tee", "copy", "--", "python3", "-c", job]).run().assert_code(0);
    assert_eq!(ran.stdout, "60000\n", "{ran:#?}");
}

/// Jobs that share a pipe write lines, and lines come out of it whole, as without pinfold (PIPE_BUF in pipe(7)).
#[test]
#[requires(cgroup)]
fn lines_of_jobs_that_share_a_pipe_stay_whole() {
    let job = "i=10000; while [ $i -lt 20000 ]; do echo ${0}0000$i; i=$((i + 1)); done";
    // The reader begins when the pipe is full.
    let script = format!(
        r#"(for job in 1 2 3 4; do "$@" run --idle-timeout 1m -- sh -c '{job}' $job & done; wait) | (sleep 0.5; cat)"#
    );
    let ran = Run::bare(["bash", "-c", &script, "bash", PINFOLD]).run().assert_code(0);
    let torn: Vec<_> = ran.stdout.lines().filter(|line| line.len() != 10).take(3).collect();
    assert!(torn.is_empty() && ran.stdout.lines().count() == 40_000, "{torn:?}");
}

/// A write error is a failure, and not treated as a reader that has gone.
#[test]
#[requires(cgroup)]
fn a_standard_output_that_takes_nothing() {
    for (place, why) in [(">/dev/full", "No space left on device"), ("1</dev/null", "Bad file descriptor")] {
        let script = format!(r#"exec "$@" {place}"#);
        let ran = Run::in_shell(&script, ["--tee", "/dev/null", "--", "echo", "lost"]).run().assert_code(125);
        assert!(ran.reported_error().contains(why), "{ran:#?}");
        assert_eq!(ran.report["exit_code"], 125);
    }
    // The command's own failure keeps its exit code, and the report also contains the write error.
    let failing = ["--tee", "/dev/full", "--", "sh", "-c", "echo out; exit 3"];
    let ran = Run::new(failing).run().assert_code(3);
    assert!(ran.reported_error().contains("No space left on device"), "{ran:#?}");
    assert_eq!(ran.report["exit_code"], 3);
}

/// Only a job that starts truncates the file: invalid input of any kind leaves it unchanged.
#[test]
#[requires(cgroup)]
fn the_file_of_a_tee_is_emptied_by_a_job_alone() {
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
    // The report would overwrite the file at the end, whatever name it has.
    let link = Scratch::new("link");
    std::os::unix::fs::symlink(log.path(), link.path()).unwrap();
    let by_name = [PINFOLD, "run", "--tee", tee, "--report", link.path().to_str().unwrap(), "--", "true"];
    let script = format!(r#"exec {PINFOLD} run --tee {tee} --report fd:9 -- true 9<>{tee}"#);
    for run in [Run::bare(by_name), Run::bare(["bash", "-c", &script])] {
        let ran = run.run().assert_code(125);
        ran.assert_names("--report");
        assert_eq!(log.text(), "of yesterday\n", "{ran:#?}");
    }
    let _ = std::fs::remove_file(link.path());
    // Nothing can be lost in this file.
    Run::bare([PINFOLD, "run", "--tee", "/dev/null", "--report", "/dev/null", "--", "true"]).run().assert_code(0);
    Run::new(["--tee", tee, "--", "echo", "today"]).run().assert_code(0);
    assert_eq!(log.text(), "today\n");
}

/// Each option that needs a thread runs with one more available process each time: no panic, and no job that runs
/// without supervision.
#[test]
#[requires(cgroup, root, program("setpriv"))]
fn where_no_thread_can_be_started() {
    let copy = PublicCopy::new("threads");
    let options = [vec!["--tee", "/dev/null"], vec!["--pty"], vec!["--idle-timeout", "1m"]];
    for (user, options) in (64_100..).zip(options) {
        let ended = (1..32).find(|processes| {
            // No shell in between, so that only the processes that pinfold starts count.
            let script = format!(
                r#"ulimit -u {processes}; exec setpriv --reuid={user} --regid={user} --clear-groups env RUST_BACKTRACE=1 "$@""#
            );
            let words = [copy.path(), "run", "--containment", "subreaper"].into_iter().chain(options.iter().copied());
            let call = ["bash", "-c", &script, "bash"].into_iter().chain(words).chain(["--", "echo", "ran"]);
            let ran = Run::bare(call).run();
            assert!(!ran.stderr.contains("panicked") && [0, 125].contains(&ran.code), "{ran:#?}");
            assert_eq!(ran.code == 0, ran.stdout.contains("ran"), "{ran:#?}");
            assert_eq!(ran.code == 0, ran.stderr.is_empty(), "{ran:#?}");
            ran.code == 0
        });
        assert!(ended.is_some(), "{options:?}");
    }
}
