//! The settle time: how much time the processes that remain after the exit of the main process have to end by
//! themselves, and which of them have all of it.
//!
//! A filter, such as `tee log` in `exec > >(tee log)` or the resource tracker of Python's multiprocessing, ends by
//! itself as soon as it has read its input to the end. A signal before that loses the lines that the filter has not
//! written yet. All other processes have only a short part of the settle time, so that a daemon does not delay the end
//! of the job.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Stat};
use rustix::process::Pid;

use crate::kernel::process;

/// The settle time of a command that does not set one.
pub const DEFAULT: Duration = Duration::from_secs(2);

/// How long the inspection of the processes may take. Processes that it did not reach count as filters, so that no
/// output is lost.
const INSPECTION_TIME: Duration = Duration::from_millis(50);

/// Returns the part of the settle time that every process has: a tenth, between 0.1 and 0.25 s.
pub fn short_part(settle: Duration) -> Duration {
    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_millis(250);
    (settle / 10).clamp(MIN, MAX).min(settle)
}

/// The device and inode number that identify a pipe or a socket.
pub type PipeId = (u64, u64);

/// Returns the identity of a pipe or socket, or `None` for any other file.
pub fn pipe_id(stat: &Stat) -> Option<PipeId> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    #[allow(clippy::unnecessary_cast)] // The types differ between architectures.
    matches!(kind, FileType::Fifo | FileType::Socket).then_some((stat.st_dev as u64, stat.st_ino as u64))
}

/// The remaining processes of a job, in two groups.
#[derive(Debug, Default, PartialEq)]
pub struct Remaining {
    /// Filters, processes that run on a CPU right now (on a machine under load, such a process may be about to end),
    /// and the descendants of both. A filter reads a pipe that was made inside the job: as its standard input (a pipe
    /// or a socket), or by another descriptor if no process of the job can write to that pipe any more.
    pub finishing: HashSet<Pid>,
    /// All other processes: they wait for something, perhaps for ever.
    pub others: HashSet<Pid>,
}

/// The open pipes and sockets of a process.
#[derive(Debug, Default)]
struct OpenPipes {
    input: Option<PipeId>,
    /// Pipes that it can read and not write, except its standard input.
    read: Vec<PipeId>,
    written: HashSet<PipeId>,
}

impl OpenPipes {
    /// Reads `/proc/PID/fd`, whose links have the mode of their descriptor (proc_pid_fd(5)).
    fn of(process: &str) -> std::io::Result<Self> {
        let mut channels = Self::default();
        for entry in std::fs::read_dir(format!("/proc/{process}/fd"))? {
            let entry = entry?;
            // The process may close a descriptor meanwhile.
            let (Ok(link), Ok(stat)) = (entry.metadata(), rustix::fs::stat(entry.path())) else { continue };
            let Some(channel) = pipe_id(&stat) else { continue };
            let mode = std::os::unix::fs::MetadataExt::mode(&link);
            if entry.file_name() == "0" {
                channels.input = Some(channel);
            } else if mode & 0o200 == 0 {
                channels.read.push(channel);
            }
            if mode & 0o200 != 0 {
                channels.written.insert(channel);
            }
        }
        Ok(channels)
    }

    fn all(&self) -> impl Iterator<Item = PipeId> {
        self.input.into_iter().chain(self.read.iter().copied()).chain(self.written.iter().copied())
    }
}

impl Remaining {
    /// Inspects the descriptors and the state of each process.
    ///
    /// `job_input` is the standard input of the job. A process that reads this pipe, or another pipe that the
    /// supervisor has open too, reads from outside of the job. The end of such an input says nothing about the job. A
    /// process that this user may not inspect counts as a filter.
    pub fn inspect(pids: &[Pid], job_input: Option<PipeId>) -> Self {
        let filters = filters(pids, job_input);
        let stat_of = |pid: Pid| std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok();
        let is_running =
            |pid: Pid| stat_of(pid).and_then(|stat| process::state(&stat)).is_some_and(|state| b"RD".contains(&state));
        let parent_of = |pid: Pid| Pid::from_raw(process::parent(&stat_of(pid)?)?);
        Self::sort(pids, |pid| filters.contains(&pid) || is_running(pid), parent_of)
    }

    /// Sorts the processes into the two groups. A descendant of a filter belongs to the filter: the loop `while read
    /// line; do date </dev/null; done` needs its `date`.
    fn sort(pids: &[Pid], is_finishing: impl Fn(Pid) -> bool, parent_of: impl Fn(Pid) -> Option<Pid>) -> Self {
        let mut finishing: HashSet<Pid> = pids.iter().copied().filter(|&pid| is_finishing(pid)).collect();
        if finishing.is_empty() {
            return Self { finishing, others: pids.iter().copied().collect() };
        }
        let rest: HashSet<Pid> = pids.iter().copied().filter(|pid| !finishing.contains(pid)).collect();
        let parents: HashMap<Pid, Pid> = rest.iter().filter_map(|&pid| Some((pid, parent_of(pid)?))).collect();
        let mut others = HashSet::new();
        for &pid in &rest {
            let mut line = vec![pid];
            // Parents form no cycle, but they are read one after another: a pid that is reused meanwhile could form
            // one.
            while let Some(&parent) = parents.get(&line[line.len() - 1])
                && line.len() <= rest.len()
            {
                line.push(parent);
            }
            if finishing.contains(&line[line.len() - 1]) {
                finishing.extend(line);
            } else {
                others.insert(pid);
            }
        }
        Self { finishing, others }
    }
}

