//! The terminal: its keys reach the job once and as without pinfold, Ctrl-Z and `fg` work, and pinfold restores its
//! settings. These tests use real pseudoterminals.

use std::process::Command;

use crate::support::pty::Pty;
use crate::support::{PINFOLD, Scratch};

const CTRL_C: &str = "\x03";
const CTRL_Z: &str = "\x1a";
const CTRL_BACKSLASH: &str = "\x1c";
const CTRL_D: &str = "\x04";

#[test]
#[requires(cgroup, program("python3"))]
fn an_interrupt_does_not_end_a_repl() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run -- python3 -q; echo ended $?");
    shell.expect(">>> ");
    shell.send(CTRL_C);
    // Python may have printed its prompt without reading yet. Then it handles the interrupt only at the next key.
    shell.send("\n");
    shell.expect("KeyboardInterrupt");
    shell.send("print(6 * 7)\n");
    shell.expect("\n42");
    shell.send("exit(3)\n");
    shell.expect("ended 3");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn an_interrupt_ends_a_loop_around_a_command_that_it_ends() {
    let mut shell = Pty::shell();
    shell.line("for i in 1 2 3; do $PINFOLD run -- sh -c 'echo up; exec sleep 999'; echo after; done; true");
    shell.expect("\nup");
    shell.send(CTRL_C);
    let printed = shell.expect("ready> ");
    assert!(!printed.contains("after"), "{printed}");
    shell.line("echo code=$?");
    shell.expect("code=130");
    shell.exit();
}

#[test]
#[requires(cgroup, program("python3"))]
fn one_key_is_one_signal() {
    let mut shell = Pty::shell();
    let program = Scratch::new("count");
    let text = "import signal, sys\nn = 0\n\
        def count(*_):\n    global n; n += 1; print('seen', n, flush=True)\n\
        signal.signal(signal.SIGINT, count)\n\
        signal.signal(signal.SIGQUIT, lambda *_: (print('total', n, flush=True), sys.exit(0)))\n\
        print('counting', flush=True)\n\
        while True: signal.pause()\n";
    std::fs::write(program.path(), text).unwrap();
    shell.line(&format!("$PINFOLD run -- python3 {}", program.path().display()));
    shell.expect("\ncounting");
    shell.send(CTRL_C);
    shell.expect("seen 1");
    shell.send(CTRL_BACKSLASH);
    shell.expect("total 1");
    shell.expect("ready> ");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn three_interrupts_within_two_seconds_kill() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run -v -- bash -c \"trap 'echo no' INT; echo up; while :; do read -t 100 <> <(:); done\"");
    shell.expect("\nup");
    for count in 1..3 {
        shell.send(CTRL_C);
        // The kernel merges two interrupts that come before pinfold has read the first.
        shell.expect(&format!("SIGINT from the terminal: {count} of the 3"));
    }
    shell.send(CTRL_C);
    shell.expect("ready> ");
    shell.line("echo code=$?");
    shell.expect("code=137");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn suspended_time_does_not_count_for_the_deadline() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run --timeout 2s -- cat");
    shell.send("one\n");
    shell.expect("one\r\none\r\n");
    shell.send(CTRL_Z);
    shell.expect("Stopped");
    shell.expect("ready> ");
    // Longer than the deadline: the test has to wait in real time here.
    shell.line("sleep 2.2; jobs");
    shell.expect("Stopped");
    shell.expect("ready> ");
    shell.line("fg");
    shell.send("two\n");
    shell.expect("\ntwo\r\n");
    shell.send(CTRL_D);
    shell.expect("ready> ");
    shell.line("echo code=$?");
    shell.expect("code=0");
    shell.exit();
}

/// The suspended time does not count for any other limit of the job either.
#[test]
#[requires(cgroup)]
fn suspended_time_does_not_count_for_idle_and_ready_timeouts() {
    for options in
        ["--idle-timeout 2s", "--ready line:never --ready-timeout 2s", "--ready file:/no/such --ready-timeout 2s"]
    {
        let mut shell = Pty::shell();
        shell.line(&format!("$PINFOLD run {options} -- cat"));
        shell.send("one\n");
        shell.expect("one\r\none\r\n");
        shell.send(CTRL_Z);
        shell.expect("Stopped");
        shell.expect("ready> ");
        // Longer than these timeouts: the test has to wait in real time here.
        shell.line("sleep 2.2; jobs");
        shell.expect("Stopped");
        shell.expect("ready> ");
        shell.line("fg");
        shell.expect("-- cat\r\n");
        shell.send("two\n");
        shell.expect("two\r\ntwo\r\n");
        // The clock continues, and ends the job.
        shell.expect("pinfold: cat ");
        shell.expect("ready> ");
        shell.line("echo code=$?");
        shell.expect("code=124");
        shell.exit();
    }
}

