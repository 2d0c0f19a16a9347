//! `pinfold exec` into a job that has a sandbox: the command has the same sandbox, in the same leaf.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fs::{Mode, OFlags, XattrFlags, fgetxattr, fsetxattr, open};

use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, Ran, Run, Running, Scratch, program, wait_for};

const USER: &str = "65534";
const IDS: &str = "65534:65534";

/// Which user runs pinfold. Root runs the job as another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Root,
    User,
}

/// A running job in a sandbox, in a cgroup of the test's own.
struct Job {
    by: By,
    /// What executes each pinfold.
    prefix: Vec<String>,
    name: String,
    running: Running,
    cgroup: OwnCgroup,
}

impl Job {
    /// Starts `pinfold run --sandbox OPTIONS -- sh -c SCRIPT`.
    fn start(by: By, prefix: &[String], options: &[&str], script: &str) -> Self {
        let name = Scratch::new("caged").path().file_name().unwrap().to_str().unwrap().to_owned();
        let cgroup = OwnCgroup::of(USER.parse().unwrap());
        let mut words = vec![PINFOLD, "run", "--name", &name, "--containment", "cgroup", "--sandbox"];
        words.extend(options);
        if by == By::Root {
            words.extend(["--user", IDS]);
        }
        words.extend(["--", "sh", "-c", script]);
        let prefix = prefix.to_vec();
        let running = Run::bare(in_cgroup(&cgroup, by, &prefix, &words)).start();
        Self { by, prefix, name, running, cgroup }
    }

    /// Reads what the job prints, until it prints `up`.
    fn lines(&mut self) -> Vec<String> {
        let lines = std::iter::from_fn(|| Some(self.running.line()).filter(|line| line != "up"));
        lines.inspect(|line| assert_ne!(line, "", "the job has ended")).collect()
    }

    /// Returns `pinfold exec OPTIONS JOB -- COMMAND`.
    fn exec(&self, options: &[&str], command: &[&str]) -> Command {
        let user = if self.by == By::Root { &["--user", IDS][..] } else { &[] };
        self.exec_as(&[user, options].concat(), &self.name, command)
    }

    fn exec_as(&self, options: &[&str], target: &str, command: &[&str]) -> Command {
        let words = [&[PINFOLD, "exec"], options, &[target, "--"], command].concat();
        let words = in_cgroup(&self.cgroup, self.by, &self.prefix, &words);
        let mut exec = Command::new(&words[0]);
        exec.args(&words[1..]).envs([("A_TOKEN", "x"), ("KEPT", "y")]).stdin(Stdio::null());
        exec
    }

    fn run(&self, options: &[&str], script: &str) -> Output {
        self.exec(options, &["sh", "-c", script]).output().unwrap()
    }

    fn stop(self) -> Ran {
        let stopped = Command::new(PINFOLD).args(["stop", &self.name]).output().unwrap();
        assert!(stopped.status.success(), "{stopped:?}");
        let Self { running, cgroup: _cgroup, .. } = self;
        running.finish().assert_code(143)
    }
}

fn in_cgroup(cgroup: &OwnCgroup, by: By, prefix: &[String], words: &[&str]) -> Vec<String> {
    let user = format!("setpriv --reuid {USER} --regid {USER} --clear-groups");
    let user = if by == By::Root { "" } else { &user };
    let script = format!("{}; cd /; exec {user} \"$@\"", cgroup.enter());
    let first = ["bash", "-c", &script, "bash"].map(str::to_owned);
    first.into_iter().chain(prefix.iter().cloned()).chain(words.iter().map(ToString::to_string)).collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

/// Returns a directory that everyone may use, with a file in it.
fn secret() -> (Scratch, String) {
    let directory = Scratch::directory("secret");
    let file = directory.path().join("file");
    std::fs::write(&file, "a secret\n").unwrap();
    for (path, mode) in [(directory.path(), 0o777), (file.as_path(), 0o666)] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }
    let file = file.to_str().unwrap().to_owned();
    (directory, file)
}

/// The programs of the attempts.
const PROGRAMS: [&str; 3] = ["sandbox/processes", "sandbox/kernel", "sandbox/sockets"];

