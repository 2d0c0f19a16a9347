//! Signals to pinfold, what the job inherits, and the options that define how a job is stopped.

use std::ffi::OsString;

use crate::support::messages::Messages;
use crate::support::{Canary, Ran, Run, Running, Scratch, assert_same_without_pinfold, program, wait_for};

const STOPPING: [i32; 4] = [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT];

/// Runs without a controlling terminal, wherever the tests are run.
fn detached<I: IntoIterator<Item: Into<OsString>>>(args: I) -> Run {
    Run::in_shell(r#"exec setsid "$@""#, args.into_iter().map(Into::into))
}

/// Starts a job that prints each signal that it receives, and ends at `last`. Returns when the job has printed that it
/// is ready.
fn printing(options: &[&str], last: i32) -> Running {
    let words = options.iter().map(OsString::from);
    let mut running = detached(words.chain([program("signals").into(), last.to_string().into()])).start();
    assert_eq!(running.line(), "ready");
    running
}

fn send(pid: i32, signal: i32) {
    // SAFETY: signals pinfold, which its warden has not reaped, because its job still writes to us.
    #[allow(unsafe_code)]
    let sent = unsafe { libc::kill(pid, signal) };
    assert_eq!(sent, 0);
}

#[test]
#[requires(cgroup)]
fn four_signals_stop_the_job() {
    let canary = Canary::new();
    for signal in STOPPING {
        let running = printing(&[], signal);
        running.signal(signal);
        let ran = running.finish().assert_code(0);
        let printed = format!("{signal}\n");
        assert_eq!((ran.stdout, &ran.report["reason"]), (printed, &"stopped".into()), "{signal}: {:#?}", ran.report);

        let mut running = detached(["sh", "-c", "ulimit -c 0; echo ready; exec sleep 1000"]).start();
        assert_eq!(running.line(), "ready");
        running.signal(signal);
        let ran = running.finish();
        // pinfold dies of SIGINT, so that a calling shell loop stops too.
        let expected = (128 + signal, (signal == libc::SIGINT).then_some(signal));
        assert_eq!((ran.code, ran.signal), expected, "{signal}: {ran:#?}");
        assert_eq!(ran.report["main"]["signalled"]["signal"], signal);
    }
    canary.assert_alive();
}

#[test]
#[requires(cgroup)]
fn a_second_signal_kills() {
    let canary = Canary::new();
    for (first, second) in STOPPING.into_iter().zip(STOPPING.into_iter().cycle().skip(1)) {
        let mut running = printing(&["--grace", "1h"], 0);
        running.signal(first);
        assert_eq!(running.line(), first.to_string());
        running.signal(second);
        let ran = running.finish();
        assert_eq!(ran.code, if first == libc::SIGINT { 130 } else { 137 }, "{first}, {second}: {ran:#?}");
        assert_eq!(ran.report["killed"], true);
        assert_eq!(ran.report["reason"], "stopped");
    }
    canary.assert_alive();
}

/// Identical signals within a moment count as one request, because timeout(1) sends them like this. Later ones count
/// again.
#[test]
#[requires(cgroup)]
fn a_repeated_signal_kills() {
    let mut running = printing(&["--grace", "1h"], 0);
    let begun = std::time::Instant::now();
    wait_for(|| {
        running.signal(libc::SIGTERM);
        running.child.try_wait().unwrap()
    });
    assert!(begun.elapsed().as_millis() >= 100);
    running.finish().assert_code(137);
}

#[test]
#[requires(cgroup)]
fn all_others_are_forwarded_once_and_end_nothing() {
    let mut running = printing(&[], 64);
    let pinfold = running.pinfold_pid();
    // pinfold ignores these signals: they are about its own children and do not concern the job.
    send(pinfold, libc::SIGCHLD);
    let not_passed_on = [libc::SIGKILL, libc::SIGSTOP, libc::SIGCHLD];
    for signal in (1..=64).filter(|signal| !STOPPING.contains(signal) && !not_passed_on.contains(signal)) {
        send(pinfold, signal);
        assert_eq!(running.line(), signal.to_string());
    }
    let ran = running.finish().assert_code(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    assert_eq!(ran.report["reason"], "exited");
}

/// The caller is nohup(1).
#[test]
#[requires(cgroup)]
fn an_ignored_hangup_stays_ignored() {
    let words = [program("signals").into(), OsString::from("10")];
    let mut running = Run::in_shell(r#"trap "" HUP INT; exec setsid "$@""#, words).start();
    assert_eq!(running.line(), "ready");
    let pinfold = running.pinfold_pid();
    send(pinfold, libc::SIGHUP);
    send(pinfold, libc::SIGINT);
    send(pinfold, libc::SIGUSR1);
    let ran = running.finish().assert_code(0);
    assert_eq!((ran.stdout.as_str(), &ran.report["reason"]), ("10\n", &"exited".into()));
}

#[test]
#[requires(cgroup)]
fn the_job_is_given_what_its_caller_gives() {
    let plain = assert_same_without_pinfold("", "", "");
    assert!(plain.contains("SigIgn:\t0000000000000000\nSigCgt:\t0000000000000000\n"), "{plain}");

    let given = assert_same_without_pinfold("umask 027; ulimit -n 512; ulimit -Ss 4096; cd /usr", "nice -n 5", "");
    for expected in ["Umask:\t0027\n", "Max open files            512 ", "cwd /usr\n", "nice 5\n"] {
        assert!(given.contains(expected), "{expected:?} is not in {given}");
    }
    let given = assert_same_without_pinfold("exec 7</dev/null 8>&1 11>/dev/null 300<>/dev/zero 254</", "", "");
    for number in [0, 1, 2, 7, 8, 11, 254, 300] {
        assert!(given.contains(&format!("fd {number}: flags 0")), "{number} is not in {given}");
    }
}

#[test]
#[requires(cgroup)]
fn signal_mask_and_ignored_signals_are_the_callers() {
    let ignored = |given: &str| {
        let line = given.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap().to_owned();
        u64::from_str_radix(&line, 16).unwrap()
    };
    let bit = |signal: i32| 1_u64 << (signal - 1);
    // Rust's runtime ignores SIGPIPE in pinfold itself.
    assert_eq!(ignored(&assert_same_without_pinfold("", "env --default-signal=PIPE", "")), 0);
    assert_eq!(ignored(&assert_same_without_pinfold("", "env --ignore-signal=PIPE", "")), bit(libc::SIGPIPE));
    let some = bit(libc::SIGHUP) | bit(libc::SIGCHLD) | bit(libc::SIGUSR1) | bit(libc::SIGTSTP) | bit(40);
    assert_eq!(ignored(&assert_same_without_pinfold("", "env --ignore-signal=HUP,CHLD,USR1,TSTP,40", "")), some);
    for blocked in ["TERM", "INT,CHLD,ALRM,CONT", "USR2,RTMIN,RTMAX", "PIPE"] {
        let given = assert_same_without_pinfold("", &format!("env --block-signal={blocked}"), "");
        assert!(!given.contains("SigBlk:\t0000000000000000"), "{given}");
    }
    assert_same_without_pinfold("", "env --block-signal --ignore-signal", "");
}

#[test]
#[requires(cgroup)]
fn the_environment_is_the_callers_in_its_order() {
    let given =
        assert_same_without_pinfold("", "env -i Z=1 B=2 A=3 EMPTY= 'SPACE=a b' EQUALS==x= PATH=/bin:/usr/bin", "");
    let entries: Vec<_> = given.lines().filter_map(|line| line.strip_prefix("environment ")).collect();
    assert_eq!(entries, ["Z=1", "B=2", "A=3", "EMPTY=", "SPACE=a b", "EQUALS==x=", "PATH=/bin:/usr/bin"]);
    assert_same_without_pinfold("", "env -i", "");
}

#[test]
#[requires(cgroup)]
fn options_about_the_environment() {
    let env = |options: &[&str]| {
        let mut run = Run::in_shell(r#"exec env -i Z=1 A=2 B=3 "$@""#, options);
        run.command().arg("/usr/bin/env");
        run.run().assert_code(0).stdout
    };
    assert_eq!(env(&[]), "Z=1\nA=2\nB=3\n");
    assert_eq!(env(&["--clear-env"]), "");
    assert_eq!(env(&["--clear-env", "--env", "N=x=y", "-e", "M="]), "M=\nN=x=y\n");
    assert_eq!(env(&["-e", "A=new", "--env", "C=4"]), "Z=1\nB=3\nA=new\nC=4\n");
    assert_eq!(env(&["-e", "A=1", "-e", "A=last"]), "Z=1\nB=3\nA=last\n");
    // pinfold looks for the command in the PATH that the command will have.
    let scratch = Scratch::directory("path");
    std::os::unix::fs::symlink("/bin/true", scratch.path().join("only-here")).unwrap();
    Run::new(["--env", &format!("PATH={}", scratch.path().display()), "only-here"]).run().assert_code(0);
    Run::new(["only-here"]).run().assert_code(127);
}

#[test]
#[requires(cgroup)]
fn the_working_directory() {
    let scratch = Scratch::directory("cwd");
    let directory = scratch.path().to_str().unwrap();
    let ran = Run::new(["--cwd", directory, "pwd"]).run().assert_code(0);
    assert_eq!((ran.stdout, &ran.report["cwd"]), (format!("{directory}\n"), &directory.into()));
    // A relative directory starts at pinfold's own directory, and a relative program path at the job's.
    std::os::unix::fs::symlink("/bin/pwd", scratch.path().join("here")).unwrap();
    let mut run = Run::new(["--cwd", scratch.path().file_name().unwrap().to_str().unwrap(), "./here"]);
    run.command().current_dir(scratch.path().parent().unwrap());
    assert_eq!(run.run().assert_code(0).stdout, format!("{directory}\n"));
    let ran = Run::new(["pwd"]).run();
    assert_eq!(ran.report["cwd"], serde_json::Value::Null);
}

#[test]
#[requires(cgroup)]
fn the_stop_signal() {
    for (name, number) in [("INT", 2), ("SIGUSR2", 12), ("rtmin+3", 37), ("64", 64), ("33", 33)] {
        let running = printing(&["--stop-signal", name], number);
        running.signal(libc::SIGTERM);
        let ran = running.finish().assert_code(0);
        // SIGCONT follows, and may be handled first.
        assert_eq!(ran.stdout.replace("18\n", ""), format!("{number}\n"));
        assert_eq!(ran.report["killed"], false);
    }
}

#[test]
#[requires(cgroup)]
fn processes_that_receive_the_stop_signal() {
    // The main process sends another signal to its child, which is the last one that the child prints.
    let script = r#"trap 'kill -USR1 $child; wait $child; exit 0' TERM; "$0" 10 & child=$!; echo ready; wait $child"#;
    for (target, printed, counts) in [("main", "10\n", 1..=1), ("all", "15\n18\n10\n", 1..=2)] {
        let mut run = detached(["--signal-to", target, "bash", "-c", script]);
        run.command().arg(program("signals"));
        let mut running = run.start();
        // The child has its handlers, and the shell knows the pid of the child.
        assert_eq!([running.line(), running.line()], ["ready", "ready"]);
        running.signal(libc::SIGTERM);
        let ran = running.finish().assert_code(0);
        // With "all", the shell's signal may have ended the child before pinfold signals it.
        assert!(counts.contains(&ran.report["stopped"]["count"].as_u64().unwrap()), "{ran:#?}");
        // With "all", the order of the two signals is undefined.
        let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
        assert!(lines(&ran.stdout).is_subset(&lines(printed)), "{ran:#?}");
        assert!(ran.stdout.contains("10\n"), "{ran:#?}");
        assert_eq!(ran.report["leftovers"]["count"], 0, "{ran:#?}");
    }
}

#[test]
#[requires(cgroup)]
fn the_grace_period() {
    let canary = Canary::new();
    let running = printing(&["--grace", "300ms", "--timeout", "1s"], 0);
    let ran = running.finish().assert_code(124);
    assert!((1.3..4.0).contains(&ran.elapsed.as_secs_f64()), "{ran:#?}");
    assert_eq!(ran.stdout, "15\n18\n");
    assert_eq!(ran.report["killed"], true);
    let at = |phase: &str| ran.report["phases"][phase].as_f64().unwrap();
    assert!((1.0..2.0).contains(&at("stopping")) && (0.3..1.3).contains(&(at("killing") - at("stopping"))), "{ran:#?}");
    // No grace period: the job is killed at once.
    let ran = printing(&["--grace", "0", "--timeout", "1s"], 0).finish().assert_code(124);
    assert_eq!(ran.report["killed"], true);
    canary.assert_alive();
}

#[test]
#[requires(cgroup)]
fn leftovers() {
    let canary = Canary::new();
    let leaving = |options: &[&str], script: &str| -> Ran { Run::new([options, &["sh", "-c", script]].concat()).run() };
    let left = "sleep 1000 & exit 0";
    let ran = leaving(&[], left).assert_code(0);
    // The shell's child may not have executed its program yet.
    assert!(ran.listed("leftovers").contains("sleep 1000"), "{ran:#?}");
    assert_eq!((&ran.report["leftovers"]["count"], &ran.report["killed"]), (&1.into(), &false.into()));
    ran.assert_names(ran.report["leftovers"]["processes"][0]["pid"].to_string());
    assert_eq!(leaving(&["--leftovers", "kill"], left).assert_code(0).report["leftovers"]["count"], 1);
    leaving(&["--fail-on-leftovers"], left).assert_code(123);
    // The command's own failure takes precedence.
    leaving(&["--fail-on-leftovers"], "sleep 1000 & exit 3").assert_code(3);
    leaving(&["--fail-on-leftovers"], "exit 0").assert_code(0);
    let ran = leaving(&["--leftovers", "wait"], "(sleep 0.3; echo done) & exit 0").assert_code(0);
    assert_eq!(ran.stdout, "done\n");
    assert!(ran.report["leftovers"]["count"].as_u64() >= Some(1) && ran.report["stopped"]["count"] == 0, "{ran:#?}");
    let ran = leaving(&["--leftovers", "wait", "--timeout", "1s"], left).assert_code(124);
    assert_eq!(ran.report["main"]["exited"], 0);
    canary.assert_alive();
}

/// The messages, without the directory at their end, which differs from one run to another.
fn without_cgroup(messages: &str) -> &str {
    messages.split_once(" (cgroup /").expect("the cgroup").0
}

#[test]
#[requires(cgroup)]
fn names_and_words() {
    let at_deadline = |options: &[&str]| {
        let words = options.iter().chain(&["--timeout", "100ms", "sh", "-c", "sleep 1000 & wait"]);
        Run::new(words).run().assert_code(124)
    };
    let mut messages = Messages::default();
    let ran = at_deadline(&["--name", "the build"]);
    assert_eq!(ran.report["name"], "the build");
    messages.add("--name, and a deadline", &ran.stderr);
    assert_eq!(at_deadline(&["-q"]).stderr, "");
    assert_eq!(Run::new(["-q", "sh", "-c", "sleep 1000 & exit 0"]).run().assert_code(0).stderr, "");
    // Errors are still printed.
    messages.add("-q, and an error", &Run::new(["-q", "no-such-command"]).run().assert_code(127).stderr);
    let mut running = detached(["-v", "sh", "-c", "echo ready; exec sleep 1000"]).start();
    assert_eq!(running.line(), "ready");
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(143);
    messages.add("-v, and SIGTERM", without_cgroup(&ran.stderr));
    let ran = Run::new(["-v", "true"]).run().assert_code(0);
    ran.assert_names(ran.report["pid"].to_string());
    messages.add("-v", without_cgroup(&ran.stderr));
    insta::assert_snapshot!(messages);
}

/// A stopped supervisor does nothing until the kernel continues it at the deadline.
#[test]
#[each_containment]
fn a_supervisor_that_is_stopped_past_its_deadline(containment: &str) {
    let options = ["--containment", containment, "--timeout", "300ms", "--grace", "1m"];
    let mut running = Run::new(options.iter().chain(&["sh", "-c", "echo ready; exec sleep 1000"])).start();
    assert_eq!(running.line(), "ready");
    let pinfold = running.pinfold_pid();
    send(pinfold, libc::SIGSTOP);
    let ran = running.finish().assert_code(124);
    let phase = |name: &str| ran.report["phases"][name].as_f64().unwrap();
    assert!((0.3..1.1 * crate::support::slowness()).contains(&phase("stopping")), "{ran:#?}");
    assert_eq!((&ran.report["reason"], &ran.report["killed"]), (&"deadline".into(), &false.into()), "{ran:#?}");
}
