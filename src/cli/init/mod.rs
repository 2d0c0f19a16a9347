//! `pinfold init`, also under the names `tini` and `dumb-init`: runs as the first process of a container, or contains a
//! command under another init.

mod contained;
mod delegate;
mod inherited;
mod options;
mod pid_one;
mod session;

use std::ffi::OsString;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};

use super::exit::FAILED;
use super::write_to_stderr;
use options::{Options, Parsed};

use crate::{Error, Signal};

/// The time between SIGTERM and SIGKILL for the processes that the command has left. It is short, because an engine
/// that stops a container waits for ten seconds or less.
const LEFTOVERS_GRACE: Duration = Duration::from_secs(1);

/// The name under which the user called pinfold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    Pinfold,
    Tini,
    DumbInit,
}

/// Runs `init` with these arguments and returns the exit code. `name` is the program's name in messages.
pub fn main(name: &'static str, flavour: Flavour, words: &[OsString]) -> u8 {
    let options = match options::parse(flavour, words, |name| std::env::var_os(name)) {
        Parsed::Run(options) => options,
        Parsed::Help => return print(&options::help(name)),
        Parsed::Version => return print(concat!("pinfold init ", env!("CARGO_PKG_VERSION"), "\n")),
        Parsed::Licence => return print(include_str!("../../../LICENSE-MIT")),
        Parsed::Wrong(message) => {
            print_as(name, &format!("{message}; try '{name} -h'"));
            // The exit code of each of these programs for invalid arguments.
            return if flavour == Flavour::Pinfold { FAILED } else { 1 };
        }
    };
    let init = Init { name, options };
    let delegated = if init.options.delegate { delegate::delegate(&init) } else { Ok(()) };
    let ended = delegated.and_then(|()| init.watch_parent()).and_then(|()| match std::process::id() {
        1 => pid_one::run(&init),
        _ => contained::run(&init),
    });
    match ended {
        Ok(code) => init.options.remapped(code),
        Err(error) => {
            print_as(name, &crate::cli::message_of(&error));
            error.downcast_ref::<Error>().map_or(FAILED, Error::exit_code)
        }
    }
}

fn print(text: &str) -> u8 {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => 0,
        Err(_) => FAILED,
    }
}

fn print_as(name: &str, message: &str) {
    write_to_stderr(format!("{name}: {}\n", crate::report::text::printable_message(message)).as_bytes());
}

/// The name and the options, which both modes use: PID 1, and the supervisor of a command.
struct Init {
    name: &'static str,
    options: Options,
}

impl Init {
    fn debug(&self, message: impl FnOnce() -> String) {
        if self.options.verbose {
            print_as(self.name, &message());
        }
    }

    /// Returns the signal that the command receives for `signal`, if any. With `-v`, also prints that signal.
    fn translate(&self, signal: Signal) -> Option<Signal> {
        let to = self.options.rewritten(signal);
        self.debug_signal(signal, to);
        to
    }

    /// Prints with `-v` which signal the command receives for `signal`, if any.
    fn debug_signal(&self, signal: Signal, to: Option<Signal>) {
        self.debug(|| match to {
            Some(to) if to == signal => format!("{signal} is passed on"),
            Some(to) => format!("{signal} is passed on as {to}"),
            None => format!("{signal} is not passed on"),
        });
    }

    /// Returns whether this signal stops this process too, after the command has received it.
    fn stops_with(&self, signal: Signal) -> bool {
        self.options.suspend && options::is_job_control(signal)
    }

    /// Returns the signals for which the command starts with the default action.
    fn reset_signals(&self) -> impl Iterator<Item = Signal> {
        // The original dumb-init does not change real-time signals either.
        Signal::all().filter(|signal| self.options.reset_signals && signal.number() <= 31)
    }

    /// Implements `-p`: asks the kernel to send a signal when the parent ends (PR_SET_PDEATHSIG, prctl(2)).
    fn watch_parent(&self) -> Result<()> {
        let Some(signal) = self.options.parent_death else { return Ok(()) };
        let known = rustix::process::Signal::from_named_raw(signal.number())
            .with_context(|| format!("-p {signal}: the kernel cannot send this signal"))?;
        rustix::process::set_parent_process_death_signal(Some(known)).context("prctl PR_SET_PDEATHSIG")
    }
}
