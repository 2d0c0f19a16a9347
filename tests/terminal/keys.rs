//! A key of the terminal sends exactly one signal to the job, wherever standard input and output lead. These tests use
//! real pseudoterminals.

use std::io::BufRead;
use std::process::Command;

use crate::support::events::Process;
use crate::support::pty::Pty;
use crate::support::{PINFOLD, Scratch, has, needs, program};

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";
const CTRL_BACKSLASH: &str = "\x1c";

/// Starts a shell in which `$SIGNALS N` is a job that prints each signal that it receives and ends after `N`.
fn shell() -> Pty {
    let mut shell = Pty::shell();
    shell.line(&format!("SIGNALS={}; export SIGNALS PINFOLD", program("signals").display()));
    shell.expect("ready> ");
    shell
}

/// Types Ctrl-C, then Ctrl-\: the job receives each signal once, and no other.
fn assert_one_signal_for_each_key(shell: &mut Pty, line: &str, seen_by_pinfold: bool) {
    shell.line(line);
    shell.expect("\nready");
    shell.send(CTRL_C);
    let mut printed = String::new();
    if seen_by_pinfold {
        printed = shell.expect("SIGINT from the terminal: 1 of the 3");
    }
    while !numbers(&printed).contains(&2) {
        printed += &shell.expect("\n");
        printed.push('\n');
    }
    shell.send(CTRL_BACKSLASH);
    printed += &shell.expect("ready> ");
    assert_eq!(numbers(&printed), [2, 3], "{line}: {printed}");
}

/// Returns the numbers that the job printed, one in a line, after the echo of a key.
fn numbers(printed: &str) -> Vec<i32> {
    let lines = printed.lines().map(|line| line.trim().trim_start_matches("^C").trim_start_matches("^\\"));
    lines.filter_map(|line| line.parse().ok()).collect()
}

