//! `pinfold timeout`, under the name `timeout`: it ends the trees that coreutils' timeout leaves behind, and behaves
//! the same at a terminal.

use std::io::Write;
use std::process::{Command, Stdio};

use rustix::process::{Pid, kill_process};

use crate::support::events::Process;
use crate::support::pty::Pty;
use crate::support::{Canary, PINFOLD, Run, Scratch, named_timeout, path_with, program, wait_for};

/// Processes that escape from coreutils' timeout: in a session of their own, by a double fork, and left by a command
/// that has ended.
const TREES: [(&str, &str); 5] = [
    ("0.3", "setsid sleep 1000 & echo ready; exec sleep 1000"),
    ("0.3", "(setsid setsid nohup sleep 1000 >/dev/null 2>&1 &); echo ready; exec sleep 1000"),
    (
        "0.3",
        "trap '' TERM; (setsid sh -c 'trap \"\" TERM HUP; sleep 1000; sleep 1000' &); trap - TERM; echo ready; exec sleep 1000",
    ),
    ("30", "setsid sleep 1000 & echo ready"),
    ("30", "(setsid setsid sleep 1000 >/dev/null 2>&1 &); echo ready; exit 5"),
];

#[test]
#[requires(cgroup, coreutils)]
fn the_trees_that_coreutils_leaves_are_gone() {
    let canary = Canary::new();
    let by_name = named_timeout();
    for options in [&[][..], &["--foreground"], &["-k", "0.2", "-s", "INT"]] {
        for (limit, script) in TREES {
            let words = |timeout: &str| {
                let mut words = vec![timeout.to_owned()];
                words.extend(options.iter().copied().chain([limit, "sh", "-c", script]).map(str::to_owned));
                words
            };
            // `run` asserts that nothing is left.
            let [ran, by_subreaper] = ["cgroup", "subreaper"].map(|containment| {
                let mut run = Run::bare(words("timeout"));
                run.command().env("PATH", path_with(&by_name)).env("PINFOLD_CONTAINMENT", containment);
                run.run()
            });
            assert_eq!(ran.code, by_subreaper.code, "{options:?} {script}");

            let survivors = Scratch::new("survivors");
            let mut theirs = Command::new(program("warden"));
            theirs.arg(survivors.path()).args(words("timeout")).stdout(Stdio::null());
            let code = theirs.status().unwrap().code();
            // A process that is about to execute `sleep` is a survivor too; during exec, the kernel shows no command line.
            assert_ne!(survivors.text(), "", "coreutils left nothing of {script}");
            assert_eq!(Some(ran.code), code, "{options:?} {script}: {ran:#?}");
        }
    }
    canary.assert_alive();
}

/// SIGKILL to timeout itself: as with coreutils' timeout since 9.10, the command receives its signal. Then the whole
/// tree ends, however it handles the signal.
#[test]
#[each_containment]
fn a_killed_timeout(containment: &str) {
    let by_name = named_timeout();
    for (heeds, trap) in [(true, "trap 'echo told; exit' USR1"), (false, "trap '' USR1")] {
        let tree = format!("{trap}; setsid sleep 1000 & echo $$; while :; do sleep 1000 & wait; done");
        // The shell outlives timeout, so that the warden checks only after everything has ended.
        let script = "timeout -s USR1 1000 sh -c \"$1\" & echo $!; read line <&3";
        let mut run = Run::bare(["bash", "-c", &format!("exec 3<&0; {script}"), "bash", &tree]);
        run.command().env("PATH", path_with(&by_name)).env("PINFOLD_CONTAINMENT", containment);
        run.command().stdin(Stdio::piped());
        let mut running = run.start();
        let mut pid = || Pid::from_raw(running.line().parse().unwrap()).unwrap();
        let [one, other] = [pid(), pid()];
        let command = |pid: Pid| std::fs::read(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap();
        let (timeout, shell) = if command(one) == b"timeout\n" { (one, other) } else { (other, one) };
        let guard = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", timeout.as_raw_nonzero()));
        let guard = Pid::from_raw(guard.unwrap().trim().parse().unwrap()).unwrap();
        // The kernel may still be ending the killed process itself when its guard has done all its work.
        let ends = [timeout, shell, guard].map(|pid| Process::of(pid.as_raw_nonzero().get()));
        kill_process(timeout, rustix::process::Signal::KILL).unwrap();
        if heeds {
            assert_eq!(running.line(), "told", "{containment}");
        }
        ends.iter().for_each(Process::wait_for_end);
        running.child.stdin.as_mut().unwrap().write_all(b"end\n").unwrap();
        running.finish().assert_code(0);
    }
}

/// No other process is affected. coreutils' timeout, when it leads the group of a pipeline, also signals the other
/// processes in that group.
#[test]
#[requires(cgroup)]
fn only_the_job_is_hit() {
    let by_name = named_timeout();
    let mut command = Command::new("bash");
    let script = "set -m; timeout 0.2 sleep 5 | (trap '' HUP; sleep 0.6; echo alive); echo ${PIPESTATUS[0]}";
    let out = command.args(["-c", script]).env("PATH", path_with(&by_name)).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout), "alive\n124\n", "{out:?}");
}

/// The command reads from the terminal: it is stopped as a background process, and still ended at its time.
#[test]
#[requires(cgroup, coreutils)]
fn a_command_that_reads_from_the_terminal() {
    let by_name = named_timeout();
    for path in [std::env::var("PATH").unwrap(), path_with(&by_name)] {
        for (options, typed, expected) in [("0.5", "", "code 124"), ("--foreground 20", "typed\n", "code 0")] {
            let mut command = Command::new("bash");
            command.args(["-c", &format!("timeout {options} head -n 1; echo code $?; timeout 9 true; echo end $?")]);
            command.env("PATH", &path);
            let mut pty = Pty::start(command);
            pty.send(typed);
            pty.expect(expected);
            pty.expect("end 0");
            assert!(pty.wait().success());
        }
    }
}

