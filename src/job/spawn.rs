//! The start of a job: the spawn request to the guard, and its result.

use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::Pid;

use super::actor::{Actor, Started};
use super::stop::{Action, Event, Phase};
use crate::error::{Error, HangingStart, SpawnError, SpawnStage};
use crate::guard;
use crate::kernel::pidfd::Pidfd;
use crate::report::Born;

impl Actor {
    /// Asks the guard to start the command, and waits for the answer. An exec can take long. A stop, a kill or the
    /// deadline in that time kills the processes in the leaf.
    pub(super) async fn start(&mut self) -> Started {
        if let Some(event) = self.perform(Action::Spawn).await {
            self.handle(event).await;
        }
        loop {
            if let Some((pid, pidfd)) = &self.main {
                let started = (pid.as_raw_nonzero().get(), pidfd.clone());
                self.report.publish(&self.events, self.machine.reason);
                return Ok(started);
            }
            if self.machine.phase == Phase::Gone {
                return Err(self.start_error());
            }
            self.step().await;
        }
    }

    pub(super) async fn request_spawn(&mut self) -> Option<Event> {
        self.failure = None;
        let requested = self.spawn_request.send(&self.link, self.id, self.containment.leaf(), self.machine.join).await;
        match requested {
            Ok(()) => {
                // The guard starts the command meanwhile.
                self.record.record_start(&self.containment);
                self.expect_answer();
                None
            }
            Err(error) => {
                self.failure = Some(error);
                Some(Event::StartFailed)
            }
        }
    }

    /// Records that the command has been executed.
    pub(super) fn spawned(&mut self, pid: i32, joined: bool, pidfd: Pidfd) {
        self.report.phases.spawned = self.elapsed();
        // Only now, so that the first command does not wait for this.
        guard::protect_from_oom_killer();
        let born = if joined { Born::Joined } else { Born::Cloned };
        self.report.containment.born = self.containment.leaf().map(|_| born);
        self.report.pid = Some(pid);
        self.spawn_request.close();
        self.main = Pid::from_raw(pid).map(|pid| (pid, Arc::new(pidfd)));
        if let (Some(membership), Some((_, main))) = (&self.membership, &self.main) {
            membership.started(main.clone());
        }
        Pid::from_raw(pid).inspect(|&pid| self.record.record_main(&self.containment, pid));
    }

    /// Records why the command was not executed.
    pub(super) fn failed(&mut self, stage: SpawnStage, errno: Errno) {
        self.failure = Some(if self.machine.phase == Phase::Running {
            self.spawn_error(stage, errno)
        } else {
            Error::EndedEarly { program: self.program(), reason: self.machine.reason }
        });
    }

    /// Returns the error of a start that has failed.
    fn start_error(&mut self) -> Error {
        match self.failure.take() {
            Some(error) => error,
            None if self.machine.guard_lost => Error::GuardLost,
            None => {
                let (_, stage) = self.hanging.unwrap_or((0, SpawnStage::Exec));
                self.spawn_error(stage, Errno::TIMEDOUT)
            }
        }
    }

    fn spawn_error(&self, stage: SpawnStage, errno: Errno) -> Error {
        let denials =
            self.denial_listener.as_ref().map_or_else(Vec::new, |denial_listener| denial_listener.record().denials);
        let (program, cwd) = (self.program(), self.report.cwd.clone());
        Error::Spawn(SpawnError { stage, source: errno.into(), program, cwd, denials })
    }

    /// Returns the error with the remaining processes of the job, for a start whose process SIGKILL did not end.
    pub(super) fn hanging_start(&self, error: Error) -> Error {
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
