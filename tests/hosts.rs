//! Library hosts: big ones, with many threads, many supervisors, forked copies, and killed ones. The guard program is the
//! host's own executable, which takes a `main` that calls [`pinfold::init`] first; so this file has a `main` of its own.
//!
//! Each case starts this executable again as a host and looks at it from outside. The process that runs the cases is the
//! subreaper of all that is orphaned, so that "no child left" proves the end.

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use pinfold::report::{MainEnd, Reason};
use pinfold::{Command, Job, Supervisor};
use support::{Canary, has, has_cgroup, program};

/// Within this time after a SIGKILL nothing is left (promise 2).
const BOUND: Duration = Duration::from_secs(1);

/// Makes this executable a host: the name of a case follows.
const HOST: &str = "--be-the-host";

/// The name, what is done from outside, and what the host does.
type Case = (&'static str, fn(), fn());

const CASES: [Case; 11] = [
    ("a_big_host_with_threads", ends_well, big),
    ("the_host_is_left_alone", ends_well, left_alone),
    ("a_host_with_unusual_signals_is_left_alone", ends_well, left_alone_with_unusual_signals),
    ("many_supervisors_in_one_process", ends_well, many_supervisors),
    ("a_job_that_signals_its_process_group", ends_well, process_group),
    ("a_killed_guard", ends_well, killed_guard),
    ("a_host_that_closes_while_jobs_run", ends_well, closes_with_jobs),
    ("a_killed_host", killed_host, waits_with_a_job),
    ("a_host_killed_early", killed_early, waits_with_a_job),
    ("a_killed_host_with_a_forked_copy", killed_host_with_a_copy, forks_itself),
    ("a_host_that_closes_with_a_forked_copy", ends_well, closes_with_a_copy),
];

fn main() {
    pinfold::init(); // This very executable is the guard program.
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.first().is_some_and(|arg| arg == HOST) {
        let (_, _, host) = CASES.iter().find(|(name, ..)| *name == args[1]).unwrap();
        return host();
    }
    run_cases(&args);
}

/// As libtest does it: filters, `--exact`, `--list`; everything else that begins with a hyphen is taken and ignored.
fn run_cases(args: &[String]) {
    // Here, and not in a host that is killed while the compiler runs.
    program("tree");
    let flag = |flag: &str| args.iter().any(|arg| arg == flag);
    let filters: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-') && *arg != "terse").collect();
    let fits = |name: &str, filter: &str| if flag("--exact") { name == filter } else { name.contains(filter) };
    let chosen =
        |name: &str| !flag("--ignored") && (filters.is_empty() || filters.iter().any(|filter| fits(name, filter)));
    let chosen: Vec<&Case> = CASES.iter().filter(|(name, ..)| chosen(name)).collect();
    if flag("--list") {
        return chosen.iter().for_each(|(name, ..)| println!("{name}: test"));
    }
    // SAFETY: changes who inherits our orphans, and what a host is given: a shell's background ignores some.
    unsafe {
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1);
        for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGTERM] {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    println!("\nrunning {} tests", chosen.len());
    let begun = Instant::now();
    let usable = has_cgroup();
    let mut failed = 0;
    for (name, from_outside, _) in &chosen {
        *CASE.lock().unwrap() = name;
        let ok = !usable || std::panic::catch_unwind(from_outside).is_ok();
        if !ok {
            failed += 1;
            end_children();
        }
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
    }
    let (result, passed) = (if failed == 0 { "ok" } else { "FAILED" }, chosen.len() - failed);
    let (filtered, took) = (CASES.len() - chosen.len(), begun.elapsed().as_secs_f64());
    println!(
        "\ntest result: {result}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {filtered} filtered out; \
         finished in {took:.2}s\n"
    );
    std::process::exit(if failed == 0 { 0 } else { 101 });
}

/// The case that runs.
static CASE: std::sync::Mutex<&str> = std::sync::Mutex::new("");

// What is done from outside.

/// The host of the case that runs, without any other guard program than itself.
fn start_host() -> Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args([HOST, *CASE.lock().unwrap()])
        .env("PATH", "/usr/bin:/bin")
        .env_remove("PINFOLD_GUARD")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn ends_well() {
    let canary = Canary::new();
    let mut host = start_host();
    let mut said = String::new();
    host.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let status = host.wait().unwrap();
    assert!(status.success(), "{status}: {said}");
    // The host has closed its supervisors, so there is nothing to wait for.
    gone(host.id(), &[canary.pid() as i32]).unwrap();
    canary.assert_alive();
}

fn killed_host() {
    let canary = Canary::new();
    for _ in 0..5 {
        let mut host = start_host();
        ready(&mut host);
        kill(host.id() as i32);
        gone(host.id(), &[canary.pid() as i32]).unwrap();
    }
    canary.assert_alive();
}

/// At any instant of its start, and of its guard's.
fn killed_early() {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
    let seed = u64::from(nanos);
    println!("seed {seed}");
    for round in 0..30 {
        // Evenly spread, from a point that is another one in each run.
        let delay = Duration::from_micros((seed / 1000 + round * 1009) % 30_000);
        let mut host = start_host();
        let begun = Instant::now();
        while begun.elapsed() < delay {
            std::hint::spin_loop();
        }
        kill(host.id() as i32);
        host.wait().unwrap();
        gone(host.id(), &[]).unwrap_or_else(|left| panic!("killed {} us after its start: {left}", delay.as_micros()));
    }
}

/// The copy keeps the socket to the guard and the lock of the base open.
fn killed_host_with_a_copy() {
    let mut host = start_host();
    let copy = ready(&mut host).strip_prefix("copy ").unwrap().parse().unwrap();
    kill(host.id() as i32);
    gone(host.id(), &[copy]).unwrap();
    // Orphaned and so our child by now.
    kill(copy);
    gone(host.id(), &[]).unwrap();
}

/// The host's first line, which it writes when it is where the case wants it.
fn ready(host: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(host.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_ne!(line, "", "the host ended early");
    line.trim_end().to_owned()
}

fn kill(child: i32) {
    // SAFETY: our own child, not reaped yet.
    assert_eq!(unsafe { libc::kill(child, libc::SIGKILL) }, 0);
}

/// Within the bound every child of ours is gone but those that `stay`, and so is every directory of that host.
fn gone(host: u32, stay: &[i32]) -> Result<(), String> {
    let begun = Instant::now();
    let prefix = format!("pinfold-{host}-");
    loop {
        let mut children = children();
        children.retain(|child| !stay.contains(child));
        for &child in &children {
            // SAFETY: reaps our own child; the standard library does not know of it, or has been told by now.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL | libc::WNOHANG) };
        }
        let directories: Vec<PathBuf> = std::fs::read_dir(support::own_cgroup())
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        if children.is_empty() && directories.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > BOUND {
            return Err(format!("left after 1 s: children {children:?}, directories {directories:?}"));
        }
        std::thread::yield_now();
    }
}

/// The children of this process, which has one thread.
fn children() -> Vec<i32> {
    let text = std::fs::read_to_string("/proc/thread-self/children").unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// A case that failed leaves nothing either.
fn end_children() {
    loop {
        let children = children();
        if children.is_empty() {
            return;
        }
        for child in children {
            kill(child);
            // SAFETY: our own child, which is ending.
            unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) };
        }
    }
}

// What the hosts do.

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A job that can be spoken to: it answers each line with it, and ends with 7 at the end of its input.
struct Talker {
    give: std::io::PipeWriter,
    said: BufReader<std::io::PipeReader>,
}

fn talker() -> (Command, Talker) {
    let (input, give) = std::io::pipe().unwrap();
    let (reader, output) = std::io::pipe().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", r#"while read -r line; do echo "$line"; done; exit 7"#]);
    command.stdin(OwnedFd::from(input)).stdout(OwnedFd::from(output));
    (command, Talker { give, said: BufReader::new(reader) })
}

impl Talker {
    fn assert_answers(&mut self) {
        // Into a pipe that nobody reads any more this would be an error, at its end an empty answer.
        self.give.write_all(b"are you there\n").unwrap();
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, "are you there\n");
    }
}

