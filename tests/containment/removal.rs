//! Jobs that leave thousands of empty cgroups: pinfold removes them in linear time, and handles deadlines, signals and
//! other jobs meanwhile.

use std::cell::RefCell;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::events::{wait_in, wait_until_empty};
use crate::support::host::{shell, with_supervisor};
use crate::support::own_cgroup::OwnCgroup;
use crate::support::{PINFOLD, Run, Scratch};

const MANY: usize = 5000;

/// Returns the script of a job that makes this many cgroups in its own.
fn litter(shape: &str) -> String {
    let own = r#"leaf=$MOUNT$(sed -n 's/^0:://p' /proc/self/cgroup); cd "$leaf" || exit 9"#;
    let mount = crate::support::own_cgroup();
    let below = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let below = below.lines().find_map(|line| line.strip_prefix("0::")).unwrap().trim_start_matches('/').to_owned();
    let mount = mount.to_str().unwrap().strip_suffix(&below).unwrap().trim_end_matches('/').to_owned();
    format!("MOUNT={mount}; {own}; {shape}")
}

/// The shapes: side by side; in directories of 50 each; a chain in which each contains the next.
fn shapes() -> [(&'static str, String); 3] {
    [
        ("flat", format!("seq {MANY} | xargs mkdir")),
        ("nested", format!("seq {} | xargs -I {{}} sh -c 'mkdir {{}}; cd {{}}; seq 50 | xargs mkdir'", MANY / 50)),
        ("deep", "for i in $(seq 30); do seq 160 | xargs mkdir; cd 1; done".into()),
    ]
}

/// Returns how long rmdir(2) alone takes to remove as many.
fn by_rmdir() -> f64 {
    let own = OwnCgroup::new();
    let all: Vec<_> = (0..MANY).map(|number| own.path.join(number.to_string())).collect();
    all.iter().for_each(|path| std::fs::create_dir(path).unwrap());
    let begun = Instant::now();
    all.iter().for_each(|path| std::fs::remove_dir(path).unwrap());
    begun.elapsed().as_secs_f64()
}

/// Returns the seconds since that date, which date(1) printed as seconds since 1970.
fn since(date: &str) -> f64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - date.trim().parse::<f64>().unwrap()
}

#[test]
#[requires(cgroup, root)]
fn removal_takes_not_much_longer_than_rmdir_alone() {
    for (name, shape) in shapes() {
        let ran = Run::new(["--", "sh", "-c", &litter(&format!("{shape}; date +%s.%N"))]).run().assert_code(0);
        let (took, alone) = (since(&ran.stdout), by_rmdir());
        crate::support::measured(&format!("{MANY} cgroups, {name}: {took:.3} s, rmdir alone {alone:.3} s"));
        // An algorithm with quadratic time took forty times as long.
        assert!(took < 6.0 * alone + 0.5, "{name}: {took} s, rmdir alone {alone} s: {ran:#?}");
        assert_eq!(ran.report["not_removed"], serde_json::json!([]), "{name}");
    }
}

#[test]
#[requires(cgroup, root)]
fn other_jobs_and_timers_are_handled_meanwhile() {
    with_supervisor(async |supervisor| {
        let ticks = RefCell::new(Vec::new());
        let ticking = async {
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                ticks.borrow_mut().push(Instant::now());
            }
        };
        let ended = Scratch::new("ended");
        let script = litter(&format!("{}; date +%s.%N >{}", shapes()[0].1, ended.path().display()));
        let job = async {
            let mut job = supervisor.spawn(&shell(&script)).await.unwrap();
            job.wait().await.unwrap()
        };
        let report = tokio::select! {
            report = job => report,
            () = ticking => unreachable!(),
        };
        assert!(report.is_gone() && report.exit_code == 0, "{report:#?}");
        let removing = since(&ended.text());
        let begun = Instant::now() - Duration::from_secs_f64(removing);
        let during = ticks.borrow().iter().filter(|&&tick| tick > begun).count();
        crate::support::measured(&format!("{during} ticks in the {removing:.3} s of the removal"));
        assert!(removing > 0.02, "the removal was too quick for this test: {removing} s");
        assert!(during >= 5, "{during} ticks in {removing} s");
    });
}

