//! The events of jobs and supervisors: each listener receives all of them, in order.

use std::time::Duration;

use pinfold::events::EventKind;
use pinfold::report::Reason;
use pinfold::{Command, Readiness};

use crate::support::host::{piped, with_supervisor};

/// Long enough that only a hang reaches it.
const LONG: Duration = Duration::from_secs(60);

#[test]
#[requires(cgroup)]
fn every_listener_receives_all_events() {
    with_supervisor(async |supervisor| {
        let mut command = piped("trap '' TERM; echo ready; sleep 1000 & wait; sleep 1000");
        command.grace(Duration::from_millis(100));
        let mut job = supervisor.spawn(&command).await.unwrap();
        let mut early = job.events();
        job.ready(&Readiness::stdout_line("ready"), LONG).await.unwrap();
        job.start_stop().unwrap();
        let mut received = Vec::new();
        while let Some(event) = early.next_event().await {
            received.push(event);
        }
        let report = job.wait().await.unwrap();
        let kinds: Vec<_> = received.iter().map(|event| event.kind.clone()).collect();
        let [
            EventKind::Spawned { pid, .. },
            EventKind::Stopping { reason: Reason::Stopped, .. },
            EventKind::Killing { reason: Reason::Stopped, .. },
            EventKind::MainExited { end, .. },
            EventKind::Empty,
            EventKind::Gone,
        ] = kinds.as_slice()
        else {
            panic!("{kinds:#?}")
        };
        assert_eq!((Some(*pid), end), (report.pid, &report.main));
        assert!(received.is_sorted_by(|a, b| a.seconds <= b.seconds), "{received:#?}");
        assert_eq!(Some(received[5].seconds), report.phases.gone);
        let mut late = job.events();
        for event in &received {
            assert_eq!(late.next_event().await.as_ref(), Some(event));
        }
        assert_eq!(late.next_event().await, None);

        let mut job = supervisor.spawn(&piped("sleep 1000 & exit 0")).await.unwrap();
        job.wait().await.unwrap();
        let mut events = job.events();
        let mut kinds = Vec::new();
        while let Some(event) = events.next_event().await {
            kinds.push(event.kind);
        }
        assert!(matches!(kinds[2], EventKind::Leftovers { count: 1, .. }), "{kinds:#?}");
        assert!(matches!(kinds[3], EventKind::Stopping { reason: Reason::Exited, .. }), "{kinds:#?}");
    });
}

/// One listener receives the events of every job, also of the jobs of a pool.
#[test]
#[requires(cgroup)]
fn a_supervisors_events() {
    with_supervisor(async |supervisor| {
        let mut events = supervisor.events();
        let pool = pinfold::Pool::builder().workers(2).start(supervisor).unwrap();
        let mut job = supervisor.spawn(Command::new("true").name("alone")).await.unwrap();
        let outcomes = pool.map([piped("exit 1"), piped("sleep 100 & exit 0")]).await.unwrap();
        let report = job.wait().await.unwrap();
        assert_eq!((outcomes.len(), job.number()), (2, 1));
        let mut received = std::collections::BTreeMap::<u64, Vec<EventKind>>::new();
        while received.values().filter(|kinds| kinds.contains(&EventKind::Gone)).count() < 3 {
            let event = tokio::time::timeout(LONG, events.next_event()).await.unwrap().unwrap();
            assert_eq!(event.name, if event.job == job.number() { "alone" } else { "sh" });
            received.entry(event.job).or_default().push(event.event.kind);
        }
        assert!(matches!(received[&1][0], EventKind::Spawned { pid, .. } if Some(pid) == report.pid), "{received:?}");
        let left =
            received.values().flatten().filter(|kind| matches!(kind, EventKind::Leftovers { count: 1, .. })).count();
        assert_eq!(left, 1, "{received:?}");
    });
}
