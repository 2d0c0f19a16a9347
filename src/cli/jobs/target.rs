//! Finds the job or the supervisor to which an argument of the command line refers. The argument is the name of a job,
//! or a pid.

use anyhow::{Result, bail};
use rustix::process::{Pid, geteuid};

use super::find::{Job, Supervisor};
use crate::report::text::printable;

/// A job, or a supervisor with all of its jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Target<'a> {
    Job(&'a Supervisor, &'a Job),
    Supervisor(&'a Supervisor),
}

impl<'a> Target<'a> {
    pub fn supervisor(self) -> &'a Supervisor {
        match self {
            Self::Job(supervisor, _) | Self::Supervisor(supervisor) => supervisor,
        }
    }

    /// Returns the jobs of the target.
    pub fn jobs(self) -> Vec<&'a Job> {
        match self {
            Self::Job(_, job) => vec![job],
            Self::Supervisor(supervisor) => supervisor.jobs.iter().collect(),
        }
    }

    /// Returns a description for messages, with pids that distinguish the target from others.
    pub fn describe(self) -> String {
        let supervisor = self.supervisor();
        let number = |what: &str, pid: Option<Pid>| pid.map(|pid| format!("{what} {}", pid.as_raw_nonzero()));
        match self {
            Self::Job(_, job) => {
                let command = job.description.as_ref().map(|known| printable(&known.command.join(" ")).into_owned());
                let facts = [number("process", job.main), number("supervisor", supervisor.pid), command];
                let facts: Vec<_> = facts.into_iter().flatten().collect();
                format!("job {} ({})", printable(job.name()), facts.join(", "))
            }
            Self::Supervisor(_) => {
                let of = number(" of process", supervisor.pid).unwrap_or_default();
                format!("the jobs{of} ({})", printable(&supervisor.command_line()))
            }
        }
    }
}

/// Finds the target to which `word` refers, among the supervisors `all`. A word that consists of digits is the pid of a
/// supervisor or of any process of a job. Any other word is the name of a job.
///
/// # Errors
/// If no job or more than one job has the name, or if the job belongs to another user and this user is not root.
pub(crate) fn find<'a>(word: &str, all: &'a [Supervisor]) -> Result<Target<'a>> {
    let is_pid = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit());
    let found = match is_pid {
        true => word.parse().ok().and_then(Pid::from_raw).and_then(|pid| by_pid(pid, all)).into_iter().collect(),
        false => by_name(word, all),
    };
    let target = match found.as_slice() {
        [target] => *target,
        [] if is_pid => {
            bail!("process {word} is not a pinfold process and not in a running job (pinfold ps lists the jobs)")
        }
        [] => bail!("no running job is named '{}' (pinfold ps lists the jobs)", printable(word)),
        several => {
            let candidates: Vec<_> = several.iter().map(|target| target.describe()).collect();
            bail!(
                "{} jobs are named '{}': give the pid of a process of one of them instead: {}",
                candidates.len(),
                printable(word),
                candidates.join("; ")
            );
        }
    };
    let (owner, own) = (target.supervisor().owner, geteuid());
    if owner != own.as_raw() && !own.is_root() {
        bail!("user {owner} owns {}: run this as that user, or as root", target.describe());
    }
    Ok(target)
}

fn by_name<'a>(name: &str, all: &'a [Supervisor]) -> Vec<Target<'a>> {
    let jobs = all.iter().flat_map(|supervisor| supervisor.jobs.iter().map(move |job| Target::Job(supervisor, job)));
    let mut found: Vec<_> = jobs.filter(|target| target.jobs().iter().any(|job| job.name() == name)).collect();
    // If jobs of several users have the name, it refers to the job of this user.
    let own = geteuid().as_raw();
    if found.iter().any(|target| target.supervisor().owner == own) {
        found.retain(|target| target.supervisor().owner == own);
    }
    found
}

fn by_pid(pid: Pid, all: &[Supervisor]) -> Option<Target<'_>> {
    for supervisor in all {
        if supervisor.pid == Some(pid) {
            let one_job = supervisor.kind().is_some_and(|kind| kind.has_one_job());
            return Some(match supervisor.jobs.as_slice() {
                [job] if one_job => Target::Job(supervisor, job),
                _ => Target::Supervisor(supervisor),
            });
        }
    }
    // If a job contains a supervisor with jobs of its own, the process is in several jobs. This chooses the innermost
    // one, which has the fewest processes.
    let mut found: Option<(usize, Target<'_>)> = None;
    for supervisor in all {
        for job in &supervisor.jobs {
            let processes = job.processes();
            if processes.contains(&pid) && found.is_none_or(|(count, _)| processes.len() < count) {
                found = Some((processes.len(), Target::Job(supervisor, job)));
            }
        }
    }
    found.map(|(_, target)| target)
}
