//! `pinfold down`, `restart` and `logs`: the commands that send requests to a running `pinfold up`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::services::Project;
use crate::support::PINFOLD;

#[test]
#[requires(cgroup)]
fn logs_and_down_talk_to_up() {
    let project =
        Project::new("logs", "Procfile", "a: echo one; echo two; exec sleep 1000\nb: echo three; exec sleep 1000");
    project.pinfold(["down"]).run().assert_code(125);
    let mut running = project.up();
    for _ in 0..3 {
        running.line();
    }
    let logs = |words: &[&str]| project.pinfold([&["logs"], words].concat()).run().assert_code(0).stdout;
    assert_eq!(logs(&["a"]), "a | one\na | two\n");
    assert_eq!(logs(&["-n", "1", "a"]), "a | two\n");
    assert!(logs(&[]).contains("b | three\n"));
    let unknown = project.pinfold(["logs", "c"]).run().assert_code(125);
    assert!(unknown.stderr.contains("no service has this name"), "{}", unknown.stderr);
    let mut follow = project.pinfold(["logs", "--follow", "a"]).start();
    assert_eq!([follow.line(), follow.line()], ["a | one", "a | two"]);
    project.pinfold(["restart", "a"]).run().assert_code(0);
    assert_eq!([follow.line(), follow.line()], ["a | one", "a | two"]);
    project.pinfold(["down"]).run().assert_code(0);
    follow.finish().assert_code(0);
    running.finish().assert_code(0);
}

/// `restart` fails if `up` ends before the service is ready again.
#[test]
#[requires(cgroup)]
fn a_restart_that_up_does_not_finish_has_failed() {
    let script = "[ ! -e second ] || { echo waits >>log; exec sleep 1000; }; touch second; echo up; exec sleep 1000";
    let text = format!("[services.web]\ncommand = '{script}'\nready = 'line:up'\n");
    let project = Project::new("unfinished", "pinfold.toml", &text);
    let mut up = project.up();
    assert_eq!(up.line(), "web | up");
    let restart = project.pinfold(["restart", "web"]).start();
    project.wait_for_log("waits");
    up.signal(libc::SIGTERM);
    let restart = restart.finish().assert_code(125);
    assert!(restart.stderr.contains("web"), "{}", restart.stderr);
    up.finish().assert_code(0);

    // The same for an `up` that is killed, which therefore does not run under the warden of the tests.
    fs::remove_file(project.path().join("second")).unwrap();
    fs::remove_file(project.path().join("log")).unwrap();
    let mut up = std::process::Command::new(PINFOLD);
    up.arg("up").current_dir(project.path()).env("XDG_RUNTIME_DIR", project.path());
    let mut up = up.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(up.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let restart = project.pinfold(["restart", "web"]).start();
    project.wait_for_log("waits");
    up.kill().unwrap();
    let restart = restart.finish().assert_code(125);
    up.wait().unwrap();
    assert!(restart.stderr.contains("pinfold up has ended before"), "{}", restart.stderr);
}
