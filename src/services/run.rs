//! Runs one job of a service: starts it, reads its output, waits until it is ready, and waits until no process of it is
//! left.

use std::sync::Arc;
use std::time::SystemTime;

use crate::error::{Error, Result};
use crate::job::caller::Caller;
use crate::job::command::{Command, Stdio};
use crate::job::output::{Line, OutputStream, Splitter};
use crate::job::stop::Leftovers;
use crate::job::{Job, JobHandle};
use crate::report::{MainEnd, Reason, Report};
use crate::services::config::Service;
use crate::services::log::{Log, LogEvent, LogSource};
use crate::services::machine::{Event, Failure};
use crate::services::notices::Notices;
use crate::services::ready_by::Checked;
use crate::services::state::{JobRequest, Shared};
use crate::supervisor::events::{EventKind, Events};
use crate::supervisor::queue::Receiver;

/// The longest line, in bytes. pinfold divides a longer line.
const MAX_LINE: usize = 64 * 1024;

/// Runs one job of a service, until no process of it is left.
pub(super) async fn run(shared: Arc<Shared>, service: usize, requests: Receiver<JobRequest>) {
    let mut instance = Instance { shared, service, is_over: false };
    let (end, reason) = match instance.run(requests).await {
        Ok(report) => end_of(&report),
        Err(error @ Error::GuardLost) => (Err(Failure::SupervisorGone), error.to_string()),
        Err(error) => (Err(Failure::NotStarted), error.to_string()),
    };
    instance.is_over = true;
    instance.shared.ended(service, end, reason);
}

/// Returns how the job of a service has ended, and a description.
fn end_of(report: &Report) -> (std::result::Result<(), Failure>, String) {
    if report.unkillable.count > 0 {
        return (Err(Failure::NotEnded), "some of its processes could not be ended".into());
    }
    if report.reason == Reason::GuardLost {
        return (Err(Failure::SupervisorGone), "the guard process was killed".into());
    }
    let how = match &report.main {
        Some(MainEnd::Exited(code)) => format!("it exited with {code}"),
        Some(MainEnd::Signalled { name, .. }) => format!("it was ended by {name}"),
        _ => "it ended".into(),
    };
    let how = match report.reason {
        Reason::Oom => format!("it ran out of memory, and {how}"),
        Reason::Deadline => format!("its deadline was reached, and {how}"),
        _ => how,
    };
    let is_success = matches!(report.main, Some(MainEnd::Exited(0))) && report.reason != Reason::Deadline;
    (if is_success { Ok(()) } else { Err(Failure::Exited) }, how)
}

struct Instance {
    shared: Arc<Shared>,
    service: usize,
    is_over: bool,
}

/// Records the end of a job even if the future of [`run`] panics, or is dropped with its runtime.
impl Drop for Instance {
    fn drop(&mut self) {
        if !self.is_over {
            let reason = "the runtime of the services was shut down, or the code that held the job panicked";
            self.shared.ended(self.service, Err(Failure::SupervisorGone), reason.into());
        }
    }
}

impl Instance {
    async fn run(&mut self, mut requests: Receiver<JobRequest>) -> Result<Arc<Report>> {
        let (shared, number) = (&self.shared, self.service);
        let service = &shared.services[number];
        if let Some(ready) = service.ready.as_ref().filter(|_| service.listen.is_empty()) {
            ready.check_before_start().await?;
        }
        let mut command = command_of(service);
        shared.sockets[number].pass_to(&mut command);
        let notices = Notices::new(service, &mut command)?;
        let caller = Caller::of(&command)?;
        // A request to stop that arrives during this call waits in `requests`. The job receives its stop signal after
        // the call.
        let mut job = shared.supervisor.spawn_here(&command, caller).await?;
        let (handle, events, stdout) = (job.handle(), job.events(), job.stdout.take());
        let (supervisor, timeout) = (&shared.supervisor, service.ready_timeout);
        let checked = Checked { job: &handle, supervisor, notices: notices.as_ref(), timeout };
        // The search for a line begins here, before the output is read.
        let ready = service.ready.as_ref().map(|ready| ready.wait(checked));
        shared.spawned(number, job.pid());
        let readiness = async {
            let begin_watchdog = || notices.as_ref().map_or((), |notices| notices.begin_watchdog.notify_one());
            let Some(ready) = ready else { return begin_watchdog() };
            match ready.await {
                Ok(()) => {
                    shared.handle(number, Event::BecameReady, None);
                    begin_watchdog();
                }
                // The end of the job is an event of its own.
                Err(_) if !matches!(handle.try_wait(), Ok(None)) => {}
                Err(error) => shared.handle(number, Event::NotReady, Some(reason(&error))),
            }
        };
        let notified = async {
            if let Some(notices) = &notices {
                notices.handle(shared, number, &handle).await;
            }
        };
        let (report, (), (), ()) =
            tokio::join!(self.wait(&mut job, &mut requests, events), self.read(stdout), readiness, notified);
        report
    }