/// The parent of the job's main process.
fn guard_of(job: &Job) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", job.pid())).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

/// 2 GB resident and 50 threads, two of which each spawn a job and end while it runs: one in a runtime of its own, one in
/// the host's.
fn big() {
    const SIZE: usize = 2 << 30;
    let available = std::fs::read_to_string("/proc/meminfo").unwrap();
    let available = available.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    let available: usize = available.unwrap().parse().unwrap();
    if has("memory", available > 2 * SIZE / 1024, "less than 4 GiB are free") {
        // SAFETY: a fresh private mapping, written to within its bounds.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let memory = libc::mmap(std::ptr::null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(memory, libc::MAP_FAILED);
            libc::madvise(memory, SIZE, libc::MADV_HUGEPAGE); // Only quicker.
            for at in (0..SIZE).step_by(4096) {
                memory.byte_add(at).cast::<u8>().write_volatile(1);
            }
        }
        let resident = std::fs::read_to_string("/proc/self/statm").unwrap();
        let resident: usize = resident.split(' ').nth(1).unwrap().parse().unwrap();
        assert!(resident * rustix::param::page_size() >= SIZE);
    }
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let ended = std::sync::Arc::new(std::sync::Mutex::new(ended));
    let threads: Vec<_> = (0..50)
        .map(|_| {
            let ended = ended.clone();
            std::thread::spawn(move || assert!(ended.lock().unwrap().recv().is_err()))
        })
        .collect();

    let runtime = runtime();
    for in_own_runtime in [true, false] {
        let (command, mut talker) = talker();
        let (spawned, job) = tokio::sync::oneshot::channel();
        let (supervisor, job) = runtime.block_on(async {
            let supervisor = Supervisor::start().await.unwrap();
            let handle = tokio::runtime::Handle::current();
            let clone = supervisor.clone();
            std::thread::spawn(move || {
                let spawn = clone.spawn(&command);
                let job = if in_own_runtime { self::runtime().block_on(spawn) } else { handle.block_on(spawn) };
                drop(command);
                spawned.send((job.unwrap(), std::thread::current())).unwrap();
            });
            let (job, thread) = job.await.unwrap();
            drop(thread);
            (supervisor, job)
        });
        talker.assert_answers();
        // SAFETY: changes nothing.
        assert_eq!(unsafe { libc::kill(job.pid(), 0) }, 0);
        let Talker { give, said } = talker;
        drop(give);
        let report = runtime.block_on(job.wait()).unwrap();
        assert_eq!((report.reason, report.exit_code), (Reason::Exited, 7), "in its own runtime: {in_own_runtime}");
        assert!(report.is_gone());
        drop(said);
        runtime.block_on(supervisor.close());
    }
    drop(end);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// What a host can tell of itself and would miss.
