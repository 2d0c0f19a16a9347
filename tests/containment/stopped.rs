//! A job stops everything that it may signal, including pinfold and its guard (`kill -STOP -1`): its deadline still
//! ends it.

use std::io::Write as _;
use std::process::Stdio;

use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, Ran, Run, slowness};

/// A signal to -1 reaches all processes of the user, so each test has its own user.
const USER: u32 = 61_234;
const KILLED: u32 = 61_237;

/// Runs `pinfold WORDS` as a user in the user's own cgroup, with a bound on its time.
fn run_as_user(words: &[&str], stdin: &str) -> Ran {
    let cgroup = OwnCgroup::of(USER);
    let script = format!(
        r#"{}; exec timeout -s KILL 60 setpriv --reuid {USER} --regid {USER} --clear-groups "$@""#,
        cgroup.enter()
    );
    let mut run = Run::bare(["bash", "-c", &script, "bash", PINFOLD].iter().chain(words));
    run.command().current_dir("/").stdin(Stdio::piped());
    let mut running = run.start();
    let mut input = running.child.stdin.take().unwrap();
    input.write_all(stdin.as_bytes()).unwrap();
    drop(input);
    running.finish()
}

fn bounded(ran: Ran, code: i32) {
    let ran = ran.assert_code(code);
    assert!(ran.elapsed.as_secs_f64() < 8.0 * slowness(), "{ran:#?}");
}

/// Runs it once; repeatedly, so that each step of the end is delayed too; and through `pinfold timeout`.
#[test]
#[requires(root, program("setpriv"), cgroup)]
fn the_deadline_of_a_job_that_stops_its_supervisor() {
    let once = "kill -STOP -1; exec sleep 999";
    let always = "trap '' TERM; while :; do kill -STOP -1; sleep 0.02; done";
    for containment in ["cgroup", "subreaper"] {
        for job in [once, always] {
            let words = ["run", "--containment", containment, "-t", "1", "--grace", "1s", "--", "bash", "-c", job];
            bounded(run_as_user(&words, ""), 124);
        }
    }
    bounded(run_as_user(&["run", "--idle-timeout", "1s", "--grace", "1s", "--", "bash", "-c", once], ""), 124);
    bounded(run_as_user(&["timeout", "-k", "1", "1", "bash", "-c", once], ""), 124);
}

/// A SIGSTOP from outside stops pinfold until the deadline, or, without a deadline, until SIGCONT.
#[test]
fn a_sigstop_from_outside() {
    for (options, expected) in [(&["-t", "2"][..], 124), (&[], 7)] {
        let job = [
            "--",
            "bash",
            "-c",
            "echo up; eval \"$0\"",
            if options.is_empty() { "read -r line; exit 7" } else { "exec sleep 999" },
        ];
        let mut run = Run::new(options.iter().chain(&job));
        run.command().stdin(Stdio::piped());
        let mut running = run.start();
        assert_eq!(running.line(), "up");
        let pinfold = rustix::process::Pid::from_raw(running.pinfold_pid()).unwrap();
        let send = |signal| rustix::process::kill_process(pinfold, signal).unwrap();
        send(rustix::process::Signal::STOP);
        crate::support::wait_until_stopped(pinfold.as_raw_nonzero().get());
        if options.is_empty() {
            drop(running.child.stdin.take());
            send(rustix::process::Signal::CONT);
        }
        let ran = running.finish().assert_code(expected);
        assert!(ran.elapsed.as_secs_f64() < 5.0 * slowness(), "{ran:#?}");
    }
}

/// SIGKILL of a supervisor whose job has stopped the guard.
#[test]
#[requires(root, program("setpriv"), cgroup)]
fn a_killed_supervisor_of_a_stopped_guard() {
    for containment in ["cgroup", "subreaper"] {
        let cgroup = OwnCgroup::of(KILLED);
        let user = format!("setpriv --reuid {KILLED} --regid {KILLED} --clear-groups");
        // The shell waits for the test, so that the warden checks only after everything has ended.
        let script = format!(r#"{}; {user} "$@" & read -r line"#, cgroup.enter());
        let job = r#"echo up; kill -STOP -1; exec sleep 999"#;
        let words = [PINFOLD, "run", "--containment", containment, "--", "bash", "-c", job];
        let mut run = Run::bare(["bash", "-c", &script, "bash"].iter().chain(&words));
        run.command().stdin(Stdio::piped());
        let mut running = run.start();
        assert_eq!(running.line(), "up");
        let user_processes = || {
            let processes = std::process::Command::new("pgrep")
                .args(["-r", "R,S,D,T", "-U", &KILLED.to_string()])
                .output()
                .unwrap();
            let pids = String::from_utf8(processes.stdout).unwrap();
            pids.split_whitespace().map(|pid| pid.parse::<i32>().unwrap()).collect::<Vec<_>>()
        };
        let stopped = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains(") T ")
        };
        // These are pinfold, its guard, and possibly the process that is just starting the job.
        let pids = crate::support::wait_for(|| {
            Some(user_processes()).filter(|pids| pids.iter().filter(|pid| stopped(pid)).count() >= 2)
        });
        let pinfold = *pids.iter().filter(|pid| stopped(pid)).min().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_raw(pinfold).unwrap(), rustix::process::Signal::KILL)
            .unwrap();
        crate::support::wait_for(|| user_processes().is_empty().then_some(()));
        drop(running.child.stdin.take());
        let ran = running.finish().assert_code(1);
        assert_eq!((ran.survivors.as_str(), cgroup.directories()), ("", 0));
    }
}
