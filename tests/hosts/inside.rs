//! The functions that the hosts run.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use pinfold::report::{ContainmentKind, Reason};
use pinfold::{Command, Guard, Job, Supervisor};

use crate::BOUND;
use crate::SIZE;
use crate::outside::kill;
use crate::support::program;

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A job that reads lines: it answers each line with the same line, and exits with 7 at the end of its input.
pub struct Talker {
    give: std::io::PipeWriter,
    said: BufReader<std::io::PipeReader>,
}

pub fn talker() -> (Command, Talker) {
    let (input, give) = std::io::pipe().unwrap();
    let (reader, output) = std::io::pipe().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", r#"while read -r line; do echo "$line"; done; exit 7"#]);
    command.stdin(OwnedFd::from(input)).stdout(OwnedFd::from(output));
    (command, Talker { give, said: BufReader::new(reader) })
}

impl Talker {
    pub fn assert_answers(&mut self) {
        // If the job had ended, this write would fail with EPIPE, or the answer would be empty.
        self.give.write_all(b"are you there\n").unwrap();
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, "are you there\n");
    }
}

/// Returns the parent of the job's main process.
pub fn guard_of(job: &Job) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", job.pid())).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

/// A host with 2 GB resident memory and 50 threads. Two of the threads each spawn a job and end while it runs: one in
/// its own runtime, one in the host's.
pub fn big() {
    // SAFETY: uses a fresh private mapping, and writes within its bounds.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let memory = libc::mmap(std::ptr::null_mut(), SIZE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
        assert_ne!(memory, libc::MAP_FAILED);
        libc::madvise(memory, SIZE, libc::MADV_HUGEPAGE); // Only makes this faster.
        for at in (0..SIZE).step_by(4096) {
            memory.byte_add(at).cast::<u8>().write_volatile(1);
        }
    }
    let resident = std::fs::read_to_string("/proc/self/statm").unwrap();
    let resident: usize = resident.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(resident * rustix::param::page_size() >= SIZE);
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
        let (supervisor, mut job) = runtime.block_on(async {
            let supervisor = Supervisor::start().await.unwrap();
            let handle = tokio::runtime::Handle::current();
            let clone = supervisor.clone();
            std::thread::spawn(move || {
                let spawn = clone.spawn(&command);
                let job = if in_own_runtime { self::runtime().block_on(spawn) } else { handle.block_on(spawn) };
                drop((command, clone));
                spawned.send((job.unwrap(), std::thread::current())).unwrap();
            });
            let (job, thread) = job.await.unwrap();
            drop(thread);
            (supervisor, job)
        });
        talker.assert_answers();
        // SAFETY: signal 0 changes nothing.
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

/// Returns the open descriptors, their targets and their flags.
pub fn descriptors() -> BTreeMap<i32, (PathBuf, i32)> {
    let mut descriptors = BTreeMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let number = entry.file_name().to_str().unwrap().parse().unwrap();
        let target = std::fs::read_link(entry.path()).unwrap();
        // All except the descriptor of this directory listing.
        if !target.ends_with("fd") {
            // SAFETY: reads flags and changes nothing.
            descriptors.insert(number, (target, unsafe { libc::fcntl(number, libc::F_GETFD) }));
        }
    }
    descriptors
}

/// Waits for the host's next child that ends, whichever it is; returns `None` where there is no child.
pub fn wait_any() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: fills in one integer.
    match unsafe { libc::waitpid(-1, &raw mut status, 0) } {
        -1 => None,
        child => Some((child, libc::WEXITSTATUS(status))),
    }
}

pub fn many_supervisors() {
    // With its feature `process`, which the benchmarks need, tokio's first runtime opens a socket pair that it never
    // closes.
    drop(runtime());
    let before = descriptors();
    let runtime = runtime();
    let own = descriptors();
    let mut running = Vec::new();
    for code in 0..20 {
        running.push(runtime.spawn(async move {
            let supervisor = Supervisor::start().await.unwrap();
            let script = format!("sleep 1000 & exit {code}");
            let mut job = supervisor.spawn(Command::new("sh").args(["-c", &script])).await.unwrap();
            let report = job.wait().await.unwrap();
            assert_eq!((report.exit_code, report.leftovers.len()), (code, 1));
            assert!(report.is_gone());
            (supervisor, job)
        }));
    }
    runtime.block_on(async {
        let mut supervisors = Vec::new();
        for running in running {
            supervisors.push(running.await.unwrap());
        }
        // Each supervisor has its own guard, so that the end of one affects no other.
        let (last, _) = supervisors.pop().unwrap();
        let mut job = last.spawn(Command::new("sleep").arg("1000")).await.unwrap();
        for (supervisor, job) in supervisors {
            drop(job);
            supervisor.close().await;
        }
        job.start_stop().unwrap();
        assert_eq!(job.wait().await.unwrap().reason, Reason::Stopped);
        last.close().await;
    });
    assert_eq!(descriptors(), own);
    drop(runtime);
    assert_eq!(descriptors(), before);
}

