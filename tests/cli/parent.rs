//! The processes above a job: the one that started pinfold (`--die-with-parent`), and the guard.

use std::process::{Command, Stdio};

use super::control::each_containment;
use crate::support::{PINFOLD, Run, Scratch};

/// A shell starts pinfold, and is killed.
#[test]
fn with_die_with_parent_the_job_ends_with_the_process_that_started_pinfold() {
    each_containment(|containment| {
        let jobs = Scratch::new("jobs");
        std::fs::write(jobs.path(), "echo up; sleep 999\n").unwrap();
        let jobs = jobs.path().display();
        let pinfold = [
            format!("run --containment {containment} --die-with-parent -- sh -c 'echo up; sleep 999'"),
            format!("run --containment {containment} --die-with-parent=$$ -- sh -c 'echo up; sleep 999'"),
            format!("pool --shell --die-with-parent --output stream --jobs {jobs}"),
            "timeout --die-with-parent 999 sh -c 'echo up; sleep 999'".to_owned(),
        ];
        for call in pinfold {
            let mut shell = Command::new("sh")
                .args(["-c", &format!("{PINFOLD} {call} & wait")])
                .env("PINFOLD_CONTAINMENT", containment)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut output = std::io::BufReader::new(shell.stdout.take().unwrap());
            let mut line = String::new();
            std::io::BufRead::read_line(&mut output, &mut line).unwrap();
            assert_eq!(line, "up\n", "{call}");
            shell.kill().unwrap();
            shell.wait().unwrap();
            // The output ends when no process of the job and no pinfold process has it open any more.
            line.clear();
            std::io::Read::read_to_string(&mut output, &mut line).unwrap();
            assert_eq!(line, "", "{call}");
        }
        // The parent does not have this pid, as if the parent had ended before pinfold started.
        let ran = Run::new(["--containment", containment, "--die-with-parent=1", "--", "sleep", "999"]).run();
        assert!(ran.code > 128 || ran.code == 125, "{ran:#?}");
    });
}

/// The guard has a process name of pinfold, and an empty environment. So an engine that looks for a variable in the
/// environment of processes does not find and kill it.
#[test]
fn the_guard_shows_no_environment() {
    let mut run = Run::new(["--", "sh", "-c", "echo up; sleep 999"]);
    run.command().env("RUNNER_TRACKING_ID", "x".repeat(300));
    let mut running = run.start();
    assert_eq!(running.line(), "up");
    let pid = running.pinfold_pid();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let guards: Vec<_> = children
        .split_whitespace()
        .filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap().trim() == "pinfold-guard")
        .collect();
    assert_eq!(guards.len(), 1);
    let environment = std::fs::read(format!("/proc/{}/environ", guards[0])).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("RUNNER_TRACKING_ID"), "{environment:?}");
    assert!(Command::new(PINFOLD).args(["stop", &pid.to_string()]).status().unwrap().success());
    running.finish().assert_code(143);
}
