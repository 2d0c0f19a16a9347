//! The command line: its types, and one file a subcommand.

mod doctor;
mod duration;
mod environment;
mod getopt;
mod init;
mod limits;
mod on_signal;
mod open_output;
mod pool;
mod quote;
mod report_sink;
mod run;
mod serve;
mod session;
mod signals;
mod stdin;
mod sweep;
mod terminal;
mod thread;
mod timeout;
mod usage;
#[cfg(feature = "watch")]
mod watch;
mod write;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;

use init::Flavour;

use anyhow::Result;
use clap::{Parser, Subcommand};
use pinfold::report::ProcessList;
use pinfold::text::printable_message;
use pinfold::{Builder, Guard};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// pinfold itself failed, as with timeout(1) and env(1).
const FAILED: u8 = 125;

/// Runs a command, and nothing that it started can outlive it.
#[derive(Parser)]
#[command(name = "pinfold", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    Run(Box<run::Args>),
    Pool(pool::Args),
    Serve(serve::Args),
    Sweep(sweep::Args),
    Doctor(doctor::Args),
    #[cfg(feature = "watch")]
    Watch(watch::Args),
    /// Run a command with a time limit: timeout(1) with all of its options, and the whole tree goes
    // Its words are read as coreutils reads them, before this.
    #[command(disable_help_flag = true)]
    Timeout {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Be PID 1 of a container, or hold a command under another init: with the options of tini and dumb-init
    #[command(disable_help_flag = true)]
    Init {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

/// The same for `run` alone, which has to be quick: the options of the other commands are not built.
#[derive(Parser)]
#[command(name = "pinfold")]
struct RunCli {
    #[command(subcommand)]
    command: RunSubcommand,
}

#[derive(Subcommand)]
enum RunSubcommand {
    Run(Box<run::Args>),
}

fn parse(words: &[OsString]) -> clap::error::Result<Subcommands> {
    if words.get(1).is_some_and(|word| word == "run") {
        let RunSubcommand::Run(args) = RunCli::try_parse_from(words)?.command;
        return Ok(Subcommands::Run(args));
    }
    Ok(Cli::try_parse_from(words)?.command)
}

/// A command that stands in for another, as it is called: by a link of that name, or as `pinfold NAME`.
fn stand_in(words: &[OsString]) -> Option<u8> {
    let name = words.first()?;
    match Path::new(name).file_name().and_then(OsStr::to_str) {
        Some("timeout") => return Some(timeout::main(name, &words[1..])),
        Some("tini") => return Some(init::main("tini", Flavour::Tini, &words[1..])),
        Some("dumb-init") => return Some(init::main("dumb-init", Flavour::DumbInit, &words[1..])),
        _ => {}
    }
    match words.get(1)?.to_str()? {
        "timeout" => Some(timeout::main("pinfold timeout".as_ref(), &words[2..])),
        "init" => Some(init::main("pinfold init", Flavour::Pinfold, &words[2..])),
        _ => None,
    }
}

/// Tells the exit code.
pub fn main(words: &[OsString]) -> u8 {
    if let Some(code) = stand_in(words) {
        return code;
    }
    // The guard starts beside the reading of the arguments, and before these have filled the memory that is forked.
    let prepared = (words.get(1).is_some_and(|word| word == "run" || word == "watch")).then(run::Prepared::new);
    let command = match parse(words) {
        Ok(command) => command,
        Err(error) => return usage::print(error, words),
    };
    let ended = match command {
        Subcommands::Run(args) => run::run(*args, prepared.unwrap_or_else(run::Prepared::new)),
        Subcommands::Pool(args) => pool::run(&args),
        Subcommands::Serve(args) => serve::run(&args),
        Subcommands::Sweep(args) => sweep::run(&args),
        Subcommands::Doctor(args) => doctor::run(&args),
        #[cfg(feature = "watch")]
        Subcommands::Watch(args) => {
            let prepared = prepared.unwrap_or_else(run::Prepared::new);
            prepared.map_err(Into::into).and_then(|prepared| watch::run(&args, prepared))
        }
        Subcommands::Init { words } => Ok(init::main("pinfold init", Flavour::Pinfold, &words)),
        Subcommands::Timeout { words } => Ok(timeout::main("pinfold timeout".as_ref(), &words)),
    };
    ended.unwrap_or_else(|error| {
        tell(&format!("{error:#}"));
        FAILED
    })
}

/// How many processes, and the first of them.
fn processes(processes: &ProcessList) -> String {
    const SHOWN: usize = 3;
    let mut text = if processes.count == 1 { "1 process".to_owned() } else { format!("{} processes", processes.count) };
    let shown: Vec<_> = processes.processes.iter().take(SHOWN).map(ToString::to_string).collect();
    if !shown.is_empty() {
        let more = if processes.count as usize > shown.len() { ", …" } else { "" };
        text.push_str(&format!(" ({}{more})", shown.join(", ")));
    }
    text
}

/// A supervisor as the environment describes it, for the commands whose options are another program's.
fn supervisor_of_environment(guard: Guard) -> Result<Builder> {
    Ok(environment::supervisor(None, None)?.guard(guard))
}

/// One line on standard error. No text from outside in it acts on a terminal or makes another line.
fn tell(message: &str) {
    write_patiently(format!("pinfold: {}\n", printable_message(message)).as_bytes());
}

/// Writes to standard error. Where that is closed, or full for a second (a job filled it and nobody reads), there is
/// nobody to tell.
fn write_patiently(bytes: &[u8]) {
    const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
    // What a pipe that is ready takes without blocking (pipe(7)).
    const PIPE_BUF: usize = 4096;
    let mut stderr = std::io::stderr();
    for part in bytes.chunks(PIPE_BUF) {
        let ready = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&PATIENCE));
        if !matches!(ready, Ok(1)) || stderr.write_all(part).is_err() {
            return;
        }
    }
}