#[test]
#[requires(cgroup)]
fn the_suspend_key_is_harmless_where_pinfold_leads_the_session() {
    let mut command = Command::new(PINFOLD);
    command.args(["run", "--", "sh", "-c", "echo up; exec cat"]);
    let mut pty = Pty::start(command);
    pty.expect("up");
    for word in ["one", "two"] {
        pty.suspend_key();
        pty.send(&format!("{word}\n"));
        // The echo comes first, then the job's own output.
        pty.expect(word);
        pty.expect(word);
    }
    pty.send(CTRL_D);
    assert!(pty.wait().success());
}

#[test]
#[requires(cgroup)]
fn a_background_job_stops_at_its_first_read_and_goes_on_in_the_foreground() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run -- sh -c 'read -r line; echo got=$line' &");
    shell.expect("ready> ");
    // `wait` would not return for a stopped job, so the test looks at the list of jobs.
    shell.line("until jobs | grep -q Stopped; do :; done; echo it is stopped");
    shell.expect("\nit is stopped");
    shell.line("fg");
    shell.send("hello\n");
    shell.expect("got=hello");
    shell.expect("ready> ");
    shell.exit();
}

#[test]
#[requires(cgroup, program("python3"))]
fn settings_are_as_before_when_a_raw_mode_program_was_killed() {
    let mut shell = Pty::shell();
    shell.line("before=$(stty -a)");
    shell.expect("ready> ");
    shell.line(
        "$PINFOLD run --timeout 1s -- python3 -c \"import tty, signal; tty.setraw(0); print('it is raw'); signal.pause()\"",
    );
    shell.expect("it is raw");
    shell.expect("ready> ");
    shell.line("test \"$before\" = \"$(stty -a)\" && echo it is the same");
    shell.expect("\nit is the same");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn settings_that_the_command_made_stay() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run -- stty -ixon; stty -a | grep -o -- '-ixon'; stty sane");
    shell.expect("\n-ixon");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn a_shell_with_job_control_works_inside_and_the_foreground_comes_back() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run -- bash --norc --noprofile --noediting -i");
    shell.expect("ready> ");
    shell.line("sh -c 'echo up; exec sleep 999'");
    shell.expect("\nup");
    shell.send(CTRL_Z);
    shell.expect("Stopped");
    shell.line("kill -KILL $$");
    // Back in the outer shell, which reads from its terminal again.
    shell.line("echo code=$?");
    shell.expect("code=137");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn a_password_prompt_works() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run -- bash -c 'read -r -s -p Password: word </dev/tty; echo; echo length ${#word}'");
    shell.expect("\nPassword:");
    shell.send("secret\n");
    let printed = shell.expect("length 6");
    assert!(!printed.contains("secret"), "{printed}");
    shell.exit();
}

#[test]
#[requires(cgroup, program("vi"))]
fn vi_opens_and_quits() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run -- vi -u NONE /etc/passwd; echo ended $?");
    shell.expect("root:");
    shell.send(":q!\r");
    shell.expect("ended 0");
    shell.exit();
}

#[test]
#[requires(cgroup, program("less"))]
fn less_opens_and_quits() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD run -- less /etc/passwd; echo ended $?");
    shell.expect("root:");
    shell.send("q");
    shell.expect("ended 0");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn in_a_pipeline() {
    let mut shell = Pty::shell();
    shell.line("echo a b c | $PINFOLD run -- tr a-c x-z | $PINFOLD run -- cat -A");
    shell.expect("x y z$");
    shell.expect("ready> ");
    shell.exit();
}

#[test]
#[requires(cgroup)]
fn a_hang_up_of_the_terminal_stops_the_job() {
    let ended = crate::support::Scratch::new("hang-up");
    let mut command = Command::new(PINFOLD);
    command.args(["run", "--report"]).arg(ended.path()).args(["--", "sh", "-c", "echo up; exec sleep 999"]);
    let mut pty = Pty::start(command);
    pty.expect("up");
    // The terminal goes away with its master: SIGHUP goes to the session's leader and to the foreground group.
    let status = pty.hang_up();
    assert!(!status.success());
    assert!(ended.text().contains("\"not_removed\":[]"), "{}", ended.text());
}

/// The job of a sandbox is in a session of its own, which the terminal's keys do not reach.
#[test]
#[requires(cgroup, other_users, sandbox)]
fn keys_reach_a_sandbox_through_pinfold() {
    let mut shell = Pty::shell();
    shell.line("$PINFOLD sandbox --user 65534 -- sh -c 'echo up; exec cat'");
    shell.expect("\nup");
    shell.send("one\n");
    shell.expect("one\r\none\r\n");
    shell.send(CTRL_Z);
    shell.expect("Stopped");
    shell.expect("ready> ");
    shell.line("fg");
    shell.expect("exec cat'\r\n");
    shell.send("two\n");
    shell.expect("two\r\ntwo\r\n");
    shell.send(CTRL_C);
    shell.expect("ready> ");
    shell.line("echo code=$?");
    shell.expect("code=130");
    shell.exit();
}
