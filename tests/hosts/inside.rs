//! What the hosts do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use pinfold::report::{ContainmentKind, Reason};
use pinfold::{Command, Guard, Job, Supervisor};

use crate::BOUND;
use crate::outside::kill;
use crate::support::{has, program};

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A job that can be spoken to: it answers each line with it, and ends with 7 at the end of its input.
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
        // Into a pipe that nobody reads any more this would be an error, at its end an empty answer.
        self.give.write_all(b"are you there\n").unwrap();
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, "are you there\n");
    }
}

/// The parent of the job's main process.
pub fn guard_of(job: &Job) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", job.pid())).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

/// 2 GB resident and 50 threads, two of which each spawn a job and end while it runs: one in a runtime of its own, one in
/// the host's.
pub fn big() {
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

/// The open descriptors, what they are and their flags.
pub fn descriptors() -> BTreeMap<i32, (PathBuf, i32)> {
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

/// The next of the host's children, whichever ends; `None` where there is none.
pub fn wait_any() -> Option<(i32, i32)> {
    let mut status = 0;
    // SAFETY: fills in one integer.
    match unsafe { libc::waitpid(-1, &raw mut status, 0) } {
        -1 => None,
        child => Some((child, libc::WEXITSTATUS(status))),
    }
}

pub fn many_supervisors() {
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

pub fn process_group() {
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

pub fn killed_guard() {
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

/// Without a cgroup each job has a guard of its own: the first one that was forked, whose orphans come to us as do the guards of
/// the others.
pub fn killed_guard_beside_another() {
    let guard = Guard::fork().unwrap();
    let runtime = runtime();
    runtime.block_on(async {
        let supervisor = Supervisor::builder().containment(ContainmentKind::Subreaper).guard(guard);
        let supervisor = supervisor.start().await.unwrap();
        let (command, said) = tree();
        let first = supervisor.spawn(&command).await.unwrap();
        drop(command);
        let mut said = BufReader::new(said);
        said.read_line(&mut String::new()).unwrap();
        let (command, mut talker) = talker();
        let second = supervisor.spawn(&command).await.unwrap();
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
    // Neither of the guards, nor of the one around the second: all of them have been reaped.
    assert_eq!(wait_any(), None);
}

/// A tree that does its best to stay, and the pipe that it holds; a line on it says that it is there.
fn tree() -> (Command, std::io::PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(program("tree"));
    command.stdin(pinfold::Stdio::Null).stdout(OwnedFd::from(writer));
    (command, reader)
}

/// Until it is killed.
pub fn waits_with_a_job() {
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

pub fn forks_itself() {
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

pub fn closes_with_a_copy() {
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
