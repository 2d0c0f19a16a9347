//! The library as a host uses it: a program with threads, children of its own, and a `main` that does not belong to
//! pinfold.

use std::os::fd::OwnedFd;
use std::time::Duration;

use pinfold::report::{MainEnd, Reason};
use pinfold::{Command, Error, Leftovers, Pool, Signal, Stdio, Supervisor};

use crate::support::events::Process;
use crate::support::host::with_supervisor;
use crate::support::{Canary, PINFOLD, program};

/// Returns the children of this very thread. Other tests start their children in threads of their own.
fn own_children() -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Returns whether the process exists and is not a zombie.
fn lives(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(['Z', 'X']))
}

/// Returns a command that writes to a pipe when it runs, and the reader of that pipe.
fn writing_to_pipe(words: &[&str]) -> (Command, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(OwnedFd::from(writer));
    (command, reader)
}

/// Waits for a line in another thread, because the job needs the runtime.
async fn line(reader: &std::io::PipeReader) -> String {
    let mut reader = reader.try_clone().unwrap();
    let read = move || {
        let (mut line, mut byte) = (String::new(), [0]);
        while std::io::Read::read(&mut reader, &mut byte).unwrap() == 1 && byte != *b"\n" {
            line.push(byte[0].into());
        }
        line
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[test]
#[requires(cgroup)]
fn a_job_is_waited_for() {
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(Command::new("sh").args(["-c", "exit 7"])).await.unwrap();
        let pid = job.pid();
        let report = job.wait().await.unwrap();
        assert_eq!((report.main.clone(), report.exit_code), (Some(MainEnd::Exited(7)), 7));
        assert_eq!((report.pid, report.reason), (Some(pid), Reason::Exited));
        assert!(report.is_gone());
        // A second wait returns the same report, and requests that come too late are accepted.
        assert_eq!(job.wait().await.unwrap(), report);
        job.start_stop().unwrap();
        job.start_kill().unwrap();
        assert!(job.signal(Signal::TERM).is_err());
    });
}

#[test]
#[requires(cgroup)]
fn a_wait_can_be_dropped() {
    with_supervisor(async |supervisor| {
        let (command, said) = writing_to_pipe(&["sh", "-c", "echo ready; sleep 1000"]);
        let mut job = supervisor.spawn(&command).await.unwrap();
        drop(command);
        assert_eq!(line(&said).await, "ready");
        assert!(tokio::time::timeout(Duration::from_millis(20), job.wait()).await.is_err());
        assert!(lives(job.pid()));
        job.start_stop().unwrap();
        assert_eq!(job.wait().await.unwrap().reason, Reason::Stopped);
    });
}

#[test]
#[requires(cgroup)]
fn stop_kill_and_signal() {
    let canary = Canary::new();
    let signals = program("signals");
    let signals = signals.to_str().unwrap();
    with_supervisor(async |supervisor| {
        let (command, said) = writing_to_pipe(&[signals, "64"]);
        let mut job = supervisor.spawn(&command).await.unwrap();
        assert_eq!(line(&said).await, "ready");
        for number in [10, 32, 33, 40] {
            job.signal(Signal::from_number(number).unwrap()).unwrap();
            assert_eq!(line(&said).await, number.to_string());
        }
        job.start_stop().unwrap();
        assert_eq!(line(&said).await, "15");
        // A second stop kills the job.
        job.start_stop().unwrap();
        let report = job.wait().await.unwrap();
        assert_eq!((report.reason, report.killed, report.exit_code), (Reason::Stopped, true, 137));

        let (command, said) = writing_to_pipe(&[signals, "64"]);
        let mut job = supervisor.spawn(&command).await.unwrap();
        assert_eq!(line(&said).await, "ready");
        job.start_kill().unwrap();
        let report = job.wait().await.unwrap();
        assert_eq!((report.reason, report.killed), (Reason::Killed, true));
        drop(command);
        assert_eq!(line(&said).await, "", "the job printed nothing between its start and SIGKILL");
    });
    canary.assert_alive();
}

