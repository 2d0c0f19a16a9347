//! The options of `pinfold pool`.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use crate::Signal;
use crate::cli::duration;
use crate::cli::parent::DieWithParent;
use crate::cli::run::{SignalToArg, parse_signal};

use super::job_line::StderrArg;

/// Run many jobs, a limited number at a time; when a job ends, no process of it is left.
///
/// pinfold reads all jobs from standard input (or --jobs) before it starts the first one. Without a COMMAND, each line
/// is a job in JSON: {"command": ["cc", "-c", "a.c"], "name": "a", "cwd": "src", "env": {"KEY": "value", "UNSET":
/// null}, "timeout": "1m", "stdin": "text", "priority": 5, "retries": 2, "limits": {"memory": "512M", "pids": 100}};
/// only "command" is required. Root can set a "user" for the job. "stderr" is "merged" or "separate". "clear_env",
/// "grace" and "stop_signal" are like the options of pinfold run. The limits have the same names and values as the
/// options of pinfold run (memory_high for --memory-high). With --shell each line is a script for sh. With a COMMAND,
/// each line is an argument of it: the line replaces every {} in the command, or is its last argument. In a script of
/// sh -c, write {q} instead: pinfold replaces it with the line, quoted as one word. With {}, the shell would run a line
/// such as $(reboot) as code.
///
/// Exit code: 0 when all jobs succeeded, 1 when some did not, 124 when the deadline was reached, 125 when pinfold
/// itself failed. After SIGTERM, SIGINT (Ctrl-C), SIGHUP or SIGQUIT, pinfold starts no new job and stops the running
/// jobs; a second such signal kills them. The exit code is then 128 plus the number of the signal.
#[derive(clap::Args)]
pub struct Args {
    /// How many jobs run at a time: a number, a percentage of the number of processors (50%), or auto for one job per
    /// processor
    #[arg(long = "workers", short = 'j', value_name = "N|P%|auto", default_value = "auto", value_parser = parse_workers)]
    pub workers: usize,

    /// Read the jobs from this file instead of standard input
    #[arg(long, value_name = "FILE")]
    pub jobs: Option<PathBuf>,

    /// Each line is a script for sh
    #[arg(long, conflicts_with = "command")]
    pub shell: bool,

    /// Lines end with a NUL byte, as find -print0 writes them
    #[arg(long, short = '0')]
    pub null: bool,

    /// Stop each job after this time: 1h30m, 2.5s, 500ms, or plain seconds; 0 is no limit
    #[arg(long, short, value_name = "DURATION", value_parser = duration::limit)]
    pub timeout: Option<Duration>,

    /// Stop the whole pool after this time
    #[arg(long, value_name = "DURATION", value_parser = duration::limit)]
    pub deadline: Option<Duration>,

    /// How long filters such as `> >(tee log)` may take to finish after the command has exited; other processes may
    /// take a tenth of it
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration::parse)]
    pub settle: Duration,

    /// Kill a job this long after the stop signal
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration::parse)]
    pub grace: Duration,

    /// The stop signal of each job: a name like INT, or a number [default: TERM, or INT, HUP or QUIT where pinfold
    /// received that]
    #[arg(long, value_name = "SIGNAL", value_parser = parse_signal)]
    pub stop_signal: Option<Signal>,

    /// Which processes of a job receive the stop signal
    #[arg(long, value_name = "WHICH", default_value = "all")]
    pub signal_to: SignalToArg,

    #[command(flatten)]
    pub parent: DieWithParent,

    /// When a job has failed, start no more jobs and stop the running ones
    #[arg(long)]
    pub fail_fast: bool,

    /// Run a failed job again, up to N times
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub retries: u32,

    /// The pause before the first retry; each further one is twice as long
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = duration::parse)]
    pub backoff: Duration,

    /// Where the jobs' output goes: group (the whole output of a job, when it ends), stream (each line, when it is
    /// complete), or files=DIR (DIR/NUMBER.out and .err)
    #[arg(long, value_name = "HOW", default_value = "group", value_parser = parse_output)]
    pub output: OutputArg,

    /// Where the jobs' standard error goes: merged (into standard output, as 2>&1 does) or separate; by default merged
    /// with --output group
    #[arg(long, value_name = "HOW", hide_possible_values = true)]
    pub stderr: Option<StderrArg>,

    /// With --output group: print the outputs in the order of the jobs
    #[arg(long)]
    pub keep_order: bool,

    /// With --output stream: begin each line with the job's name
    #[arg(long)]
    pub tag: bool,

    /// With --output group: print nothing of the jobs that pinfold stopped (a signal, --fail-fast, --deadline)
    #[arg(long)]
    pub finished_only: bool,

    /// Append a report in JSON to this file for each job, when the job has ended and its output has been written
    #[arg(long, value_name = "FILE")]
    pub results: Option<PathBuf>,

    /// Skip the jobs that the results file marks as done; where one of them failed, the exit code is still 1
    #[arg(long, requires = "results")]
    pub resume: bool,

    /// Like --resume, but run again the jobs that failed
    #[arg(long, requires = "results")]
    pub retry_failed: bool,

    /// The cgroup v2 directory in which pinfold creates the jobs' cgroups, instead of in pinfold's own cgroup [env:
    /// PINFOLD_CGROUP]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// Print no progress, no line for each failure and no summary
    #[arg(long, short)]
    pub quiet: bool,

    /// The command; each line is an argument of it
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl Args {
    /// Returns whether the standard error of jobs goes to their standard output.
    pub fn merges_stderr(&self) -> bool {
        self.stderr.map_or(self.output == OutputArg::Group, |stderr| stderr == StderrArg::Merged)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputArg {
    Group,
    Stream,
    Files(PathBuf),
}

fn parse_output(text: &str) -> Result<OutputArg, String> {
    match text.split_once('=') {
        None if text == "group" => Ok(OutputArg::Group),
        None if text == "stream" => Ok(OutputArg::Stream),
        Some(("files", directory)) if !directory.is_empty() => Ok(OutputArg::Files(directory.into())),
        _ => Err("write group, stream or files=DIR".into()),
    }
}

pub fn parse_workers(text: &str) -> Result<usize, String> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    workers(text, processors).ok_or_else(|| "write a number of at least 1, a percentage like 50%, or auto".into())
}

fn workers(text: &str, processors: usize) -> Option<usize> {
    if text == "auto" {
        return Some(processors);
    }
    let number = |text: &str| text.parse::<usize>().ok().filter(|&number| number > 0);
    match text.strip_suffix('%') {
        Some(percent) => Some((processors.saturating_mul(number(percent)?) / 100).max(1)),
        None => number(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_workers() {
        for (text, expected) in
            [("auto", Some(6)), ("3", Some(3)), ("50%", Some(3)), ("200%", Some(12)), ("1%", Some(1))]
        {
            assert_eq!(workers(text, 6), expected, "{text}");
        }
        for text in ["", "0", "0%", "-1", "%", "x", "1.5", "99999999999999999999"] {
            assert_eq!(workers(text, 6), None, "{text}");
        }
    }

    #[test]
    fn outputs() {
        assert_eq!(parse_output("files=a=b"), Ok(OutputArg::Files("a=b".into())));
        for text in ["", "files", "files=", "Group", "stream=x"] {
            assert!(parse_output(text).is_err(), "{text}");
        }
    }
}