#[test]
#[requires(cgroup, root)]
fn a_deadline_does_not_wait_for_the_sweep_at_the_start() {
    let place = OwnCgroup::new();
    let base = place.path.join("pinfold-1-0123456789abcdef");
    let abandon = || {
        std::fs::create_dir(&base).unwrap();
        (0..MANY).for_each(|number| std::fs::create_dir(base.join(number.to_string())).unwrap());
    };
    abandon();
    let report = Scratch::new("report");
    let mut run = Run::bare([PINFOLD, "run", "--cgroup"]);
    run.command().arg(&place.path).arg("--report").arg(report.path()).args(["--timeout", "30ms", "--"]);
    let looks = "trap '[ -e \"$1\" ] && echo before; exit 3' TERM; sleep 998 & wait";
    run.command().args(["sh", "-c", looks, "sh"]).arg(&base);
    let ran = run.run().assert_code(124);
    let reported: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
    let stopping = reported["phases"]["stopping"].as_f64().unwrap();
    crate::support::measured(&format!("a deadline of 0.03 s came at {stopping:.3} s, while the sweep ran"));
    assert!(!Path::new(&base).exists(), "the sweep did not remove it");
    assert_eq!(ran.stdout, "before\n", "the deadline of 0.03 s came at {stopping} s, after the sweep");
}

#[test]
#[requires(cgroup, root)]
fn processes_are_ended_before_the_cgroups_of_a_killed_supervisor_are_removed() {
    let job = litter(&format!("{}; trap '' TERM; sleep 997 & echo ready; wait", shapes()[0].1));
    // Runs without the warden, because the warden would end the guard.
    let mut pinfold = Command::new(PINFOLD);
    let mut pinfold = pinfold.args(["run", "--", "sh", "-c", &job]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(pinfold.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let prefix = format!("pinfold-{}-", pinfold.id());
    let base = std::fs::read_dir(crate::support::own_cgroup()).unwrap().flatten();
    let base = base.map(|entry| entry.path()).find(|path| path.to_string_lossy().contains(&prefix)).unwrap();
    pinfold.kill().unwrap();
    let begun = Instant::now();
    wait_until_empty(&base);
    let ended = begun.elapsed().as_secs_f64();
    wait_in(base.parent().unwrap(), || (!base.exists()).then_some(()));
    crate::support::measured(&format!(
        "processes ended after {ended:.3} s, {MANY} cgroups removed after {:?}",
        begun.elapsed()
    ));
    assert!(ended < crate::support::slowness(), "the processes ended after {ended} s");
    pinfold.wait().unwrap();
}

/// Returns the directories directly below.
fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.is_dir()).collect()
}

/// Removes empty directories, as a cleaner of temporary directories does.
fn remove_empty(path: &Path) {
    directories(path).iter().for_each(|below| remove_empty(below));
    let _ = std::fs::remove_dir(path);
}

/// Runs `host` with a supervisor whose base is in `place`.
fn in_place(place: &OwnCgroup, host: impl AsyncFnOnce(&pinfold::Supervisor)) {
    let builder = pinfold::Supervisor::builder().cgroup(&place.path);
    crate::support::host::with(builder, host).unwrap();
}

#[test]
#[requires(cgroup, root)]
fn a_job_starts_after_its_empty_cgroup_or_the_base_was_removed() {
    let place = OwnCgroup::new();
    in_place(&place, async |supervisor| {
        // Long enough that the cgroup for the next job is made meanwhile.
        let run = async |round: &str| {
            let mut job =
                supervisor.spawn(&shell("sleep 0.2; exit 7")).await.unwrap_or_else(|error| panic!("{round}: {error}"));
            assert_eq!(job.wait().await.unwrap().exit_code, 7, "{round}");
        };
        // Once before the first job, and once after it, when the cgroup for the next job already exists.
        for round in ["first", "second"] {
            directories(&place.path).iter().for_each(|base| remove_empty(base));
            assert_eq!(place.directories(), 0, "{round}");
            run(round).await;
        }
        let base = directories(&place.path).remove(0);
        let spare = directories(&base);
        assert_eq!(spare.len(), 1, "{spare:?}");
        spare.iter().for_each(|spare| std::fs::remove_dir(spare).unwrap());
        run("only the spare cgroup removed").await;
        assert!(base.exists());
        // A running job keeps its base, and the next job starts there too.
        let mut living = supervisor.spawn(&shell("exec sleep 995")).await.unwrap();
        directories(&place.path).iter().for_each(|base| remove_empty(base));
        run("beside another job").await;
        assert_eq!(place.directories(), 1);
        living.start_kill().unwrap();
        living.wait().await.unwrap();
    });
}