#[test]
#[requires(cgroup)]
fn a_deadline_and_leftovers() {
    with_supervisor(async |supervisor| {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 1000 & exit 0"]);
        let report = supervisor.spawn(&command).await.unwrap().wait().await.unwrap();
        assert_eq!((report.reason, report.leftovers.len(), report.exit_code), (Reason::Exited, 1, 0));
        command.leftovers(Leftovers::Wait).timeout(Duration::from_secs(1));
        let report = supervisor.spawn(&command).await.unwrap().wait().await.unwrap();
        assert_eq!((report.reason, report.leftovers.len(), report.exit_code), (Reason::Deadline, 1, 124));
    });
}

#[test]
#[requires(cgroup)]
fn a_dropped_job_is_killed() {
    let canary = Canary::new();
    with_supervisor(async |supervisor| {
        let (command, said) = writing_to_pipe(&["sh", "-c", "trap '' TERM; sleep 1000 & echo $!; wait"]);
        let job = supervisor.spawn(&command).await.unwrap();
        let (main, descendant) = (job.pid(), line(&said).await.parse().unwrap());
        assert!(lives(main) && lives(descendant));
        let ends = [main, descendant].map(Process::of);
        drop(job);
        drop(command);
        // The end of file proves that no process of the job holds the pipe any more.
        assert_eq!(line(&said).await, "");
        ends.iter().for_each(Process::wait_for_end);
    });
    canary.assert_alive();
}

#[test]
#[requires(cgroup)]
fn a_dropped_spawn_leaves_nothing() {
    with_supervisor(async |supervisor| {
        for micros in [0, 20, 50, 100, 200, 400, 800, 1600, 3200] {
            let (command, said) = writing_to_pipe(&["sleep", "1000"]);
            // The future is dropped, wherever the spawn is by then.
            let dropped = std::time::Instant::now();
            let spawned = tokio::time::timeout(Duration::from_micros(micros), supervisor.spawn(&command)).await;
            drop(spawned);
            drop(command);
            assert_eq!(line(&said).await, "", "the job's end closes the pipe");
            assert!(dropped.elapsed().as_secs() < 5, "the job was not killed at once");
        }
    });
}

#[test]
#[requires(cgroup)]
fn a_dropped_supervisor_takes_its_jobs_along() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (command, said) = writing_to_pipe(&["sh", "-c", "echo ready; sleep 1000"]);
    let (job, pid) = runtime.block_on(async {
        let supervisor = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        let job = supervisor.spawn(&command).await.unwrap();
        assert_eq!(line(&said).await, "ready");
        let pid = job.pid();
        (job, pid)
    });
    drop(command);
    let end = Process::of(pid);
    // Its runtime is gone, so no code acts for the job any more: its guard ends it.
    drop(runtime);
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut &said, &mut rest).unwrap();
    end.wait_for_end();
    let mut job = job;
    let other = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(matches!(other.block_on(job.wait()), Err(Error::GuardLost)));
}

/// Only the close of the last clone ends the jobs, and it also ends those that another clone has started.
#[test]
#[requires(cgroup)]
fn the_last_clone_ends_the_jobs() {
    with_supervisor(async |supervisor| {
        let sleep = |supervisor: &Supervisor| supervisor.spawn(Command::new("sleep").arg("1000"));
        let (first, second) = (supervisor.clone(), supervisor.clone());
        let (mut of_first, of_second) = (sleep(&first).await.unwrap(), sleep(&second).await.unwrap());
        first.close().await;
        for job in [&of_first, &of_second] {
            assert!(!job.main_has_ended());
        }
        let mut later = sleep(&second).await.unwrap();
        later.start_kill().unwrap();
        assert_eq!(later.wait().await.unwrap().reason, Reason::Killed);
        second.close().await;
        assert!(!of_first.main_has_ended());
        of_first.start_kill().unwrap();
        assert_eq!(of_first.wait().await.unwrap().reason, Reason::Killed);
    });
}

