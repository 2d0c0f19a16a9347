//! The library's speed: the time of one job from spawn until it is proven empty and removed, compared with the time of
//! the bare kernel calls; the time of stops; kills of big trees; spawns from big hosts.
//!
//! `cargo bench --bench job`. criterion measures one candidate after another. On a noisy machine, rely on the tables
//! that follow instead: their candidates take turns.

mod support;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use criterion::Criterion;
use pinfold::{Command, Job, Sandbox, Supervisor, User};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};
use support::{Cgroup, Worker, compare, median, program};
use tokio::runtime::Runtime;

fn main() {
    if let Some((work, program)) = support::worker_arguments() {
        return be_worker(&work, &program);
    }
    // `cargo test --benches` only checks that the benchmark starts.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    support::print_load();
    let mut criterion = Criterion::default().measurement_time(Duration::from_secs(3)).configure_from_args();
    one_job(&mut criterion);
    criterion.final_summary();
    if std::env::args().nth(1).is_some_and(|filter| !filter.starts_with("--")) {
        return; // The caller asked for some of criterion's benchmarks only.
    }

    let cgroup = Cgroup::new();
    let own = |work| Worker::own(work, 0);
    let ways = || [Worker::bare(&cgroup), own("pinfold"), own("std::process"), own("tokio::process")];
    compare("spawn + wait + proven empty + removed", ways, 8, 6, 50);
    let ways = || [own("pinfold without a settle time"), own("pinfold")];
    compare("a job without leftovers, and its settle time", ways, 8, 6, 50);
    let ways = || [own("pinfold as a user"), own("pinfold in a sandbox")];
    compare("a job in a sandbox, and the same job without one", ways, 12, 12, 50);
    // bwrap is measured in a comparison of its own. The kernel frees the namespaces of bwrap later, and that time would
    // be added to the next candidate.
    if std::process::Command::new("bwrap").arg("--version").output().is_ok() {
        let ways = || [own("std::process as a user"), own("bwrap as a user")];
        compare("a process in bwrap, and the same process without it", ways, 4, 6, 50);
    } else {
        println!("\nBWRAP IS MISSING, SO IT WAS NOT MEASURED: apt-get install bubblewrap");
    }
    let sizes = || [10, 512, 2048].map(|megabytes| Worker::own("pinfold", megabytes));
    compare("the same in hosts of these sizes", sizes, 4, 10, 50);

    let runtime = runtime();
    let supervisor = runtime.block_on(Supervisor::start()).unwrap();
    runtime.block_on(stops(&supervisor, &cgroup));
    runtime.block_on(kills(&supervisor, &cgroup));
    runtime.block_on(supervisor.close());
    support::print_load();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn be_worker(work: &str, program: &str) {
    let runtime = runtime();
    match work {
        "pinfold" => {
            let supervisor = runtime.block_on(Supervisor::start()).unwrap();
            support::serve(|jobs| runtime.block_on(pinfold_jobs(&supervisor, program, jobs)));
            runtime.block_on(supervisor.close());
        }
        "pinfold without a settle time" => {
            let supervisor = runtime.block_on(Supervisor::start()).unwrap();
            let mut command = Command::new(program);
            command.settle(Duration::ZERO);
            support::serve(|jobs| runtime.block_on(jobs_of(&supervisor, &command, jobs)));
            runtime.block_on(supervisor.close());
        }
        "pinfold as a user" | "pinfold in a sandbox" => {
            let supervisor = runtime.block_on(Supervisor::start()).unwrap();
            let command = as_user(program, work == "pinfold in a sandbox");
            support::serve(|jobs| runtime.block_on(jobs_of(&supervisor, &command, jobs)));
            runtime.block_on(supervisor.close());
        }
        "std::process" => support::serve(|jobs| std_jobs(program, jobs)),
        "std::process as a user" => support::serve(|jobs| std_jobs_as_user(&[program], jobs)),
        "bwrap as a user" => {
            let words = [&["bwrap", "--ro-bind", "/", "/", "--unshare-all", "--die-with-parent", "--"], &[program][..]];
            support::serve(|jobs| std_jobs_as_user(&words.concat(), jobs));
        }
        "tokio::process" => support::serve(|jobs| runtime.block_on(tokio_jobs(program, jobs))),
        _ => panic!("no such work: {work}"),
    }
}

async fn pinfold_jobs(supervisor: &Supervisor, program: &str, jobs: u64) {
    jobs_of(supervisor, &Command::new(program), jobs).await;
}

async fn jobs_of(supervisor: &Supervisor, command: &Command, jobs: u64) {
    for _ in 0..jobs {
        let report = supervisor.spawn(command).await.unwrap().wait().await.unwrap();
        assert!(report.exit_code == 0 && report.is_gone());
    }
}

/// A sandbox cannot restrict root, so root's jobs have another user, with and without a sandbox.
fn as_user(program: &str, in_a_sandbox: bool) -> Command {
    let mut command = Command::new(program);
    if in_a_sandbox {
        let mut sandbox = Sandbox::new();
        sandbox.read(program);
        command.sandbox(sandbox);
    }
    if rustix::process::geteuid().is_root() {
        command.user(User::look_up("65534:65534").unwrap());
    }
    command
}

fn std_jobs(program: &str, jobs: u64) {
    for _ in 0..jobs {
        assert!(std::process::Command::new(program).status().unwrap().success());
    }
}

/// Runs the words as the user of [`as_user`], without pinfold.
fn std_jobs_as_user(words: &[&str], jobs: u64) {
    use std::os::unix::process::CommandExt;
    let mut command = std::process::Command::new(words[0]);
    command.args(&words[1..]);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    }
    for _ in 0..jobs {
        assert!(command.status().unwrap().success());
    }
}

