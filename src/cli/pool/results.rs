//! The results file: a line of JSON for each job. pinfold appends it in one write, when the job has ended and its
//! output has been written. So a job that the file marks as done has lost no output. If pinfold is killed, the file may
//! lack at most the line that pinfold was writing.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::Report;
use crate::cli::print_message;
use crate::pool::Outcome;
use crate::report::Reason;

use super::jobs::Job;

/// A line of the results file.
#[derive(Serialize)]
struct Line<'a> {
    /// The job's line in the input.
    line: usize,
    /// Identifies the job in every run.
    key: &'a str,
    /// The job ended by itself or at its own limits: it was started, the pool did not cancel it, and the guard was not
    /// lost. `--resume` skips it.
    done: bool,
    /// It ended by itself, with exit code 0.
    success: bool,
    attempts: u32,
    report: &'a Report,
}

/// The part of a line that `--resume` reads.
#[derive(Deserialize)]
struct Done {
    key: String,
    done: bool,
    /// Earlier versions did not write it.
    success: Option<bool>,
    report: Option<DoneReport>,
}

#[derive(Deserialize)]
struct DoneReport {
    exit_code: i32,
}

/// The keys of the jobs that are done, each with whether its last run succeeded.
pub type DoneJobs = HashMap<String, bool>;

pub struct Results {
    file: File,
    path: PathBuf,
}

impl Results {
    /// Opens the file, and locks it for this process. With `resume`, it returns the jobs that the file marks as done,
    /// and cuts off an incomplete last line that pinfold wrote. Without `resume`, the file must be empty or not exist.
    pub fn open(path: &Path, resume: bool) -> Result<(Self, DoneJobs)> {
        let shown = crate::report::text::printable_path(path);
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)
            .with_context(|| format!("cannot open the results file {shown}"))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).with_context(|| {
            format!("the results file {shown} is in use by another pinfold pool, or cannot be locked")
        })?;
        let failed = || format!("cannot read the results file {shown}");
        if !resume {
            if file.metadata().with_context(failed)?.len() > 0 {
                bail!("the results file {shown} has results already: continue it with --resume, or remove it");
            }
            return Ok((Self { file, path: path.into() }, DoneJobs::new()));
        }
        let (done, whole) = read(&mut BufReader::new(&file)).with_context(failed)?;
        let torn = file.metadata().with_context(failed)?.len() - whole;
        if torn > 0 {
            file.set_len(whole).with_context(|| format!("cannot repair the last line of {shown}"))?;
            print_message(&format!(
                "the last line of {shown} was incomplete: pinfold has removed it, and its job runs again"
            ));
        }
        file.seek(SeekFrom::End(0)).with_context(failed)?;
        Ok((Self { file, path: path.into() }, done))
    }

    /// Appends a line.
    pub fn append(&mut self, line: &[u8]) -> Result<()> {
        self.file.write_all(line).with_context(|| {
            format!("cannot write to the results file {}", crate::report::text::printable_path(&self.path))
        })
    }
}

/// Returns the line of a job; `None` for a job that was never started.
pub fn line(job: &Job, outcome: &Outcome) -> Result<Option<Vec<u8>>> {
    if outcome.attempts == 0 {
        return Ok(None);
    }
    let report = &outcome.report;
    let ran = report.pid.is_some() || report.reason == Reason::SpawnFailed && matches!(report.exit_code, 126 | 127);
    let done = ran && !outcome.cancelled && report.reason != Reason::GuardLost;
    let (attempts, success) = (outcome.attempts, outcome.success());
    let line = Line { line: job.line, key: &job.key, done, success, attempts, report };
    let mut text = serde_json::to_vec(&line)?;
    text.push(b'\n');
    Ok(Some(text))
}

/// Returns whether these bytes can be the beginning of a [`Line`]. An empty slice can be one.
fn can_be_line_prefix(torn: &[u8]) -> bool {
    const LINE: &[u8] = b"{\"line\":";
    const KEY: &[u8] = b",\"key\":\"";
    let Some(rest) = torn.strip_prefix(LINE) else { return LINE.starts_with(torn) };
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let rest = &rest[digits..];
    rest.is_empty() || digits > 0 && (rest.starts_with(KEY) || KEY.starts_with(rest))
}

/// Reads the jobs that are done. Also returns the length of all complete lines.
fn read(reader: &mut impl BufRead) -> Result<(DoneJobs, u64)> {
    let (mut done, mut whole) = (DoneJobs::new(), 0);
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            if !can_be_line_prefix(&line) {
                bail!(
                    "its last line, {number}, was not written by pinfold pool: is it another file? It has not been changed"
                );
            }
            break;
        }
        let parsed: Done = serde_json::from_slice(&line)
            .with_context(|| format!("line {number} was not written by pinfold pool: is it another file?"))?;
        if parsed.done {
            // Where a job has several lines, its last line counts.
            let code = parsed.report.map(|report| report.exit_code);
            done.insert(parsed.key, parsed.success.unwrap_or(code == Some(0)));
        }
        whole += line.len() as u64;
    }
    Ok((done, whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_and_wrong_lines() {
        let lines = br#"{"key":"a","done":true,"more":1}
{"key":"b","done":false}
{"key":"d","done":true,"success":false}
{"key":"e","done":true,"report":{"exit_code":0}}
{"key":"f","done":true,"success":false}
{"key":"f","done":true,"success":true}
{"line":3,"key":"c","do"#;
        let (done, whole) = read(&mut lines.as_slice()).unwrap();
        let expected = [("a", false), ("d", false), ("e", true), ("f", true)];
        assert_eq!(done, expected.map(|(key, success)| (key.to_owned(), success)).into());
        assert_eq!(whole, lines.iter().rposition(|&byte| byte == b'\n').unwrap() as u64 + 1);
        assert_eq!(read(&mut b"".as_slice()).unwrap().1, 0);
        // A complete line that pinfold did not write.
        let error = read(&mut b"{\"key\":\"a\",\"done\":true}\nx\n".as_slice()).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
        let error = read(&mut b"{\"key\":\"a\",\"done\":true}\nnotes".as_slice()).unwrap_err();
        assert!(error.to_string().contains("last line, 2,"), "{error}");
    }

    #[test]
    fn only_beginnings_of_our_lines_are_torn_lines() {
        let report = Report::of_failed_spawn(&crate::Command::new("a"), &crate::Error::GuardLost);
        let line = Line { line: 120, key: "k", done: false, success: false, attempts: 1, report: &report };
        let line = serde_json::to_vec(&line).unwrap();
        assert!((0..=line.len()).all(|length| can_be_line_prefix(&line[..length])));
        for other in [
            "precious notes",
            "{",
            "{\"line\":12",
            "{\"line\":,",
            "{\"line\":\"a\"",
            "{\"line\":1}",
            "{\"lines",
            "\0",
            " {",
        ] {
            assert_eq!(can_be_line_prefix(other.as_bytes()), line.starts_with(other.as_bytes()), "{other}");
        }
    }
}
