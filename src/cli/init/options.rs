//! The options and environment variables of tini and of dumb-init.

use std::ffi::OsString;

use crate::Signal;
use crate::cli::getopt::{LongOption, Parser};

use super::Flavour;

/// The parsed options and the command.
pub struct Options {
    /// init sends signals to the process group of the command, not to the command alone.
    pub group: bool,
    /// The command has a session of its own; init sends signals to its process group, and SIGSTOP in place of the
    /// signals of job control.
    pub session: bool,
    /// The signal that the command receives in place of each signal; `None` if it receives none.
    pub rewrite: Vec<(Signal, Option<Signal>)>,
    /// SIGTSTP, SIGTTIN and SIGTTOU stop this process too, after init has sent them to the command.
    pub suspend: bool,
    /// The command starts with the default action for each signal and with no signal blocked, even if this process
    /// started with ignored or blocked signals.
    pub reset_signals: bool,
    /// Exit codes that become 0.
    pub remap: Vec<u8>,
    /// The signal that this process receives when its parent ends.
    pub parent_death: Option<Signal>,
    /// Moves the processes of the container to a leaf and enables the controllers for jobs.
    pub delegate: bool,
    pub verbose: bool,
    pub warn: bool,
    /// The command and its arguments: at least one word.
    pub command: Vec<OsString>,
}

pub enum Parsed {
    Run(Options),
    Help,
    Version,
    Licence,
    Wrong(String),
}

const SHORT: &str = "hvVwsglce:p:r:";
const LONG: &[LongOption] = &[
    LongOption { name: "help", takes_value: false, id: 'h' },
    LongOption { name: "version", takes_value: false, id: 'V' },
    LongOption { name: "verbose", takes_value: false, id: 'v' },
    LongOption { name: "single-child", takes_value: false, id: 'c' },
    LongOption { name: "rewrite", takes_value: true, id: 'r' },
    LongOption { name: "setsid", takes_value: false, id: 'S' },
    LongOption { name: "delegate", takes_value: false, id: 'D' },
];

pub fn parse(flavour: Flavour, words: &[OsString], variable: impl Fn(&str) -> Option<OsString>) -> Parsed {
    let is = |name: &str, value: &str| variable(name).is_some_and(|found| found == value);
    let mut options = Options {
        group: flavour != Flavour::DumbInit && variable("TINI_KILL_PROCESS_GROUP").is_some(),
        session: flavour == Flavour::DumbInit && !is("DUMB_INIT_SETSID", "0"),
        rewrite: Vec::new(),
        suspend: false,
        reset_signals: flavour == Flavour::DumbInit,
        remap: Vec::new(),
        parent_death: None,
        delegate: false,
        verbose: match flavour {
            Flavour::DumbInit => is("DUMB_INIT_DEBUG", "1"),
            // tini's default level is 1: errors and warnings.
            _ => variable("TINI_VERBOSITY")
                .is_some_and(|level| level.to_string_lossy().parse().is_ok_and(|level: i32| level > 1)),
        },
        warn: false,
        command: Vec::new(),
    };
    let mut parser = Parser::new(SHORT, LONG, words);
    while let Some(found) = parser.next() {
        let (id, value) = match found {
            Ok(found) => found,
            Err(message) => return Parsed::Wrong(String::from_utf8_lossy(&message).into_owned()),
        };
        let value = crate::report::text::printable_os(&value.unwrap_or_default()).into_owned();
        match id {
            'g' => options.group = true,
            'c' => options.session = false,
            'S' => options.session = true,
            'v' => options.verbose = true,
            'D' => options.delegate = true,
            'w' => options.warn = true,
            // No effect: if this process is not PID 1, its guard is a subreaper in any case.
            's' => {}
            'e' => match value.parse() {
                Ok(code) => options.remap.push(code),
                Err(_) => return Parsed::Wrong(format!("'-e {value}': write an exit code from 0 to 255")),
            },
            'p' => match value.parse() {
                Ok(signal) => options.parent_death = Some(signal),
                Err(error) => return Parsed::Wrong(format!("'-p {value}': {error}")),
            },
            'r' => match rewriting(&value) {
                Some(rewriting) => options.rewrite.push(rewriting),
                None => {
                    return Parsed::Wrong(format!(
                        "'-r {value}': write SIGNAL:SIGNAL, as in 15:3 or TERM:QUIT, or SIGNAL:0 to send none"
                    ));
                }
            },
            'h' => return Parsed::Help,
            'l' => return Parsed::Licence,
            _ => return Parsed::Version,
        }
    }
    options.suspend = options.session || flavour == Flavour::DumbInit;
    options.command = parser.operands().to_vec();
    if options.command.is_empty() {
        return Parsed::Wrong("a command is needed".into());
    }
    Parsed::Run(options)
}

fn rewriting(text: &str) -> Option<(Signal, Option<Signal>)> {
    let (from, to) = text.split_once(':')?;
    let to = if to == "0" { None } else { Some(to.parse().ok()?) };
    Some((from.parse().ok()?, to))
}

impl Options {
    /// Returns the signal that the command receives for `signal`; `None` if it receives none.
    pub fn rewritten(&self, signal: Signal) -> Option<Signal> {
        match self.rewrite.iter().rev().find(|(from, _)| *from == signal) {
            Some((_, to)) => *to,
            // The process group of the command is orphaned, because its session has no shell that could continue it.
            // The kernel ignores these signals there, but not SIGSTOP.
            None if self.session && is_job_control(signal) => Some(Signal::STOP),
            None => Some(signal),
        }
    }

    pub fn to_group(&self) -> bool {
        self.group || self.session
    }