async fn tokio_jobs(program: &str, jobs: u64) {
    for _ in 0..jobs {
        assert!(tokio::process::Command::new(program).status().await.unwrap().success());
    }
}

fn one_job(criterion: &mut Criterion) {
    let tiny = program("tests/programs/tiny.c");
    let tiny = tiny.to_str().unwrap();
    let runtime = runtime();
    let cgroup = Cgroup::new();
    let mut group = criterion.benchmark_group("one job");
    {
        let mut bare = Worker::bare(&cgroup);
        group.bench_function("bare", |bencher| bencher.iter_custom(|jobs| bare.work(jobs)));
    }
    let supervisor = runtime.block_on(Supervisor::start()).unwrap();
    group.bench_function("pinfold", |bencher| {
        bencher.iter_custom(|jobs| timed(|| runtime.block_on(pinfold_jobs(&supervisor, tiny, jobs))));
    });
    runtime.block_on(supervisor.close());
    group.bench_function("std::process", |bencher| bencher.iter_custom(|jobs| timed(|| std_jobs(tiny, jobs))));
    group.bench_function("tokio::process", |bencher| {
        bencher.iter_custom(|jobs| timed(|| runtime.block_on(tokio_jobs(tiny, jobs))));
    });
    group.finish();
}

fn timed(work: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    work();
    begun.elapsed()
}

/// Measures the time from `stop` until `wait` returns, for a job that ends at once on SIGTERM. The job is older than 10
/// ms, because the kernel reports the changes of a cgroup at most once in 10 ms. The bare kill(2), waitid, "populated
/// 0" and rmdir are measured next to it. They show the delays of this machine itself.
async fn stops(supervisor: &Supervisor, cgroup: &Cgroup) {
    const ROUNDS: usize = 200;
    const AGE: Duration = Duration::from_millis(15);
    let forest = program("benches/programs/forest.c");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let mut job = start_tree(supervisor, &forest, 0).await;
        tokio::time::sleep(AGE).await;
        let begun = Instant::now();
        job.start_stop().unwrap();
        let report = job.wait().await.unwrap();
        ours.push(milliseconds(begun));
        assert!(report.is_gone() && !report.killed);

        let mut bare_job = BareJob::start(cgroup, &forest, 0);
        std::thread::sleep(AGE);
        let begun = Instant::now();
        let pid = rustix::process::Pid::from_child(&bare_job.process);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        bare_job.process.wait().unwrap();
        bare_job.remove();
        bare.push(milliseconds(begun));
    }
    let formatted = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        let of_a_hundred = |n: usize| times[(ROUNDS * n).div_ceil(100) - 1];
        format!(
            "median {:.2} ms, 99 of 100 within {:.2} ms, max {:.2} ms",
            of_a_hundred(50),
            of_a_hundred(99),
            of_a_hundred(100)
        )
    };
    println!("\nstop until proven empty, {ROUNDS} jobs: {}; bare: {}", formatted(ours), formatted(bare));
}

