//! `pinfold up`: order, readiness, restarts, the end of all processes, and files with mistakes, which start nothing.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use crate::support::events::{Process, wait_in};
use crate::support::{PINFOLD, Run, Running, Scratch};

/// A directory with a file of services, and with the control socket of their `up`.
pub struct Project(Scratch);

impl Project {
    pub fn new(label: &str, file: &str, text: &str) -> Self {
        let scratch = Scratch::directory(label);
        fs::write(scratch.path().join(file), text).unwrap();
        Self(scratch)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Returns a run of `pinfold` with these arguments, in the directory.
    pub fn pinfold<I: IntoIterator<Item: AsRef<str>>>(&self, words: I) -> Run {
        let words = words.into_iter().map(|word| word.as_ref().to_owned());
        let mut run = Run::bare(std::iter::once(PINFOLD.to_owned()).chain(words));
        run.command().current_dir(self.path()).env("XDG_RUNTIME_DIR", self.path()).env_remove("PORT");
        run
    }

    pub fn up(&self) -> Running {
        self.pinfold(["up"]).start()
    }

    /// Returns the lines of the file `log`, to which services write.
    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path().join("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn wait_for_log(&self, line: &str) {
        wait_in(self.path(), || self.log().iter().any(|known| known == line).then_some(()));
    }

    /// Connects to the control socket.
    fn connect(&self) -> Control {
        let directory = self.path().join("pinfold");
        let socket = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        let socket = socket.into_iter().find(|path| path.extension().is_some_and(|end| end == "sock")).unwrap();
        let stream = UnixStream::connect(socket).unwrap();
        let mut control = Control { reader: BufReader::new(stream.try_clone().unwrap()), stream, requests: 0 };
        assert_eq!(control.answer()["event"], "hello");
        control
    }
}

/// A connection to the control socket.
struct Control {
    stream: UnixStream,
    reader: BufReader<UnixStream>,
    requests: u64,
}

impl Control {
    fn answer(&mut self) -> serde_json::Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    /// Sends a request, and returns its number.
    fn send(&mut self, request: &str) -> u64 {
        self.stream.write_all(format!("{request}\n").as_bytes()).unwrap();
        self.requests += 1;
        self.requests
    }

    /// Waits for the last answer to a request.
    fn done(&mut self, number: u64) -> serde_json::Value {
        loop {
            let answer = self.answer();
            if answer["request"] == number && ["done", "error"].contains(&answer["event"].as_str().unwrap()) {
                return answer;
            }
        }
    }

