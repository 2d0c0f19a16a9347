//! Generated invocations of timeout.

use std::fmt::Write as _;

/// The version of coreutils, such as (9, 1).
pub type Version = (u32, u32);

/// From this version on, timeout forwards every signal that would end it, except those that the caller ignores.
pub const CURRENT: Version = (9, 10);

/// The signals that are sent to timeout. The first ones are those that every version forwards, or that no version
/// forwards.
const SENT: [i32; 25] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGALRM,
    libc::SIGWINCH,
    libc::SIGURG,
    libc::SIGCONT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGXCPU,
    libc::SIGSYS,
    libc::SIGPROF,
    libc::SIGPOLL,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    34,
    60,
];
const PASSED_ON_BEFORE: usize = 8;

/// One invocation, and a signal that is sent to timeout when its command has printed "ready".
#[derive(Clone, Debug)]
pub struct Case {
    pub words: Vec<String>,
    pub locale: &'static str,
    pub containment: &'static str,
    pub send: Option<i32>,
}

/// Pseudo-random numbers, the same for the same seed (xorshift64).
pub struct Dice(pub u64);

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

/// Some options are never generated, because coreutils' timeout may then never end: `-s CHLD`; signals that stop, which
/// nothing undoes; and `-s ALRM` with `-k`, whose alarm it ignores. `-s 32` is not generated either: glibc does not let
/// a program ignore it, so it ends coreutils' timeout too. Version 9.10 does not forward signals that the caller
/// ignores, and forwards all signals that would end timeout. (Before, it forwarded five, and the others left the
/// command behind.) The cases in which this matters are generated only for a peer of that version or a later one.
///
/// Generates commands that end before the shortest limit, at it, or not at all, with at least 0.35 s in between.
pub fn generate(dice: &mut Dice, peer: Version) -> Case {
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
    // A signal is sent only if nothing else happens in this invocation.
    let sent = if peer < CURRENT { &SENT[..PASSED_ON_BEFORE] } else { &SENT[..] };
    let ignores = words.iter().any(|word| word.starts_with("--ignore-signal"));
    let send = (dice.chance(15) && (peer >= CURRENT || !ignores)).then(|| dice.one(sent));
    let wrong = send.is_none() && dice.chance(12);
    let nested = dice.chance(15);
    let mut option = |words: &[&str]| dice_option(dice, words);
    let mut options: Vec<Vec<String>> = Vec::new();
    options.extend(option(&["--foreground", "--fore", "--f"]));
    options.extend(option(&["--preserve-status", "--preserve"]));
    options.extend(option(&["-v", "--verbose", "--verb"]));
    let mut alarm = false;
    if dice.chance(35) {
        let handled = ["TERM", "sigint", "HUP", "3", "9"];
        let signal = if nested && peer < CURRENT {
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
                "ALRM",
                "STKFLT",
                "HUP",
            ])
        };
        alarm = signal == "ALRM";
        options.push(value(dice, "-s", "--signal", signal));
    }
    if dice.chance(35) && !alarm {
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
            &["-s65"],
            &["-s399"],
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

/// Returns an option's value, in one of the ways to write it.
fn value(dice: &mut Dice, short: &str, long: &str, value: &str) -> Vec<String> {
    match dice.roll(4) {
        0 => vec![short.into(), value.into()],
        1 => vec![format!("{short}{value}")],
        2 => vec![format!("{long}={value}")],
        _ => vec![long.into(), value.into()],
    }
}
