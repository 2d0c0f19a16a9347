//! Starts a job: sends the spawn request to the guard, and handles its answer.

use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Pid;

use super::actor::{Actor, Incoming, Started};
use crate::error::{Error, HangingStart, SpawnError, SpawnStage};
use crate::guard::protocol::FromGuard;
use crate::job::stop::{Event, Phase};
use crate::kernel::pidfd::Pidfd;
use crate::report::{Born, Reason};

impl Actor {
    /// Sends the spawn request and waits for the answer. An exec can take long: a stop, a kill or the deadline
    /// meanwhile kills the leaf.
    pub(super) async fn spawn(&mut self) -> Started {
        // Kernels before 6.4 do not apply the CPU mask of a cpuset to a process that is cloned into it (fixed by
        // "cgroup/cpuset: Make cpuset_fork() handle CLONE_INTO_CGROUP properly"). They do apply it to a process that
        // joins it.
        let mut join = self.config.cpuset;
        loop {
            self.spawn_request.give(&self.link, self.id, self.containment.leaf(), join).await?;
            self.expect_answer();
            let answer = loop {
                match self.next_event().await {
                    Incoming::Answer(FromGuard::Hangs { pid, stage, .. }, _) => {
                        self.hanging = Some((pid, stage));
                        if self.machine.phase == Phase::Running {
                            // SIGKILL has had no effect so far. From here on the wait has a bound.
                            self.handle(Event::KillAsked).await;
                            self.machine.reason = Reason::SpawnFailed;
                        }
                    }
                    Incoming::Answer(message @ (FromGuard::Swept { .. } | FromGuard::Stopped { .. }), _) => {
                        Box::pin(self.handle_message(message)).await;
                    }
                    Incoming::Answer(message, pidfd) => break (message, pidfd),
                    Incoming::Event(Event::GuardLost) => return Err(Error::GuardLost),
                    Incoming::Event(event) => self.handle(event).await,
                }
                if self.machine.phase == Phase::Gone {
                    let (_, stage) = self.hanging.unwrap_or((0, SpawnStage::Exec));
                    return Err(self.spawn_error(stage, Errno::TIMEDOUT));
                }
            };
            match answer {
                (FromGuard::Spawned { pid, joined, .. }, Some(pidfd)) => {
                    self.report.phases.spawned = self.elapsed();
                    let born = if joined { Born::Joined } else { Born::Cloned };
                    self.report.containment.born = self.containment.leaf().map(|_| born);
                    self.report.pid = Some(pid);
                    self.spawn_request.close();
                    self.reap_requested = false;
                    self.report.publish(&self.events, self.machine.reason);
                    let pidfd = Arc::new(Pidfd::from(pidfd));
                    self.main = Pid::from_raw(pid).map(|pid| (pid, pidfd.clone()));
                    // A stop or a kill before this answer may have found an empty leaf.
                    match self.machine.phase {
                        Phase::Stopping if self.report.stopped.count == 0 => {
                            self.send_stop_signal();
                            self.start_grace();
                        }
                        Phase::Killing => self.kill().await,
                        _ => {}
                    }
                    return Ok((pid, pidfd));
                }
                // The process was killed before its first instruction, and not by pinfold: the kernel's kill-sequence
                // bug.
                (FromGuard::NotStarted { .. }, _) if self.machine.phase == Phase::Running && !join => join = true,
                _ if self.machine.phase != Phase::Running => {
                    return Err(Error::EndedEarly { program: self.program(), reason: self.machine.reason });
                }
                (FromGuard::SpawnFailed { stage, errno, .. }, _) => {
                    return Err(self.spawn_error(stage, Errno::from_raw_os_error(errno)));
                }
                _ => return Err(self.spawn_error(SpawnStage::Clone, Errno::INTR)),
            }
        }
    }

    fn spawn_error(&self, stage: SpawnStage, errno: Errno) -> Error {
        Error::Spawn(SpawnError { stage, source: errno.into(), program: self.program(), cwd: self.report.cwd.clone() })
    }

    /// Returns the error of a start whose process SIGKILL did not end, with the remaining processes of the job.
    pub(super) fn hangs(&self, error: Error) -> Error {
        let Error::Spawn(error) = error else { return error };
        let mut unkillable = self.report.unkillable.clone();
        if let Some((pid, _)) = self.hanging
            && let Some(process) = unkillable.processes.iter_mut().find(|process| process.pid == pid)
        {
            // Until its exec the process shows the command line of the guard.
            process.command_line = self.report.command.join(" ");
        }
        let (not_removed, reason) = (self.report.not_removed.clone(), self.machine.reason);
        Error::Hangs(Box::new(HangingStart { error, reason, unkillable, not_removed }))
    }

    fn program(&self) -> String {
        self.report.command.first().cloned().unwrap_or_default()
    }
}
