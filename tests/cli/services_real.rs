//! Real services: PostgreSQL, Redis and nginx, from Debian's packages.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::PINFOLD;
use crate::support::events::Process;
use crate::support::needs::{self, postgresql};

/// Three services in a directory of their own, and the test command that uses all of them.
struct Stack {
    directory: PathBuf,
    test: String,
}

fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

fn checked(output: Output) -> String {
    assert!(output.status.success(), "{output:#?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

impl Stack {
    fn new(label: &str) -> Self {
        // The directory is not in the build directory, because PostgreSQL's user may not be able to enter that. Its
        // path is short, because the path of a Unix socket has at most 107 bytes.
        let directory = std::env::temp_dir().join(format!("pinfold-{label}-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777)).unwrap();
        let bin = postgresql().unwrap();
        let (at, bin) = (directory.display(), bin.display());
        // PostgreSQL refuses to run as root.
        let is_root = needs::root().is_ok();
        let user = if is_root { "user = \"postgres\"\n" } else { "" };
        let mut initdb = Command::new(if is_root { "setpriv" } else { "env" });
        if is_root {
            initdb.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        }
        initdb.arg(format!("{bin}/initdb")).args(["-A", "trust", "-U", "test", "--no-sync", "-D"]);
        checked(initdb.arg(directory.join("data")).current_dir(&directory).stdin(Stdio::null()).output().unwrap());
        let [db, cache, web] = free_ports();
        // The default directories of Debian's nginx belong to root, so the configuration names other ones.
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.map(|kind| format!("{kind}_temp_path {kind};\n ")).concat();
        std::fs::write(
            directory.join("nginx.conf"),
            format!(
                "error_log stderr;\npid nginx.pid;\nevents {{}}\nhttp {{\n access_log off;\n {temporary}server {{\n  \
                 listen 127.0.0.1:{web};\n  location / {{ return 200 ok; }}\n }}\n}}\n"
            ),
        )
        .unwrap();
        std::fs::write(
            directory.join("pinfold.toml"),
            format!(
                r#"
[services.web]
command = ["nginx", "-p", "{at}/", "-c", "nginx.conf", "-g", "daemon off;"]
depends_on = ["db", "cache"]
ready = {{ http = "http://127.0.0.1:{web}/health", status = 200 }}
stop_signal = "QUIT"

[services.db]
command = ["{bin}/postgres", "-D", "data", "-k", "{at}", "-p", "{db}", "-h", "127.0.0.1", "-F"]
{user}ready = "notify"
stop_signal = "INT"

[services.cache]
command = ["redis-server", "--port", "{cache}", "--unixsocket", "{at}/cache.sock", "--save", "", "--dir", "{at}"]
ready = {{ command = "redis-cli -p {cache} ping" }}
"#
            ),
        )
        .unwrap();
        let test = format!(
            "set -e; psql -h 127.0.0.1 -p {db} -U test -Atc 'select 6 * 7' postgres; redis-cli -s {at}/cache.sock ping; \
             python3 -c 'import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:{web}/\").read().decode())'"
        );
        Self { directory, test }
    }

    fn up(&self, script: &str) -> Command {
        let mut command = Command::new(PINFOLD);
        command.arg("up").arg(self.directory.join("pinfold.toml")).args(["--wait", "--", "sh", "-c", script]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs the test command while all services are up, and checks that no process of them is left afterwards.
    fn assert_works(&self) {
        let output = self.up(&self.test).output().unwrap();
        let stdout = String::from_utf8_lossy(&output.stdout);
        for line in ["42", "PONG", "ok"] {
            assert!(stdout.lines().any(|printed| printed == line), "no line {line}: {output:#?}");
        }
        assert!(output.status.success(), "{output:#?}");
        assert_eq!(processes_in(&self.directory), Vec::<String>::new());
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Returns the processes whose command line contains the directory, or whose working directory is the directory or
/// below it.
fn processes_in(directory: &Path) -> Vec<String> {
    let name = directory.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let found = entries.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let words = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        let is_in = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(directory));
        (pid != std::process::id() && (is_in || words.contains(name))).then(|| format!("{pid} {words}"))
    });
    found.collect()
}

#[test]
#[requires(cgroup, servers)]
fn postgresql_redis_and_nginx_twice_and_after_sigkill() {
    let stack = Stack::new("stack");
    stack.assert_works();
    stack.assert_works();
    // SIGKILL of pinfold while all services run.
    let mut killed = stack.up("echo all are up; sleep 999").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(killed.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("all are up")));
    let alive: Vec<i32> = processes_in(&stack.directory)
        .iter()
        .filter_map(|process| process.split(' ').next()?.parse().ok())
        .filter(|pid| *pid != killed.id() as i32)
        .collect();
    assert!(alive.len() >= 3, "{alive:?}");
    let alive: Vec<Process> = alive.into_iter().map(Process::of).collect();
    killed.kill().unwrap();
    killed.wait().unwrap();
    alive.iter().for_each(Process::wait_for_end);
    // Files that were left, such as postmaster.pid and the sockets, do not prevent the next start.
    stack.assert_works();
}
