//! The options of timeout(1), and its help text.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::cli::getopt::{LongOption, Parser};
use crate::cli::quote::quote;

use super::operands;

/// The parsed options and operands.
pub struct Options {
    pub foreground: bool,
    pub preserve_status: bool,
    pub verbose: bool,
    /// An option that timeout(1) does not have.
    pub die_with_parent: bool,
    pub kill_after: Option<Duration>,
    /// The number of the signal, 0 for none.
    pub signal: i32,
    pub deadline: Option<Duration>,
    /// The command and its arguments: at least one word.
    pub command: Vec<OsString>,
}

pub enum Parsed {
    Run(Options),
    Help,
    Version,
    /// The arguments are invalid. `None` if timeout(1) prints no message besides the hint at `--help`.
    Wrong(Option<Vec<u8>>),
}

const SHORT: &str = "fk:ps:v";
const LONG: &[LongOption] = &[
    LongOption { name: "foreground", takes_value: false, id: 'f' },
    LongOption { name: "kill-after", takes_value: true, id: 'k' },
    LongOption { name: "preserve-status", takes_value: false, id: 'p' },
    LongOption { name: "signal", takes_value: true, id: 's' },
    LongOption { name: "verbose", takes_value: false, id: 'v' },
    LongOption { name: "die-with-parent", takes_value: false, id: 'd' },
    LongOption { name: "help", takes_value: false, id: 'H' },
    LongOption { name: "version", takes_value: false, id: 'V' },
];

pub fn parse(words: &[OsString]) -> Parsed {
    let mut options = Options {
        foreground: false,
        preserve_status: false,
        verbose: false,
        die_with_parent: false,
        kill_after: None,
        signal: libc::SIGTERM,
        deadline: None,
        command: Vec::new(),
    };
    let mut parser = Parser::new(SHORT, LONG, words);
    while let Some(found) = parser.next() {
        let (id, value) = match found {
            Ok(found) => found,
            Err(message) => return Parsed::Wrong(Some(message)),
        };
        let value = value.unwrap_or_default();
        match id {
            'f' => options.foreground = true,
            'p' => options.preserve_status = true,
            'v' => options.verbose = true,
            'd' => options.die_with_parent = true,
            'k' => match operands::duration(value.as_bytes()) {
                Some(duration) => options.kill_after = duration,
                None => return invalid_interval(&value),
            },
            's' => match operands::signal(value.as_bytes()) {
                Some(signal) => options.signal = signal,
                None => {
                    return Parsed::Wrong(Some([&quote(value.as_bytes()), b": invalid signal".as_slice()].concat()));
                }
            },
            'H' => return Parsed::Help,
            _ => return Parsed::Version,
        }
    }
    let [deadline, command @ ..] = parser.operands() else { return Parsed::Wrong(None) };
    if command.is_empty() {
        return Parsed::Wrong(None);
    }
    match operands::duration(deadline.as_bytes()) {
        Some(duration) => options.deadline = duration,
        None => return invalid_interval(deadline),
    }
    options.command = command.to_vec();
    Parsed::Run(options)
}

fn invalid_interval(text: &OsString) -> Parsed {
    Parsed::Wrong(Some([b"invalid time interval ".as_slice(), &quote(text.as_bytes())].concat()))
}

/// Returns the text of `--help`.
pub fn help(name: &str) -> String {
    format!(
        "\
Usage: {name} [OPTION]... DURATION COMMAND [ARG]...
Run COMMAND, and stop it if it is still running after DURATION. When COMMAND has ended, for whatever reason,
{name} also ends every process that COMMAND has started.

  -f, --foreground            leave COMMAND in the caller's process group, so that it can use the terminal; send the
                              signal to COMMAND alone; when COMMAND has ended, end the processes that it has started
  -k, --kill-after=DURATION   send KILL if COMMAND is still running this long after the first signal
  -p, --preserve-status       exit with the status of COMMAND, even if COMMAND timed out
  -s, --signal=SIGNAL         the signal to send on timeout, a name or a number; TERM by default
  -v, --verbose               print each signal that {name} sends, on standard error
      --die-with-parent       stop COMMAND when the process that started {name} has ended
      --help                  print this help
      --version               print the version

DURATION is a number, which may have a fraction, and a unit: s for seconds (the default), m for minutes, h for hours,
d for days. 0 and inf switch the timeout off.

Exit status: 124 if COMMAND timed out and --preserve-status is not given; 125 if {name} itself failed;
126 if COMMAND can't be executed; 127 if it was not found; 137 (128+9) if {name} sent KILL;
otherwise that of COMMAND.
"
    )
}
