//! The test suite's check at its own end: it left no process, no cgroup and no file behind.
//!
//! cargo runs test binaries in the order of their names, one at a time, so this file must have the last name. It looks
//! for what this run of the suite has left, so only for what is younger than the cargo that runs it; other runs on the
//! same machine do not count. cargo-nextest runs all tests at the same time, so this check cannot work there.

#[macro_use]
extern crate pinfold_test_macros;

mod support;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::support::needs::{Need, need};
use crate::support::{Canary, PINFOLD, PROJECT, Scratch, program};
use rustix::fs::{FlockOperation, flock};

/// The directory in which tests write, and in which their programs are built.
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

fn main() -> std::process::ExitCode {
    support::harness::one_at_a_time()
}

fn cargo_test() -> Need {
    let alone = std::env::var_os("NEXTEST").is_none();
    need("cargo test", alone, "cargo-nextest runs the other tests meanwhile")
}

#[test]
#[requires(cargo_test)]
fn nothing_is_left_by_the_tests_before_this_one() {
    let since = suite_start();
    let test_binaries = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let ours = [Path::new(PINFOLD), Path::new(TMP), &test_binaries];
    let find = || {
        let mut found = processes(&ours, since);
        found.extend(own_cgroup().iter().flat_map(|cgroup| abandoned(cgroup, since)));
        found.extend(files(Path::new(TMP), since));
        found
    };
    // Promise 2 allows one second after a SIGKILL. A directory is checked one second after it was first seen.
    find();
    std::thread::sleep(LOCKED_BY + Duration::from_millis(100));
    // Guards that this test does not know may still be removing something, so it looks again.
    let end = Instant::now() + Duration::from_secs(3);
    let mut found = find();
    while !found.is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        found = find();
    }
    assert!(found.is_empty(), "the tests left behind:\n{}", found.join("\n"));
}

#[test]
fn a_process_would_be_found() {
    let directory = Scratch::directory("planted");
    let planted = directory.path().join("planted");
    std::fs::hard_link(program("warden"), &planted).unwrap();
    let mut process =
        Command::new(&planted).args(["/dev/null", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let find = || processes(&[directory.path()], suite_start());
    // The child of the planted program is a process of that program too, until it has executed `cat`.
    process.stdin.as_mut().unwrap().write_all(b"x").unwrap();
    process.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(find().len(), 1);
    // Also when the file of the program has been replaced, as cargo does.
    std::fs::remove_file(&planted).unwrap();
    assert!(find()[0].starts_with(&format!("process {} ", process.id())), "{:?}", find());
    drop(process.stdin.take());
    process.wait().unwrap();
    assert_eq!(find(), Vec::<String>::new());

    // Processes of other programs, and processes older than the suite, do not count.
    let canary = Canary::new();
    assert_eq!(processes(&[directory.path()], suite_start()), Vec::<String>::new());
    let cat = std::fs::read_link(format!("/proc/{}/exe", canary.pid())).unwrap();
    let name = format!("process {} ", canary.pid());
    let of_canary = |since| processes(&[&cat], since).iter().any(|line| line.starts_with(&name));
    assert!(of_canary(Start::default()));
    assert!(!of_canary(Start { ticks: u64::MAX, ..Start::default() }));
    canary.assert_alive();
}

#[test]
#[requires(cgroup)]
fn a_cgroup_would_be_found() {
    let place = own_cgroup().unwrap().join(format!("nothing-left-{}", std::process::id()));
    let planted = place.join("pinfold-1-0123456789abcdef");
    std::fs::create_dir_all(&planted).unwrap();
    let _ = std::fs::metadata(&planted); // The kernel sets its date now.
    let find = || abandoned(&place, Start::default());
    // While a process holds its lock, the base is in use, whatever its age.
    let lock = File::open(&planted).unwrap();
    flock(&lock, FlockOperation::LockShared).unwrap();
    // The age of the directory counts.
    std::thread::sleep(LOCKED_BY + Duration::from_millis(100));
    let in_use = find();
    drop(lock);
    let left = find();
    let too_old = abandoned(&place, Start { time: f64::MAX, ..Start::default() });
    std::fs::remove_dir(&planted).unwrap();
    std::fs::remove_dir(&place).unwrap();
    assert_eq!(in_use, Vec::<String>::new());
    assert_eq!(left, [format!("cgroup {}", planted.display())]);
    assert_eq!(too_old, Vec::<String>::new());
}

#[test]
fn a_file_would_be_found() {
    program("warden");
    let planted = Scratch::directory("planted");
    let files = files(Path::new(TMP), suite_start());
    assert!(files.contains(&format!("file {}", planted.path().display())), "{files:?}");
    assert!(!files.iter().any(|file| file.ends_with("/warden")), "{files:?}");
    assert_eq!(self::files(Path::new(TMP), Start { time: f64::MAX, ..Start::default() }), Vec::<String>::new());
}

/// When this run of the suite began. The default is earlier than everything.
#[derive(Clone, Copy, Default)]
struct Start {
    /// In clock ticks since boot, as in `/proc/PID/stat`.
    ticks: u64,
    /// In seconds since 1970, as in the dates of files.
    time: f64,
}

/// Returns the start time of the cargo that runs this, or the default where no cargo does.
fn suite_start() -> Start {
    let mut start = Start::default();
    for (pid, ticks) in ancestors() {
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        if exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("cargo")) {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            let now = now.tv_sec as f64 + now.tv_nsec as f64 / 1e9;
            let age = now - ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
            // The outermost cargo counts: a cargo may run another one.
            start = Start { ticks, time: now_since_1970() - age };
        }
    }
    start
}

/// Returns this process and those from which it descends, and when each was started.
fn ancestors() -> impl Iterator<Item = (u32, u64)> {
    let mut next = Some(std::process::id());
    std::iter::from_fn(move || {
        let pid = next?;
        let (parent, ticks) = parent_and_start(pid)?;
        next = Some(parent);
        Some((pid, ticks))
    })
}

fn now_since_1970() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Returns when the inode was changed, or 0 if it is gone.
fn changed(entry: &std::fs::DirEntry) -> f64 {
    entry.metadata().map_or(0.0, |metadata| metadata.ctime() as f64 + metadata.ctime_nsec() as f64 / 1e9)
}

/// Returns fields 4 and 22 of `/proc/PID/stat`. The name before them may contain any characters.
fn parent_and_start(pid: u32) -> Option<(u32, u64)> {
    let stat = String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/stat")).ok()?).into_owned();
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some((fields.get(1)?.parse().ok()?, fields.get(19)?.parse().ok()?))
}

/// Returns the processes, except this one and those from which it descends, that were started after `since` and run one of `programs` or a file below
/// one.
fn processes(programs: &[&Path], since: Start) -> Vec<String> {
    let mut found = Vec::new();
    let own: Vec<u32> = ancestors().map(|(pid, _)| pid).collect();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // A zombie has no executable.
        let Ok(exe) = std::fs::read_link(entry.path().join("exe")) else { continue };
        let text = exe.to_string_lossy();
        let exe = Path::new(text.strip_suffix(" (deleted)").unwrap_or(&text));
        let young = parent_and_start(pid).is_some_and(|(_, ticks)| ticks >= since.ticks);
        if !own.contains(&pid) && young && programs.iter().any(|program| exe.starts_with(program)) {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            found.push(format!("process {pid} {}: {line}", exe.display()));
        }
    }
    found
}