#[derive(Debug, PartialEq)]
struct State {
    /// Signals pending, blocked, ignored and caught; umask, threads, identity.
    status: Vec<String>,
    actions: Vec<(usize, i32)>,
    subreaper: i32,
    death_signal: i32,
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    directory: PathBuf,
    group_and_session: (i32, i32),
    limits: String,
    cgroups: String,
    children: Vec<i32>,
}

impl State {
    fn now() -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap();
        let kept = ["Sig", "Shd", "Umask", "Threads", "Uid", "Gid", "Groups", "Cap", "NoNewPrivs", "Seccomp"];
        let status = read("/proc/thread-self/status");
        let status = status.lines().filter(|line| kept.iter().any(|kept| line.starts_with(kept)));
        // SAFETY: each only fills in what it is given.
        unsafe {
            let actions = (1..65).filter(|number| !(32..34).contains(number)).map(|number| {
                let mut action: libc::sigaction = std::mem::zeroed();
                assert_eq!(libc::sigaction(number, std::ptr::null(), &raw mut action), 0);
                (action.sa_sigaction, action.sa_flags)
            });
            let actions = actions.collect();
            let (mut subreaper, mut death_signal) = (-1, -1);
            assert_eq!(libc::prctl(libc::PR_GET_CHILD_SUBREAPER, &raw mut subreaper), 0);
            assert_eq!(libc::prctl(libc::PR_GET_PDEATHSIG, &raw mut death_signal), 0);
            Self {
                status: status.filter(|line| !line.starts_with("SigQ")).map(str::to_owned).collect(),
                actions,
                subreaper,
                death_signal,
                environment: std::env::vars_os().collect(),
                directory: std::env::current_dir().unwrap(),
                group_and_session: (libc::getpgid(0), libc::getsid(0)),
                limits: read("/proc/self/limits"),
                cgroups: read("/proc/self/cgroup"),
                children: children(),
            }
        }
    }
}

/// The open descriptors, what they are and their flags.
fn descriptors() -> BTreeMap<i32, (PathBuf, i32)> {
    let mut descriptors = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = std::fs::read_link(entry.path()).unwrap();
        // All but the one that this is read through.
        if !target.ends_with("fd") {
            // SAFETY: changes nothing.
            descriptors.insert(number, (target, unsafe { libc::fcntl(number, libc::F_GETFD) }));
        }
    }
    descriptors
}

