//! Another pinfold process finds and controls jobs: `ps`, `stats`, `stop`, `kill`, `signal`, `freeze`, `thaw`, `wait`,
//! `exec`.

use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::report::assert_matches;
use crate::support::needs::Need;
use crate::support::{PINFOLD, Ran, Run, Running, Scratch, pool, wait_for};

/// A command that starts a process, prints `up`, and waits.
const WAITS: &str = "sleep 999 & echo up; wait";

/// The same command, but it ignores the stop signal.
const IGNORES_TERM: &str = "trap '' TERM; sleep 999 & echo up; wait; sleep 999";

/// A running job with a name that no other job has.
struct Job {
    name: String,
    running: Running,
}

impl Job {
    fn start(containment: &str, options: &[&str], script: &str) -> Self {
        let name = Scratch::new("job").path().file_name().unwrap().to_str().unwrap().to_owned();
        Self::named(&name, containment, options, script)
    }

    fn named(name: &str, containment: &str, options: &[&str], script: &str) -> Self {
        let first = ["--containment", containment, "--name", name];
        let words = first.iter().chain(options);
        let mut running = Run::new(words.chain(&["--", "sh", "-c", script])).start();
        assert_eq!(running.line(), "up");
        Self { name: name.to_owned(), running }
    }

    /// Returns the job's entry in the output of `ps --json`.
    fn entry(&self) -> Value {
        entries().into_iter().find(|job| job["name"] == *self.name).unwrap()
    }

    /// Runs a subcommand on this job, by its name.
    fn does(&self, words: &[&str]) -> Output {
        pinfold(words.iter().chain(&[self.name.as_str()]))
    }

    fn finish(self) -> Ran {
        self.running.finish()
    }
}

fn pinfold<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(words: I) -> Output {
    Command::new(PINFOLD).args(words).stdin(Stdio::null()).output().unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("{output:?}"))
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Returns the supervisors in the output of `ps --json`.
fn supervisors() -> Vec<Value> {
    let output = pinfold(["ps", "--json", "--all-users"]);
    assert_eq!((code(&output), text(&output.stderr)), (0, ""));
    let listing: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_matches("ps", &listing);
    listing["supervisors"].as_array().unwrap().clone()
}

/// Returns the jobs of all supervisors.
fn entries() -> Vec<Value> {
    supervisors().iter().flat_map(|supervisor| supervisor["jobs"].as_array().unwrap().clone()).collect()
}

fn cgroup() -> Need {
    crate::support::needs::cgroup()
}

/// Calls the test with each containment of this machine.
pub fn each_containment(test: impl Fn(&str)) {
    if crate::support::has(cgroup()) {
        test("cgroup");
    }
    test("subreaper");
}

#[test]
fn a_running_job_is_listed_with_its_description_and_usage() {
    each_containment(|containment| {
        let job = Job::start(containment, &[], WAITS);
        let entry = job.entry();
        assert_eq!((&entry["state"], &entry["processes"]), (&"running".into(), &2.into()), "{entry}");
        assert_eq!(entry["command"], serde_json::json!(["sh", "-c", WAITS]));
        assert_eq!(entry["cgroup"].is_string(), containment == "cgroup");
        let pid = entry["pid"].as_i64().unwrap();
        let shown = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert_eq!(shown.trim_end_matches('\0').replace('\0', " "), format!("sh -c {WAITS}"));
        assert!(entry["memory_bytes"]["value"].as_u64().unwrap() > 0 && entry["cpu_microseconds"]["value"].is_u64());
        let is_its = |found: &&Value| found["jobs"].as_array().unwrap().iter().any(|other| other["name"] == *job.name);
        let supervisor = supervisors().iter().find(is_its).unwrap().clone();
        assert_eq!((&supervisor["pid"], &supervisor["kind"]), (&job.running.pinfold_pid().into(), &"run".into()));

        let listed = pinfold(["ps"]);
        let line = text(&listed.stdout).lines().find(|line| line.starts_with(&job.name)).unwrap();
        assert!(line.contains(&pid.to_string()) && line.contains("running"), "{line}");
        let stats = pinfold(["stats", "--json", &job.name]);
        let stats: Value = serde_json::from_slice(&stats.stdout).unwrap();
        assert_matches("ps", &stats);
        let jobs = stats["supervisors"].as_array().unwrap().iter().flat_map(|found| found["jobs"].as_array().unwrap());
        let names: Vec<_> = jobs.clone().map(|job| &job["name"]).collect();
        assert_eq!(names, [job.name.as_str()]);
        assert!(jobs.clone().all(|job| job["usage"].is_object()));

        assert_eq!(code(&job.does(&["stop"])), 0);
        let name = job.name.clone();
        job.finish();
        assert!(entries().iter().all(|job| job["name"] != *name));
    });
}

