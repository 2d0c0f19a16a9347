//! `pinfold sweep` finds, ends and removes what supervisors and guards leave when both are killed together, and touches
//! nothing else.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::support::needs::{Need, need};
use crate::support::own_cgroup::OwnCgroup;
use crate::support::{Canary, PINFOLD, PublicCopy, program, wait_for};

/// A cgroup of the test's own, which no other pinfold sweeps: a pinfold that starts sweeps only its own cgroup.
struct Place(OwnCgroup);

impl Place {
    fn new() -> Self {
        Self(OwnCgroup::new().littered())
    }

    fn path(&self) -> &Path {
        &self.0.path
    }

    fn below(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Runs `pinfold sweep --cgroup` with this cgroup.
    fn sweep(&self, options: &[&str]) -> Output {
        Command::new(PINFOLD).args(["sweep", "--cgroup"]).arg(self.path()).args(options).output().unwrap()
    }
}

/// A base whose supervisor and guard are dead, with the processes of its job.
struct Left {
    base: PathBuf,
    processes: Vec<i32>,
}

impl Left {
    /// Kills both with SIGKILL. The supervisor is stopped before, so that it does nothing in between. (A stopped guard
    /// would be continued, because its process group is orphaned by the supervisor's death.)
    fn behind_in(place: &Path) -> Self {
        Self::by("tree", 2, place)
    }

    /// The same, with a program that leaves this number of processes when its main process has ended.
    fn by(job: &str, count: usize, place: &Path) -> Self {
        let mut supervisor = Command::new(PINFOLD)
            .args(["run", "--cgroup"])
            .arg(place)
            .arg("--")
            .arg(program(job))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(line(&mut supervisor), "ready");
        let pid = supervisor.id() as i32;
        let base = bases(place).into_iter().find(|base| name(base).starts_with(&format!("pinfold-{pid}-"))).unwrap();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let guard: i32 = children.trim().parse().unwrap();
        let guard_ended = pidfd_open(Pid::from_raw(guard).unwrap(), PidfdFlags::empty()).unwrap();
        kill(pid, libc::SIGSTOP);
        // SAFETY: waits for our own child, and reads no status.
        assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WUNTRACED) }, pid);
        kill(guard, libc::SIGKILL);
        kill(pid, libc::SIGKILL);
        supervisor.wait().unwrap();
        // The guard holds its lock until it has ended.
        poll(&mut [PollFd::new(&guard_ended, PollFlags::IN)], None).unwrap();
        // The guard's death ends the main process, and the others stay.
        wait_for(|| (processes(&base).len() == count).then_some(()));
        Self { processes: processes(&base), base }
    }

    fn is_whole(&self) -> bool {
        processes(&self.base) == self.processes
    }

    fn assert_gone(&self) {
        assert!(!self.base.exists(), "{} is left", self.base.display());
        for pid in &self.processes {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // The process has ended, and its new parent has not reaped it yet. With other threads, state Z describes
            // only the first thread.
            let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
            let ended = stat.is_empty() || matches!(fields[0], "Z" | "X") && fields[17] == "1";
            assert!(ended, "{stat} is left");
        }
    }
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: signals our own child, not reaped yet, or its guard, which ends only by this signal.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

