//! The options of `pinfold watch`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;

use crate::Signal;
use crate::cli::{duration, run};

use super::extensions::{self, Extension};

/// Run a command, and run it again when files change. The last run and everything it started have ended before the next
/// starts.
///
/// pinfold ignores changes of files that git ignores and of the temporary files of editors. The command's standard
/// input is /dev/null. Type r and Enter to restart the command. Press Ctrl-C to end the command and pinfold.
#[derive(clap::Args)]
pub struct Args {
    /// A directory or file to watch (repeatable)
    #[arg(long = "watch", short, value_name = "PATH", default_value = ".")]
    pub watch: Vec<PathBuf>,

    /// Watch only files with these extensions, such as rs,toml
    #[arg(long, value_name = "EXT,…", value_delimiter = ',', value_parser = extensions::parse)]
    pub ext: Vec<Extension>,

    /// Ignore files that match this pattern, written as in .gitignore (repeatable)
    #[arg(long, value_name = "GLOB")]
    pub ignore: Vec<String>,

    /// Wait until there has been no change for this long before the next run starts
    #[arg(long, value_name = "DURATION", default_value = "100ms", value_parser = duration::parse)]
    pub debounce: Duration,

    /// What to do when a file changes while the command runs
    #[arg(long, value_name = "WHAT", default_value = "restart")]
    pub on_busy: OnBusy,

    /// Clear the terminal before each run
    #[arg(long)]
    pub clear: bool,

    /// Let the first run end by itself; changes restart only later runs
    #[arg(long)]
    pub once_first: bool,

    /// Wait for a change before the first run
    #[arg(long, short)]
    pub postpone: bool,

    /// The stop signal: a name like INT, or a number [default: TERM, or INT, HUP or QUIT where pinfold received that]
    #[arg(long, value_name = "SIGNAL", value_parser = run::parse_signal)]
    pub stop_signal: Option<Signal>,

    /// How long filters such as `> >(tee log)` may take to finish after the command has exited; other processes may
    /// take a tenth of it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub settle: Duration,

    /// How long to wait after the stop signal before pinfold kills the run
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub grace: Duration,

    /// The command's standard input. With inherit, the command reads what you type, so r and Enter do not restart it
    #[arg(long, value_name = "WHAT", default_value = "null")]
    pub stdin: Stdin,

    /// Print only errors
    #[arg(long, short)]
    pub quiet: bool,

    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OnBusy {
    /// Stop the command, and start it again
    Restart,
    /// Start the command again when it has ended
    Queue,
    /// Do nothing
    Ignore,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Stdin {
    /// /dev/null
    Null,
    /// The standard input of pinfold, for a debugger
    Inherit,
}