/// A future of `spawn`, a pool and a job are not clones: the close of the only one waits for the end of their jobs.
#[test]
#[requires(cgroup)]
fn jobs_and_pools_do_not_delay_a_close() {
    with_supervisor(async |shared| {
        let other = Supervisor::builder().guard_program(PINFOLD).start().await.unwrap();
        assert_eq!(shared.containment(), other.containment());
        assert_eq!(other.controllers(), shared.controllers());
        let pool = Pool::builder().workers(1).start(&other).unwrap();
        let handle = pool.submit(Command::new("sleep").arg("1000").clone()).await.unwrap();
        let mut job = other.spawn(Command::new("sleep").arg("1000")).await.unwrap();
        let spawn = other.spawn(&Command::new("true"));
        other.close().await;
        assert!(spawn.await.is_err() && !lives(job.pid()));
        // Both end: with a report, or because their guard is gone.
        let _ = job.wait().await;
        assert!(!handle.wait().await.success());
    });
}

#[test]
#[requires(cgroup)]
fn many_jobs_at_once() {
    with_supervisor(async |supervisor| {
        let mut running = Vec::new();
        for number in 0..20_i32 {
            let supervisor = supervisor.clone();
            running.push(tokio::spawn(async move {
                let script = format!("sleep 1000 & sleep 0.1; exit {number}");
                let mut job = supervisor.spawn(Command::new("sh").args(["-c", &script])).await.unwrap();
                (number, job.wait().await.unwrap())
            }));
        }
        for job in running {
            let (number, report) = job.await.unwrap();
            assert_eq!(report.main, Some(MainEnd::Exited(number)));
            assert_eq!(report.leftovers.len(), 1, "each report lists only the leftovers of its own job");
            assert!(report.is_gone(), "{report:#?}");
        }
    });
}

/// Emigrants move beside their leaf, and into the base above it. They do not belong to the leaf's job there either, if
/// the supervisor has many jobs.
#[test]
#[requires(cgroup, root)]
fn emigrants_that_stay_below_the_base() {
    let own = crate::support::own_cgroup();
    with_supervisor(async |supervisor| {
        let script = "leaf=$(sed -n s/^0:://p /proc/self/cgroup); base=$0/$(basename $(dirname $leaf)); \
            mkdir $base/beside; sleep 999 & echo $! > $base/beside/cgroup.procs; \
            sleep 999 & echo $! > $base/cgroup.procs; exit 7";
        let mut job = supervisor.spawn(Command::new("sh").args(["-c", script]).arg(&own)).await.unwrap();
        let report = job.wait().await.unwrap();
        assert_eq!(report.exit_code, 7, "{report:#?}");
        assert_eq!(report.emigrants.count, 2, "{report:#?}");
        assert_eq!((report.leftovers.len(), report.is_gone()), (0, true), "{report:#?}");
    });
}

#[test]
#[requires(cgroup)]
fn the_host_is_left_alone() {
    let state = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let lines = status.lines().filter(|line| line.starts_with("Sig") && !line.starts_with("SigQ"));
        let mut subreaper = 0;
        // SAFETY: writes one integer.
        #[allow(unsafe_code)]
        let asked = unsafe { libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper) };
        assert_eq!(asked, 0);
        (lines.map(str::to_owned).collect::<Vec<_>>(), subreaper)
    };
    let before = state();
    let mut own = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(Command::new("sh").args(["-c", "exit 3"])).await.unwrap();
        assert_eq!(own_children(), [own.id() as i32], "neither guard nor job is the host's child");
        assert_eq!(state(), before);
        job.wait().await.unwrap();
    });
    assert_eq!(own_children(), [own.id() as i32]);
    assert_eq!(state(), before);
    // Nothing has reaped the host's own child.
    drop(own.stdin.take());
    assert!(own.wait().unwrap().success());
}

