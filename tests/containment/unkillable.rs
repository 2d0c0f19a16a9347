//! Processes that SIGKILL does not end: pinfold returns within a bound, the report names them, and the next sweep
//! removes what had to stay.

use crate::support::own_cgroup::OwnCgroup;
use crate::support::{Canary, PINFOLD, Ran, Run, Scratch, has, needs, program};

/// Runs a job in which one process hangs in a file system whose daemon is outside the job. When pinfold has ended,
/// `after` runs, then the process is released, and then `at_last` runs.
fn hang(options: &[&str], after: &str, at_last: &str) -> Ran {
    let directory = Scratch::directory("hang");
    let file = directory.path().join("file");
    let script = format!(
        r#"export PINFOLD={PINFOLD}
        exec unshare --mount bash -c '
            "$HANG" "$DIRECTORY" bash -c '\''"$@"; code=$?; {after} exit $code'\'' bash "$@"; code=$?
            {at_last} exit $code' bash "$@""#
    );
    let job = r#"sleep 997 & cat "$0"; :"#;
    let run = |timeout| {
        let words = [options, &["--timeout", timeout, "--grace", "0", "--", "bash", "-c", job]].concat();
        let mut run = Run::in_shell(&script, words);
        run.command().arg(&file).env("HANG", program("hang_fs")).env("DIRECTORY", directory.path());
        run.run()
    };
    // If the machine was too busy for the process to hang in time, this repeats it with more time.
    let ran = run("500ms");
    if ran.stdout.starts_with("held\n") { ran } else { run("5s") }
}

/// The hanging process is named with its command line, the others are gone, and the run took the bound and not much
/// longer.
fn check(ran: &Ran) {
    let canary = Canary::new();
    let unkillable = &ran.report["unkillable"];
    assert_eq!(unkillable["count"], 1, "{ran:#?}");
    let process = &unkillable["processes"][0];
    assert!(process["command_line"].as_str().unwrap().starts_with("cat "), "{ran:#?}");
    assert_eq!((&process["state"], &process["user"]), (&"D".into(), &0.into()), "{ran:#?}");
    assert!(process["wchan"].as_str().is_some_and(|function| !function.is_empty()), "{ran:#?}");
    ran.assert_names(process["pid"].to_string());
    let phase = |name: &str| ran.report["phases"][name].as_f64().unwrap();
    let took = phase("gone") - phase("killing");
    assert!((0.9..1.9 * crate::support::slowness()).contains(&took), "{ran:#?}");
    // This is the time of pinfold itself, including its guard.
    assert!(ran.elapsed.as_secs_f64() < 6.0 * crate::support::slowness(), "{ran:#?}");
    canary.assert_alive();
}