fn line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn bases(place: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| name(path).starts_with("pinfold-")).collect()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn processes(cgroup: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut processes: Vec<_> = text.lines().map(|line| line.parse().unwrap()).collect();
    processes.sort_unstable();
    processes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Starts a pinfold that lives until its standard input is closed.
fn alive_in(place: &Path, wrapper: &[&str]) -> Child {
    let mut words = wrapper.to_vec();
    words.extend([PINFOLD, "run", "--cgroup", place.to_str().unwrap(), "--", "sh", "-c", "echo ready; cat"]);
    let mut command = Command::new(words[0]);
    let mut alive = command.args(&words[1..]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    assert_eq!(line(&mut alive), "ready");
    alive
}

fn ends_well(mut alive: Child) {
    drop(alive.stdin.take());
    assert!(alive.wait().unwrap().success());
}

#[test]
#[requires(cgroup, root)]
fn what_is_abandoned_is_ended_and_removed_wherever_it_is() {
    let canary = Canary::new();
    let place = Place::new();
    // This one starts first, because its start would otherwise sweep the bases below.
    let alive = alive_in(place.path(), &[]);
    let deep = place.below("a/b");
    // The name of a cgroup can contain any bytes except newline and slash.
    let nameless = place.path().join(std::ffi::OsStr::from_bytes(b"b\xffd \x1b"));
    std::fs::create_dir(&nameless).unwrap();
    let (here, below) = (Left::behind_in(place.path()), Left::behind_in(&deep));
    let in_nameless = Left::behind_in(&nameless);
    // Directories of other programs, with names that are similar to ours.
    let foreign = ["pinfold", "pinfold-1-short", "x-pinfold-1-0123456789abcdef", "pinfold-1-0123456789abcdeg"];
    let foreign = foreign.map(|name| place.below(name));
    let mut stranger = Command::new("sleep").arg("998").spawn().unwrap();
    std::fs::write(foreign[1].join("cgroup.procs"), stranger.id().to_string()).unwrap();

    let swept = place.sweep(&[]);
    assert_eq!(text(&swept.stderr), "");
    assert!(swept.status.success());
    let said = text(&swept.stdout);
    for left in [&here, &below] {
        left.assert_gone();
        let line = said.lines().find(|line| line.contains(left.base.to_str().unwrap()));
        let line = line.unwrap_or_else(|| panic!("{} is not named in {said}", left.base.display()));
        assert!(line.contains(&format!(" {} ", left.processes.len())) && line.contains("tree"), "{line}");
    }
    in_nameless.assert_gone();
    assert!(said.lines().count() == 3 && said.contains("b\u{fffd}d \\033/") && !said.contains('\u{1b}'), "{said}");

    assert!(foreign.iter().all(|foreign| foreign.exists()));
    assert_eq!(stranger.try_wait().unwrap(), None);
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    ends_well(alive);
    assert_eq!(text(&place.sweep(&[]).stdout), "");
    canary.assert_alive();
}

#[test]
#[requires(cgroup, root)]
fn a_dry_run_changes_nothing() {
    let place = Place::new();
    let left = Left::behind_in(&place.below("a"));
    let swept = place.sweep(&["--dry-run"]);
    assert!(swept.status.success());
    let said = text(&swept.stdout);
    assert!(said.contains(left.base.to_str().unwrap()), "{said}");
    assert!(left.is_whole());

    let json = place.sweep(&["-n", "--json"]);
    let json: pinfold::sweep::Swept = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json.version, json.dry_run, json.cgroup.as_str()), (1, true, place.path().to_str().unwrap()));
    let [abandoned] = json.abandoned.as_slice() else { panic!("{json:#?}") };
    assert_eq!(abandoned.path, left.base.to_str().unwrap());
    assert_eq!(abandoned.outcome, pinfold::sweep::Outcome::Found);
    assert_eq!((abandoned.owner, abandoned.populated), (0, true));
    assert_eq!(abandoned.processes.count, left.processes.len() as u64);
    assert!(left.is_whole());

    assert!(place.sweep(&[]).status.success());
    left.assert_gone();
}

/// `cgroup.kill` does not end this process: its first thread has exited, and another thread lives.
#[test]
#[requires(cgroup, root)]
fn a_thread_that_outlives_its_leader_is_ended_at_once() {
    let place = Place::new();
    let left = Left::by("headless", 1, place.path());
    let begun = std::time::Instant::now();
    let swept = place.sweep(&["--kill-bound", "20s"]);
    assert!(swept.status.success(), "{swept:#?}");
    left.assert_gone();
    assert!(begun.elapsed().as_secs_f64() < 5.0 * crate::support::slowness(), "that took {:?}", begun.elapsed());

    // The sweep at the start of the next pinfold ends it too.
    let left = Left::by("headless", 1, place.path());
    ends_well(alive_in(place.path(), &[]));
    left.assert_gone();
}

/// A bound that no clock can hold means no bound.
#[test]
#[requires(cgroup, root)]
fn the_longest_possible_bound() {
    let place = Place::new();
    let base = place.below("pinfold-1-0123456789abcdef");
    let swept = place.sweep(&["--kill-bound", &u64::MAX.to_string()]);
    assert!(swept.status.success() && !base.exists(), "{swept:#?}");
}

/// Sweeps run one after another, while pinfolds start and end: a base that a sweep removed while it was being made is
/// made again under another name, and a locked base is not touched.
#[test]
#[requires(cgroup, root)]
fn running_pinfolds_are_not_disturbed() {
    let place = Place::new();
    let alive = alive_in(place.path(), &[]);
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let runs = scope.spawn(|| {
            for round in 0..60 {
                let mut run = Command::new(PINFOLD);
                let ran = run.args(["run", "--cgroup"]).arg(place.path()).args(["--", "true"]).output().unwrap();
                assert!(ran.status.success(), "round {round}: {ran:#?}");
            }
            done.store(true, Ordering::Relaxed);
        });
        let mut rounds = 0;
        while !done.load(Ordering::Relaxed) && !runs.is_finished() {
            let swept = place.sweep(if rounds % 2 == 0 { &["--dry-run"] } else { &[] });
            assert!(swept.status.success(), "{swept:#?}");
            rounds += 1;
        }
        println!("{rounds} sweeps beside 60 runs");
    });
    ends_well(alive);
}