pub fn process_group() {
    let runtime = runtime();
    runtime.block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
            let script = format!("kill -{signal} 0; sleep 1000");
            let mut job = supervisor.spawn(Command::new("sh").args(["-c", &script])).await.unwrap();
            let report = job.wait().await.unwrap();
            assert_eq!((report.reason, i32::from(report.exit_code)), (Reason::Exited, 128 + signal));
        }
        supervisor.close().await;
    });
}

pub fn killed_guard() {
    let runtime = runtime();
    let before = descriptors();
    runtime.block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let (command, said) = tree();
        let mut job = supervisor.spawn(&command).await.unwrap();
        drop(command);
        let mut said = BufReader::new(said);
        said.read_line(&mut String::new()).unwrap();
        let guard = guard_of(&job);
        // SAFETY: only the process that runs the cases reaps it, after this process has ended.
        assert_eq!(unsafe { libc::kill(guard, libc::SIGKILL) }, 0);
        let begun = Instant::now();
        let report = job.wait().await.unwrap();
        assert!(begun.elapsed() < BOUND);
        assert_eq!((report.reason, report.main.clone()), (Reason::GuardLost, None));
        assert!(report.is_gone() && report.killed, "{report:#?}");
        // The end of file proves that no process of the job holds the pipe any more.
        assert_eq!(said.read_line(&mut String::new()).unwrap(), 0);
        assert!(supervisor.spawn(&Command::new("true")).await.is_err());
        supervisor.close().await;
    });
    assert_eq!(descriptors(), before);
}

/// Without a cgroup each job has its own guard. The killed guard is the one that was forked first; its orphans and the
/// guards of the other jobs become children of this process.
pub fn killed_guard_beside_another() {
    let guard = Guard::fork().unwrap();
    let runtime = runtime();
    runtime.block_on(async {
        let supervisor = Supervisor::builder().containment(ContainmentKind::Subreaper).guard(guard);
        let supervisor = supervisor.start().await.unwrap();
        let (command, said) = tree();
        let mut first = supervisor.spawn(&command).await.unwrap();
        drop(command);
        let mut said = BufReader::new(said);
        said.read_line(&mut String::new()).unwrap();
        let (command, mut talker) = talker();
        let mut second = supervisor.spawn(&command).await.unwrap();
        drop(command);
        kill(guard_of(&first));
        let report = first.wait().await.unwrap();
        assert_eq!((report.reason, report.is_gone()), (Reason::GuardLost, true), "{report:#?}");
        assert_eq!(said.read_line(&mut String::new()).unwrap(), 0);
        talker.assert_answers();
        drop(talker);
        let report = second.wait().await.unwrap();
        assert_eq!((report.reason, report.exit_code), (Reason::Exited, 7), "{report:#?}");
        supervisor.close().await;
    });
    // All guards have been reaped: both guards, and the guard around the second one.
    assert_eq!(wait_any(), None);
}

/// Returns a tree of processes that resist their end, and the pipe that it holds. A line on the pipe reports that it
/// runs.
fn tree() -> (Command, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(program("tree"));
    command.stdin(pinfold::Stdio::null()).stdout(OwnedFd::from(writer));
    (command, reader)
}

/// The host waits until it is killed.
pub fn waits_with_a_job() {
    runtime().block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        // The job prints "ready" in place of the host.
        let mut job = supervisor.spawn(&Command::new(program("tree"))).await.unwrap();
        job.wait().await.unwrap();
    });
}

/// Forks a copy of this process that only waits to be killed. A line on standard output reports it.
fn copy() -> i32 {
    // SAFETY: there is one thread, and the copy only waits.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: closes the stream that the runner reads to its end. pause returns only after a handled signal,
            // and no signal is handled.
            unsafe {
                libc::close(1);
                libc::pause();
            }
        },
        copy => copy,
    }
}

pub fn forks_itself() {
    runtime().block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let (command, said) = tree();
        let mut job = supervisor.spawn(&command).await.unwrap();
        BufReader::new(said).read_line(&mut String::new()).unwrap();
        println!("copy {}", copy());
        job.wait().await.unwrap();
    });
}

/// The guard ends the jobs, and their own actors do so at the same time.
pub fn closes_with_jobs() {
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
            for (mut job, mut said) in running {
                let report = job.wait().await.unwrap();
                assert!(report.is_gone(), "{report:#?}");
                assert_eq!(said.read_line(&mut String::new()).unwrap(), 0, "no process of the job holds the pipe");
            }
            assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        }
    });
    assert_eq!(descriptors(), before);
}

pub fn closes_with_a_copy() {
    runtime().block_on(async {
        let supervisor = Supervisor::start().await.unwrap();
        let (command, said) = tree();
        let mut job = supervisor.spawn(&command).await.unwrap();
        BufReader::new(&said).read_line(&mut String::new()).unwrap();
        let guard = guard_of(&job);
        let copy = copy();
        let begun = Instant::now();
        supervisor.close().await;
        let guard = std::fs::read_to_string(format!("/proc/{guard}/stat")).unwrap_or_default();
        assert!(guard.is_empty() || guard.contains(") Z "), "{guard}");
        // The result is the same whichever of the two removed the leaf first.
        assert!(job.wait().await.unwrap().is_gone());
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        kill(copy);
        assert_eq!(wait_any().map(|(child, _)| child), Some(copy));
    });
}
