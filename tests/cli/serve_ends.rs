//! How `pinfold serve` ends: jobs that clean up get the time for it, and a slow reader receives everything.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::{CWD, mkfifoat};
use serde_json::{Value, json};

use super::served::{Served, shell};
use crate::support::events::{Process, wait_for_hang_up, wait_in};
use crate::support::{PINFOLD, Run, Scratch, wait_for};

/// Returns a job that cleans up when it receives the stop signal, until the test writes a line to the fifo.
fn careful(fifo: &Scratch) -> (Value, File) {
    mkfifoat(CWD, fifo.path(), 0o600.into()).unwrap();
    // Opened for reading and writing, so that the open does not block (fifo(7)).
    let go = File::options().read(true).write(true).open(fifo.path()).unwrap();
    let trap = format!("echo cleaning; read line < {}; echo cleaned; exit 0", fifo.path().display());
    (shell("a", &format!("trap '{trap}' TERM; exec 2> /dev/null; echo ready; while :; do sleep 0.01; done")), go)
}

#[test]
#[requires(cgroup)]
fn a_signal_leaves_the_grace_period() {
    let fifo = Scratch::new("go");
    let (job, mut go) = careful(&fifo);
    let mut served = Served::start(&["--grace", "1m", "-j", "1"]);
    served.send(&job);
    served.send(&shell("b", "exit 0"));
    served.events_until("output");
    // The answer comes after the earlier lines: pinfold has read both jobs.
    served.send(&json!({"op": "processes", "id": "a"}));
    served.events_until("processes");
    served.running.signal(libc::SIGTERM);
    // The job that waits for its turn is never started.
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["id"], &done["report"]["reason"]), (&json!("b"), &json!("cancelled")));
    assert_eq!(served.events_until("output").pop().unwrap()["line"], "cleaning");
    // pinfold still answers.
    served.send(&shell("c", "exit 0"));
    let error = served.events_until("error").pop().unwrap();
    assert_eq!(error["id"], "c", "{error}");
    // The stop continues when the input has ended.
    drop(served.stdin.take());
    writeln!(go, "go").unwrap();
    assert_eq!(served.events_until("output").pop().unwrap()["line"], "cleaned");
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["cancelled"], &done["report"]["reason"]), (&json!(true), &json!("stopped")));
    assert_eq!((&done["report"]["killed"], &done["report"]["exit_code"]), (&json!(false), &json!(0)));
    served.close();
}

#[test]
#[requires(cgroup)]
fn a_second_signal_kills() {
    let mut served = Served::start(&["--grace", "1h"]);
    served.send(&shell("a", "trap 'echo no' TERM; exec 2> /dev/null; echo ready; while :; do sleep 0.01; done"));
    served.events_until("output");
    served.running.signal(libc::SIGTERM);
    assert_eq!(served.events_until("output").pop().unwrap()["line"], "no");
    // A different signal, because the same signal again from the same sender, within a moment, counts as the same
    // request.
    served.running.signal(libc::SIGHUP);
    let done = served.events_until("done").pop().unwrap();
    assert_eq!((&done["cancelled"], &done["report"]["killed"]), (&json!(true), &json!(true)), "{done}");
    served.close();
}

/// Returns a server whose standard output is full with the output of a job, and a pipe that hangs up when that job has
/// ended.
fn full() -> (Served, File) {
    let fifo = Scratch::new("alive");
    mkfifoat(CWD, fifo.path(), 0o600.into()).unwrap();
    let alive = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(fifo.path()).unwrap();
    let mut served = Served::start(&[]);
    served.send(&shell("a", &format!("exec 9> {}; seq 1000000; sleep 100", fifo.path().display())));
    let out = served.running.child.stdout.as_ref().unwrap();
    // A pipe of 16 pages may be full with little more than half of its bytes: a write that does not fit into the rest of
    // a page begins a new one.
    wait_for(|| (rustix::io::ioctl_fionread(out).unwrap() >= 32_000).then_some(()));
    (served, alive)
}

/// A slow reader receives everything.
#[test]
#[requires(cgroup)]
fn a_slow_reader_loses_nothing() {
    for signalled in [false, true] {
        let (mut served, alive) = full();
        if signalled {
            served.running.signal(libc::SIGTERM);
        } else {
            drop(served.stdin.take());
        }
        wait_for_hang_up(&alive);
        drop(served.stdin.take());
        // Reads everything at once, to its end.
        let text = served.running.finish().assert_code(0).stdout;
        let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let lines = events.iter().filter(|event| event["event"] == "output" && event["complete"] == true);
        let mut count = 0;
        for (number, line) in lines.enumerate() {
            assert_eq!(line["line"], (number + 1).to_string());
            count += 1;
        }
        assert!(count > 1000, "{count}");
        assert_eq!(events[events.len() - 1]["event"], "done");
    }
}

/// A reader that never reads delays the end only for a bounded time, and pinfold fails.
#[test]
#[requires(cgroup)]
fn a_reader_that_never_reads() {
    let (mut served, _) = full();
    drop(served.stdin.take());
    let out = served.running.child.stdout.take();
    let ran = served.running.finish().assert_code(125);
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:#?}");
    drop(out);
}

/// If the reader closes the pipe, it wants no more output: that is no failure.
#[test]
#[requires(cgroup)]
fn a_reader_that_is_gone() {
    let (mut served, _) = full();
    drop(served.running.child.stdout.take());
    assert_eq!(served.running.finish().assert_code(0).stderr, "");
}

