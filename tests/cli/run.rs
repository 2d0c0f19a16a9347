//! `pinfold run`, from the outside: its input and its output.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use crate::support::{Canary, PINFOLD, Run};

#[test]
#[requires(cgroup)]
fn everything_ends_at_the_deadline_and_is_named() {
    let canary = Canary::new();
    let script = "setsid sleep 999 & (setsid nohup sleep 999 >/dev/null 2>&1 &) ; env -i setsid sleep 999 & sleep 999";
    let ran = Run::new(["--timeout", "2s", "--", "bash", "-c", script]).run().assert_code(124);
    assert!((2.0..4.0).contains(&ran.elapsed.as_secs_f64()), "{ran:#?}");
    assert_eq!(ran.listed("stopped").lines().filter(|line| *line == "sleep 999").count(), 4, "{ran:#?}");
    assert_eq!(ran.report["stopped"]["count"], 5);
    canary.assert_alive();
}

/// Prints whether each variable holds this process's identity, as sd_listen_fds(3) and sd_watchdog_enabled(3) check it.
const CHECK: &str = "
import os
pidfd = os.pidfd_open(os.getpid())
own = {'LISTEN_PID': os.getpid(), 'WATCHDOG_PID': os.getpid(), 'SYSTEMD_EXEC_PID': os.getpid(), 'LISTEN_PIDFDID': os.fstat(pidfd).st_ino}
for name, value in own.items():
    given = os.environ.get(name)
    print(name, 'none' if given is None else 'own' if given == str(value) else given)
";

/// Executes `words` in a process whose variables of these names hold its own identity.
fn activated(names: &[&str], words: &[&str]) -> String {
    let script = "import os, sys
pidfd = os.pidfd_open(os.getpid())
for name in sys.argv[1].split(','):
    os.environ[name] = str(os.fstat(pidfd).st_ino if name == 'LISTEN_PIDFDID' else os.getpid())
os.close(pidfd)
os.execv(sys.argv[2], sys.argv[2:])";
    let mut command = Command::new("python3");
    command.args(["-c", script, &names.join(",")]).args(words).args(["python3", "-c", CHECK]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[requires(cgroup, program("python3"))]
fn listen_pid_is_the_commands_pid() {
    let all = ["LISTEN_PID", "WATCHDOG_PID", "SYSTEMD_EXEC_PID", "LISTEN_PIDFDID"];
    for words in [
        &[PINFOLD, "run", "--"][..],
        &[PINFOLD, "run", "--containment", "subreaper", "--"],
        &[PINFOLD, "run", "--tee", "/dev/null", "--"],
        &[PINFOLD, "timeout", "1h"],
        &[PINFOLD, "init", "--"],
        &[PINFOLD, "run", "--", PINFOLD, "run", "--"],
    ] {
        let printed = activated(&all, words);
        assert_eq!(printed.lines().filter(|line| line.ends_with(" own")).count(), 4, "{words:?}: {printed}");
        // Variables that are not set stay unset.
        let printed = activated(&["LISTEN_PID"], words);
        assert_eq!(printed.lines().filter(|line| line.ends_with(" none")).count(), 3, "{words:?}: {printed}");
    }
}

#[test]
#[requires(cgroup, program("python3"))]
fn a_listen_pid_of_another_process_is_left_alone() {
    let run = |variables: &[(&str, &str)], options: &[&str]| {
        let mut command = Command::new(PINFOLD);
        command.arg("run").args(options).args(["--", "python3", "-c", CHECK]).envs(variables.iter().copied());
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    let printed = run(&[("LISTEN_PID", "1"), ("LISTEN_PIDFDID", "17"), ("WATCHDOG_PID", "")], &[]);
    assert!(printed.contains("LISTEN_PID 1\n") && printed.contains("LISTEN_PIDFDID 17\n"), "{printed}");
    assert!(printed.contains("WATCHDOG_PID \n"), "{printed}");
    // A value that the caller requested with --env stays unchanged too.
    let script = r#"exec "$0" run --env LISTEN_PID=$$ -- sh -c 'test $LISTEN_PID -ne $$ && echo "$LISTEN_PID"'"#;
    let child = Command::new("sh").args(["-c", script, PINFOLD]).stdout(Stdio::piped()).spawn().unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), pid.to_string());
    assert!(run(&[], &["--clear-env"]).contains("LISTEN_PID none\n"));
}

/// The real caller, with a server that checks the variables as systemd's library does.
#[test]
#[requires(cgroup, program("systemd-socket-activate"), program("python3"))]
fn under_systemd_socket_activate() {
    const SERVER: &str = "
import os, socket
assert os.environ['LISTEN_PID'] == str(os.getpid()), os.environ['LISTEN_PID']
assert os.environ['LISTEN_FDS'] == '1'
listening = socket.socket(fileno=3)
connection, _ = listening.accept()
connection.sendall(os.environ.get('LISTEN_FDNAMES', '').encode() + b' served\\n')
";
    for words in [&["run", "--"][..], &["timeout", "1h"], &["init", "--"]] {
        // This port was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new("systemd-socket-activate");
        command.args(["-l", &format!("127.0.0.1:{port}"), "--fdname=web", PINFOLD]).args(words);
        command.args(["python3", "-c", SERVER]).stdin(Stdio::null()).stderr(Stdio::piped());
        let mut activating = command.spawn().unwrap();
        let mut messages = BufReader::new(activating.stderr.take().unwrap());
        // It prints its first message when it listens.
        assert_ne!(messages.read_line(&mut String::new()).unwrap(), 0);
        let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.write_all(b"hello\n").unwrap();
        let mut answer = String::new();
        // The connection is reset after the answer, because the server reads nothing.
        let _ = connection.read_to_string(&mut answer);
        assert_eq!(answer, "web served\n", "{words:?}");
        assert!(activating.wait().unwrap().success(), "{words:?}");
    }
}

/// `pinfold init` as the first process of a container: its own LISTEN_PID is 1.
#[test]
#[requires(cgroup, root, program("python3"))]
fn as_pid_1() {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", PINFOLD, "init", "--", "python3", "-c", CHECK]);
    command.env("LISTEN_PID", "1").env("WATCHDOG_PID", "1").env("SYSTEMD_EXEC_PID", "12").env("LISTEN_PIDFDID", "5");
    let output = command.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        printed, "LISTEN_PID own\nWATCHDOG_PID own\nSYSTEMD_EXEC_PID 12\nLISTEN_PIDFDID none\n",
        "{:?}",
        output.stderr
    );
}