#[test]
#[requires(fuse, cgroup)]
fn in_a_cgroup() {
    let own = OwnCgroup::new();
    let cgroup = own.path.to_str().unwrap();
    let sweep = format!(r#""$PINFOLD" sweep --kill-bound 300ms --cgroup {cgroup}; echo "sweep: $?";"#);
    let ran = hang(&["--cgroup", cgroup, "--kill-bound", "1s"], &sweep, &sweep).assert_code(122);
    check(&ran);
    assert_eq!(ran.report["not_removed"][0]["path"], ran.report["containment"]["cgroup"], "{ran:#?}");
    // While the process hangs, a sweep cannot remove the base, and names the process. Afterwards it can.
    ran.assert_names("0.3 s");
    ran.assert_names("[cat]");
    let said: Vec<_> = ran.stdout.lines().collect();
    assert_eq!((said[1], said.last()), ("sweep: 1", Some(&"sweep: 0")), "{ran:#?}");
    assert!(said[2].contains(&format!("{cgroup}/pinfold-")), "{ran:#?}");
    assert_eq!(own.directories(), 0);
}

#[test]
#[requires(fuse)]
fn without_a_cgroup() {
    check(&hang(&["--containment", "subreaper", "--kill-bound", "1s"], "", "").assert_code(122));
}

/// This takes precedence over any other result, and the report contains both.
#[test]
#[requires(fuse)]
fn an_unkillable_process_takes_precedence_over_other_results() {
    let late = ["--ready", "file:/no/such", "--ready-timeout", "300ms"];
    let interrupted = ["--containment", "subreaper", "--kill-bound", "1s", "--stop-signal", "INT"];
    let ran = hang(&[&late[..], &interrupted].concat(), "", "").assert_code(122);
    assert_eq!((ran.signal, &ran.report["unkillable"]["count"]), (None, &1.into()), "{ran:#?}");
    assert_eq!(ran.report["exit_code"], 124, "{ran:#?}");
    let error = ran.report["error"].as_str().unwrap();
    assert!(error.contains("/no/such") && error.contains("300ms"), "{ran:#?}");
}

/// Runs `pinfold run OPTIONS` in a mount namespace in which `DIRECTORY` is a file system that does not answer: the
/// start itself hangs there.
fn hang_at_start(options: &[&str], command: &[&str]) -> Ran {
    let directory = Scratch::directory("hang");
    let script = r#"exec unshare --mount "$HANG" "$DIRECTORY" "$@""#;
    let words: Vec<_> = [options, &["--"], command].concat();
    let words = words.iter().map(|word| word.replace("DIRECTORY", directory.path().to_str().unwrap()));
    let mut run = Run::in_shell(script, words);
    run.command().env("HANG", program("hang_fs")).env("DIRECTORY", directory.path());
    run.run()
}

/// The start hangs on its working directory, a directory below it, or its program. pinfold names each of them, and the
/// process, in time.
#[test]
#[requires(fuse)]
fn a_start_that_hangs() {
    let hung = [
        (&["--cwd", "DIRECTORY/there"][..], "true", "/there'"),
        (&["--cwd", "DIRECTORY"], "true", "/hang-"),
        (&[], "DIRECTORY/program", "/program'"),
        (&["--user", "61235:61235"], "DIRECTORY/program", "/program'"),
    ];
    let own = has(needs::cgroup()).then(OwnCgroup::new);
    let held = own.iter().map(|own| ["--cgroup", own.path.to_str().unwrap()]);
    for held in held.chain([["--containment", "subreaper"]]) {
        for (options, command, named) in hung {
            let bounds = ["-t", "1", "--grace", "20s", "--kill-bound", "2s"];
            let options = [&bounds[..], &held, options].concat();
            let ran = hang_at_start(&options, &[command, "argument"]).assert_code(122);
            assert_eq!(ran.stdout, "held\n", "{ran:#?}");
            ran.assert_names(named);
            ran.assert_names("SIGKILL");
            let unkillable = &ran.report["unkillable"];
            assert_eq!((&unkillable["count"], &ran.report["reason"]), (&1.into(), &"deadline".into()), "{ran:#?}");
            let process = &unkillable["processes"][0];
            assert_eq!(process["state"], "D", "{ran:#?}");
            assert!(process["command_line"].as_str().unwrap().ends_with(" argument"), "{ran:#?}");
            assert!(ran.elapsed.as_secs_f64() < 6.0 * crate::support::slowness(), "{ran:#?}");
        }
    }
    if let Some(own) = own {
        // The directories stayed as long as the processes.
        let swept = std::process::Command::new(PINFOLD).args(["sweep", "--cgroup"]).arg(&own.path).output().unwrap();
        assert!(swept.status.success(), "{swept:?}");
        assert_eq!(own.directories(), 0);
    }
}

/// Also without a deadline: the bound on the exec applies, then the bound on the kill.
#[test]
#[requires(fuse)]
fn a_start_that_hangs_without_a_deadline() {
    let options = ["--cwd", "DIRECTORY", "--kill-bound", "1s", "--containment", "subreaper"];
    let ran = hang_at_start(&options, &["true"]).assert_code(122);
    assert_eq!((&ran.report["reason"], &ran.report["unkillable"]["count"]), (&"spawn_failed".into(), &1.into()));
    assert!(ran.elapsed.as_secs_f64() < 14.0 * crate::support::slowness(), "{ran:#?}");
}
