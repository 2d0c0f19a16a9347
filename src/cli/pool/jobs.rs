//! The jobs of `pinfold pool`, one in each line of the input. pinfold reads all of them, and finds all mistakes, before
//! it starts the first one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context, Result, bail};

use crate::cli::stdin::{MAX_LINE, StandardInput};
use crate::pool::Task;
use crate::report::text::{counted, printable, printable_path};
use crate::{Command, Controller, Stdio};

use super::args::Args;
use super::job_line::{JobLine, explain};
use super::{input, template};

/// The number of mistakes that the message lists. Further mistakes are only counted.
const MAX_SHOWN: usize = 50;

/// One job.
pub struct Job {
    /// Its line in the input, counted from 1.
    pub line: usize,
    /// Identifies the job in every run, even if the job moves to another line of the input.
    pub key: String,
    source: Source,
}

enum Source {
    Json(Box<JobLine>),
    Shell(OsString),
    Argument(OsString),
}

/// Reads all jobs.
///
/// # Errors
/// If the input cannot be read, or if lines are not valid jobs. The message lists these lines with their numbers.
pub fn read(args: &Args) -> Result<Vec<Job>> {
    let separator = if args.null { 0 } else { b'\n' };
    let is_json = args.command.is_empty() && !args.shell;
    let max = if is_json { MAX_LINE } else { input::MAX_ARGUMENT };
    let (text, origin) = match &args.jobs {
        Some(path) => {
            let origin = printable_path(path).into_owned();
            let file = File::open(path).with_context(|| format!("cannot read the jobs from {origin}"))?;
            (input::read(file, &origin, separator, max)?, origin)
        }
        None => (input::read(StandardInput, "standard input", separator, max)?, "standard input".to_owned()),
    };
    let (jobs, mistakes) = parse(args, &text);
    if mistakes.is_empty() {
        return Ok(jobs);
    }
    let mut message = format!("{origin} contains {}; no job was started:", counted(mistakes.len(), "invalid job"));
    for (line, mistake) in mistakes.iter().take(MAX_SHOWN) {
        message.push_str(&format!("\n  line {line}: {}", printable(mistake)));
    }
    if mistakes.len() > MAX_SHOWN {
        message.push_str(&format!("\n  and {} more", mistakes.len() - MAX_SHOWN));
    }
    bail!(message)
}

fn parse(args: &Args, text: &[u8]) -> (Vec<Job>, Vec<(usize, String)>) {
    let (mut jobs, mut mistakes) = (Vec::new(), Vec::new());
    let mut seen: HashMap<u64, u64> = HashMap::new();
    let command = args.command.iter().fold(FNV_OFFSET_BASIS, |hash, word| fnv(fnv(hash, word.as_bytes()), b"\0"));
    let separator = if args.null { 0 } else { b'\n' };
    for (line, bytes) in (1..).zip(text.split(|&byte| byte == separator)) {
        let blank = if args.command.is_empty() { bytes.trim_ascii().is_empty() } else { bytes.is_empty() };
        if blank {
            continue;
        }
        let source = if !args.command.is_empty() {
            Ok(Source::Argument(OsString::from_vec(bytes.to_vec())))
        } else if args.shell {
            Ok(Source::Shell(OsString::from_vec(bytes.to_vec())))
        } else {
            serde_json::from_slice(bytes).map(Source::Json).map_err(|error| explain(bytes, &error))
        };
        let hash = fnv(command, bytes);
        let count = seen.entry(hash).or_default();
        *count += 1;
        let job = source.and_then(|source| {
            let job = Job { line, key: format!("{hash:016x}-{count}"), source };
            job.check(args)?;
            Ok(job)
        });
        match job {
            Ok(job) => jobs.push(job),
            Err(mistake) => mistakes.push((line, mistake)),
        }
    }
    (jobs, mistakes)
}

impl Job {
    /// Finds the mistakes that can be found before the job is started.
    fn check(&self, args: &Args) -> Result<(), String> {
        if let Source::Json(line) = &self.source {
            line.check()?;
        }
        self.command(args).check().map_err(|error| error.to_string())
    }

    /// Returns the controllers that its limits need.
    pub fn controllers(&self) -> Vec<Controller> {
        if let Source::Json(line) = &self.source { line.controllers() } else { Vec::new() }
    }

    fn command(&self, args: &Args) -> Command {
        let mut command;
        match &self.source {
            Source::Json(line) => command = line.command(),
            Source::Shell(script) => {
                command = Command::new("sh");
                command.arg("-c").arg(script).name(script.to_string_lossy());
            }
            Source::Argument(argument) => {
                let template = |word: &OsString| template::replace(word, argument);
                let mut words = args.command.iter();
                command = Command::new(words.next().map(template).unwrap_or_default());
                command.args(words.map(template)).name(argument.to_string_lossy());
                if !args.command.iter().any(|word| template::has_placeholder(word)) {
                    command.arg(argument);
                }
            }
        }
        if !matches!(self.source, Source::Json(_)) {
            command.stdin(Stdio::null());
        }
        command.grace(args.grace).settle(args.settle).signal_to(args.signal_to.into());
        if let Some(signal) = args.stop_signal {
            command.stop_signal(signal);
        }
        if let Source::Json(line) = &self.source {
            line.set_stop(&mut command);
        }
        if args.results.is_some() {
            command.measure_pressure();
        }
        command
    }

    /// Returns whether its standard error goes to its standard output.
    pub fn merges_stderr(&self, args: &Args) -> bool {
        let default = args.merges_stderr();
        if let Source::Json(line) = &self.source { line.merges_stderr(default) } else { default }
    }

    /// Returns whether the job specifies its standard input.
    pub fn has_stdin(&self) -> bool {
        matches!(&self.source, Source::Json(line) if line.has_stdin())
    }

    /// Returns the task; `streams` sets the streams of its command.
    pub fn task(&self, args: &Args, streams: impl FnOnce(&mut Command)) -> Task {
        let mut command = self.command(args);
        streams(&mut command);
        match &self.source {
            Source::Json(line) => line.task(command, args.retries, args.backoff),
            _ => Task::new(command).retries(args.retries, args.backoff),
        }
    }
}

const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// Returns the FNV-1a hash, which is the same in every version of pinfold.
fn fnv(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_line_panics(line: Vec<u8>) {
            use clap::Parser;
            #[derive(Parser)]
            struct Outer {
                #[command(flatten)]
                args: Args,
            }
            let _ = parse(&Outer::parse_from(["pool"]).args, &line);
        }
    }
}