/// Returns a script that prints what its process is and what it is denied. SUPERVISOR and GUARD are pids.
fn self_portrait(secret: &str) -> String {
    let [processes, kernel, sockets] = PROGRAMS.map(|name| program(name).display().to_string());
    format!(
        r#"for pid in $SUPERVISOR ${{GUARD:-$PPID}}; do
  for attempt in kill_kill kill_stop pidfd_kill trace_seize memory_file vm_read descriptor limit_cpu schedule_idle; do
    echo $attempt $({processes} $attempt $pid)
  done
done
for attempt in clone3 unshare_user clone_mounts ring key_control; do echo $attempt $({kernel} $attempt); done
for attempt in udp netlink; do echo $attempt $({sockets} $attempt); done
cat {secret} 2>&1; (: >>{secret}) 2>&1 | sed 's/.*: //'; chmod 666 {secret} 2>&1
grep -E '^(Uid|Gid|Groups|Cap...|NoNewPrivs|Seccomp|Seccomp_filters):' /proc/self/status
for name in user mnt net ipc pid; do readlink /proc/self/ns/$name; done
grep ^0:: /proc/self/cgroup; ulimit -Sn; ulimit -Hn; ulimit -Hc
read pid comm state parent group session rest </proc/$$/stat; [ $session = $$ ] && echo own session
env | sed 's/=.*//' | grep -v GUARD | sort | tr '\n' ' '; echo $TMPDIR; [ -z "$TMPDIR" ] || ls $TMPDIR; ls /tmp 2>&1 | wc -l"#
    )
}

/// Returns the policies of the tests: the default, a private tmp without and with mounts, and all namespaces.
fn policies() -> Vec<(Vec<String>, Vec<&'static str>)> {
    let refuse = program("refuse").display().to_string();
    vec![
        (vec![], vec![]),
        (vec![refuse, "unshare".into(), "1".into()], vec!["--private-tmp"]),
        (vec![], vec!["--private-tmp"]),
        (vec![], vec!["--sandbox=strict", "--private-tmp=1M", "--network", "own"]),
    ]
}

#[test]
#[requires(other_users, sandbox)]
fn the_command_is_what_the_job_is_and_is_denied_what_the_job_is_denied() {
    let (_directory, secret) = secret();
    let script = self_portrait(&secret);
    let programs = PROGRAMS.map(|name| program(name).display().to_string());
    for by in [By::Root, By::User] {
        for (prefix, options) in policies() {
            // The job learns the pid of its supervisor from the test, which learns it from the job's start.
            let (ready, pipe) = secret_pipe();
            let [processes, kernel, sockets] = programs.each_ref().map(String::as_str);
            let grants = ["/proc", processes, kernel, sockets, &pipe].map(|path| ["--read", path]).concat();
            let waits = "sleep 999 & echo up; wait";
            let whole = format!(
                "[ -z \"$TMPDIR\" ] || echo of the job >$TMPDIR/made; read SUPERVISOR <{pipe}; export SUPERVISOR\n\
                 {script}\n{waits}"
            );
            let mut job = Job::start(by, &prefix, &[&options[..], &grants].concat(), &whole);
            let supervisor = job.running.pinfold_pid();
            std::fs::write(&pipe, format!("{supervisor}\n")).unwrap();
            let of_job = job.lines();
            assert!(of_job.iter().any(|line| line == "kill_kill denied EPERM"), "{by:?} {options:?} {of_job:#?}");
            assert!(!of_job.contains(&"a secret".to_owned()), "{by:?} {options:?} {of_job:#?}");

            let guard = guard_of(supervisor);
            let variables = [format!("SUPERVISOR={supervisor}"), format!("GUARD={guard}")];
            let options_of_exec = ["--env", &variables[0], "--env", &variables[1]];
            let output = job.run(&options_of_exec, &script);
            assert_eq!((code(&output), text(&output.stderr)), (0, ""), "{by:?} {options:?} {output:?}");
            let of_exec: Vec<_> = text(&output.stdout).lines().collect();
            assert_eq!(of_exec, of_job, "{by:?} {options:?}");
            drop(ready);
            job.stop();
        }
    }
}

/// Returns a named pipe that the user can read.
fn secret_pipe() -> (Scratch, String) {
    let directory = Scratch::directory("pipe");
    let pipe = directory.path().join("pid");
    assert!(Command::new("mkfifo").args(["-m", "666"]).arg(&pipe).status().unwrap().success());
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let pipe = pipe.display().to_string();
    (directory, pipe)
}

/// Returns the only child of the supervisor.
fn guard_of(supervisor: i32) -> i32 {
    let children = std::fs::read_to_string(format!("/proc/{supervisor}/task/{supervisor}/children")).unwrap();
    children.trim().parse().unwrap()
}