/// Measures the time from `kill` until `wait` returns, next to a write to `cgroup.kill`, "populated 0" and rmdir. When
/// pinfold returns, every process has also been reaped. So this also measures the bare kill until all processes have been
/// reaped.
async fn kills(supervisor: &Supervisor, cgroup: &Cgroup) {
    let forest = program("benches/programs/forest.c");
    for (size, rounds) in [(1000, 20), (5000, 8)] {
        let (mut ours, mut bare, mut reaped) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            let mut job = start_tree(supervisor, &forest, size).await;
            let begun = Instant::now();
            job.start_kill().unwrap();
            let report = job.wait().await.unwrap();
            ours.push(milliseconds(begun));
            assert!(report.is_gone() && report.killed);
            settle();
            let (removed, all_reaped) = bare_kill(cgroup, &forest, size);
            bare.push(removed);
            reaped.push(all_reaped);
            settle();
        }
        let ratio =
            |others: &[f64]| median(&ours.iter().zip(others).map(|(ours, other)| ours / other).collect::<Vec<_>>());
        println!(
            "kill of {size} processes until removed, {rounds} rounds: pinfold {:.1} ms, bare {:.1} ms, ratio {:.2}; \
             bare, and all reaped {:.1} ms, ratio {:.2}",
            median(&ours),
            median(&bare),
            ratio(&bare),
            median(&reaped),
            ratio(&reaped),
        );
    }
}

/// Waits until the kernel has finished its cleanup, so that this work does not slow down the next measurement.
fn settle() {
    std::thread::sleep(Duration::from_millis(200));
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Starts a job with `size` processes below its main process, and waits until all of them run.
async fn start_tree(supervisor: &Supervisor, forest: &Path, size: usize) -> Job {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = Command::new(forest);
    command.arg(size.to_string()).stdout(std::os::fd::OwnedFd::from(writer));
    let job = supervisor.spawn(&command).await.unwrap();
    let mut ready = [0; 6];
    reader.read_exact(&mut ready).unwrap();
    job
}

/// A job that is run by bare system calls.
struct BareJob {
    leaf: PathBuf,
    events: File,
    process: Child,
}

impl BareJob {
    fn start(cgroup: &Cgroup, forest: &Path, size: usize) -> Self {
        let leaf = cgroup.0.join("tree");
        std::fs::create_dir(&leaf).unwrap();
        let mut process = std::process::Command::new("sh")
            .args(["-c", "echo 0 >\"$0/cgroup.procs\"; exec \"$@\""])
            .args([&leaf, forest])
            .arg(size.to_string())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        process.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        let events = File::open(leaf.join("cgroup.events")).unwrap();
        Self { leaf, events, process }
    }

    /// Removes the cgroup as soon as it is empty.
    fn remove(&self) {
        while populated(&self.events) {
            poll(&mut [PollFd::new(&self.events, PollFlags::PRI)], None).unwrap();
        }
        // Since Linux 6.19 the last process may already be missing from the count while it still keeps the directory
        // busy.
        while std::fs::remove_dir(&self.leaf).is_err() {
            std::thread::yield_now();
        }
    }
}

/// Returns the milliseconds until the cgroup is removed, and the milliseconds until all processes have been reaped too.
fn bare_kill(cgroup: &Cgroup, forest: &Path, size: usize) -> (f64, f64) {
    // Makes this process the parent of the orphans, so that it can reap them before the next measurement.
    set_child_subreaper(Some(getpid())).unwrap();
    let mut job = BareJob::start(cgroup, forest, size);
    let begun = Instant::now();
    std::fs::write(job.leaf.join("cgroup.kill"), "1").unwrap();
    job.remove();
    let removed = milliseconds(begun);
    while wait(WaitOptions::empty()).is_ok() {}
    let _ = job.process.wait(); // `cgroup.kill` has killed it together with the others.
    let reaped = milliseconds(begun);
    set_child_subreaper(None).unwrap();
    (removed, reaped)
}

fn populated(events: &File) -> bool {
    use std::os::unix::fs::FileExt;
    let mut text = [0; 128];
    let length = events.read_at(&mut text, 0).unwrap();
    text[..length].starts_with(b"populated 1")
}
