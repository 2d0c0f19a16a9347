//! The settle time: what the processes get that are still there when the main process has exited, and which of them get
//! all of it.
//!
//! A filter, such as `tee log` in `exec > >(tee log)`, ends by itself as soon as it has read its input to the end. A
//! signal that comes earlier loses the lines that it has not written yet. All other processes get a short part of the
//! settle time, so that a daemon does not delay the return.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;
use rustix::process::Pid;

use crate::process;

/// The settle time that a command gets unless it asks for another one.
pub const DEFAULT: Duration = Duration::from_secs(2);

/// How long the look at the processes may take. Processes that it did not reach count as filters, so that no output is lost.
const LOOK: Duration = Duration::from_millis(50);

/// The part of the settle time that a process gets that is no filter: a tenth, between 0.1 and 0.25 s.
pub fn short(settle: Duration) -> Duration {
    const LEAST: Duration = Duration::from_millis(100);
    const MOST: Duration = Duration::from_millis(250);
    (settle / 10).clamp(LEAST, MOST).min(settle)
}

/// A pipe or a socket: the device and the inode number.
pub type Channel = (u64, u64);

/// The pipe or socket that a descriptor stands for; `None` for any other file.
pub fn channel_of(stat: &Stat) -> Option<Channel> {
    let kind = FileType::from_raw_mode(stat.st_mode);
    #[allow(clippy::unnecessary_cast)] // The types differ between architectures.
    matches!(kind, FileType::Fifo | FileType::Socket).then_some((stat.st_dev as u64, stat.st_ino as u64))
}

/// The processes of a job that are left, told apart.
#[derive(Debug, Default, PartialEq)]
pub struct Left {
    /// Filters and their descendants: processes whose standard input is a pipe or a socket that was made inside the job.
    pub filters: HashSet<Pid>,
    /// All others.
    pub others: HashSet<Pid>,
}

impl Left {
    /// Looks at the standard input of each process, as `/proc/PID/fd/0` shows it (proc_pid_fd(5)).
    ///
    /// `job_input` is the standard input that the job was given: a process that still has it reads from outside of the
    /// job, where an end of the input says nothing about the job. A process that this user may not look at counts as a
    /// filter.
    pub fn look(pids: &[Pid], job_input: Option<Channel>) -> Self {
        let until = Instant::now() + LOOK;
        let is_filter = |pid: Pid| {
            Instant::now() >= until
                || match rustix::fs::stat(format!("/proc/{}/fd/0", pid.as_raw_nonzero())) {
                    Ok(stat) => channel_of(&stat).is_some_and(|channel| Some(channel) != job_input),
                    Err(errno) => errno == Errno::ACCESS || errno == Errno::PERM,
                }
        };
        let parent_of = |pid: Pid| {
            let stat = std::fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
            Pid::from_raw(process::parent(&stat)?)
        };
        Self::sort(pids, is_filter, parent_of)
    }

    /// A descendant of a filter belongs to it: the loop `while read line; do date </dev/null; done` needs its `date`.
    fn sort(pids: &[Pid], is_filter: impl Fn(Pid) -> bool, parent_of: impl Fn(Pid) -> Option<Pid>) -> Self {
        let mut filters: HashSet<Pid> = pids.iter().copied().filter(|&pid| is_filter(pid)).collect();
        if filters.is_empty() {
            return Self { filters, others: pids.iter().copied().collect() };
        }
        let rest: HashSet<Pid> = pids.iter().copied().filter(|pid| !filters.contains(pid)).collect();
        let parents: HashMap<Pid, Pid> = rest.iter().filter_map(|&pid| Some((pid, parent_of(pid)?))).collect();
        let mut others = HashSet::new();
        for &pid in &rest {
            let mut line = vec![pid];
            // Parents form no circle, but they are read one after another: a pid that is reused meanwhile could form one.
            while let Some(&parent) = parents.get(&line[line.len() - 1])
                && line.len() <= rest.len()
            {
                line.push(parent);
            }
            if filters.contains(&line[line.len() - 1]) {
                filters.extend(line);
            } else {
                others.insert(pid);
            }
        }
        Self { filters, others }
    }
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
        let left = Left::sort(&pids(all), |pid| filters.contains(&pid), parent_of);
        let numbers = |set: HashSet<Pid>| {
            let mut numbers: Vec<i32> = set.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
            numbers.sort_unstable();
            numbers
        };
        (numbers(left.filters), numbers(left.others))
    }

    #[test]
    fn a_descendant_of_a_filter_belongs_to_it() {
        assert_eq!(sorted(&[2, 3, 4, 5], &[3], &[(4, 3), (5, 4), (2, 1), (3, 1)]), (vec![3, 4, 5], vec![2]));
        assert_eq!(sorted(&[2, 3], &[], &[(3, 2)]), (vec![], vec![2, 3]));
        // The parent of a filter is no filter by that.
        assert_eq!(sorted(&[2, 3], &[3], &[(3, 2), (2, 1)]), (vec![3], vec![2]));
        // A circle, which reused pids could show.
        assert_eq!(sorted(&[2, 3, 4], &[4], &[(2, 3), (3, 2)]), (vec![4], vec![2, 3]));
    }

    #[test]
    fn processes_are_told_apart_by_their_standard_input() {
        use std::process::{Command, Stdio};
        let start = |input: Stdio| Command::new("sleep").arg("1000").stdin(input).spawn().unwrap();
        let mut children = [start(Stdio::piped()), start(Stdio::null()), start(Stdio::piped())];
        let pid = |index: usize| Pid::from_raw(children[index].id() as i32).unwrap();
        let (filter, other, outside) = (pid(0), pid(1), pid(2));
        let input = channel_of(&rustix::fs::fstat(children[2].stdin.as_ref().unwrap()).unwrap());
        assert!(input.is_some());
        let left = Left::look(&[filter, other, outside], input);
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(left, Left { filters: [filter].into(), others: [other, outside].into() });
    }

    #[test]
    fn the_short_part() {
        let millis = Duration::from_millis;
        assert_eq!(short(DEFAULT), millis(200));
        assert_eq!([millis(0), millis(50), millis(500), millis(60_000)].map(short), [0, 50, 100, 250].map(millis));
    }
}