#[test]
#[requires(cgroup, root, program("unshare"))]
fn a_pinfold_of_another_pid_namespace_is_not_hit() {
    let place = Place::new();
    let alive = alive_in(place.path(), &["unshare", "--fork", "--pid", "--mount-proc"]);
    let swept = place.sweep(&[]);
    assert!(swept.status.success());
    assert_eq!(text(&swept.stdout), "");
    assert_eq!(bases(place.path()).len(), 1);
    // A sweep inside the namespace does not touch a base outside it either.
    let inside = ["--fork", "--pid", "--mount-proc", PINFOLD, "sweep", "--cgroup", place.path().to_str().unwrap()];
    let own = alive_in(place.path(), &[]);
    let swept = Command::new("unshare").args(inside).output().unwrap();
    assert!(swept.status.success(), "{swept:#?}");
    assert_eq!(text(&swept.stdout), "");
    ends_well(own);
    ends_well(alive);

    // A sweep inside the namespace sees the abandoned base, but not the processes in it.
    let left = Left::behind_in(place.path());
    let swept = Command::new("unshare").args(inside).output().unwrap();
    if !place.path().join("cgroup.kill").exists() {
        // Before Linux 5.14 a sweep must see the processes to kill them.
        assert_eq!(swept.status.code(), Some(1), "{swept:#?}");
        assert!(text(&swept.stderr).contains(left.base.to_str().unwrap()), "{swept:#?}");
        assert!(left.is_whole());
        assert!(place.sweep(&[]).status.success());
        left.assert_gone();
        return;
    }
    assert!(text(&swept.stdout).contains(left.base.to_str().unwrap()), "{swept:#?}");
    left.assert_gone();
}

#[test]
#[requires(cgroup, root, program("setpriv"))]
fn a_user_who_may_not_remove_it_gets_an_error() {
    let place = Place::new();
    let left = Left::behind_in(place.path());
    let copy = PublicCopy::new("sweep");
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", copy.path(), "sweep", "--cgroup"];
    let swept = Command::new("setpriv").args(user).arg(place.path()).output().unwrap();
    // The base may not be opened, so it is unknown whether it is abandoned.
    let said = text(&swept.stderr);
    assert!(said.contains(&left.base.display().to_string()) && said.contains("Permission denied"), "{said}");
    assert_eq!(text(&swept.stdout), "");
    assert!(left.is_whole());
    assert!(place.sweep(&[]).status.success());
    left.assert_gone();
}

/// A job that lost its supervisor calls `pinfold sweep` itself.
#[test]
#[requires(cgroup, root)]
fn it_does_not_end_itself() {
    let place = Place::new();
    let left = Left::behind_in(place.path());
    let mut shell = Command::new("sh")
        .args(["-c", r#"read go; exec "$@""#, "sh", PINFOLD, "sweep", "--cgroup"])
        .arg(place.path())
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::fs::write(left.base.join("cgroup.procs"), shell.id().to_string()).unwrap();
    shell.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let swept = shell.wait_with_output().unwrap();
    assert_eq!(swept.status.code(), Some(1), "{swept:#?}");
    assert!(text(&swept.stderr).contains(left.base.to_str().unwrap()), "{swept:#?}");
    assert!(left.is_whole());
    assert!(place.sweep(&[]).status.success());
    left.assert_gone();
}

#[test]
fn without_a_cgroup_to_look_in() {
    for directory in ["/proc", "/nowhere"] {
        let swept = Command::new(PINFOLD).args(["sweep", "--cgroup", directory]).output().unwrap();
        assert_eq!(swept.status.code(), Some(125), "{swept:#?}");
        assert!(text(&swept.stderr).contains(directory), "{swept:#?}");
    }
    let swept = Command::new(PINFOLD).args(["sweep", "--nonsense"]).output().unwrap();
    assert_eq!(swept.status.code(), Some(125), "{swept:#?}");
}

const FREEZER: &str = "/sys/fs/cgroup/freezer";

/// The freezer of cgroup v1. The v1 hierarchies belong to the machine, so the test uses them only where that is
/// allowed, as in a VM.
fn freezer() -> Need {
    let ours = Path::new(FREEZER).join("cgroup.procs").exists() && std::env::var_os("PINFOLD_TEST_FREEZER").is_some();
    need("freezer", ours, "no cgroup v1 freezer that PINFOLD_TEST_FREEZER allows to use")
}

/// A process frozen by cgroup v1, where SIGKILL takes effect only after the thaw.
#[test]
#[requires(cgroup, root, freezer)]
fn what_can_not_be_ended_is_named_within_the_bound() {
    let place = Place::new();
    let left = Left::behind_in(place.path());
    let frozen = Path::new(FREEZER).join(format!("test-sweep-{}", std::process::id()));
    std::fs::create_dir(&frozen).unwrap();
    std::fs::write(frozen.join("cgroup.procs"), left.processes[0].to_string()).unwrap();
    std::fs::write(frozen.join("freezer.state"), "FROZEN").unwrap();
    wait_for(|| (std::fs::read_to_string(frozen.join("freezer.state")).unwrap() == "FROZEN\n").then_some(()));

    let swept = place.sweep(&["--kill-bound", "300ms"]);

    std::fs::write(frozen.join("freezer.state"), "THAWED").unwrap();
    wait_for(|| std::fs::remove_dir(&frozen).ok());
    assert_eq!(swept.status.code(), Some(1), "{swept:#?}");
    let said = text(&swept.stderr);
    assert!(said.contains(left.base.to_str().unwrap()), "{said}");
    assert!(said.contains(&format!("{} [tree]", left.processes[0])), "{said}");
    // The earlier SIGKILL takes effect.
    assert!(place.sweep(&[]).status.success());
    left.assert_gone();
}