/// The standard streams of pinfold may be non-blocking pipes.
#[test]
#[requires(cgroup)]
fn streams_that_do_not_block() {
    let [(stdin, mut requests), (events, stdout)] = [std::io::pipe().unwrap(), std::io::pipe().unwrap()];
    rustix::io::ioctl_fionbio(&stdin, true).unwrap();
    rustix::io::ioctl_fionbio(&stdout, true).unwrap();
    let mut run = Run::bare([PINFOLD, "serve", "--stdio"]);
    run.command().stdin(stdin).stdout(stdout);
    let running = run.start();
    // The input comes in two pieces, and between them there is nothing to read.
    let mut events = BufReader::new(events).lines().map(Result::unwrap);
    assert!(events.next().unwrap().contains("hello"));
    let request = shell("a", "seq 20000").to_string();
    let (first, second) = request.split_at(20);
    requests.write_all(first.as_bytes()).unwrap();
    wait_for(|| (rustix::io::ioctl_fionread(&requests).unwrap() == 0).then_some(()));
    writeln!(requests, "{second}").unwrap();
    let mut lines = 0;
    let done = events.find(|line| {
        lines += u32::from(line.contains(r#""event":"output""#));
        line.contains(r#""event":"done""#)
    });
    assert!(done.is_some_and(|done| done.contains(r#""success":true"#)));
    assert_eq!(lines, 20_000);
    drop(requests);
    running.finish().assert_code(0);
}

/// pinfold reports that it cannot start a thread, and answers nothing.
#[test]
#[requires(cgroup)]
fn a_writer_thread_that_cannot_be_started_is_reported() {
    let mut run = Run::bare([PINFOLD, "serve", "--stdio"]);
    // There is no memory for a stack of this size. The error is EAGAIN, as with a limit on threads (pthread_create(3)).
    run.command().env("RUST_MIN_STACK", (1_u64 << 60).to_string());
    let ran = run.run().assert_code(125);
    assert_eq!((ran.stderr.lines().count(), ran.stdout.as_str()), (1, ""), "{ran:#?}");
}

/// The jobs receive the signal that pinfold received.
#[test]
#[requires(cgroup)]
fn a_stop_begins_with_the_received_signal() {
    for (signal, name) in [(libc::SIGINT, "INT"), (libc::SIGHUP, "HUP"), (libc::SIGTERM, "TERM")] {
        let mut served = Served::start(&[]);
        let traps = ["INT", "HUP", "TERM"].map(|name| format!("trap 'echo {name}; exit' {name}; ")).concat();
        served.send(&shell("a", &format!("{traps} echo ready; while :; do sleep 0.05; done")));
        served.events_until("output");
        served.running.signal(signal);
        let events = served.events_until("done");
        let lines: Vec<_> =
            events.iter().filter(|event| event["stream"] == "stdout").map(|event| &event["line"]).collect();
        assert_eq!(lines, [name]);
        served.running.finish();
    }
}

/// When the parent of pinfold ends, in any way, all jobs end, even if another process keeps pinfold's standard input open.
#[test]
#[requires(cgroup)]
fn the_end_of_the_parent_ends_all_jobs() {
    for end in ["kill -KILL $$", "exit 0", "exec true"] {
        let directory = Scratch::directory("parent");
        let path = directory.path().to_str().unwrap();
        let job = serde_json::json!({"op": "submit", "id": "a", "job": {
            "command": ["sh", "-c", format!("setsid sleep 1000 & echo $$ $! >{path}/pids.new; mv {path}/pids.new {path}/pids; wait")]
        }});
        std::fs::write(directory.path().join("job"), format!("{job}\n")).unwrap();
        let parent = format!(
            "mkfifo {path}/in; sleep 1000 >{path}/in & echo $! >{path}/holder
             {PINFOLD} serve --stdio <{path}/in >{path}/out & echo $! >{path}/serve
             exec 3>{path}/in; cat {path}/job >&3
             read -r _ <{path}/end; {end}"
        );
        assert!(std::process::Command::new("mkfifo").arg(format!("{path}/end")).status().unwrap().success());
        let mut parent = std::process::Command::new("bash").args(["-c", &parent]).spawn().unwrap();
        let pids = |name: &str| -> Vec<i32> {
            let text = wait_in(directory.path(), || {
                std::fs::read_to_string(directory.path().join(name)).ok().filter(|text| text.ends_with('\n'))
            });
            text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
        };
        let both = pids("pids");
        let (holder, serve) = (pids("holder")[0], pids("serve")[0]);
        let _killed = Killed([holder, serve]);
        assert!(both.iter().all(|&pid| is_there(pid)) && is_there(serve), "{end}");
        let ends: Vec<_> = both.iter().chain([&serve]).map(|&pid| Process::of(pid)).collect();
        std::fs::write(directory.path().join("end"), "\n").unwrap();
        parent.wait().unwrap();
        ends.iter().for_each(Process::wait_for_end);
        // The input is still open.
        assert!(is_there(holder), "{end}");
    }
}

/// Processes that also end when the test fails. They are not our children.
struct Killed([i32; 2]);

impl Drop for Killed {
    fn drop(&mut self) {
        for pid in self.0.into_iter().filter(|&pid| is_there(pid)) {
            let _ = rustix::process::kill_process(
                rustix::process::Pid::from_raw(pid).unwrap(),
                rustix::process::Signal::KILL,
            );
        }
    }
}

/// Returns whether the process exists and is not a zombie.
fn is_there(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}
