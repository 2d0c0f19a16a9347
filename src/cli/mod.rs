//! The command line: its types, and one file a subcommand.

mod doctor;
mod duration;
mod limits;
mod report_sink;
mod run;
mod signals;
mod sweep;
mod terminal;

use std::io::Write;

use clap::{Parser, Subcommand};
use pinfold::report::ProcessList;
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
    Sweep(sweep::Args),
    Doctor(doctor::Args),
}

/// Tells the exit code.
pub fn main() -> u8 {
    // The guard starts beside the reading of the arguments, and before these have filled the memory that is forked.
    let prepared = (std::env::args_os().nth(1).as_deref() == Some("run".as_ref())).then(run::Prepared::new);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody to tell where the stream is closed or full.
            let _ = error.print();
            return if error.use_stderr() { FAILED } else { 0 };
        }
    };
    let ended = match cli.command {
        Subcommands::Run(args) => run::run(*args, prepared.unwrap_or_else(run::Prepared::new)),
        Subcommands::Sweep(args) => sweep::run(&args),
        Subcommands::Doctor(args) => doctor::run(&args),
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

/// One line on standard error. Where that is closed, or full for a second (a job filled it and nobody reads), there is
/// nobody to tell.
fn tell(message: &str) {
    const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
    // What a pipe that is ready takes without blocking (pipe(7)).
    const PIPE_BUF: usize = 4096;
    let mut stderr = std::io::stderr();
    for part in format!("pinfold: {message}\n").as_bytes().chunks(PIPE_BUF) {
        let ready = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&PATIENCE));
        if !matches!(ready, Ok(1)) || stderr.write_all(part).is_err() {
            return;
        }
    }
}