/// A child of the host's own, which ends at once.
fn fork_own(code: i32) -> i32 {
    // SAFETY: there is one thread, and the child only ends.
    match unsafe { libc::fork() } {
        // SAFETY: ends this process.
        0 => unsafe { libc::_exit(code) },
        child => child,
    }
}

/// The next of the host's children, whichever ends; `None` where there is none.
fn wait_any() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: fills in one integer.
    match unsafe { libc::waitpid(-1, &raw mut status, 0) } {
        -1 => None,
        child => Some((child, libc::WEXITSTATUS(status))),
    }
}

fn left_alone() {
    let runtime = runtime();
    let (state, before) = (State::now(), descriptors());
    for _ in 0..2 {
        let early = fork_own(11);
        let with_child = State { children: vec![early], ..State::now() };
        // It is seen to have ended only by who waits for it.
        let (command, mut talker) = talker();
        runtime.block_on(async {
            let supervisor = Supervisor::start().await.unwrap();
            let job = supervisor.spawn(&command).await.unwrap();
            let guard = guard_of(&job);
            assert_eq!(
                std::fs::read_link(format!("/proc/{guard}/exe")).unwrap(),
                std::env::current_exe().unwrap(),
                "the guard program is the host's own"
            );
            talker.assert_answers();
            assert_eq!(State::now(), with_child);
            let late = fork_own(12);
            drop(talker);
            // The job's own input is still held by the command.
            drop(command);
            assert_eq!(job.wait().await.unwrap().exit_code, 7);
            assert_eq!(children(), [early, late]);
            supervisor.close().await;
            let mut ended = [wait_any().unwrap(), wait_any().unwrap()];
            ended.sort_by_key(|(_, code)| *code);
            assert_eq!(ended, [(early, 11), (late, 12)]);
            assert_eq!(wait_any(), None, "there is no child that the host has not made");
        });
        assert_eq!(State::now(), state);
        assert_eq!(descriptors(), before);
    }
}

extern "C" fn handler(_: i32) {}

fn left_alone_with_unusual_signals() {
    // SAFETY: sets dispositions and a mask of this process, which has one thread.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::signal(libc::SIGUSR1, handler as *const () as usize);
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut blocked, libc::SIGTERM);
        libc::sigaddset(&raw mut blocked, libc::SIGRTMIN() + 1);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const blocked, std::ptr::null_mut());
    }
    let runtime = runtime();
    let (state, before) = (State::now(), descriptors());
    let (command, mut talker) = talker();
    runtime.block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let job = supervisor.spawn(&command).await.unwrap();
        talker.assert_answers();
        assert_eq!(State::now(), state);
        drop(talker);
        drop(command);
        assert_eq!(job.wait().await.unwrap().main, Some(MainEnd::Exited(7)), "although SIGCHLD is ignored");
        supervisor.close().await;
    });
    assert_eq!(State::now(), state);
    assert_eq!(descriptors(), before);
}

fn many_supervisors() {
    // With its feature `process`, which the benchmarks need, tokio's first runtime opens a socket pair for good.
    drop(runtime());
    let before = descriptors();
    let runtime = runtime();
    let own = descriptors();
    let mut running = Vec::new();
    for code in 0..20 {
        running.push(runtime.spawn(async move {
            let supervisor = Supervisor::start().await.unwrap();
            let script = format!("sleep 1000 & exit {code}");
            let job = supervisor.spawn(Command::new("sh").args(["-c", &script])).await.unwrap();
            let report = job.wait().await.unwrap();
            assert_eq!((report.exit_code, report.leftovers.count), (code, 1));
            assert!(report.is_gone());
            (supervisor, job)
        }));
    }
    runtime.block_on(async {
        let mut supervisors = Vec::new();
        for running in running {
            supervisors.push(running.await.unwrap());
        }
        // Each has a guard of its own, so that one's end is nobody else's.
        let (last, _) = supervisors.pop().unwrap();
        let job = last.spawn(Command::new("sleep").arg("1000")).await.unwrap();
        for (supervisor, job) in supervisors {
            drop(job);
            supervisor.close().await;
        }
        job.stop();
        assert_eq!(job.wait().await.unwrap().reason, Reason::Stopped);
        last.close().await;
    });
    assert_eq!(descriptors(), own);
    drop(runtime);
    assert_eq!(descriptors(), before);
}

