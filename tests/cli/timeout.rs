//! Compares `pinfold timeout`, under the name `timeout`, with the machine's own: it ends in the same way and prints the
//! same text, for generated invocations.

mod cases;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use cases::{CURRENT, Case, Dice, Version, generate};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};

use crate::support::{Scratch, named_timeout, path_with, program, wait_for};

/// Returns how `timeout` itself ended, and its standard error. The warden ends everything that it leaves.
fn outcome(case: &Case, path: &str) -> (Option<i32>, Option<i32>, String) {
    let survivors = Scratch::new("survivors");
    let mut child = Command::new(program("warden"))
        .arg(survivors.path())
        .args(&case.words)
        .env("PATH", path)
        .env("LC_ALL", case.locale)
        .env("PINFOLD_CONTAINMENT", case.containment)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let overdue = watch_over(&child);
    if let Some(signal) = case.send {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{case:?}");
        let warden = child.id();
        let timeout: i32 = wait_for(|| {
            let children = std::fs::read_to_string(format!("/proc/{warden}/task/{warden}/children")).ok()?;
            children.split_whitespace().next()?.parse().ok()
        });
        // coreutils' timeout forwards no signal before it waits for its command.
        wait_for(|| {
            let stat = std::fs::read_to_string(format!("/proc/{timeout}/stat")).ok()?;
            stat.rsplit(") ").next()?.starts_with('S').then_some(())
        });
        // SAFETY: signals the warden's only child, which the warden reaps when it has ended; its command has just
        // begun.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(timeout, signal);
        }
    }
    let mut messages = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut messages);
    let _ = stdout.read_to_end(&mut Vec::new());
    let ended = overdue.join().unwrap();
    let status = child.wait().unwrap();
    assert!(ended, "it did not end: {case:?}");
    (status.code(), status.signal(), messages)
}

/// Lets the warden end everything after 20 s; returns whether it ended by itself.
fn watch_over(warden: &Child) -> JoinHandle<bool> {
    let pidfd = pidfd_open(Pid::from_child(warden), PidfdFlags::empty()).unwrap();
    std::thread::spawn(move || {
        let patience = Timespec { tv_sec: 20, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).unwrap() == 1;
        if !ended {
            pidfd_send_signal(&pidfd, rustix::process::Signal::USR1).unwrap();
        }
        ended
    })
}

/// Returns the coreutils version of the `timeout` at this path.
fn version(path: &str) -> Version {
    let out = Command::new("env").args(["timeout", "--version"]).env("PATH", path).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let first = text.lines().next().unwrap_or_default();
    let mut numbers = first.rsplit(' ').next().unwrap_or_default().split('.').map(|number| number.parse().ok());
    let version = (|| Some((numbers.next()??, numbers.next()??)))();
    version.unwrap_or_else(|| panic!("no version of coreutils: {first}"))
}

/// `PINFOLD_SEED` sets the seed (an odd number), `PINFOLD_INVOCATIONS` the number of invocations (400 by default),
/// `PINFOLD_COREUTILS` a directory with a `timeout` to use instead of the machine's.
///
/// The commands differ in their duration, so a machine that pauses for a third of a second can cause a false
/// difference. A difference counts only if it occurs three times in a row.
#[test]
#[requires(cgroup, coreutils)]
fn as_coreutils() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    // The invocations are the same each time: failures that another seed finds (`PINFOLD_SEED=$RANDOM`) are for
    // separate changes.
    let seed = number("PINFOLD_SEED").unwrap_or(5) | 1;
    println!("PINFOLD_SEED={seed}");
    let mut dice = Dice(seed);
    let count = number("PINFOLD_INVOCATIONS").unwrap_or(400) as usize;
    let (by_name, path) = (named_timeout(), std::env::var("PATH").unwrap());
    let theirs = std::env::var("PINFOLD_COREUTILS").map_or(path.clone(), |directory| format!("{directory}:{path}"));
    let ours = path_with(&by_name);
    let peer = version(&theirs);
    println!("coreutils {}.{}", peer.0, peer.1);
    let cases: Vec<Case> = (0..count).map(|_| generate(&mut dice, peer)).collect();
    let (next, codes, different) =
        (AtomicUsize::new(0), Mutex::new(std::collections::BTreeMap::new()), Mutex::new(String::new()));
    let _ = program("warden");
    let compare = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut seen = String::new();
            let same = (0..3).any(|_| {
                let (mut expected, actual) = (outcome(case, &theirs), outcome(case, &ours));
                if peer < CURRENT {
                    // The older version's name for signal 0.
                    expected.2 = expected.2.replace("sending signal EXIT to", "sending signal 0 to");
                }
                let same = expected == actual;
                if same {
                    *codes.lock().unwrap().entry((expected.0, expected.1)).or_insert(0) += 1;
                } else {
                    writeln!(seen, "  coreutils {expected:?}\n  pinfold   {actual:?}").unwrap();
                }
                same
            });
            if !same {
                writeln!(different.lock().unwrap(), "{case:?}\n{seen}").unwrap();
            }
        }
    };
    // Most of them only sleep.
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(compare);
        }
    });
    let codes = codes.into_inner().unwrap();
    println!("(exit code, signal): invocations {codes:?}");
    let different = different.into_inner().unwrap();
    assert!(different.is_empty(), "PINFOLD_SEED={seed}\n{different}");
    for expected in [Some(0), Some(42), Some(124), Some(125), Some(126), Some(127), Some(137), None] {
        assert!(count < 300 || codes.keys().any(|(code, _)| *code == expected), "{expected:?} never came: {codes:?}");
    }
}