#[test]
#[requires(cgroup, root)]
fn jobs_start_beside_a_cleaner() {
    // The cleaner removes this many directories for each start, at any moment: fewer than the number of retries of a
    // start.
    const REMOVALS: u32 = 6;
    let place = OwnCgroup::new();
    let (left, over) = (AtomicU32::new(REMOVALS), AtomicBool::new(false));
    let clean = || {
        let mut removed = 0;
        while !over.load(Ordering::Relaxed) {
            for base in directories(&place.path) {
                for path in directories(&base).into_iter().chain([base]) {
                    if left.load(Ordering::Relaxed) > 0 && std::fs::remove_dir(path).is_ok() {
                        left.fetch_sub(1, Ordering::Relaxed);
                        removed += 1;
                    }
                }
            }
        }
        removed
    };
    /// Ends the cleaner, also when the test fails.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    std::thread::scope(|scope| {
        let cleaner = scope.spawn(clean);
        let ended = Over(&over);
        in_place(&place, async |supervisor| {
            for round in 0..40 {
                left.store(REMOVALS, Ordering::Relaxed);
                let mut job =
                    supervisor.spawn(&shell("exit 7")).await.unwrap_or_else(|error| panic!("{round}: {error}"));
                assert_eq!(job.wait().await.unwrap().exit_code, 7, "{round}");
            }
        });
        drop(ended);
        crate::support::measured(&format!(
            "a cleaner has removed {} directories beside 40 jobs",
            cleaner.join().unwrap()
        ));
    });
}

#[test]
#[requires(cgroup, root, program("setpriv"), program("flock"))]
fn another_user_can_not_lock_a_base_but_a_job_of_that_user_reads_its_own_limits() {
    let place = OwnCgroup::new();
    in_place(&place, async |supervisor| {
        supervisor.spawn(&shell(":")).await.unwrap().wait().await.unwrap();
        let base = directories(&place.path).remove(0);
        let lock = || {
            let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "flock", "-s"];
            Command::new("setpriv").args(user).arg(&base).arg("true").output().unwrap().status.success()
        };
        let mode = || std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&base).unwrap().permissions()) & 0o777;
        assert_eq!((mode(), lock()), (0o700, false));
        let script = litter("cat cgroup.procs >/dev/null");
        let mut command = shell(&script);
        command.user(pinfold::User::look_up("65534:65534").unwrap());
        let report = supervisor.spawn(&command).await.unwrap().wait().await.unwrap();
        assert_eq!((report.exit_code, lock()), (0, false), "{report:#?}");
    });
}

#[test]
#[requires(cgroup, root, program("flock"))]
fn a_base_that_is_locked_and_has_no_guard_is_named_by_sweep_and_doctor() {
    let place = OwnCgroup::new();
    let base = place.path.join("pinfold-1-0123456789abcdef");
    std::fs::create_dir(&base).unwrap();
    for how in ["-s", "-x"] {
        let mut flock = Command::new("flock");
        let script = ["sh", "-c", "echo locked; read go"];
        let mut locker =
            flock.arg(how).arg(&base).args(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(locker.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "locked\n");
        let said = |command: &str| {
            let ran = Command::new(PINFOLD).args([command, "--cgroup"]).arg(&place.path).output().unwrap();
            let text = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
            let line = text.lines().find(|line| line.contains("no guard")).unwrap_or_default().to_owned();
            assert!(
                line.contains(base.to_str().unwrap()) && line.contains(&locker.id().to_string()),
                "{command}: {text}"
            );
            ran.status.code()
        };
        assert_eq!(said("sweep"), Some(1));
        said("doctor");
        // A live base is listed by neither.
        in_place(&place, async |supervisor| {
            let mut job = supervisor.spawn(&shell("exec sleep 995")).await.unwrap();
            let swept = pinfold::sweep::Sweep::new().cgroup(&place.path).dry_run(true).run().unwrap();
            assert_eq!((swept.locked.len(), swept.locked[0].path.as_str()), (1, base.to_str().unwrap()), "{swept:#?}");
            job.start_kill().unwrap();
            job.wait().await.unwrap();
        });
        drop(locker.stdin.take());
        locker.wait().unwrap();
    }
    let swept = Command::new(PINFOLD).args(["sweep", "--cgroup"]).arg(&place.path).output().unwrap();
    assert!(swept.status.success() && !base.exists(), "{swept:#?}");
}