/// A base of this age is locked. Before, a check of its lock could block its owner.
const LOCKED_BY: Duration = Duration::from_secs(1);

/// Returns the bases in `cgroup`, made after `since`, whose supervisor and guard have both ended: no process holds the
/// lock.
fn abandoned(cgroup: &Path, since: Start) -> Vec<String> {
    let now = now_since_1970();
    let mut found = Vec::new();
    for entry in std::fs::read_dir(cgroup).into_iter().flatten().flatten() {
        // cgroup2 sets the date of a directory when it is first seen, and again if the kernel has forgotten it in
        // between.
        let made = changed(&entry);
        if !entry.file_name().to_string_lossy().starts_with("pinfold-")
            || made < since.time
            || made + LOCKED_BY.as_secs_f64() > now
        {
            continue;
        }
        let Ok(directory) = File::open(entry.path()) else { continue };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok() {
            found.push(format!("cgroup {}", entry.path().display()));
        }
    }
    found
}

/// Returns the directory of this process's cgroup v2, in which bases are made.
fn own_cgroup() -> Option<PathBuf> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().filter(|line| line.contains(" - cgroup2 ")).find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let below = Path::new(own).strip_prefix(fields[3]).ok()?;
        Some(Path::new(fields[4]).join(below))
    })
}

/// Returns the files that were put into `directory` after `since`, except the programs of the tests, which have the
/// names of their sources.
fn files(directory: &Path, since: Start) -> Vec<String> {
    let names = |directory: &Path| std::fs::read_dir(directory).into_iter().flatten().flatten();
    let sources = Path::new(PROJECT).join("tests/programs");
    let mut programs: Vec<_> =
        names(&sources).filter_map(|source| Some(source.path().file_stem()?.to_owned())).collect();
    // The unit tests of the sandbox compile these too, under names of their own.
    let attacks = names(&sources.join("sandbox")).filter_map(|source| Some(source.path().file_stem()?.to_owned()));
    programs.extend(attacks.map(|name| [OsStr::new("sandbox-"), &name].into_iter().collect()));
    names(directory)
        .filter(|entry| !programs.contains(&entry.file_name()))
        .filter(|entry| changed(entry) >= since.time)
        .map(|entry| format!("file {}", entry.path().display()))
        .collect()
}