#[test]
fn stop_has_the_settings_of_run_and_returns_when_the_job_is_gone() {
    each_containment(|containment| {
        for options in [&[][..], &["--on-signal", "TERM=ignore"], &["--on-signal", "TERM=pass"]] {
            let job = Job::start(containment, options, WAITS);
            let pids = [job.entry()["pid"].clone(), job.running.pinfold_pid().into()];
            assert_eq!(code(&job.does(&["stop"])), 0);
            for pid in pids {
                assert!(has_ended(&pid), "{pid} is left");
            }
            assert_eq!(job.finish().assert_code(143).report["reason"], "stopped");
        }
        // After the grace period, SIGKILL.
        let job = Job::start(containment, &["--grace", "100ms"], IGNORES_TERM);
        assert_eq!(code(&job.does(&["stop"])), 0);
        job.finish().assert_code(137);
    });
}

#[test]
fn a_kill_does_not_wait_for_the_grace_period() {
    each_containment(|containment| {
        let job = Job::start(containment, &["--grace", "999s"], IGNORES_TERM);
        assert_eq!(code(&job.does(&["kill"])), 0);
        assert_eq!(job.finish().assert_code(137).report["killed"], true);
        // The supervisor is stopped, so it does not handle the request.
        let job = Job::start(containment, &["--grace", "999s"], IGNORES_TERM);
        let (supervisor, main) = (job.running.pinfold_pid(), job.entry()["pid"].clone());
        signal(supervisor, libc::SIGSTOP);
        assert_eq!(code(&job.does(&["kill"])), 0);
        wait_for(|| has_ended(&main).then_some(()));
        signal(supervisor, libc::SIGCONT);
        job.finish().assert_code(137);
    });
}

fn has_ended(pid: &Value) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[allow(unsafe_code)]
fn signal(pid: i32, signal: i32) {
    // SAFETY: signals a process of this test.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn a_job_is_found_by_the_pid_of_any_of_its_processes() {
    each_containment(|containment| {
        let script = "sh -c 'sleep 999 & echo $!; echo up; wait' & wait";
        let name = Scratch::new("job").path().file_name().unwrap().to_str().unwrap().to_owned();
        let words = ["--containment", containment, "--name", &name, "--", "sh", "-c", script];
        let mut running = Run::new(words).start();
        let descendant = running.line();
        assert_eq!(running.line(), "up");
        assert_eq!(code(&pinfold(["stop", &descendant])), 0);
        running.finish().assert_code(143);

        let job = Job::start(containment, &[], WAITS);
        let supervisor = job.running.pinfold_pid().to_string();
        assert_eq!(code(&pinfold(["stop", &supervisor])), 0);
        job.finish().assert_code(143);
    });
}

#[test]
fn an_unclear_target_changes_nothing() {
    each_containment(|containment| {
        let one = Job::start(containment, &[], WAITS);
        let other = Job::named(&one.name, containment, &[], WAITS);
        let ambiguous = one.does(&["stop"]);
        assert_eq!(code(&ambiguous), 125);
        for job in [&one, &other] {
            let pid = job.running.pinfold_pid().to_string();
            assert!(text(&ambiguous.stderr).contains(&pid), "{ambiguous:?}");
        }
        // One of several is not found.
        let pid = one.running.pinfold_pid().to_string();
        for words in
            [&["stop", &pid, "no-such-job"][..], &["kill", "no-such-job"], &["kill", "999999999"], &["wait", "1"]]
        {
            let output = pinfold(words);
            assert_eq!(code(&output), 125, "{output:?}");
        }
        let mine = std::process::id().to_string();
        assert_eq!(code(&pinfold(["kill", &mine])), 125);
        for job in [one, other] {
            let pid = job.running.pinfold_pid().to_string();
            assert_eq!(code(&pinfold(["stop", &pid])), 0);
            job.finish().assert_code(143);
        }
    });
}

