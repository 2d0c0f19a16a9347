//! `pinfold timeout`, by the name `timeout`, side by side with the machine's own: the same end and the same words, for
//! invocations that are made up.

mod support;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use support::{Scratch, has_cgroup, has_coreutils, named_timeout, path_with, program, wait_for};

/// One invocation, and a signal that is sent to timeout when its command has said "ready".
#[derive(Clone, Debug)]
struct Case {
    words: Vec<String>,
    locale: &'static str,
    containment: &'static str,
    send: Option<i32>,
}

/// How `timeout` itself ended, and what was on standard error. Whatever it leaves is ended by its warden.
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
        // coreutils' passes nothing on before it waits for its command.
        wait_for(|| {
            let stat = std::fs::read_to_string(format!("/proc/{timeout}/stat")).ok()?;
            stat.rsplit(") ").next()?.starts_with('S').then_some(())
        });
        // SAFETY: the warden's only child, which it reaps when it has ended: its command has just begun.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(timeout, signal);
        }
    }
    let mut told = String::new();
    let _ = child.stderr.take().unwrap().read_to_string(&mut told);
    let _ = stdout.read_to_end(&mut Vec::new());
    let ended = overdue.join().unwrap();
    let status = child.wait().unwrap();
    assert!(ended, "it did not end: {case:?}");
    (status.code(), status.signal(), told)
}

/// Has the warden end everything after 20 s; tells whether it ended by itself.
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

/// Numbers that look random, the same for the same seed (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides as u64) as usize
    }

    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())].clone()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.roll(100) < percent
    }
}

/// Not generated, since coreutils 9.1 then may never end: `-s CHLD`, and signals that stop, which nobody undoes; nor where
/// it has bugs: with `-s ALRM` it ignores the alarm of `-k`, and a signal other than five kills it and leaves its command
/// (9.8 passes all of them on), so that timeouts inside of timeouts are sent those five only.
///
/// What ends before the shortest limit, what ends at it, and what does not: with 0.35 s in between, and more.
fn generate(dice: &mut Dice) -> Case {
    let mut words: Vec<String> = Vec::new();
    let dispositions = ["TERM", "ALRM", "CHLD", "HUP", "INT", "QUIT", "TTIN", "TTOU", "TSTP", "CONT", "USR1", "PIPE"];
    if dice.chance(35) {
        let how = dice.one(&["--ignore-signal", "--block-signal"]);
        let mut which = dice.one(&dispositions).to_owned();
        if dice.chance(30) {
            write!(which, ",{}", dice.one(&dispositions)).unwrap();
        }
        words.extend(["env".into(), format!("{how}={which}")]);
    }
    words.push("timeout".into());
    // A signal is sent only where that is all that happens.
    let send =
        dice.chance(15).then(|| dice.one(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGALRM]));
    let wrong = send.is_none() && dice.chance(12);
    let nested = dice.chance(15);
    let mut option = |words: &[&str]| dice_option(dice, words);
    let mut options: Vec<Vec<String>> = Vec::new();
    options.extend(option(&["--foreground", "--fore", "--f"]));
    options.extend(option(&["--preserve-status", "--preserve"]));
    options.extend(option(&["-v", "--verbose", "--verb"]));
    if dice.chance(35) {
        let handled = ["TERM", "sigint", "HUP", "3", "9"];
        let signal = if nested {
            dice.one(&handled)
        } else {
            dice.one(&[
                "TERM",
                "sigint",
                "9",
                "KILL",
                "0",
                "EXIT",
                "143",
                "CONT",
                "USR1",
                "RTMIN+3",
                "rtmax",
                "SIGRTMAX-2",
                "URG",
                "PIPE",
                "IO",
                "WINCH",
            ])
        };
        options.push(value(dice, "-s", "--signal", signal));
    }
    if dice.chance(35) {
        let after = dice.one(&["0.35", ".35s", "0", "inf", "1d", "0x5.8p-4"]);
        options.push(value(dice, "-k", "--kill-after", after));
    }
    if wrong && dice.chance(60) {
        let bad: &[&[&str]] = &[
            &["-x"],
            &["--xx"],
            &["--xx=y"],
            &["--ver"],
            &["--verb=1"],
            &["--foreground="],
            &["-s", "FOO"],
            &["-s32"],
            &["--signal", ""],
            &["-s", "-1"],
            &["-k", "x"],
            &["-k", "-1"],
            &["--kill-after=1w"],
            &["-ä"],
            &["--signal=t\n\\'’\u{1}"],
            &["-vz"],
            &["-k"],
            &["--sig"],
        ];
        options.push(dice.one(bad).iter().map(|word| (*word).to_owned()).collect());
    }
    while !options.is_empty() {
        words.extend(options.remove(dice.roll(options.len())));
    }
    if dice.chance(15) {
        words.push("--".into());
    }
    let limit = if wrong {
        dice.one(&["", "x", "1x", "1S", "nan", "-1", " ", "1 ", "5e", ".", "1,5", "0x", "1ss", "’"])
    } else if send.is_some() {
        dice.one(&["20", "0", "inf"])
    } else {
        dice.one(&[
            ".35", "0.35", "0.35", "0.35s", ".35", "3.5e-1", "0x0.5ap0", "+.35", " .35", "0", "0s", "inf", "infinity",
            "1e400", "30", "0.5m", "1h", "1d",
        ])
    };
    words.push(limit.into());
    if wrong && dice.chance(20) {
        return Case { words, locale: "C", containment: "auto", send: None };
    }
    let command: Vec<&str> = if send.is_some() {
        dice.one(&[
            vec!["sh", "-c", "echo ready; exec sleep 1.1"],
            vec!["sh", "-c", "trap 'exit 7' TERM HUP; echo ready; sleep 1.1 2>/dev/null & wait"],
            vec!["sh", "-c", "trap '' TERM INT; echo ready; exec sleep 1.1"],
        ])
    } else if nested {
        dice.one(&[
            vec!["timeout", "-v", "20", "sleep", "1.1"],
            vec!["timeout", "0.1", "sleep", "1.1"],
            vec!["timeout", "-s", "KILL", "0.1", "sleep", "1.1"],
        ])
    } else {
        dice.one(&[
            vec!["true"],
            vec!["false"],
            vec!["sh", "-c", "exit 42"],
            vec!["sh", "-c", "exit 124"],
            vec!["sh", "-c", "kill -KILL $$"],
            vec!["sh", "-c", "kill -TERM $$; exit 3"],
            vec!["sh", "-c", "kill -SEGV $$"],
            vec!["sh", "-c", "kill -RTMIN $$"],
            vec!["sleep", "1.1"],
            vec!["sleep", "1.1"],
            vec!["sh", "-c", "exec sleep 1.1"],
            vec!["sh", "-c", "trap '' TERM INT; exec sleep 1.1"],
            vec!["sh", "-c", "trap 'exit 7' TERM INT; exec 2>/dev/null; sleep 1.1 & wait"],
            vec!["sh", "-c", "trap 'kill -KILL $$' TERM; exec 2>/dev/null; sleep 1.1 & wait"],
            vec!["sh", "-c", "exec setsid sleep 1.1"],
            vec!["nosuch"],
            vec!["./no\nsuch"],
            vec![""],
            vec!["/"],
            vec!["/etc/passwd"],
            vec!["/etc/passwd/x"],
        ])
    };
    words.extend(command.into_iter().map(str::to_owned));
    let locale = dice.one(&["C", "C.UTF-8", "nosuch.UTF-8"]);
    Case { words, locale, containment: dice.one(&["cgroup", "subreaper"]), send }
}

