//! The options of `pinfold watch`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use pinfold::Signal;

use super::extensions::{self, Extension};
use crate::cli::{duration, run};

/// Run a command, and again when files change: the last run, and all that it started, is gone before the next begins.
///
/// pinfold does not watch what git ignores, nor the files that editors make for themselves. The command's standard input is
/// /dev/null; type r and Enter to restart it. Ctrl-C ends all.
#[derive(clap::Args)]
pub struct Args {
    /// A directory or file to watch (repeatable)
    #[arg(long = "watch", short, value_name = "PATH", default_value = ".")]
    pub watch: Vec<PathBuf>,

    /// Only files with these extensions: rs,toml
    #[arg(long, value_name = "EXT,…", value_delimiter = ',', value_parser = extensions::parse)]
    pub ext: Vec<Extension>,

    /// Not these, written as in .gitignore (repeatable)
    #[arg(long, value_name = "GLOB")]
    pub ignore: Vec<String>,

    /// Start again when nothing has changed for this long
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration::parse)]
    pub debounce: Duration,

    /// What a change does while the command runs
    #[arg(long, value_name = "WHAT", default_value = "restart")]
    pub on_busy: OnBusy,

    /// Clear the terminal before each run
    #[arg(long)]
    pub clear: bool,

    /// Let the first run end by itself: changes restart only later ones
    #[arg(long)]
    pub once_first: bool,

    /// Wait for a change before the first run
    #[arg(long, short)]
    pub postpone: bool,

    /// The stop signal: a name like INT, or a number [default: TERM, or INT, HUP or QUIT where pinfold received that]
    #[arg(long, value_name = "SIGNAL", value_parser = run::parse_signal)]
    pub stop_signal: Option<Signal>,

    /// How long filters such as `> >(tee log)` may take to finish after the command has exited; other processes a tenth of it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub settle: Duration,

    /// Kill a run this long after the stop signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub grace: Duration,

    /// The command's standard input. With inherit, r and Enter do not restart it: it reads what you type
    #[arg(long, value_name = "WHAT", default_value = "null")]
    pub stdin: Stdin,

    /// Print only what went wrong
    #[arg(long, short)]
    pub quiet: bool,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnBusy {
    /// It is stopped and started again
    Restart,
    /// It is started again when it has ended
    Queue,
    /// Nothing
    Ignore,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stdin {
    /// /dev/null
    Null,
    /// That of pinfold, for a debugger
    Inherit,
}