    /// Returns the state of a service.
    fn state(&mut self, name: &str) -> String {
        self.send(r#"{"op": "status"}"#);
        loop {
            let answer = self.answer();
            if let Some(all) = answer["services"].as_array().filter(|_| answer["event"] == "status") {
                let one = all.iter().find(|one| one["name"] == name).unwrap();
                return one["state"].as_str().unwrap().to_owned();
            }
        }
    }
}

/// Returns a script that writes `name` to `log` at its start and at its stop.
fn logging(name: &str) -> String {
    format!(
        "trap 'echo {name} stops >>log; exit 0' TERM INT; echo {name} starts >>log; echo {name} listens; \
         while :; do sleep 0.05; done"
    )
}

#[test]
#[requires(cgroup)]
fn services_start_in_the_order_of_their_dependencies_and_stop_in_reverse() {
    let text = format!(
        "[services.web]\ncommand = \"{}\"\ndepends_on = {{ migrate = 'finished' }}\n\
         [services.migrate]\ncommand = \"echo migrate >>log\"\none_shot = true\ndepends_on = ['db']\n\
         [services.db]\ncommand = \"{}\"\nready = 'line:db listens'\n",
        logging("web"),
        logging("db")
    );
    let project = Project::new("order", "pinfold.toml", &text);
    let running = project.up();
    project.wait_for_log("web starts");
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(0);
    assert_eq!(project.log(), ["db starts", "migrate", "web starts", "web stops", "db stops"]);
    assert!(ran.stdout.contains("db      | db listens\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("web     | web listens\n"), "{}", ran.stdout);
    assert!(ran.stderr.contains("pinfold: db is ready\n"), "{}", ran.stderr);
}

/// After SIGKILL of `up`, no process is left, not even a daemon. The socket of the killed `up` does not block the next
/// one.
#[test]
#[requires(cgroup)]
fn a_killed_up_leaves_nothing_and_blocks_nothing() {
    let text =
        "daemon: (setsid sh -c 'setsid sleep 1000 & echo $! >>log' &) ; exit 0\nweb: echo web $$; exec sleep 1000\n";
    let project = Project::new("killed", "Procfile", text);
    for round in 1..=2 {
        // This command does not run under the warden of the tests. The warden would report processes that still run
        // right after the SIGKILL.
        let mut up = std::process::Command::new(PINFOLD);
        up.arg("up").current_dir(project.path()).env("XDG_RUNTIME_DIR", project.path());
        let mut up = up.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut web = String::new();
        BufReader::new(up.stdout.take().unwrap()).read_line(&mut web).unwrap();
        let web = web.trim().strip_prefix("web    | web ").expect("the line of web").parse().unwrap();
        let daemon = wait_in(project.path(), || project.log().get(round - 1)?.parse().ok());
        let processes = [Process::of(web), Process::of(daemon)];
        let second = project.pinfold(["up"]).run().assert_code(125);
        assert!(second.stderr.contains("are up already"), "{}", second.stderr);
        if round == 1 {
            up.kill().unwrap();
        } else {
            project.pinfold(["down"]).run().assert_code(0);
        }
        up.wait().unwrap();
        processes.iter().for_each(Process::wait_for_end);
    }
    let left = fs::read_dir(project.path().join("pinfold")).unwrap().count();
    assert_eq!(left, 0, "the directory of the control socket");
}

/// The service binds a port without SO_REUSEADDR, and a daemon of it keeps the socket open. Each restart ends both before
/// the next start.
#[test]
#[requires(cgroup, program("perl"))]
fn restarts_have_one_instance() {
    let rounds: u64 = std::env::var("PINFOLD_RESTARTS").map_or(50, |rounds| rounds.parse().unwrap());
    let script = "\
use Socket;
socket(my $socket, PF_INET, SOCK_STREAM, 0) or die;
bind($socket, sockaddr_in($ARGV[0], INADDR_LOOPBACK)) or die \"bind: $!\";
listen($socket, 5) or die;
if (fork == 0) { setpgrp(0, 0); if (fork == 0) { sleep 1000 } exit 0 }
$| = 1;
print \"listens\\n\";
sleep 1000;
";
    // A port that no process uses: the kernel has just given it to this test.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let text = format!("[services.web]\ncommand = ['perl', 'web.pl', '{port}']\nready = 'line:listens'\n");
    let project = Project::new("restarts", "pinfold.toml", &text);
    fs::write(project.path().join("web.pl"), script).unwrap();
    let mut running = project.up();
    assert_eq!(running.line(), "web | listens");
    let mut control = project.connect();
    for round in 0..rounds {
        let number = control.send(r#"{"op": "restart", "names": ["web"]}"#);
        assert_eq!(control.done(number)["event"], "done", "restart {round}");
    }
    running.signal(libc::SIGTERM);
    let ran = running.finish().assert_code(0);
    assert_eq!(ran.stdout.matches("listens").count() as u64, rounds, "{}", ran.stdout);
    assert!(!ran.stdout.contains("bind"), "{}", ran.stdout);
}

/// A dependent starts only after `ready`, also when both are restarted.
#[test]
#[requires(cgroup)]
fn a_dependent_waits_through_a_restart() {
    let gate = "while ! test -e gate; do sleep 0.02; done; echo open; exec sleep 1000";
    let text = format!(
        "[services.db]\ncommand = 'echo db >>log; {gate}'\nready = 'line:open'\n\
         [services.web]\ncommand = 'echo web >>log; exec sleep 1000'\ndepends_on = ['db']\n"
    );
    let project = Project::new("dependent", "pinfold.toml", &text);
    fs::write(project.path().join("gate"), "").unwrap();
    let running = project.up();
    project.wait_for_log("web");
    fs::remove_file(project.path().join("gate")).unwrap();
    let mut control = project.connect();
    let both = control.send(r#"{"op": "restart", "names": ["db", "web"]}"#);
    wait_in(project.path(), || (project.log().len() == 3).then_some(()));
    while control.state("web") == "stopping" {}
    assert_eq!((control.state("web").as_str(), control.state("db").as_str()), ("waiting", "starting"));
    assert_eq!(project.log(), ["db", "web", "db"]);
    fs::write(project.path().join("gate"), "").unwrap();
    // `Control::state` can't have skipped this answer, because `db` was not ready.
    assert_eq!(control.done(both)["event"], "done");
    // `web` is ready when its command has been executed, which may be before the command has written the line.
    wait_in(project.path(), || (project.log().len() == 4).then_some(()));
    assert_eq!(project.log(), ["db", "web", "db", "web"]);
    running.signal(libc::SIGINT);
    running.finish().assert_code(0);
}

#[test]
#[requires(cgroup)]
fn a_crash_loop_backs_off_and_ends_at_its_budget() {
    let text = "[services.bad]\ncommand = 'echo boom; exit 3'\n\
                restart = { policy = 'on-failure', backoff = '10ms', limit = 3, within = '1h' }\n\
                [services.good]\ncommand = 'exec sleep 1000'\n";
    let project = Project::new("crash", "pinfold.toml", text);
    let ran = project.pinfold(["up"]).run().assert_code(1);
    assert_eq!(ran.stdout, "bad  | boom\n".repeat(4));
    for message in [
        "bad has failed: it exited with 3; it is started again in 0.01 s",
        "bad has failed: it exited with 3; it is started again in 0.04 s",
        "bad has failed: it exited with 3; it was started again 3 times within 1h, which is its limit",
        "good is stopped",
    ] {
        assert!(ran.stderr.contains(message), "{message}: {}", ran.stderr);
    }
}

#[test]
#[requires(cgroup)]
fn a_service_that_is_never_ready_shows_its_last_lines() {
    let text = "[services.db]\ncommand = 'echo begins; echo has no disk; exec sleep 1000'\n\
                ready = 'line:listening'\nready_timeout = '200ms'\n\
                [services.web]\ncommand = 'echo never'\ndepends_on = ['db']\n";
    let project = Project::new("unready", "pinfold.toml", text);
    let ran = project.pinfold(["up", "--quiet"]).run().assert_code(124);
    let message = "pinfold: db has failed: it did not become ready: no line of its output contained 'listening' within \
                   200ms\npinfold: the last lines of db:\npinfold:   begins\npinfold:   has no disk\n";
    assert!(ran.stderr.starts_with(message), "{}", ran.stderr);
    assert_eq!(ran.stdout, "");
    let gone = Project::new("gone", "Procfile", "web: echo gone; exit 7");
    gone.pinfold(["up"]).run().assert_code(1);
}

#[test]
#[requires(cgroup)]
fn a_command_runs_while_the_services_are_ready() {
    let text = format!("[services.db]\ncommand = \"{}\"\nready = 'line:listens'\n", logging("db"));
    let project = Project::new("wait", "pinfold.toml", &text);
    let ran = project.pinfold(["up", "--wait", "--", "sh", "-c", "cat log; exit 7"]).run().assert_code(7);
    assert_eq!(ran.stdout, "db starts\n");
    assert!(ran.stderr.contains("db | db listens\n"), "{}", ran.stderr);
    assert_eq!(project.log(), ["db starts", "db stops"]);
    let bad = Project::new("wait-bad", "Procfile", "db: exit 1");
    let ran = bad.pinfold(["up", "--wait", "--", "sleep", "1000"]).run().assert_code(1);
    assert!(ran.stderr.contains("db has failed: it exited with 1"), "{}", ran.stderr);
    project.pinfold(["up", "--wait", "--", "no-such-program"]).run().assert_code(127);
    project.pinfold(["up", "--wait"]).run().assert_code(125);
}

/// The second signal kills a service that ignores the first one.
#[test]
#[requires(cgroup)]
fn a_second_interrupt_kills() {
    let project = Project::new("second", "Procfile", "web: trap '' INT TERM; echo ignores; while :; do sleep 1; done");
    let mut running = project.up();
    assert_eq!(running.line(), "web | ignores");
    running.signal(libc::SIGINT);
    while !running.error_line().contains("a second signal kills") {}
    // SIGTERM and not SIGINT: if the same process sends a second SIGINT at once, pinfold treats both as one request.
    running.signal(libc::SIGTERM);
    running.finish().assert_code(0);
}

#[test]
fn mistakes_are_named_with_file_and_line_before_anything_starts() {
    let service = "[services.a]\ncommand = 'echo started >>log'\n";
    for (file, text, message) in [
        (
            "pinfold.toml",
            format!("{service}depend_on = ['b']"),
            "pinfold.toml:3: unknown key 'depend_on' (did you mean 'depends_on'?)",
        ),
        (
            "pinfold.toml",
            format!("{service}depends_on = ['b']"),
            "pinfold.toml:3: a depends on 'b', which is no service",
        ),
        ("pinfold.toml", format!("{service}depends_on = ['a']"), "pinfold.toml:3: the dependencies form a cycle"),
        ("pinfold.toml", format!("{service}{service}"), "pinfold.toml:3: "),
        ("Procfile", "a: echo started >>log\na: true".into(), "Procfile:2: two services have the name 'a'"),
    ] {
        let project = Project::new("mistake", file, &text);
        let ran = project.pinfold(["up"]).run().assert_code(125);
        let expected = format!("pinfold: ./{message}");
        assert!(ran.stderr.starts_with(&expected), "{text}\n{}\n{expected}", ran.stderr);
        assert_eq!(project.log(), [""; 0]);
    }
}

/// An address in use is reported before the start, with the process that uses it.
#[test]
#[requires(cgroup)]
fn an_address_in_use_is_reported_before_the_start() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let text = format!(
        "[services.a]\ncommand = 'echo started >>log'\n[services.b]\ncommand = 'true'\nlisten = ['{address}']\n"
    );
    let project = Project::new("address", "pinfold.toml", &text);
    let ran = project.pinfold(["up"]).run().assert_code(125);
    assert!(ran.stderr.contains("pinfold.toml:3: "), "{}", ran.stderr);
    assert!(ran.stderr.contains(&address.to_string()), "{}", ran.stderr);
    assert!(ran.stderr.contains(&std::process::id().to_string()), "{}", ran.stderr);
    assert_eq!(project.log(), [""; 0]);
}

/// Services as people write them: a shell script, python's server, and npm where it is installed.
#[test]
#[requires(cgroup, program("python3"))]
fn common_programs_as_services() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut text = format!(
        "[services.files]\ncommand = 'python3 -m http.server --bind 127.0.0.1 {port}'\n\
         ready = 'http://127.0.0.1:{port}/'\n\
         [services.script]\ncommand = 'sleep 1000 & wait'\n"
    );
    let project = Project::new("common", "pinfold.toml", &text);
    let has_npm = std::process::Command::new("npm").arg("--version").output().is_ok_and(|done| done.status.success());
    if has_npm {
        text += "[services.node]\ncommand = ['npm', 'start', '--silent']\nready = 'line:node listens'\n";
        fs::write(project.path().join("pinfold.toml"), &text).unwrap();
        let start = "node -e 'console.log(`node listens`); setInterval(() => {}, 1000)'";
        let package = serde_json::json!({ "name": "a", "version": "1.0.0", "scripts": { "start": start } });
        fs::write(project.path().join("package.json"), package.to_string()).unwrap();
    }
    for _ in 0..2 {
        let ran = project.pinfold(["up", "--wait", "--", "sh", "-c", "exit 9"]).run().assert_code(9);
        assert!(ran.stderr.contains("files is ready"), "{}", ran.stderr);
    }
}