fn dice_option(dice: &mut Dice, spellings: &[&str]) -> Option<Vec<String>> {
    dice.chance(35).then(|| vec![dice.one(spellings).to_owned()])
}

/// An option's value, in one of the ways to write it.
fn value(dice: &mut Dice, short: &str, long: &str, value: &str) -> Vec<String> {
    match dice.roll(4) {
        0 => vec![short.into(), value.into()],
        1 => vec![format!("{short}{value}")],
        2 => vec![format!("{long}={value}")],
        _ => vec![long.into(), value.into()],
    }
}

/// `PINFOLD_SEED` sets the seed, `PINFOLD_INVOCATIONS` how many (400 by default).
///
/// The commands differ by their time, so that a machine which stands still for a third of a second makes a difference where
/// there is none: a difference counts when it is there three times in a row.
#[test]
fn as_coreutils() {
    if !has_cgroup() || !has_coreutils() {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    // The same ones each time: what another seed finds (`PINFOLD_SEED=$RANDOM`) is for a change of its own.
    let seed = number("PINFOLD_SEED").unwrap_or(5) | 1;
    println!("PINFOLD_SEED={seed}");
    let mut dice = Dice(seed);
    let count = number("PINFOLD_INVOCATIONS").unwrap_or(400) as usize;
    let cases: Vec<Case> = (0..count).map(|_| generate(&mut dice)).collect();

    let by_name = named_timeout();
    let (theirs, ours) = (std::env::var("PATH").unwrap(), path_with(&by_name));
    let (next, codes, different) =
        (AtomicUsize::new(0), Mutex::new(std::collections::BTreeMap::new()), Mutex::new(String::new()));
    let _ = program("warden");
    let compare = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut seen = String::new();
            let same = (0..3).any(|_| {
                let (expected, actual) = (outcome(case, &theirs), outcome(case, &ours));
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
    // Mostly they sleep.
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
