//! `pinfold run --pty`, and a job with a terminal in the library: the job has the same terminal behaviour as a program
//! that a user starts.

use std::process::{Command, Stdio};
use std::time::Duration;

use pinfold::report::Reason;
use pinfold::{Pty as JobsPty, Readiness};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::host::with_supervisor;
use crate::support::pty::Pty;
use crate::support::{PINFOLD, Ran, Run, Scratch, wait_for};

/// Long enough that only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";

/// Runs without a terminal outside, as in CI, with this text on standard input.
fn run(input: &str, args: &[&str]) -> Ran {
    let mut run = Run::new(["--pty"].iter().chain(args));
    run.command().stdin(Stdio::piped());
    let mut running = run.start();
    let (mut stdin, input) = (running.child.stdin.take().unwrap(), input.to_owned());
    let writing = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, input.as_bytes()));
    let ran = running.finish();
    writing.join().unwrap().unwrap();
    ran
}

fn sh(script: &str) -> Ran {
    run("", &["--", "sh", "-c", script])
}

#[test]
#[requires(cgroup)]
fn without_a_terminal_outside() {
    let ran = sh("tty; stty size; test -t 0 && test -t 1 && test -t 2 && test -t 3 3</dev/tty && tty && exit 7")
        .assert_code(7);
    let lines: Vec<_> = ran.stdout.lines().collect();
    assert!(lines[0].starts_with("/dev/pts/") && lines[1] == "24 80" && lines[2] == lines[0], "{ran:#?}");
    assert_eq!(ran.stderr, "");
    // The shell is the leader of a session that has this terminal.
    let ran = sh("ps -o sid=,tpgid= -p $$; echo $$").assert_code(0);
    let numbers: Vec<_> = ran.stdout.split_whitespace().collect();
    assert!(numbers.len() == 3 && numbers[0] == numbers[2] && numbers[1] == numbers[2], "{ran:#?}");
    // Input ends, and is not echoed, even if its last line is incomplete.
    assert_eq!(run("one\ntwo\n", &["--", "cat"]).assert_code(0).stdout, "one\r\ntwo\r\n");
    assert_eq!(run("one\ntw", &["--", "cat"]).assert_code(0).stdout, "one\r\ntw");
    assert_eq!(run("", &["--", "cat"]).assert_code(0).stdout, "");
    // More than the kernel buffers at once, in both directions.
    let long: String = (0..20_000).map(|number| format!("line {number}\n")).collect();
    assert_eq!(run(&long, &["--", "cat"]).assert_code(0).stdout, long.replace('\n', "\r\n"));
}