/// Ctrl-Z stops both and `fg` continues them. Where nothing could continue them, Ctrl-Z has no effect.
#[test]
#[requires(cgroup, coreutils)]
fn job_control() {
    let by_name = named_timeout();
    for path in [std::env::var("PATH").unwrap(), path_with(&by_name)] {
        let mut shell = Pty::shell();
        shell.line(&format!("PATH={path}; true prepared"));
        shell.expect("ready> ");
        shell.line("timeout 30 sh -c 'echo up; read line; echo got $line'");
        shell.expect("\nup");
        shell.send("\x1a");
        shell.expect("Stopped");
        shell.expect("ready> ");
        if path != path_with(&by_name) {
            // coreutils' timeout stops at once. Until the command has stopped too, it reads what is typed for the shell.
            wait_until_all_are_stopped_below(shell.pid());
        }
        shell.line("fg");
        shell.expect("timeout 30 sh");
        shell.send("on\n");
        shell.expect("got on");
        shell.exit();

        let mut command = Command::new("timeout");
        command.args(["30", "sh", "-c", "echo up; read line; echo got $line"]).env("PATH", &path);
        let mut pty = Pty::start(command);
        pty.expect("up");
        pty.suspend_key();
        pty.send("on\n");
        pty.expect("got on");
        assert!(pty.wait().success());
    }
}

/// Waits until the descendants of a process are stopped. The kernel reports a stop to the parent only.
fn wait_until_all_are_stopped_below(ancestor: u32) {
    let read = |pid: &str, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    wait_for(|| {
        let mut processes = vec![ancestor.to_string()];
        while let Some(pid) = processes.pop() {
            let children = read(&pid, &format!("task/{pid}/children"));
            if children.split_whitespace().any(|child| !read(child, "status").contains("\nState:\tT")) {
                return None;
            }
            processes.extend(children.split_whitespace().map(str::to_owned));
        }
        Some(())
    });
}

/// Waits until each `timeout` among these processes sleeps. Before coreutils' timeout waits for its command, a signal
/// ends it and is not forwarded. The kernel gives no event when a process begins to sleep.
fn wait_until_each_timeout_waits(first: u32) {
    wait_for(|| {
        let mut processes = vec![first.to_string()];
        while let Some(pid) = processes.pop() {
            let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
            if read("comm") == "timeout\n" && !read("status").contains("\nState:\tS") {
                return None;
            }
            processes.extend(read(&format!("task/{pid}/children")).split_whitespace().map(str::to_owned));
        }
        Some(())
    });
}

/// A timeout inside a timeout makes its own process group, which the terminal does not reach.
#[test]
#[requires(cgroup, coreutils, program("bash"))]
fn keys_reach_a_command_that_has_left_the_group() {
    let by_name = named_timeout();
    let ours = by_name.path().join("timeout");
    let ours = ours.to_str().unwrap();
    // A shell without job control lets its background processes ignore SIGINT, and coreutils' timeout would leave this
    // one behind.
    let script = "trap 'echo interrupted; kill $!; exit 5' INT; echo up; sleep 1000 & wait";
    for words in [
        &["timeout", "60", "timeout", "60"][..],
        &[ours, "60", ours, "60"],
        &[ours, "60", "timeout", "60"],
        &[ours, "--foreground", "60", ours, "60"],
        &[PINFOLD, "run", "--", "timeout", "60"],
        &[PINFOLD, "init", "--", "timeout", "60"],
    ] {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(["bash", "-c", script]);
        let mut pty = Pty::start(command);
        pty.expect("up");
        wait_until_each_timeout_waits(pty.pid());
        pty.send("\x03");
        pty.expect("interrupted");
        assert_eq!(pty.wait().code(), Some(5), "{words:?}");
    }
}

#[test]
fn as_a_subcommand_it_says_so() {
    let said = |words: &[&str]| {
        let out = Command::new(PINFOLD).arg("timeout").args(words).env("LC_ALL", "C").output().unwrap();
        (out.status.code(), String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap())
    };
    let wrong = said(&["x", "true"]);
    let expected = "pinfold timeout: invalid time interval 'x'\nTry 'pinfold timeout --help' for more information.\n";
    assert_eq!((wrong.0, wrong.2.as_str()), (Some(125), expected));
    let help = said(&["--help"]);
    assert!(help.0 == Some(0) && help.1.starts_with("Usage: pinfold timeout ") && help.2.is_empty(), "{help:?}");
    assert_eq!(said(&["--version", "--bad"]).1, format!("timeout (pinfold) {}\n", env!("CARGO_PKG_VERSION")));
}

/// In a PID namespace, the caller's process group can be from outside, and a process of it can be stopped. The end of
/// `pinfold timeout` then makes the kernel send no SIGHUP to that group.
#[test]
#[requires(root, program("unshare"))]
fn a_group_from_outside_of_the_namespace_receives_no_hangup() {
    let script = "trap 'echo hangup' HUP; sleep 99 & kill -STOP $!; \"$0\" timeout 9 true; echo $?; kill -KILL $!";
    let words = ["setsid", "-w", "unshare", "--pid", "--fork", "--mount-proc", "bash", "-c", script, PINFOLD];
    let ran = Run::bare(words).run().assert_code(0);
    assert_eq!(ran.stdout, "0\n", "{ran:#?}");
}