#[test]
#[requires(other_users, sandbox)]
fn both_see_the_same_private_tmp_and_the_command_ends_with_the_job() {
    for by in [By::Root, By::User] {
        for (prefix, options) in policies().into_iter().filter(|(_, options)| !options.is_empty()) {
            let script = "echo of the job >$TMPDIR/one; echo up; while [ ! -s $TMPDIR/two ]; do sleep 0.01; done; \
                          cat $TMPDIR/two; sleep 999 & wait";
            let mut job = Job::start(by, &prefix, &options, script);
            assert!(job.lines().is_empty());
            let output = job.run(&[], "cat $TMPDIR/one; echo of the command >$TMPDIR/new; mv $TMPDIR/new $TMPDIR/two");
            assert_eq!((code(&output), text(&output.stdout)), (0, "of the job\n"), "{by:?} {options:?} {output:?}");
            assert_eq!(job.running.line(), "of the command");

            let running =
                job.exec(&[], &["sh", "-c", "echo in; exec sleep 999"]).stdout(Stdio::piped()).spawn().unwrap();
            let leaf_has_three = || {
                let listed = Command::new(PINFOLD).args(["ps", "--json", "--all-users"]).output().unwrap();
                let listing: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
                let supervisors = listing["supervisors"].as_array().unwrap();
                let mut jobs = supervisors.iter().flat_map(|one| one["jobs"].as_array().unwrap());
                let own = jobs.find(|one| one["name"] == *job.name).unwrap();
                (own["processes"] == 3).then_some(())
            };
            wait_for(leaf_has_three);
            job.stop();
            // The stop signal, or the kill at the end of the grace period.
            let ended = running.wait_with_output().unwrap();
            assert!(matches!(ended.status.code(), Some(143 | 137)), "{by:?} {options:?} {ended:?}");
            assert_eq!(text(&ended.stdout), "in\n");
        }
    }
}

#[test]
#[requires(other_users, sandbox)]
fn a_changed_record_opens_no_way_around() {
    let (_directory, secret) = secret();
    let mut job = Job::start(By::User, &[], &[], "echo up; sleep 999 & wait");
    assert!(job.lines().is_empty());
    let supervisor = job.running.pinfold_pid();
    // The base is the only directory, and is the leaf.
    let base = std::fs::read_dir(&job.cgroup.path).unwrap().flatten().find(|entry| entry.path().is_dir()).unwrap();
    let leaf = open(base.path(), OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut record = vec![0; 16 * 1024];
    let length = fgetxattr(&leaf, c"user.pinfold.job", &mut record).unwrap();
    let record = text(&record[..length]);
    let changed = record.replace("\"sandboxed\":true", "\"sandboxed\":false");
    assert_ne!(changed, record);
    fsetxattr(&leaf, c"user.pinfold.job", changed.as_bytes(), XattrFlags::empty()).unwrap();
    let denied = job.run(&[], &format!("cat {secret}"));
    assert!(code(&denied) == 1 && text(&denied.stderr).contains("Permission denied"), "{denied:?}");
    rustix::fs::fremovexattr(&leaf, c"user.pinfold.job").unwrap();
    let by_pid = job.exec_as(&[], &supervisor.to_string(), &["cat", &secret]).output().unwrap();
    assert!(code(&by_pid) != 0 && by_pid.stdout.is_empty(), "{by_pid:?}");
    fsetxattr(&leaf, c"user.pinfold.job", record.as_bytes(), XattrFlags::empty()).unwrap();
    job.stop();
}

#[test]
#[requires(other_users, sandbox)]
fn another_user_and_a_missing_directory_are_refused() {
    let mut job = Job::start(By::Root, &[], &["--private-tmp"], "echo up; sleep 999 & wait");
    assert!(job.lines().is_empty());
    for options in [&[][..], &["--user", "0"], &["--user", "61237:61237"]] {
        let refused = job.exec_as(options, &job.name, &["true"]).output().unwrap();
        assert_eq!(code(&refused), 125, "{options:?} {refused:?}");
        assert!(text(&refused.stderr).contains("--user 65534:65534"), "{options:?} {refused:?}");
    }
    let variables = job.run(&["--env", "KEPT", "--env", "SET=z"], "echo $A_TOKEN$KEPT$SET");
    assert_eq!(text(&variables.stdout), "yz\n", "{variables:?}");
    assert_eq!(code(&job.run(&["--cwd", "/no/such/directory"], "true")), 127);
    assert_eq!(code(&job.exec(&[], &["/no/such/program"]).output().unwrap()), 127);
    let inside = job.run(&["--cwd", "/usr"], "pwd");
    assert_eq!((code(&inside), Path::new(text(&inside.stdout).trim())), (0, Path::new("/usr")), "{inside:?}");
    job.stop();
}