    /// Waits for the job, and performs requests.
    async fn wait(
        &self,
        job: &mut Job,
        requests: &mut Receiver<JobRequest>,
        mut events: Events,
    ) -> Result<Arc<Report>> {
        let handle = job.handle();
        let mut stopping = false;
        let (mut has_requests, mut has_events) = (true, true);
        loop {
            tokio::select! {
                biased;
                report = handle.wait() => return report,
                request = requests.recv(), if has_requests => match request {
                    Some(JobRequest::Stop(_)) if stopping => {}
                    Some(JobRequest::Stop(first)) => {
                        stopping = true;
                        first.map_or_else(|| handle.start_stop(), |first| handle.start_stop_with(first))?;
                    }
                    Some(JobRequest::Kill) => handle.start_kill()?,
                    None => has_requests = false,
                },
                event = events.next_event(), if has_events => match event.map(|event| event.kind) {
                    Some(EventKind::MainExited { end, .. }) => {
                        if !stopping && !self.continues_without_main(&end, &handle).await {
                            stopping = true;
                            handle.start_stop()?;
                        }
                    }
                    Some(_) => {}
                    None => has_events = false,
                },
            }
        }
    }

    /// Returns whether pinfold lets the job continue after its main process has exited. If the main process has exited
    /// with 0, as the first process of a daemon does (daemon(7)), the remaining processes are the service.
    async fn continues_without_main(&self, end: &Option<MainEnd>, handle: &JobHandle) -> bool {
        if self.shared.services[self.service].one_shot {
            return true; // The job itself ends its remaining processes, after the settle time.
        }
        if !matches!(end, Some(MainEnd::Exited(0))) {
            return false;
        }
        let remaining = handle.processes().await.len();
        if remaining > 0 {
            let remaining = crate::report::text::counted(remaining, "process");
            self.shared.note(
                self.service,
                format!("its main process has exited with 0 and left {remaining}, which the service consists of now"),
            );
        }
        true
    }

    /// Reads the output to its end.
    async fn read(&self, stream: Option<OutputStream>) {
        let Some(mut stream) = stream else { return };
        let service = &self.shared.services[self.service];
        let mut splitter = Splitter::new(MAX_LINE);
        let mut log = self.shared.logs[self.service].as_ref().map(Log::source);
        loop {
            let mut events = [None, None];
            let read = stream
                .read_piece(|piece| {
                    events[0] = log.as_mut().and_then(|log| log.push(piece));
                    splitter.push(piece);
                })
                .await;
            let is_end = !matches!(read, Ok(1..));
            if is_end {
                events[1] = log.as_mut().and_then(LogSource::end);
            }
            for event in events.into_iter().flatten() {
                self.shared.note(
                    self.service,
                    match event {
                        LogEvent::Failed(why) => format!("a part of its log is lost: {why}"),
                        LogEvent::Recovered(lost) => {
                            format!("pinfold can write its log again; {lost} bytes of output are lost")
                        }
                    },
                );
            }
            while let Some((line, complete)) = splitter.next(is_end) {
                let line = Line { at: SystemTime::now(), bytes: line.to_vec(), complete };
                self.shared.tails.push(self.service, &service.name, line).await;
            }
            if let Err(error) = read {
                self.shared.note(self.service, format!("pinfold cannot read its output any more: {error}"));
            }
            if is_end {
                return;
            }
        }
    }
}

/// Returns the command of a service, with the streams and the handling of leftovers that a service has.
fn command_of(service: &Service) -> Command {
    let mut command = service.command.clone();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr_to_stdout(true);
    if !service.one_shot {
        command.leftovers(Leftovers::Wait);
    }
    command
}

/// Returns why a service is not ready, without its name.
fn reason(error: &Error) -> String {
    match error {
        Error::NotReady { why, .. } => format!("it did not become ready: {why}"),
        error => format!("it did not become ready: {error}"),
    }
}