#[test]
#[requires(cgroup)]
fn what_cannot_be_started_is_an_error() {
    with_supervisor(async |supervisor| {
        let failed = async |command: &mut Command| {
            let error = supervisor.spawn(command).await.unwrap_err();
            (error.exit_code(), error)
        };
        let long = "x".repeat(200_000);
        for (command, expected, errno, named) in [
            (&mut Command::new("no-such-command"), 127, libc::ENOENT, "'no-such-command'"),
            (&mut Command::new("/"), 126, libc::EACCES, "'/'"),
            (Command::new("true").arg(&long), 126, libc::E2BIG, "'true'"),
            (Command::new("true").current_dir("/no/such"), 125, libc::ENOENT, "'/no/such'"),
        ] {
            let (code, error) = failed(command).await;
            let found = error.io_error().and_then(|error| error.raw_os_error());
            assert_eq!((code, found), (expected, Some(errno)), "{error}");
            assert!(matches!(error, Error::Spawn(_)) && error.to_string().contains(named), "{error}");
        }
        for command in [
            Command::new("x").arg("a\0b"),
            Command::new("a\0b").arg("x"),
            Command::new("x").env("A", "a\0b"),
            Command::new("x").env("a\0b", "A"),
            Command::new("x").current_dir("a\0b"),
        ] {
            let (code, error) = failed(command).await;
            assert!(code == 125 && matches!(error, Error::Invalid { .. }), "{code}: {error}");
            assert!(error.to_string().contains("a\\0b"), "{error}");
        }
        for key in ["", "A=B", "="] {
            let (code, error) = failed(Command::new("x").env(key, "value")).await;
            assert!(code == 125 && matches!(error, Error::Invalid { .. }), "{code}: {error}");
        }
        // None of these failures has affected the supervisor.
        let mut job = supervisor.spawn(&Command::new("true")).await.unwrap();
        assert_eq!(job.wait().await.unwrap().exit_code, 0);
    });
}

/// The host's standard streams belong to the host: a job gets only the streams that it is given.
#[test]
#[requires(cgroup)]
fn streams() {
    with_supervisor(async |supervisor| {
        let (input, mut give) = std::io::pipe().unwrap();
        std::io::Write::write_all(&mut give, b"given\n").unwrap();
        drop(give);
        let (mut command, said) = writing_to_pipe(&["sh", "-c", "cat; ls /proc/self/fd | wc -l; echo error >&2"]);
        let (errors, error) = std::io::pipe().unwrap();
        command.stdin(OwnedFd::from(input)).stderr(OwnedFd::from(error));
        // A descriptor without a close-on-exec flag, which the job must not inherit either.
        #[allow(unsafe_code)]
        // SAFETY: duplicates a descriptor and closes none; the copy is leaked on purpose.
        let leaked = unsafe { libc::dup(2) };
        assert!(leaked > 2);
        let mut job = supervisor.spawn(&command).await.unwrap();
        assert_eq!(job.wait().await.unwrap().exit_code, 0);
        assert_eq!(line(&said).await, "given");
        // The three standard streams, and the descriptor by which ls reads the directory.
        assert_eq!(line(&said).await.trim(), "4");
        assert_eq!(line(&errors).await, "error");
    });
}

/// The guard program of a host applies the sandbox too, and the host gets the reason of a refusal.
#[test]
#[requires(cgroup, other_users, sandbox)]
fn a_sandbox_of_the_library() {
    let nobody = pinfold::User::look_up("65534").unwrap();
    let secret = crate::support::Scratch::new("secret");
    std::fs::write(secret.path(), "a secret").unwrap();
    let command = |sandbox: &pinfold::Sandbox| {
        let mut command = crate::support::host::piped(&format!("cat {}; sleep 1000 & true", secret.path().display()));
        command.sandbox(sandbox.clone()).user(nobody.clone());
        command
    };
    crate::support::host::with_supervisor(async |supervisor| {
        let mut sandbox = pinfold::Sandbox::new();
        let denied = supervisor.spawn(&command(&sandbox)).await.unwrap().wait_with_output().await.unwrap();
        assert!(
            denied.stdout.is_empty() && String::from_utf8_lossy(&denied.stderr).contains("Permission denied"),
            "{denied:#?}"
        );
        let granted = command(sandbox.read(secret.path()));
        let granted = supervisor.spawn(&granted).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!((granted.stdout.as_slice(), granted.status.leftovers.len()), (&b"a secret"[..], 1), "{granted:#?}");
        assert!(granted.status.is_gone() && granted.status.sandbox.is_some());
        let refused = supervisor.spawn(&command(sandbox.write("/no/such"))).await.unwrap_err();
        assert!(refused.to_string().contains("'/no/such'"), "{refused}");
        let as_root = supervisor.spawn(pinfold::Command::new("true").sandbox(sandbox.clone())).await.unwrap_err();
        assert!(as_root.to_string().contains("Command::user"), "{as_root}");
    });
}