#[test]
fn a_signal_reaches_the_main_process_or_all() {
    each_containment(|containment| {
        let script = "trap 'echo main' USR1; (trap 'echo other' USR1; echo ready; while :; do sleep 999 & wait $!; done) & \
                      read line; echo up; while :; do wait; done";
        let mut job = Run::new(["--containment", containment, "--name", containment, "--", "bash", "-c", script]);
        job.command().stdin(Stdio::piped());
        let mut job = job.start();
        assert_eq!(job.line(), "ready");
        drop(job.child.stdin.take());
        assert_eq!(job.line(), "up");
        let pid = job.pinfold_pid().to_string();
        assert_eq!(code(&pinfold(["signal", "USR1", &pid])), 0);
        assert_eq!(job.line(), "main");
        assert_eq!(code(&pinfold(["signal", "--all", "USR1", &pid])), 0);
        let mut both = [job.line(), job.line()];
        both.sort();
        assert_eq!(both, ["main", "other"]);
        assert_eq!(code(&pinfold(["signal", "NOSUCH", &pid])), 125);
        assert_eq!(code(&pinfold(["kill", &pid])), 0);
        job.finish().assert_code(137);
    });
}

#[test]
#[requires(cgroup)]
fn a_frozen_job_is_shown_and_still_ends() {
    let job = Job::start("cgroup", &[], WAITS);
    assert_eq!(code(&job.does(&["freeze"])), 0);
    assert_eq!(job.entry()["state"], "frozen");
    assert_eq!(code(&job.does(&["thaw"])), 0);
    assert_eq!(job.entry()["state"], "running");
    // A deadline, a stop and a kill end a job that is frozen.
    assert_eq!(code(&job.does(&["freeze"])), 0);
    assert_eq!(code(&job.does(&["stop"])), 0);
    job.finish().assert_code(143);
    let job = Job::start("cgroup", &["--timeout", "1s"], WAITS);
    assert_eq!(code(&job.does(&["freeze"])), 0);
    job.finish().assert_code(124);
    let job = Job::start("cgroup", &["--grace", "999s"], IGNORES_TERM);
    assert_eq!(code(&job.does(&["freeze"])), 0);
    assert_eq!(code(&job.does(&["kill"])), 0);
    job.finish().assert_code(137);
}

#[test]
fn a_job_without_a_cgroup_is_not_frozen() {
    let job = Job::start("subreaper", &[], WAITS);
    assert_eq!(code(&job.does(&["freeze"])), 125);
    assert_eq!(code(&job.does(&["stop"])), 0);
    job.finish().assert_code(143);
}

#[test]
fn wait_returns_at_the_end_of_the_job() {
    each_containment(|containment| {
        let mut job = Job::start(containment, &[], "echo up; read line");
        // `read` ends at once, because standard input is /dev/null.
        job.running.child.stdin.take();
        let name = job.name.clone();
        job.finish();
        assert_eq!(code(&pinfold(["wait", &name])), 125);
        let job = Job::start(containment, &[], WAITS);
        assert_eq!(code(&job.does(&["wait", "--timeout", "50ms"])), 124);
        let waiting = Command::new(PINFOLD).args(["wait", &job.name]).spawn().unwrap();
        assert_eq!(code(&job.does(&["stop"])), 0);
        job.finish();
        // The job may have been over before `wait` looked.
        assert!(matches!(waiting.wait_with_output().unwrap().status.code(), Some(0 | 125)));
    });
}