#[test]
#[requires(cgroup)]
fn one_key_is_one_signal_wherever_the_streams_are() {
    let mut shell = shell();
    for line in [
        "yes | $PINFOLD run -v -- $SIGNALS 3",
        "$PINFOLD run -v -- $SIGNALS 3 </dev/null",
        "$PINFOLD run -v -- $SIGNALS 3 2>&1 | (trap '' INT QUIT; cat)",
        "yes | $PINFOLD run -v -- $SIGNALS 3 2>&1 | (trap '' INT QUIT; cat)",
        "$PINFOLD run -v --containment subreaper -- $SIGNALS 3 </dev/null",
        "bash -c 'trap : INT QUIT; $PINFOLD run -v -- $SIGNALS 3 </dev/null; true'",
    ] {
        assert_one_signal_for_each_key(&mut shell, line, true);
    }
    if has(needs::program("script")) {
        let line = "script -qec '$PINFOLD run -v -- $SIGNALS 3 </dev/null' /dev/null";
        assert_one_signal_for_each_key(&mut shell, line, true);
    }
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn one_key_is_one_signal_under_the_other_commands() {
    let mut shell = shell();
    for line in [
        "$PINFOLD timeout --foreground 1h $SIGNALS 3",
        "yes | $PINFOLD timeout --foreground 1h $SIGNALS 3",
        "$PINFOLD init -- $SIGNALS 3",
        "yes | $PINFOLD init -- $SIGNALS 3",
    ] {
        assert_one_signal_for_each_key(&mut shell, line, false);
    }
    if cfg!(feature = "watch") {
        // The watch ends with the run that the keys ended.
        let quiet = Scratch::directory("unchanged");
        let line = format!("$PINFOLD watch --grace 1h -w {} -- $SIGNALS 3", quiet.path().display());
        assert_one_signal_for_each_key(&mut shell, &line, false);
    }
    shell.exit();
}

/// The key is typed before pinfold is executed. The signal waits, because it is blocked.
#[test]
#[requires(cgroup, program("python3"))]
fn a_key_before_the_job_exists_reaches_the_job() {
    let mut shell = shell();
    let script = "import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print('block' + 'ed', flush=True)
sys.stdin.readline()
os.execv(sys.argv[1], sys.argv[1:])";
    let file = Scratch::new("keys.py");
    std::fs::write(file.path(), script).unwrap();
    // `timeout` ignores a signal that was blocked when it was started.
    for command in ["run", "init"] {
        shell.line(&format!("python3 {} $PINFOLD {command} $SIGNALS 2", file.path().display()));
        shell.expect("blocked");
        shell.send(CTRL_C);
        shell.send("\n");
        shell.expect("\nready");
        let printed = shell.expect("ready> ");
        assert_eq!(numbers(&printed), [2], "{command}: {printed}");
    }
    shell.exit();
}

/// The job's own terminal sends the signal, as if the key had been typed there.
#[test]
#[requires(cgroup)]
fn a_key_outside_is_a_key_of_the_jobs_own_terminal() {
    let mut shell = shell();
    for line in ["yes | $PINFOLD run --pty -- $SIGNALS 3", "$PINFOLD run --pty -- $SIGNALS 3 </dev/null"] {
        assert_one_signal_for_each_key(&mut shell, line, false);
    }
    // Three interrupts kill a job that ignores them.
    let mut deaf =
        "$PINFOLD run --pty -- bash -c 'trap \"echo heard\" INT; echo up; while :; do sleep 0.05; done'".to_owned();
    deaf.push_str(" </dev/null; echo code=$?");
    shell.line(&deaf);
    shell.expect("\nup");
    for _ in 0..2 {
        shell.send(CTRL_C);
        shell.expect("heard");
    }
    shell.send(CTRL_C);
    shell.expect("code=137");
    shell.expect("ready> ");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn three_interrupts_kill_wherever_standard_input_is() {
    let mut shell = shell();
    for (before, after) in [("sleep 1000 | ", ""), ("", " </dev/null"), ("", " 2>&1 | cat")] {
        shell.line(&format!("{before}$PINFOLD run -v -- $SIGNALS 0{after}"));
        shell.expect("\nready");
        // The other commands of the pipeline, and with them the messages, may end by the first interrupt.
        for count in 1..3 {
            shell.send(CTRL_C);
            if !after.contains("cat") {
                shell.expect(&format!("SIGINT from the terminal: {count} of the 3"));
            }
        }
        // The kernel merges two interrupts that come before pinfold has read the first.
        let ended = (0..100).any(|_| {
            shell.send(CTRL_C);
            shell.is_printed_soon("ready> ")
        });
        assert!(ended, "{before} {after}");
        shell.line("echo code=${PIPESTATUS[@]}");
        let code = shell.expect("ready> ");
        assert!(code.contains("137"), "{before} {after}: {code}");
    }
    shell.exit();
}

/// SIGALRM of a timer that was set before exec comes from the kernel, but not from the terminal: it reaches pinfold
/// alone.
#[test]
#[requires(cgroup, program("perl"))]
fn a_timer_from_before_exec_reaches_the_job_also_on_a_terminal() {
    let mut shell = shell();
    shell.line("perl -e 'alarm 1; exec @ARGV' $PINFOLD run -- sleep 1000; echo code=$?");
    shell.expect("code=142");
    shell.expect("ready> ");
    shell.exit();
}

/// The user's Ctrl-Z also stops a job that has its own terminal, and its clocks; `fg` continues both.
#[test]
#[requires(cgroup)]
fn suspended_with_a_terminal_of_its_own_and_other_input() {
    let mut shell = shell();
    // The three zeros distinguish this job from the jobs of other tests.
    shell.line("$PINFOLD run -t 1h --pty -- $SIGNALS 0003 </dev/null");
    shell.expect("\nready");
    shell.send(CTRL_Z);
    shell.expect("Stopped");
    shell.expect("ready> ");
    shell.line("ps -o stat= -p $(pgrep -f '^[^ ]*signals 0003$')");
    shell.expect("\nT");
    shell.expect("ready> ");
    shell.line("fg");
    shell.expect("0003");
    crate::support::wait_for(|| {
        let found = Command::new("pgrep").args(["-f", "-r", "S", "^[^ ]*signals 0003$"]).output().ok()?;
        found.status.success().then_some(())
    });
    shell.send(CTRL_BACKSLASH);
    shell.expect("ready> ");
    shell.exit();
}

/// The job's process group has already received SIGHUP: the job alone decides what to do.
#[test]
#[requires(cgroup)]
fn a_hang_up_that_reached_the_job_is_not_sent_again() {
    let (report, printed) = (Scratch::new("report"), Scratch::new("printed"));
    // The leader exits, which sends SIGHUP to the foreground group.
    let script = "$PINFOLD run --grace 1h --report $REPORT -- $SIGNALS 12 >$PRINTED & echo $!; read line";
    rustix::fs::mkfifoat(rustix::fs::CWD, printed.path(), 0o600.into()).unwrap();
    // Opened for reading and writing, so that the open does not block (fifo(7)).
    let lines = std::fs::File::options().read(true).write(true).open(printed.path()).unwrap();
    let mut lines = std::io::BufReader::new(lines).lines().map(Result::unwrap);
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("PINFOLD", PINFOLD).env("SIGNALS", program("signals"));
    command.env("REPORT", report.path()).env("PRINTED", printed.path());
    let mut pty = Pty::start(command);
    let pid: i32 =
        crate::support::wait_for(|| Some(pty.expect("\n").trim().to_owned()).filter(|line| !line.is_empty()))
            .parse()
            .unwrap();
    assert_eq!(lines.next().unwrap(), "ready");
    let end = Process::of(pid);
    pty.send("go\n");
    pty.wait();
    assert_eq!(lines.next().unwrap(), "1");
    // SAFETY: signals pinfold, whose job has not ended.
    unsafe { libc::kill(pid, libc::SIGUSR2) };
    // SIGCONT, which is 18, may come in between.
    assert_eq!(lines.find(|line| line != "18").unwrap(), "12");
    end.wait_for_end();
    assert!(report.text().contains("\"reason\":\"exited\""), "{}", report.text());
}

/// `kill 0` in a job also reaches pinfold, which is in the same group: the job has received its signal, and continues.
#[test]
#[requires(cgroup)]
fn a_signal_that_the_job_sends_to_its_group_is_no_request_to_pinfold() {
    let mut shell = shell();
    let job = "bash -c 'trap \"echo once\" TERM; trap \"echo twice\" USR1; kill 0; kill -USR1 0; sleep 1.5; echo over; exit 7'";
    for line in [
        format!("$PINFOLD run --grace 500ms -- {job}"),
        format!("$PINFOLD run --grace 500ms --containment subreaper -- {job}"),
        format!("$PINFOLD init -- {job}"),
    ] {
        shell.send(&format!("{line}; echo code=$?\n"));
        let printed = shell.expect("code=7");
        let count = |word: &str| printed.lines().filter(|line| line.trim() == word).count();
        assert_eq!([count("once"), count("twice"), count("over")], [1; 3], "{line}: {printed}");
        shell.expect("ready> ");
    }
    if cfg!(feature = "watch") {
        // Scripts often end their own background processes in this way; the watch continues.
        let watched = Scratch::directory("watched");
        let path = watched.path().display();
        shell.line(&format!("$PINFOLD watch -w {path} -- bash -c 'trap \"kill 0\" EXIT; sleep 1000 & echo up; wait'"));
        shell.expect("\nup");
        for _ in 0..2 {
            std::fs::write(watched.path().join("file"), "").unwrap();
            shell.expect("starting again");
            shell.expect("up");
        }
        shell.send(CTRL_C);
        shell.expect("ready> ");
    }
    shell.exit();
}

/// Where the job has its own process group, `kill 0` stays in it: without a terminal, or with the job's own terminal.
#[test]
#[requires(cgroup)]
fn kill_0_does_not_reach_the_callers_script() {
    let script = "\"$@\" bash -c 'trap \"kill 0\" EXIT; sleep 1000 & exit 3'; echo after=$?";
    for containment in ["cgroup", "subreaper"] {
        let words = ["--containment", containment, "--"];
        let mut command = Command::new("setsid");
        command.args(["-w", "bash", "-c", script, "bash", PINFOLD, "run"]).args(words);
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "after=143\n", "{output:?}");

        let mut command = Command::new("bash");
        command.args(["-c", script, "bash", PINFOLD, "run", "--pty"]).args(words);
        let mut pty = Pty::start(command);
        pty.expect("after=143");
        assert!(pty.wait().success());
    }
}