/// Returns the processes that read a pipe of the job, and those that could not be inspected.
fn filters(pids: &[Pid], job_input: Option<PipeId>) -> HashSet<Pid> {
    let until = Instant::now() + INSPECTION_TIME;
    let outside: HashSet<PipeId> = OpenPipes::of("self").iter().flat_map(OpenPipes::all).chain(job_input).collect();
    let mut filters = HashSet::new();
    let mut known = Vec::new();
    for &pid in pids {
        if Instant::now() >= until {
            filters.insert(pid);
            continue;
        }
        match OpenPipes::of(&pid.as_raw_nonzero().to_string()) {
            Ok(channels) => known.push((pid, channels)),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => _ = filters.insert(pid),
            // The process has ended.
            Err(_) => {}
        }
    }
    let written: HashSet<PipeId> = known.iter().flat_map(|(_, channels)| channels.written.iter().copied()).collect();
    let inside = |channel: &PipeId| !outside.contains(channel);
    filters.extend(known.iter().filter_map(|(pid, channels)| {
        let reads = channels.input.iter().any(inside)
            || channels.read.iter().any(|channel| inside(channel) && !written.contains(channel));
        reads.then_some(*pid)
    }));
    filters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pids(numbers: &[i32]) -> Vec<Pid> {
        numbers.iter().filter_map(|&number| Pid::from_raw(number)).collect()
    }

    fn sorted(all: &[i32], filters: &[i32], parents: &[(i32, i32)]) -> (Vec<i32>, Vec<i32>) {
        let filters = pids(filters);
        let parent_of = |pid: Pid| {
            let parent = parents.iter().find(|(child, _)| *child == pid.as_raw_nonzero().get())?.1;
            Pid::from_raw(parent)
        };
        let left = Remaining::sort(&pids(all), |pid| filters.contains(&pid), parent_of);
        let numbers = |set: HashSet<Pid>| {
            let mut numbers: Vec<i32> = set.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
            numbers.sort_unstable();
            numbers
        };
        (numbers(left.finishing), numbers(left.others))
    }

    #[test]
    fn a_descendant_of_a_filter_belongs_to_it() {
        assert_eq!(sorted(&[2, 3, 4, 5], &[3], &[(4, 3), (5, 4), (2, 1), (3, 1)]), (vec![3, 4, 5], vec![2]));
        assert_eq!(sorted(&[2, 3], &[], &[(3, 2)]), (vec![], vec![2, 3]));
        // The parent of a filter is not a filter for that reason.
        assert_eq!(sorted(&[2, 3], &[3], &[(3, 2), (2, 1)]), (vec![3], vec![2]));
        // A cycle, which reused pids could form.
        assert_eq!(sorted(&[2, 3, 4], &[4], &[(2, 3), (3, 2)]), (vec![4], vec![2, 3]));
    }

    /// Starts a shell script and waits for the line "ready" on its standard error.
    fn start(script: &str, input: std::process::Stdio) -> (std::process::Child, Pid) {
        use std::io::BufRead;
        use std::process::{Command, Stdio};
        let mut child = Command::new("bash").args(["-c", script]).stdin(input).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        std::io::BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    #[test]
    fn a_filter_reads_a_pipe_of_the_job() {
        use std::process::Stdio;
        let ready = "echo ready >&2; exec sleep 1000";
        let read_end = || Stdio::from(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap().0);
        let cases = [
            (start(ready, read_end()), true),
            (start(ready, Stdio::null()), false),
            // A pipe that this process has open too.
            (start(ready, Stdio::piped()), false),
            // A pipe at another descriptor counts when no process can write to it any more.
            (start(&format!("exec 7< <(true); {ready}"), Stdio::null()), true),
            (start(&format!("exec 7<> <(true); {ready}"), Stdio::null()), false),
        ];
        let outside = start(ready, read_end());
        let job_input = pipe_id(&rustix::fs::stat(format!("/proc/{}/fd/0", outside.1)).unwrap());
        assert!(job_input.is_some());
        let pids: Vec<Pid> = cases.iter().map(|((_, pid), _)| *pid).chain([outside.1]).collect();
        let filters = filters(&pids, job_input);
        let expected: Vec<_> = cases.iter().map(|(_, is_filter)| *is_filter).chain([false]).collect();
        let found: Vec<_> = pids.iter().map(|pid| filters.contains(pid)).collect();
        for (mut child, _) in cases.into_iter().map(|(child, _)| child).chain([outside]) {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found, expected);
    }

    #[test]
    fn the_short_part() {
        let millis = Duration::from_millis;
        assert_eq!(short_part(DEFAULT), millis(200));
        assert_eq!([millis(0), millis(50), millis(500), millis(60_000)].map(short_part), [0, 50, 100, 250].map(millis));
    }
}
