//! A start that does not reach its exec: it takes a bounded time, and no other job waits for it.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pinfold::{Command, User};

use crate::support::host::with_supervisor;
use crate::support::{PINFOLD, Run, Scratch, program, slowness};

/// A job whose directory or program is on a file system that does not answer, and a job that makes this file system
/// answer. The second job could not start if the guard waited for the first one.
#[test]
#[requires(fuse, cgroup)]
fn a_hanging_start_delays_no_other_job() {
    for (hung, named) in [
        (r#"{"command": ["true"], "cwd": "DIRECTORY/there"}"#, "/there'"),
        (r#"{"command": ["DIRECTORY/program"]}"#, "/program'"),
    ] {
        let directory = Scratch::directory("hang");
        let path = directory.path().to_str().unwrap();
        // `kill` runs as a command of its own, because `$PPID` belongs to the shell that executes pinfold.
        let script = r#"exec unshare --mount "$HANG" "$DIRECTORY" bash -c 'export DAEMON=$PPID; exec "$@"' bash "$@""#;
        let mut run = Run::bare(["bash", "-c", script, "bash", PINFOLD, "pool", "-j", "2", "--timeout", "60s"]);
        run.command().env("HANG", program("hang_fs")).env("DIRECTORY", path).stdin(Stdio::piped());
        let mut running = run.start();
        let mut jobs = running.child.stdin.take().unwrap();
        // The order matters: the guard starts one job after another.
        let freeing = r#"{"command": ["sh", "-c", "kill -USR1 $DAEMON; echo freed"]}"#;
        writeln!(jobs, "{}\n{freeing}", hung.replace("DIRECTORY", path)).unwrap();
        drop(jobs);
        assert_eq!((running.line(), running.line()), ("held".into(), "freed".into()));
        let ran = running.finish().assert_code(1);
        ran.assert_names(named);
        ran.assert_counts(1, 1);
        assert!(ran.elapsed < Duration::from_secs(9).mul_f64(slowness()), "{ran:#?}");
    }
}

/// A user's process that stops everything that it may, at any moment: also a main process that already runs as that
/// user and has not executed its command yet.
#[test]
#[requires(cgroup, root, program("setpriv"))]
fn a_user_that_stops_its_own_jobs_delays_no_other_user() {
    const USER: u32 = 61_236;
    let id = USER.to_string();
    let stopper = Ended(
        std::process::Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "bash", "-c", "while :; do kill -STOP -1; done"])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    with_supervisor(async |supervisor| {
        for _ in 0..10 {
            let mut theirs = Command::new("true");
            theirs.user(User::look_up(&format!("{id}:{id}")).unwrap()).timeout(Duration::from_secs(1));
            theirs.stop_signal(pinfold::Signal::KILL);
            let begun = Instant::now();
            let starts = (0..5).map(|_| {
                let (supervisor, theirs) = (supervisor.clone(), theirs.clone());
                tokio::spawn(async move {
                    if let Ok(mut job) = supervisor.spawn(&theirs).await {
                        assert!(job.wait().await.unwrap().is_gone());
                    }
                })
            });
            let starts: Vec<_> = starts.collect();
            let mut ours = supervisor.spawn(&Command::new("true")).await.unwrap();
            assert_eq!(ours.wait().await.unwrap().exit_code, 0);
            let elapsed = begun.elapsed();
            assert!(elapsed < Duration::from_secs(1).mul_f64(slowness()), "{elapsed:?}");
            for start in starts {
                start.await.unwrap();
            }
            // The deadline, plus a second for an exec that is in progress.
            let elapsed = begun.elapsed();
            assert!(elapsed < Duration::from_secs(6).mul_f64(slowness()), "{elapsed:?}");
        }
    });
    drop(stopper);
}

/// A child that is ended with the test, however the test ends.
struct Ended(std::process::Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
