//! Code that the benchmarks share: workers. A worker does a number of jobs on request, and reports the time. So different
//! ways to do the same work, and processes of different sizes, can take turns in one run.

#![allow(dead_code)] // Each benchmark is a crate of its own and uses only a part of this file.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Builds a C program of this repository, statically, next to the running executable, and returns its path.
pub fn program(source: &str) -> PathBuf {
    // The package of the benchmark is the root of this repository, or a directory inside it.
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = project.ancestors().map(|above| above.join(source)).find(|path| path.exists()).expect(source);
    let directory = std::env::current_exe().unwrap().parent().unwrap().join("bench-programs");
    std::fs::create_dir_all(&directory).unwrap();
    let target = directory.join(source.file_stem().unwrap());
    let done = Command::new("cc").args(["-O2", "-Wall", "-Wextra", "-static", "-o"]).args([&target, &source]).status();
    assert!(done.expect("cc is needed").success(), "{} does not compile", source.display());
    target
}

/// Returns the directory of this process's cgroup v2, in which pinfold makes its base.
pub fn own_cgroup() -> PathBuf {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).expect("no cgroup v2");
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).expect("cgroup2 is not mounted");
    PathBuf::from(mount.split(' ').nth(4).unwrap()).join(own)
}

/// A cgroup for the measurements without pinfold. It is removed at the end.
pub struct Cgroup(pub PathBuf);

impl Cgroup {
    pub fn new() -> Self {
        let path = own_cgroup().join(format!("bench-{}", std::process::id()));
        std::fs::create_dir(&path).expect("cannot make a cgroup here: run it as root or in a delegated cgroup");
        Self(path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Workers end when their standard input ends, and some of them may still be running.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} is left", self.0.display());
    }
}

/// A process that runs jobs on request.
pub struct Worker {
    pub name: String,
    process: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    pub fn start(name: &str, command: &mut Command) -> Self {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (requests, answers) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        Self { name: name.into(), process, requests, answers }
    }

    /// Starts the worker in C that makes the bare kernel calls.
    pub fn bare(cgroup: &Cgroup) -> Self {
        let mut command = Command::new(program("benches/programs/bare.c"));
        Self::start("bare", command.arg(&cgroup.0).arg(program("tests/programs/tiny.c")))
    }

    /// Starts this executable as a worker with that work, after it has filled this number of megabytes of memory.
    pub fn own(work: &str, megabytes: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let tiny = program("tests/programs/tiny.c");
        command.arg("--worker").arg(work).arg(megabytes.to_string()).arg(tiny);
        Self::start(&format!("{work}, {megabytes} MB"), &mut command)
    }

    /// Runs this number of jobs, one after another.
    pub fn work(&mut self, jobs: u64) -> Duration {
        writeln!(self.requests.as_mut().unwrap(), "{jobs}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let microseconds: f64 = line.trim().parse().unwrap_or_else(|_| panic!("worker {} failed", self.name));
        Duration::from_secs_f64(microseconds / 1e6)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.requests = None;
        let _ = self.process.wait();
    }
}

/// Returns (work, program) if this process was started as a worker, after it has grown to the requested size.
pub fn worker_arguments() -> Option<(String, String)> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some("--worker") {
        return None;
    }
    let (work, megabytes, program) = (arguments.next()?, arguments.next()?, arguments.next()?);
    let megabytes: usize = megabytes.parse().unwrap();
    // Writes to the memory, so that each page exists. It is never freed.
    std::mem::forget(std::hint::black_box(vec![1_u8; megabytes << 20]));
    Some((work, program))
}

/// Runs in the worker: calls `batch` for each request, until the input ends.
pub fn serve(mut batch: impl FnMut(u64)) {
    for line in std::io::stdin().lines() {
        let jobs = line.unwrap().trim().parse().unwrap();
        let begun = Instant::now();
        batch(jobs);
        println!("{}", begun.elapsed().as_secs_f64() * 1e6);
    }
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    (low + high) / 2.0
}

/// Lets the workers take turns and prints their medians, and the ratio of each to the first one in the same round. It
/// starts the workers several times, because a process can be faster or slower by up to a tenth for its whole life,
/// depending on the location of its memory.
pub fn compare<const N: usize>(title: &str, start: impl Fn() -> [Worker; N], starts: usize, rounds: usize, batch: u64) {
    let mut times: [Vec<f64>; N] = std::array::from_fn(|_| Vec::new());
    let mut names = Vec::new();
    for _ in 0..starts {
        let mut workers = start();
        names = workers.iter().map(|worker| worker.name.clone()).collect();
        for worker in &mut workers {
            worker.work(batch); // Warm up.
        }
        for round in 0..rounds {
            // Each round begins with another worker.
            for turn in 0..N {
                let index = (round + turn) % N;
                times[index].push(workers[index].work(batch).as_secs_f64() * 1e6 / batch as f64);
            }
        }
    }
    println!("\n{title}: {starts} times {rounds} rounds of {batch} jobs each\n median us    min us   ratio");
    for (name, mine) in names.iter().zip(&times) {
        let ratios: Vec<f64> = mine.iter().zip(&times[0]).map(|(mine, other)| mine / other).collect();
        let least = mine.iter().copied().fold(f64::INFINITY, f64::min);
        println!("{:>10.1} {least:>9.1} {:>7.2}   {}", median(mine), median(&ratios), name);
    }
}

/// Prints the machine's load, which affects every figure.
pub fn print_load() {
    println!("load average: {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
}
