//! `pinfold up`: sockets, notifications, watchdogs, log files and ports of services.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{PINFOLD, Scratch};

/// A directory with a `pinfold.toml`.
struct Project(Scratch);

impl Project {
    fn new(label: &str, text: &str) -> Self {
        let scratch = Scratch::directory(label);
        fs::write(scratch.path().join("pinfold.toml"), text).unwrap();
        Self(scratch)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn pinfold(&self, words: &[&str]) -> Command {
        let mut command = Command::new(PINFOLD);
        command.args(words).current_dir(self.path()).env("XDG_RUNTIME_DIR", self.path()).stdin(Stdio::null());
        command
    }

    /// Runs `up --wait` with a script, and returns its exit code and its messages.
    fn up_wait(&self, script: &str) -> (Option<i32>, String) {
        let output = self.pinfold(&["up", "--wait", "--", "sh", "-c", script]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }
}

/// `pinfold up` in the background, with its messages.
struct Up {
    child: Child,
    messages: BufReader<std::process::ChildStderr>,
}

impl Up {
    fn start(project: &Project) -> Self {
        let mut child = project.pinfold(&["up"]).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let messages = BufReader::new(child.stderr.take().unwrap());
        Self { child, messages }
    }

    /// Reads messages up to the first one that contains this text.
    #[track_caller]
    fn wait_for(&mut self, part: &str) -> String {
        let mut seen = String::new();
        loop {
            let begin = seen.len();
            assert_ne!(self.messages.read_line(&mut seen).unwrap(), 0, "no message with {part}: {seen}");
            if seen[begin..].contains(part) {
                return seen[begin..].to_owned();
            }
        }
    }

    /// Stops it, and returns the rest of its messages.
    fn down(mut self, project: &Project) -> String {
        let done = project.pinfold(&["down"]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let mut rest = String::new();
        self.messages.read_to_string(&mut rest).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{rest}");
        rest
    }
}

const NOTIFY: &str = r#"
import os, socket, sys, time
def send(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + os.environ["NOTIFY_SOCKET"][1:])
        sender.send(text.encode())
"#;

/// A grandchild in a session of its own reports that the service is ready. pinfold ignores a message from a process
/// outside of the service.
#[test]
#[requires(cgroup, program("python3"))]
fn only_a_process_of_the_service_says_that_it_is_ready() {
    let service = format!(
        r#"{NOTIFY}
open("address", "w").write(os.environ["NOTIFY_SOCKET"])
os.mkfifo("go") if not os.path.exists("go") else None
send("MAINPID=1\nSTATUS=waiting for go")
open("go").read()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        send("READY=1\nSTATUS=serving")
    os._exit(0)
time.sleep(999)
"#
    );
    let project =
        Project::new("notify", "[services.app]\ncommand = [\"python3\", \"service.py\"]\nready = \"notify\"\n");
    fs::write(project.path().join("service.py"), service).unwrap();
    let mut up = Up::start(&project);
    up.wait_for("MAINPID=1 is not accepted");
    up.wait_for("status: waiting for go");
    let stranger = format!("{NOTIFY}\nsend('READY=1')");
    let mut outside = Command::new("python3");
    let sent = outside.args(["-c", &stranger]).env("NOTIFY_SOCKET", project.text("address")).status().unwrap();
    assert!(sent.success());
    let ignored = up.wait_for("a message was ignored");
    assert!(ignored.contains("belong"), "{ignored}");
    fs::write(project.path().join("go"), "").unwrap();
    // If the message of the stranger had counted, the service would have been ready before.
    let status = up.wait_for("app");
    assert!(status.contains("status: serving") || status.contains("is ready"), "{status}");
    up.down(&project);
}

#[test]
#[requires(cgroup, program("python3"))]
fn a_service_whose_watchdog_expires_has_failed() {
    let service = format!(
        r#"{NOTIFY}
assert os.environ["WATCHDOG_PID"] == str(os.getpid()) and os.environ["WATCHDOG_USEC"] == "300000"
# Before it is ready, the watchdog does not run.
time.sleep(0.6)
send("READY=1")
for _ in range(4):
    time.sleep(0.1)
    send("WATCHDOG=1")
time.sleep(999)
"#
    );
    let text = "[services.app]\ncommand = [\"python3\", \"service.py\"]\nready = \"notify\"\nwatchdog = \"300ms\"\n";
    let project = Project::new("watchdog", text);
    fs::write(project.path().join("service.py"), service).unwrap();
    let (code, messages) = project.up_wait("sleep 999");
    assert!(messages.contains("app is ready") && messages.contains("it sent no WATCHDOG=1 for 300ms"), "{messages}");
    assert_eq!(code, Some(1), "{messages}");
}

/// pinfold holds the socket while the service is restarted, so no connection is refused.
#[test]
#[requires(cgroup, program("python3"))]
fn no_connection_is_refused_while_a_service_is_restarted() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let service = "
import os, socket
assert os.environ['LISTEN_PID'] == str(os.getpid()) and os.environ['LISTEN_FDNAMES'] == 'app'
listening = socket.socket(fileno=3)
while True:
    listening.accept()[0].sendall(str(os.getpid()).encode())
";
    let text = format!(
        "[services.app]\ncommand = [\"python3\", \"service.py\"]\nlisten = \"127.0.0.1:{port}\"\nready = \"port:{port}\"\n"
    );
    let project = Project::new("listen", &text);
    fs::write(project.path().join("service.py"), service).unwrap();
    let mut up = Up::start(&project);
    up.wait_for("app is ready");
    let ask = move || {
        let mut answer = String::new();
        // A connection that the old instance has accepted ends without an answer.
        let _ = TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut answer);
        answer
    };
    let first = ask();
    let (over, is_over) = std::sync::mpsc::channel();
    let asking = std::thread::spawn(move || {
        let mut answers = Vec::new();
        while is_over.try_recv().is_err() {
            answers.push(ask());
        }
        answers.push(ask());
        answers
    });
    assert!(project.pinfold(&["restart", "app"]).status().unwrap().success());
    over.send(()).unwrap();
    let answers = asking.join().unwrap();
    assert_ne!(answers.last(), Some(&first));
    up.down(&project);
}

/// A service that does not become ready: the message says what pinfold waited for, and how the last attempt failed.
#[test]
#[requires(cgroup)]
fn the_last_failure_of_a_check_is_reported() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (timeout, ready, part) in [
        (
            // The check must end in this time, also on a busy machine.
            "3s",
            "{ command = 'echo no such table >&2; exit 2' }".to_owned(),
            "exit 2' exited with 2: no such table (waited for",
        ),
        ("1s", format!("'http://127.0.0.1:{port}/'"), "no process listens on 127.0.0.1:"),
        ("300ms", "'notify'".to_owned(), "it has not sent READY=1 (waited for"),
    ] {
        let text = format!("[services.app]\ncommand = 'sleep 999'\nready = {ready}\nready_timeout = '{timeout}'\n");
        let (code, messages) = Project::new("checks", &text).up_wait("true");
        assert_eq!(code, Some(124), "{messages}");
        assert!(messages.contains(part), "{messages}");
    }
}