/// A process outside the session that keeps the terminal open is ended like any leftover, and no output is lost.
#[test]
#[requires(cgroup)]
fn a_leftover_that_holds_the_terminal_does_not_delay_the_return() {
    // The process leaves the session first, because the hang-up at the end of the session would end it.
    let out = crate::support::Scratch::new("out-of-the-session");
    let out_path = out.path().display();
    let script = format!(
        "setsid sh -c ': >{out_path}; exec sleep 4321' & until [ -e {out_path} ]; do :; done; seq 30000; echo last"
    );
    let ran = sh(&script).assert_code(0);
    assert!(ran.stdout.ends_with("30000\r\nlast\r\n") && ran.stdout.lines().count() == 30001, "{}", ran.stdout.len());
    assert_eq!(ran.report["leftovers"]["count"], 1);
    // The same after the deadline.
    let ran = run("", &["--timeout", "200ms", "--", "sh", "-c", "trap '' HUP TERM; echo deaf; sleep 999"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (124, "deaf\r\n"), "{ran:#?}");
}

/// When a reader goes away, as head(1) does, the terminal hangs up.
#[test]
#[requires(cgroup)]
fn a_reader_that_goes_away() {
    let ran = Run::in_shell(r#""$@" </dev/null | head -n 1; exit ${PIPESTATUS[0]}"#, ["--pty", "--", "yes"]).run();
    assert_eq!((ran.code, ran.stdout.as_str()), (128 + libc::SIGHUP, "y\r\n"), "{ran:#?}");
}

#[test]
#[requires(cgroup)]
fn what_is_typed_goes_through_and_the_terminal_comes_back() {
    let mut shell = Pty::shell();
    shell.line("stty -echo; before=$(stty -g)");
    shell.expect("ready> ");
    shell.resize(31, 97);
    // The terminal has the size and the settings of the outer one, and keys arrive as the program configures them.
    shell.send(
        "$PINFOLD run --pty -- bash -c 'stty size; stty -a | grep -o -- \"-echo \"; read -rsn1 key; echo key=$key'\n",
    );
    shell.expect("31 97\r\n-echo ");
    shell.send("k");
    shell.expect("key=k");
    shell.expect("ready> ");
    shell.send("test \"$before\" = \"$(stty -g)\" && echo same settings\n");
    shell.expect("same settings");
    // The window changes its size.
    shell.send(
        "$PINFOLD run --pty -- bash -c 'trap \"stty size; exit\" WINCH; echo up; while :; do read -t 60; done'\n",
    );
    shell.expect("up");
    shell.resize(40, 120);
    shell.expect("40 120");
    shell.expect("ready> ");
    shell.send("stty sane; exit 0\n");
    assert!(shell.wait().success());
}

#[test]
#[requires(cgroup)]
fn interrupts_reach_the_job_and_three_kill() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run --pty -- bash -c 'trap \"echo heard\" INT; echo up; while :; do read -t 60 || :; done'");
    shell.expect("\nup");
    for _ in 0..2 {
        shell.send(CTRL_C);
        shell.expect("heard");
    }
    shell.send(CTRL_C);
    shell.expect("ready> ");
    shell.line("echo code=$?");
    shell.expect("code=137");
    shell.expect("ready> ");
    // If the signal ends the job, pinfold dies of the signal too, so the shell's loop stops.
    shell.line("for i in 1 2; do $PINFOLD run --pty -- sh -c 'echo up; exec sleep 999'; done; echo never");
    shell.expect("\nup");
    shell.send(CTRL_C);
    shell.expect("ready> ");
    shell.line("echo code=$?");
    shell.expect("code=130");
    shell.expect("ready> ");
    // A program that reads keys without signals receives the key.
    shell.line("$PINFOLD run --pty -- sh -c 'stty -isig -icanon min 1; echo up; echo got $(dd bs=1 count=4 2>/dev/null | wc -c)'");
    shell.expect("\nup");
    for _ in 0..4 {
        shell.send(CTRL_C);
    }
    shell.expect("got 4");
    shell.expect("ready> ");
    shell.exit();
}

/// pinfold is killed with SIGKILL, and no shell with job control restores the terminal.
#[test]
#[requires(cgroup)]
fn the_guard_gives_the_terminal_back() {
    // This runs in the shell's own process group. The guard acts within a second.
    let script = "$PINFOLD run --pty -- sh -c 'echo up; exec sleep 999'; echo code=$?; for i in $(seq 100); do
        case $(stty -a) in *-icanon*) sleep 0.02;; *) echo cooked; exit 0;; esac; done; echo raw; exit 1";
    let mut command = Command::new("sh");
    command.args(["-c", script]).env("PINFOLD", PINFOLD);
    let mut pty = Pty::start(command);
    pty.expect("up");
    let pinfold = wait_for(|| {
        let found = Command::new("pgrep").args(["-P", &pty.pid().to_string()]).output().ok()?;
        String::from_utf8_lossy(&found.stdout).lines().next()?.trim().parse::<i32>().ok()
    });
    // SAFETY: signals a child of the shell, which does not reap it before it has ended.
    unsafe { libc::kill(pinfold, libc::SIGKILL) };
    pty.expect("code=137");
    pty.expect("cooked");
    assert!(pty.wait().success());
}

#[test]
#[requires(cgroup)]
fn a_shell_inside_has_job_control() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run --pty -- bash --norc --noprofile --noediting -i");
    shell.expect("ready> ");
    shell.line("sh -c 'echo up; exec sleep 999'");
    shell.expect("\nup");
    shell.send(CTRL_Z);
    shell.expect("Stopped");
    shell.line("fg");
    shell.expect("sleep 999");
    shell.send(CTRL_C);
    shell.expect("ready> ");
    shell.line("exit 5");
    shell.expect("ready> ");
    shell.line("echo code=$?");
    shell.expect("code=5");
    shell.expect("ready> ");
    shell.exit();
}