    /// Returns the exit code, or 0 for a code of `-e`.
    pub fn remapped(&self, code: u8) -> u8 {
        if self.remap.contains(&code) { 0 } else { code }
    }
}

/// Returns whether this is one of the signals with which a terminal stops processes.
pub fn is_job_control(signal: Signal) -> bool {
    [Signal::TSTP, Signal::TTIN, Signal::TTOU].contains(&signal)
}

/// Returns the text of `-h`.
pub fn help(name: &str) -> String {
    format!(
        "\
Usage: {name} [OPTION]... COMMAND [ARG]...
Run COMMAND, pass signals on to it, reap orphaned processes, and exit with the exit code of COMMAND. When COMMAND ends,
{name} ends all processes that COMMAND has started. Run {name} as the first process of a container. Under
another init, it contains COMMAND in the same way as `pinfold run`.

  -g                      pass signals on to the process group of COMMAND
  -r, --rewrite S:R       when {name} receives the signal S, send R to COMMAND, as in 15:3; 0 sends none
                          (repeatable)
      --setsid            run COMMAND in a session of its own, and pass signals on to its process group; SIGTSTP,
                          SIGTTIN and SIGTTOU stop COMMAND and {name} (the default under the name dumb-init)
  -c, --single-child      no --setsid: pass signals on to COMMAND alone (under the name dumb-init, SIGTSTP, SIGTTIN and
                          SIGTTOU still stop {name} too)
  -e CODE                 exit with 0 if COMMAND exits with CODE (repeatable)
  -p SIGNAL               receive SIGNAL when the parent process ends
      --delegate          as PID 1 of a container whose cgroup is writable: move its processes to a leaf
                          and enable the controllers, so that `pinfold run --memory …` works everywhere in the container
  -v, --verbose           print what {name} does
  -w                      as PID 1, print each orphaned process that {name} reaps
  -s                      accepted without effect: {name} always reaps orphaned processes
  -h, --help              print this help
  -V, --version           print the version
  -l                      print the licence

Environment: TINI_KILL_PROCESS_GROUP (as -g), TINI_VERBOSITY (2 or more: as -v), TINI_SUBREAPER (as -s); under the name
dumb-init DUMB_INIT_SETSID (0: as -c) and DUMB_INIT_DEBUG (1: as -v).

Under the name dumb-init, COMMAND starts with the default action for each signal, and with no signal blocked. Otherwise
it inherits the ignored and blocked signals.

Exit code: that of COMMAND; 128+N if signal N ended it; 126 if it can't be executed; 127 if it was not found.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(flavour: Flavour, words: &[&str], variables: &[(&str, &str)]) -> Result<Options, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let variable = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.into());
        match parse(flavour, &words, variable) {
            Parsed::Run(options) => Ok(options),
            Parsed::Wrong(message) => Err(message),
            _ => Err("help or version".into()),
        }
    }

    #[test]
    fn options_of_both() {
        let options =
            parsed(Flavour::Tini, &["-sgvvw", "-e", "143", "-e1", "-p", "SIGKILL", "--", "a", "-v"], &[]).unwrap();
        assert!(options.group && !options.session && options.verbose && options.warn);
        assert_eq!((options.remapped(143), options.remapped(1), options.remapped(2)), (0, 0, 2));
        assert_eq!((options.parent_death, options.command.len()), (Some(Signal::KILL), 2));

        let options = parsed(Flavour::DumbInit, &["-r", "15:3", "--rewrite=TSTP:0", "-r", "1:9", "a"], &[]).unwrap();
        assert!(options.session && options.suspend && options.reset_signals);
        for (from, to) in [
            (Signal::TERM, Some(Signal::QUIT)),
            (Signal::TSTP, None),
            (Signal::HUP, Some(Signal::KILL)),
            (Signal::TTIN, Some(Signal::STOP)),
            (Signal::INT, Some(Signal::INT)),
        ] {
            assert_eq!(options.rewritten(from), to, "{from}");
        }
        let options = parsed(Flavour::DumbInit, &["-c", "a"], &[]).unwrap();
        assert_eq!((options.session, options.rewritten(Signal::TTIN)), (false, Some(Signal::TTIN)));
        assert!(options.suspend && options.reset_signals);
        for (words, suspend) in [(&["a"][..], false), (&["-c", "a"], false), (&["--setsid", "a"], true)] {
            let options = parsed(Flavour::Pinfold, words, &[]).unwrap();
            assert_eq!((options.suspend, options.reset_signals), (suspend, false), "{words:?}");
        }
    }

    #[test]
    fn variables_of_both() {
        let tini =
            parsed(Flavour::Pinfold, &["a"], &[("TINI_KILL_PROCESS_GROUP", ""), ("TINI_VERBOSITY", "2")]).unwrap();
        assert!(tini.group && tini.verbose && !tini.session);
        let dumb = parsed(Flavour::DumbInit, &["a"], &[("DUMB_INIT_SETSID", "0"), ("DUMB_INIT_DEBUG", "1")]).unwrap();
        assert!(dumb.verbose && !dumb.session);
    }

    #[test]
    fn invalid_options() {
        for (words, expected) in [
            (&["-e", "256", "a"][..], "0 to 255"),
            (&["-e", "x", "a"], "0 to 255"),
            (&["-p", "FOO", "a"], "FOO"),
            (&["-r", "15", "a"], "15:3"),
            (&["-r", "15:99", "a"], "15:3"),
            (&["-r", "0:15", "a"], "15:3"),
            (&["-x", "a"], "invalid option -- 'x'"),
            (&["--", "-g"][..1], "a command is needed"),
        ] {
            let message = parsed(Flavour::Pinfold, words, &[]).err().unwrap();
            assert!(message.contains(expected), "{message}");
        }
    }
}
