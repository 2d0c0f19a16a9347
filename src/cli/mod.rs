//! The command line: its types, and one file for each subcommand.

mod control;
mod denials;
mod doctor;
mod duration;
mod environment;
mod exit;
mod explain;
mod getopt;
mod init;
mod jobs;
mod limits;
mod on_signal;
mod open_output;
mod parent;
mod pool;
mod quote;
mod report_sink;
mod run;
mod runtime;
mod sandbox;
#[cfg(all(test, feature = "schema"))]
mod schema;
mod serve;
mod signal_stream;
mod signals;
mod stdin;
mod supervise;
mod sweep;
mod terminal;
mod thread;
mod timeout;
#[cfg(feature = "services")]
mod up;
mod usage;
#[cfg(feature = "watch")]
mod watch;
mod write;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;

use exit::FAILED;
use init::Flavour;

use crate::kernel::rlimit;
use anyhow::Result;
use clap::{Parser, Subcommand};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::report::text::printable_message;
use crate::{Guard, SupervisorBuilder};

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
    /// Run a command that may touch only what you grant; the same as `pinfold run --sandbox`
    Sandbox(Box<run::Args>),
    Pool(pool::Args),
    Serve(serve::Args),
    #[cfg(feature = "services")]
    Up(up::Args),
    #[cfg(feature = "services")]
    Down(up::DownArgs),
    #[cfg(feature = "services")]
    Restart(up::RestartArgs),
    #[cfg(feature = "services")]
    Logs(up::LogsArgs),
    Ps(control::ps::Args),
    Stats(control::stats::Args),
    Stop(control::StopArgs),
    Kill(control::KillArgs),
    Signal(control::SignalArgs),
    Freeze(control::FreezeArgs),
    Thaw(control::ThawArgs),
    Wait(control::WaitArgs),
    Exec(control::exec::Args),
    Sweep(sweep::Args),
    Doctor(doctor::Args),
    #[cfg(feature = "watch")]
    Watch(watch::Args),
    /// Run a command with a time limit, with all options of timeout(1), and end everything that it started
    // `drop_in_replacement` parses the arguments as coreutils does, before clap sees them.
    #[command(disable_help_flag = true)]
    Timeout {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Run as PID 1 of a container, or contain a command under another init; has the options of tini and dumb-init
    #[command(disable_help_flag = true)]
    Init {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

/// The same parser for `run` alone. `run` has to start quickly, so clap does not build the options of the other
/// subcommands.
#[derive(Parser)]
#[command(name = "pinfold")]
struct RunCli {
    #[command(subcommand)]
    command: RunSubcommand,
}

#[derive(Subcommand)]
enum RunSubcommand {
    Run(Box<run::Args>),
    /// Run a command that may touch only what you grant; the same as `pinfold run --sandbox`.
    Sandbox(Box<run::Args>),
}

#[inline(never)]
fn parse(words: &[OsString]) -> clap::error::Result<Subcommands> {
    if words.get(1).is_some_and(|word| word == "run") {
        let (RunSubcommand::Run(args) | RunSubcommand::Sandbox(args)) = RunCli::try_parse_from(words)?.command;
        return Ok(Subcommands::Run(args));
    }
    if let [program, word, rest @ ..] = words
        && word == "sandbox"
    {
        let on = [program.clone(), word.clone(), "--sandbox".into()];
        let words = on.iter().chain(rest);
        let (RunSubcommand::Run(args) | RunSubcommand::Sandbox(args)) = RunCli::try_parse_from(words)?.command;
        return Ok(Subcommands::Run(args));
    }
    Ok(Cli::try_parse_from(words)?.command)
}

/// Runs the subcommands that replace another program. The user calls them through a link with the name of that program,
/// or as `pinfold NAME`. Returns the exit code, or `None` if the arguments call no such subcommand.
#[inline(never)]
fn drop_in_replacement(words: &[OsString]) -> Option<u8> {
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

/// Runs the command with these arguments, the first of which is the name of the program, and ends this process with the
/// exit code.
pub fn main(words: &[OsString]) -> ! {
    crate::guard::init_with(words);
    if let Err(message) = enough_stack(words) {
        eprintln!("pinfold: {message}");
        std::process::exit(FAILED.into());
    }
    // `exit` flushes standard output. In other programs Rust's runtime does that after `main`, but it does not run
    // here.
    std::process::exit(subcommand(words).into())
}

/// The subcommands that start their guard before they parse their arguments.
const STARTS_EARLY: [&str; 3] = ["run", "sandbox", "watch"];

/// Checks that the limit on the stack is large enough. A process that exceeds this limit receives SIGSEGV, without an
/// explanation (getrlimit(2), RLIMIT_STACK).
///
/// # Errors
/// A message with the limit and what pinfold needs.
fn enough_stack(words: &[OsString]) -> Result<(), String> {
    /// A debug build needs much more stack.
    const NEEDED: u64 = if cfg!(debug_assertions) { 512 << 10 } else { 256 << 10 };
    // A seccomp profile may refuse to show the limit.
    let Some((soft, hard)) = rlimit::limit(libc::RLIMIT_STACK) else { return Ok(()) };
    let word = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    // These subcommands start their guard first, because the jobs inherit the guard's limit. Then they raise their own
    // limit as far as the hard limit allows.
    let raises = STARTS_EARLY.contains(&word);
    match if raises { hard } else { soft } {
        bytes if bytes < NEEDED => Err(format!(
            "the limit on the stack is {} KiB, but pinfold needs {} KiB: raise it (ulimit -s)",
            bytes >> 10,
            NEEDED >> 10
        )),
        _ => Ok(()),
    }
}

/// Runs the subcommand that `words` name, and returns the exit code.
fn subcommand(words: &[OsString]) -> u8 {
    if let Some(code) = drop_in_replacement(words) {
        return code;
    }
    // The guard starts while pinfold parses the arguments. The fork comes first, so that it does not have to copy the
    // memory that parsing fills.
    let early = words.get(1).is_some_and(|word| STARTS_EARLY.iter().any(|early| word == early));
    let prepared = early.then(run::Prepared::new);
    // The usual `run` comes first and alone: the functions for the rest need much more of the stack, and each page of it
    // that is touched takes time.
    if let [_, word, rest @ ..] = words
        && word == "run"
        && let Some(args) = run::parse_usual(rest)
    {
        return code_of(run::run(args, prepared.unwrap_or_else(run::Prepared::new)));
    }
    match parse(words) {
        Ok(command) => code_of(run_parsed(command, prepared)),
        Err(error) => usage::print(error, words),
    }
}

#[inline(never)]
fn run_parsed(command: Subcommands, prepared: Option<crate::Result<run::Prepared>>) -> Result<u8> {
    match command {
        Subcommands::Run(args) | Subcommands::Sandbox(args) => {
            run::run(*args, prepared.unwrap_or_else(run::Prepared::new))
        }
        Subcommands::Pool(args) => pool::run(&args),
        Subcommands::Serve(args) => serve::run(&args),
        #[cfg(feature = "services")]
        Subcommands::Up(args) => up::run(&args),
        #[cfg(feature = "services")]
        Subcommands::Down(args) => up::down(&args),
        #[cfg(feature = "services")]
        Subcommands::Restart(args) => up::restart(&args),
        #[cfg(feature = "services")]
        Subcommands::Logs(args) => up::logs(&args),
        Subcommands::Ps(args) => control::ps::run(&args),
        Subcommands::Stats(args) => control::stats::run(&args),
        Subcommands::Stop(args) => control::stop(&args),
        Subcommands::Kill(args) => control::kill(&args),
        Subcommands::Signal(args) => control::signal(&args),
        Subcommands::Freeze(args) => control::freeze(&args),
        Subcommands::Thaw(args) => control::thaw(&args),
        Subcommands::Wait(args) => control::wait(&args),
        Subcommands::Exec(args) => control::exec::run(&args),
        Subcommands::Sweep(args) => sweep::run(&args),
        Subcommands::Doctor(args) => doctor::run(&args),
        #[cfg(feature = "watch")]
        Subcommands::Watch(args) => {
            let prepared = prepared.unwrap_or_else(run::Prepared::new);
            prepared.map_err(Into::into).and_then(|prepared| watch::run(&args, prepared))
        }
        Subcommands::Init { words } => Ok(init::main("pinfold init", Flavour::Pinfold, &words)),
        Subcommands::Timeout { words } => Ok(timeout::main("pinfold timeout".as_ref(), &words)),
    }
}

/// Returns the exit code of a subcommand. Prints its error.
fn code_of(ended: Result<u8>) -> u8 {
    ended.unwrap_or_else(|error| {
        print_message(&message_of(&error));
        FAILED
    })
}

/// Returns the message of an error with all its causes. The message of [`crate::Error`] contains its cause already.
fn message_of(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    for cause in error.chain() {
        parts.push(cause.to_string());
        if cause.is::<crate::Error>() {
            break;
        }
    }
    parts.join(": ")
}

/// Returns a builder with the settings of the environment, for the subcommands that have the options of another
/// program.
fn supervisor_of_environment(guard: Guard) -> Result<SupervisorBuilder> {
    Ok(environment::supervisor(None, None)?.guard(guard))
}

/// Prints one line on standard error. Escapes control characters in `message`, so that no text from outside controls
/// the terminal or adds another line.
fn print_message(message: &str) {
    write_to_stderr(format!("pinfold: {}\n", printable_message(message)).as_bytes());
}

/// Writes to standard error. Gives up if standard error is closed, or if it has been full for a second, because a job
/// has filled it and no process reads from it.
fn write_to_stderr(bytes: &[u8]) {
    const TIMEOUT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };
    // A pipe that is ready for writing accepts this many bytes without blocking (pipe(7)).
    const PIPE_BUF: usize = 4096;
    let mut stderr = std::io::stderr();
    for part in bytes.chunks(PIPE_BUF) {
        let ready = poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&TIMEOUT));
        if !matches!(ready, Ok(1)) || stderr.write_all(part).is_err() {
            return;
        }
    }
}
