//! `pinfold watch` with too much input or too few resources: signals arrive, memory is bounded, and nothing panics.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::events::Process;
use crate::support::{PINFOLD, PublicCopy, Run, Running, Scratch};

/// Starts a watch whose command first prints its pid.
fn watch(directory: &Path, options: &[&str]) -> (Running, i32) {
    let command = ["--", "sh", "-c", "echo $$; exec sleep 1000"];
    let mut run = Run::bare([&[PINFOLD, "watch"], options, &command].concat());
    run.command().current_dir(directory).env("RUST_BACKTRACE", "1").stdin(Stdio::piped());
    let mut running = run.start();
    let pid = running.line().parse().unwrap();
    (running, pid)
}

/// However many files change, and however fast, pinfold reacts to a signal.
#[test]
#[requires(cgroup)]
fn a_storm_of_changes_and_a_signal() {
    let scratch = Scratch::directory("storm");
    let (running, _) = watch(scratch.path(), &["--debounce", "1h", "--on-busy", "queue"]);
    let over = AtomicBool::new(false);
    let (storm, has_begun) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Each file has its own name. The storm goes on until pinfold has ended.
            for number in 0_u64.. {
                let file = scratch.path().join(number.to_string());
                fs::write(&file, "x").unwrap();
                fs::remove_file(&file).unwrap();
                if number == 20_000 {
                    storm.send(()).unwrap();
                }
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        has_begun.recv().unwrap();
        running.signal(libc::SIGTERM);
        let reacts = running.ends_within(Duration::from_secs(60));
        over.store(true, Ordering::Relaxed);
        assert!(reacts, "the storm hides the signal");
        running.finish().assert_code(143);
    });
}

#[test]
#[requires(cgroup)]
fn a_debounce_that_no_clock_can_hold_is_no_panic() {
    let scratch = Scratch::directory("debounce");
    let (mut running, pid) = watch(scratch.path(), &["--quiet", "--debounce", "18446744073709551615s"]);
    let end = Process::of(pid);
    fs::write(scratch.path().join("file"), "x").unwrap();
    // The change ends the run. The next run would begin when nothing has changed for the debounce time, or on request.
    end.wait_for_end();
    // No event shows that pinfold waits for that. The request must come after the wait has begun.
    std::thread::sleep(Duration::from_millis(100));
    running.child.stdin.as_mut().unwrap().write_all(b"r\n").unwrap();
    assert_ne!(running.line(), "");
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(143);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
}

/// With one more available process each time: pinfold waits for changes, or names the missing resource.
#[test]
#[requires(root, program("setpriv"))]
fn where_no_thread_can_be_started() {
    let copy = PublicCopy::new("watch-threads");
    let mut said = String::new();
    let ended = (1..32).find(|processes| {
        let script = format!(
            r#"ulimit -u {processes}; export RUST_BACKTRACE=1 PINFOLD_CONTAINMENT=subreaper
            exec setpriv --reuid=64090 --regid=64090 --clear-groups "$0" watch --postpone -w /etc/passwd -- true"#
        );
        let mut running = Run::bare(["bash", "-c", &script, copy.path()]).start();
        let line = running.error_line();
        let waits = line == "pinfold: waiting for a change";
        if waits {
            running.signal(libc::SIGTERM);
        }
        let ran = running.finish();
        assert_eq!(ran.code, if waits { 143 } else { 125 }, "{line} {ran:#?}");
        said += &format!("{line}\n{}", ran.stderr);
        waits
    });
    assert!(ended.is_some() && !said.contains("panicked"), "{said}");
}

/// An endless line, and an unlimited number of lines: pinfold stores none of them.
#[test]
#[requires(cgroup)]
fn endless_lines_on_standard_input_are_bounded() {
    const PIECE: usize = 1 << 20;
    let scratch = Scratch::directory("endless");
    for (piece, pieces) in [(vec![b'x'; PIECE], 256), (vec![b'\n'; PIECE], 16), (b"no\n".repeat(PIECE / 3), 16)] {
        let (mut running, first) = watch(scratch.path(), &["--quiet"]);
        let pid = running.pinfold_pid();
        let mut stdin = running.child.stdin.take().unwrap();
        for _ in 0..pieces {
            stdin.write_all(&piece).unwrap();
        }
        // After that, pinfold continues to read, and restarts the command.
        stdin.write_all(b"\nr\n").unwrap();
        assert_ne!(running.line(), first.to_string());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        let kibibytes: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kibibytes < 64 << 10, "{kibibytes} KiB");
        running.signal(libc::SIGTERM);
        running.finish().assert_code(143);
    }
}