fn process_group() {
    let runtime = runtime();
    runtime.block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
            let script = format!("kill -{signal} 0; sleep 1000");
            let job = supervisor.spawn(Command::new("sh").args(["-c", &script])).await.unwrap();
            let report = job.wait().await.unwrap();
            assert_eq!((report.reason, i32::from(report.exit_code)), (Reason::Exited, 128 + signal));
        }
        supervisor.close().await;
    });
}

fn killed_guard() {
    let runtime = runtime();
    let before = descriptors();
    runtime.block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let (command, said) = tree();
        let job = supervisor.spawn(&command).await.unwrap();
        drop(command);
        let mut said = BufReader::new(said);
        said.read_line(&mut String::new()).unwrap();
        let guard = guard_of(&job);
        // SAFETY: nobody reaps it but the process that runs the cases, when this one has ended.
        assert_eq!(unsafe { libc::kill(guard, libc::SIGKILL) }, 0);
        let begun = Instant::now();
        let report = job.wait().await.unwrap();
        assert!(begun.elapsed() < BOUND);
        assert_eq!((report.reason, report.main.clone()), (Reason::GuardLost, None));
        assert!(report.is_gone() && report.killed, "{report:#?}");
        // The end of the pipe: nobody of the job holds it any more.
        assert_eq!(said.read_line(&mut String::new()).unwrap(), 0);
        assert!(supervisor.spawn(&Command::new("true")).await.is_err());
        supervisor.close().await;
    });
    assert_eq!(descriptors(), before);
}

/// A tree that does its best to stay, and the pipe that it holds; a line on it says that it is there.
fn tree() -> (Command, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(program("tree"));
    command.stdin(pinfold::Stdio::Null).stdout(OwnedFd::from(writer));
    (command, reader)
}

/// Until it is killed.
fn waits_with_a_job() {
    runtime().block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        // It says "ready" where the host would.
        let job = supervisor.spawn(&Command::new(program("tree"))).await.unwrap();
        job.wait().await.unwrap();
    });
}

/// A copy of this process that only waits to be killed. It is told by a line on standard output.
fn copy() -> i32 {
    // SAFETY: there is one thread, and the copy only waits.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: closes what the runner reads to its end; pause returns when a signal was handled, and none is.
            unsafe {
                libc::close(1);
                libc::pause();
            }
        },
        copy => copy,
    }
}

fn forks_itself() {
    runtime().block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let (command, said) = tree();
        let job = supervisor.spawn(&command).await.unwrap();
        BufReader::new(said).read_line(&mut String::new()).unwrap();
        println!("copy {}", copy());
        job.wait().await.unwrap();
    });
}

/// The guard ends them, and so do their own actors, at the same time.
fn closes_with_jobs() {
    let runtime = runtime();
    let before = descriptors();
    runtime.block_on(async {
        for jobs in [1, 1, 1, 5, 5, 5] {
            let supervisor = Supervisor::start().await.unwrap();
            let mut running = Vec::new();
            for _ in 0..jobs {
                let (command, said) = tree();
                let job = supervisor.spawn(&command).await.unwrap();
                let mut said = BufReader::new(said);
                said.read_line(&mut String::new()).unwrap();
                running.push((job, said));
            }
            let begun = Instant::now();
            supervisor.close().await;
            for (job, mut said) in running {
                let report = job.wait().await.unwrap();
                assert!(report.is_gone(), "{report:#?}");
                assert_eq!(said.read_line(&mut String::new()).unwrap(), 0, "nobody of the job holds the pipe");
            }
            assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        }
    });
    assert_eq!(descriptors(), before);
}

fn closes_with_a_copy() {
    runtime().block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let (command, said) = tree();
        let job = supervisor.spawn(&command).await.unwrap();
        BufReader::new(&said).read_line(&mut String::new()).unwrap();
        let guard = guard_of(&job);
        let copy = copy();
        let begun = Instant::now();
        supervisor.close().await;
        let guard = std::fs::read_to_string(format!("/proc/{guard}/stat")).unwrap_or_default();
        assert!(guard.is_empty() || guard.contains(") Z "), "{guard}");
        // Whichever of the two was first to remove its leaf.
        assert!(job.wait().await.unwrap().is_gone());
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        kill(copy);
        assert_eq!(wait_any().map(|(child, _)| child), Some(copy));
    });
}