#[test]
#[requires(cgroup)]
fn a_port_of_a_stranger_is_reported_before_anything_starts() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = stranger.local_addr().unwrap().port();
    for key in [format!("ready = \"port:{port}\""), format!("listen = \"127.0.0.1:{port}\"")] {
        let text =
            format!("[services.one]\ncommand = \"echo started > one\"\n[services.app]\ncommand = \"true\"\n{key}\n");
        let project = Project::new("taken", &text);
        let (code, messages) = project.up_wait("true");
        let expected = format!("process {} ", std::process::id());
        assert!(messages.contains("pinfold.toml:3: ") && messages.contains(&expected), "{messages}");
        assert_eq!((code, project.text("one").as_str()), (Some(125), ""));
    }
}

/// The service writes as fast as pinfold reads, and the log has many files.
#[test]
#[requires(cgroup)]
fn a_log_of_many_files_has_every_line() {
    const LINES: usize = 300_000;
    let text = format!(
        "[services.app]\ncommand = \"exec seq {LINES}\"\none_shot = true\nlog = {{ file = \"app.log\", size = \"64K\", count = 99 }}\n"
    );
    let project = Project::new("log", &text);
    let begun = std::time::Instant::now();
    let output = project.pinfold(&["up", "--quiet", "--wait", "--", "true"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let elapsed = begun.elapsed();
    let mut next = 1;
    let mut bytes = 0;
    let names = (1..=99).rev().map(|number| format!("app.log.{number}")).chain(["app.log".to_owned()]);
    for name in names {
        let file = project.text(&name);
        assert!(file.len() <= 64 * 1024 && (file.is_empty() || file.ends_with('\n')), "{name}");
        bytes += file.len();
        for line in file.lines() {
            assert_eq!(line.parse(), Ok(next), "in {name}");
            next += 1;
        }
    }
    assert_eq!(next, LINES + 1);
    println!("MEASURED a log of {bytes} bytes: {:.0} MB/s", bytes as f64 / 1e6 / elapsed.as_secs_f64());
}
