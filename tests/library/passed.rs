//! Descriptors and pids that a command passes to its job.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use pinfold::{Command, Sandbox, Stdio, Supervisor, User};

use crate::support::host::with_supervisor;

/// Prints the variables of the sockets, and sends a line to each connection of the first socket.
const SERVER: &str = "
import os, socket
own = os.environ['LISTEN_PID'] == str(os.getpid())
sent = f\"{own} {os.environ['LISTEN_FDS']} {os.environ['LISTEN_FDNAMES']}\\n\"
listening = socket.socket(fileno=3)
listening.accept()[0].sendall(sent.encode())
";

fn answer(address: std::net::SocketAddr) -> String {
    let mut answer = String::new();
    TcpStream::connect(address).unwrap().read_to_string(&mut answer).unwrap();
    answer
}

/// The sockets stay open while the command is started again, so no connection is refused.
#[test]
#[requires(cgroup, program("python3"))]
fn sockets_are_passed_to_each_start() {
    with_supervisor(async |supervisor| {
        let sockets = ["web", "a:d\nmin"].map(|name| (name.to_owned(), TcpListener::bind("127.0.0.1:0").unwrap()));
        let address = sockets[0].1.local_addr().unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", SERVER]).stderr(Stdio::inherit()).listen_descriptors(sockets);
        for _ in 0..2 {
            // The connection waits in the queue of the socket until the next start.
            let client = std::thread::spawn(move || answer(address));
            let report = supervisor.spawn(&command).await.unwrap().wait().await.unwrap();
            assert!(report.success(), "{report:?}");
            assert_eq!(client.join().unwrap(), "True 2 web:a_d_min\n");
        }
    });
}

#[test]
#[requires(cgroup)]
fn a_descriptor_has_its_number_and_a_variable_the_pid() {
    with_supervisor(async |supervisor| {
        let (reader, mut writer) = std::io::pipe().unwrap();
        writer.write_all(b"from the caller\n").unwrap();
        let script = r#"read line <&9 && echo "$line $((MAIN == $$))"; ls -l /proc/self/fd | grep -c pipe:"#;
        let mut command = Command::new("sh");
        command.args(["-c", script]).pass_descriptor(9, reader).env_pid("MAIN").stdout(Stdio::piped());
        let output = supervisor.spawn(&command).await.unwrap().wait_with_output().await.unwrap();
        // The pipes of `ls` are number 9, its standard output, and nothing else of the caller.
        assert_eq!(String::from_utf8_lossy(&output.stdout), "from the caller 1\n2\n");
        // A later value replaces the pid.
        let mut other = Command::new("sh");
        other.args(["-c", "echo $MAIN"]).env_pid("MAIN").env("MAIN", "0").stdout(Stdio::piped());
        let output = supervisor.spawn(&other).await.unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.stdout, b"0\n");
    });
}

#[test]
#[requires(cgroup)]
fn a_standard_stream_is_no_passed_descriptor() {
    with_supervisor(async |supervisor| {
        let mut command = Command::new("true");
        command.pass_descriptor(2, std::fs::File::open("/dev/null").unwrap());
        let error = command.check().unwrap_err().to_string();
        assert!(error.contains("must be 3 or higher"), "{error}");
        assert_eq!(supervisor.spawn(&command).await.unwrap_err().to_string(), error);
    });
}

/// A sandbox closes every other descriptor.
#[test]
#[requires(cgroup, sandbox, program("python3"))]
fn a_job_in_a_sandbox_gets_its_sockets() {
    with_supervisor(async |supervisor: &Supervisor| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", SERVER]).sandbox(Sandbox::new()).listen_descriptors([("web".to_owned(), listener)]);
        if crate::support::needs::root().is_ok() {
            command.user(User::look_up("65534").unwrap());
        }
        let client = std::thread::spawn(move || answer(address));
        let report = supervisor.spawn(&command).await.unwrap().wait().await.unwrap();
        assert!(report.success(), "{report:?}");
        assert_eq!(client.join().unwrap(), "True 1 web\n");
    });
}