#[test]
#[requires(cgroup)]
fn exec_starts_a_command_in_the_leaf_and_it_ends_with_the_job() {
    let job = Job::start("cgroup", &[], WAITS);
    let leaf = job.entry()["cgroup"].as_str().unwrap().to_owned();
    let run = |options: &[&str], script: &str| {
        pinfold(["exec"].iter().chain(options).chain(&[job.name.as_str(), "--", "sh", "-c", script]))
    };
    let first = run(&[], "cat /proc/self/cgroup; echo error >&2; exit 7");
    let cgroup = text(&first.stdout).lines().find_map(|line| line.strip_prefix("0::")).unwrap();
    assert!(leaf.ends_with(cgroup), "{cgroup} is not {leaf}");
    assert_eq!((code(&first), text(&first.stderr)), (7, "error\n"));
    let second = run(&["--cwd", "/tmp", "--env", "A=b c"], "pwd; echo \"$A\"");
    assert_eq!(text(&second.stdout), "/tmp\nb c\n");
    assert_eq!(code(&run(&[], "kill -USR1 $$")), 128 + libc::SIGUSR1);
    assert_eq!(code(&pinfold(["exec", &job.name, "--", "/no/such/program"])), 127);
    assert_eq!(code(&pinfold(["exec", &job.name, "--", "/etc/passwd"])), 126);
    assert_eq!(code(&run(&["--cwd", "/no/such/directory"], "true")), 127);

    // Processes that a command leaves are a part of the job, also for the next command.
    let left = run(&[], "setsid sleep 999 >/dev/null 2>&1 & echo $!");
    let left: Value = text(&left.stdout).trim().parse::<i32>().unwrap().into();
    assert_eq!(job.entry()["processes"], 3);
    // A command that runs ends with the job.
    let running = Command::new(PINFOLD)
        .args(["exec", &job.name, "--", "sh", "-c", "echo in; exec sleep 999"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(|| (job.entry()["processes"] == 4).then_some(()));
    assert_eq!(code(&job.does(&["kill"])), 0);
    assert_eq!(running.wait_with_output().unwrap().status.code(), Some(137));
    // It may not have been reaped yet.
    assert!(has_ended(&left));
    job.finish().assert_code(137);
}

#[test]
fn exec_is_refused_without_a_cgroup() {
    let job = Job::start("subreaper", &[], WAITS);
    let refused = pinfold(["exec", &job.name, "--", "true"]);
    assert_eq!(code(&refused), 125);
    assert_eq!(code(&job.does(&["stop"])), 0);
    job.finish().assert_code(143);
}

#[test]
fn one_job_of_a_pool_is_stopped_and_the_pool_continues() {
    let name = Scratch::new("pool").path().file_name().unwrap().to_str().unwrap().to_owned();
    let job = |number| format!("{{\"command\": [\"sh\", \"-c\", \"{WAITS}\"], \"name\": \"{name}-{number}\"}}\n");
    let mut running = pool::start(&["-j", "2", "--output", "stream"], &format!("{}{}", job(1), job(2)));
    assert_eq!((running.line(), running.line()), ("up".into(), "up".into()));
    let supervisor = running.pinfold_pid();
    let found = supervisors().into_iter().find(|found| found["pid"] == supervisor).unwrap();
    let mut names: Vec<_> = found["jobs"].as_array().unwrap().iter().map(|job| job["name"].clone()).collect();
    names.sort_by_key(ToString::to_string);
    assert_eq!((&found["kind"], names), (&"pool".into(), vec![format!("{name}-1").into(), format!("{name}-2").into()]));
    assert_eq!(code(&pinfold(["stop", &format!("{name}-1")])), 0);
    assert!(entries().iter().any(|job| job["name"] == format!("{name}-2")));
    // The pid of the pool names all of its jobs.
    assert_eq!(code(&pinfold(["stop", &supervisor.to_string()])), 0);
    running.finish().assert_code(143);
}

#[test]
fn jobs_of_timeout_and_init_are_stopped_too() {
    for words in [&["timeout", "999", "sh", "-c", WAITS][..], &["init", "--", "sh", "-c", WAITS]] {
        let mut running = Run::bare([PINFOLD].iter().chain(words)).start();
        assert_eq!(running.line(), "up");
        let pid = running.pinfold_pid().to_string();
        assert_eq!(code(&pinfold(["stop", &pid])), 0);
        assert_eq!(running.finish().code, 143, "{words:?}");
    }
}

#[test]
#[requires(root, program("setpriv"))]
fn jobs_of_other_users_are_shown_to_root_and_refused_to_others() {
    let job = Job::start("subreaper", &[], WAITS);
    // Other users cannot execute a file in root's home.
    let copy = crate::support::PublicCopy::new("pinfold");
    let pid = job.running.pinfold_pid().to_string();
    let as_user = |words: &[&str]| {
        let user = ["--reuid", "61237", "--regid", "61237", "--clear-groups", copy.path()];
        Command::new("setpriv").args(user).args(words).output().unwrap()
    };
    for words in [["stop", &job.name], ["kill", &job.name], ["stop", &pid], ["freeze", &pid]] {
        let refused = as_user(&words);
        assert_eq!(code(&refused), 125, "{refused:?}");
    }
    let listed = as_user(&["ps", "--json"]);
    assert!(!text(&listed.stdout).contains(&job.name), "{listed:?}");
    assert_eq!(code(&job.does(&["stop"])), 0);
    job.finish().assert_code(143);
}