/// In the background pinfold does not touch the terminal; in the foreground it takes the terminal.
#[test]
#[requires(cgroup)]
fn from_the_background() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run --pty -- sh -c 'echo up; read word; echo word=$word' &");
    shell.expect("> up");
    shell.line("stty -a | grep -o -w -- '-*icanon'");
    shell.expect("\nicanon");
    shell.line("fg");
    shell.expect("$word");
    shell.line("hello");
    shell.expect("word=hello");
    // Keys that are typed earlier may still go to the job.
    shell.expect("ready> ");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn a_hang_up_outside() {
    let report = Scratch::new("hang-up");
    let mut command = Command::new(PINFOLD);
    command.args(["run", "--pty", "--report"]).arg(report.path());
    command.args(["--", "sh", "-c", "echo up; exec sleep 999"]);
    let mut pty = Pty::start(command);
    pty.expect("up");
    assert!(!pty.hang_up().success());
    assert!(report.text().contains("\"not_removed\":[]"), "{}", report.text());
}

fn shell(script: &str) -> pinfold::Command {
    let mut command = pinfold::Command::new("bash");
    command.args(["-c", script]).pty(JobsPty::new(10, 20).echo(false));
    command
}

#[test]
#[requires(cgroup)]
fn the_librarys_terminal() {
    with_supervisor(async |supervisor| {
        let mut job =
            supervisor.spawn(&shell("trap 'stty size' WINCH; stty size; read one; cat; exit 3")).await.unwrap();
        job.ready(&Readiness::stdout_line("10 20"), LONG).await.unwrap();
        let mut stdin = job.stdin.take().unwrap();
        job.resize_pty(7, 9).unwrap();
        // The trap runs when the read has returned; the end-of-file character ends the input.
        stdin.write_all(b"one\ntwo\nthree").await.unwrap();
        drop(stdin);
        let output = tokio::time::timeout(LONG, job.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.stdout, b"10 20\r\n7 9\r\ntwo\r\nthree");
        assert_eq!((output.status.exit_code, output.stderr.len()), (3, 0));
        assert!(job.resize_pty(1, 1).is_ok() || job.stdout.take().is_none());

        // Nothing is typed: the input ends at once.
        let output = supervisor.spawn(&shell("cat; seq 100000")).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.stdout.len(), (1..=100_000).map(|number: u32| number.to_string().len() + 2).sum::<usize>());

        let mut idle = shell("echo once; sleep 999");
        idle.idle_timeout(Duration::from_millis(300));
        let output = supervisor.spawn(&idle).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!((output.status.reason, output.stdout.as_slice()), (Reason::Idle, &b"once\r\n"[..]));

        // When both sides are dropped, the terminal hangs up.
        let mut job = supervisor.spawn(&shell("sleep 999")).await.unwrap();
        drop((job.stdin.take(), job.stdout.take()));
        let report = tokio::time::timeout(LONG, job.wait()).await.unwrap().unwrap();
        assert_eq!((report.exit_code, report.reason), (128 + 1, Reason::Exited));
        assert!(job.resize_pty(1, 1).is_err());

        let mut both = shell("true");
        let error = supervisor.spawn(both.stdout(pinfold::Stdio::piped())).await.unwrap_err();
        assert!(matches!(error, pinfold::Error::Invalid { .. }), "{error}");
        let mut job = supervisor.spawn(&pinfold::Command::new("true")).await.unwrap();
        assert!(job.resize_pty(1, 1).is_err());
        job.wait().await.unwrap();
    });
}

/// The test itself has the terminal open, like a process outside the job that received it.
#[test]
#[requires(cgroup)]
fn a_process_outside_that_holds_the_terminal_does_not_delay_the_return() {
    with_supervisor(async |supervisor| {
        let mut job = supervisor.spawn(&shell("tty; read go; seq 1000")).await.unwrap();
        let mut stdout = job.stdout.take().unwrap();
        let mut name = Vec::new();
        while !name.ends_with(b"\n") {
            name.push(stdout.read_u8().await.unwrap());
        }
        let name = String::from_utf8(name).unwrap();
        // O_NOCTTY: the terminal must not become the controlling terminal of this process.
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let held = rustix::fs::open(name.trim(), flags, rustix::fs::Mode::empty()).unwrap();
        job.stdin.take().unwrap().write_all(b"\n").await.unwrap();
        let mut rest = String::new();
        tokio::time::timeout(LONG, stdout.read_to_string(&mut rest)).await.unwrap().unwrap();
        assert!(rest.ends_with("999\r\n1000\r\n") && rest.lines().count() == 1000, "{rest}");
        assert!(job.wait().await.unwrap().success());
        drop(held);
    });
}

/// `Send`, as the other streams are.
#[test]
fn send_and_sync() {
    fn both<T: Send + Sync>() {}
    both::<JobsPty>();
}
