//! Tests of the table, and of every order of events.

use std::collections::HashSet;

use super::Action::{CancelBackoff, Kill, Spawn, StartBackoff, Stop};
use super::Event::*;
use super::State::{BackingOff, Failed, Finished, Ready, Starting, Stopping, Waiting};
use super::*;

const OK: Event = Ended(Ok(()));
const BAD: Event = Ended(Err(Failure::Exited));

fn machine(policy: RestartPolicy, ready_by: ReadyBy) -> Machine {
    let restart = Restart::new(policy).limit(2, Duration::from_secs(60));
    Machine::new(restart, ready_by)
}

/// Passes the events to a machine that has a readiness condition, and returns the state after each of them.
fn states(policy: RestartPolicy, events: &[Event]) -> Vec<State> {
    let mut machine = machine(policy, ReadyBy::Condition);
    let now = Instant::now();
    events
        .iter()
        .map(|&event| {
            let _ = machine.on(event, now);
            machine.state
        })
        .collect()
}

#[test]
fn the_table() {
    use RestartPolicy::{Always, Never, OnFailure};
    let up = [DependenciesMet, Spawned, BecameReady];
    for (policy, events, ends) in [
        // The start.
        (Never, &[][..], [Starting, Starting, Ready].as_slice()),
        // The end by itself.
        (Never, &[OK], &[Finished]),
        (Never, &[BAD], &[Failed]),
        (OnFailure, &[OK], &[Finished]),
        (OnFailure, &[BAD, BackoffOver, DependenciesMet], &[BackingOff, Waiting, Starting]),
        (Always, &[OK, BackoffOver], &[BackingOff, Waiting]),
        (OnFailure, &[Unresponsive, OK], &[Stopping, BackingOff]),
        // Requests.
        (Always, &[StopAsked, OK, BackoffOver], &[Stopping, Finished, Finished]),
        (Never, &[RestartAsked, BAD, DependenciesMet], &[Stopping, Waiting, Starting]),
        (Never, &[RestartAsked, StopAsked, BAD], &[Stopping, Stopping, Finished]),
        (Never, &[StopAsked, RestartAsked, OK], &[Stopping, Stopping, Waiting]),
        (Never, &[StopAsked, KillAsked, BAD], &[Stopping, Stopping, Finished]),
        (Never, &[BAD, StartAsked], &[Failed, Waiting]),
        (OnFailure, &[BAD, StopAsked], &[BackingOff, Finished]),
        (OnFailure, &[BAD, RestartAsked], &[BackingOff, Waiting]),
        // A process that could not be ended blocks each further instance.
        (Always, &[Ended(Err(Failure::NotEnded))], &[Failed]),
        (Always, &[RestartAsked, Ended(Err(Failure::NotEnded))], &[Stopping, Failed]),
        // The budget of two restarts.
        (
            OnFailure,
            &[BAD, BackoffOver, DependenciesMet, BAD, BackoffOver, DependenciesMet, BAD],
            &[BackingOff, Waiting, Starting, BackingOff, Waiting, Starting, Failed],
        ),
    ] {
        let all = [&up, events].concat();
        let found = states(policy, &all);
        let begin = if events.is_empty() { 0 } else { up.len() };
        assert_eq!(&found[begin..], ends, "{policy:?} {events:?}");
    }
    // Before it is ready.
    for (policy, events, ends) in [
        (Never, &[OK][..], [Failed].as_slice()),
        (Never, &[NotReady, BAD], &[Stopping, Failed]),
        (OnFailure, &[NotReady, OK], &[Stopping, BackingOff]),
        (OnFailure, &[NotReady, StopAsked, OK], &[Stopping, Stopping, Finished]),
    ] {
        let found = states(policy, &[&up[..2], events].concat());
        assert_eq!(&found[2..], ends, "{policy:?} {events:?}");
    }
    let mut one_shot = machine(Never, ReadyBy::End);
    for (event, state) in [(DependenciesMet, Starting), (Spawned, Starting), (OK, Finished)] {
        let _ = one_shot.on(event, Instant::now());
        assert_eq!(one_shot.state, state);
    }
    assert_eq!(states(Never, &[DependencyFailed]), [Failed]);
    assert_eq!(states(Never, &[StopAsked, DependenciesMet]), [Finished, Finished]);
}

#[test]
fn actions_follow_the_state() {
    let now = Instant::now();
    let mut machine = machine(RestartPolicy::OnFailure, ReadyBy::Start);
    let mut actions = |event| machine.on(event, now);
    assert_eq!(actions(DependenciesMet), [Spawn]);
    assert_eq!(actions(Spawned), []);
    assert_eq!(actions(StopAsked), [Stop]);
    assert_eq!(actions(StopAsked), []);
    assert_eq!(actions(KillAsked), [Kill]);
    assert_eq!(actions(BAD), []);
    assert_eq!(actions(StartAsked), []);
    assert_eq!(actions(DependenciesMet), [Spawn]);
    assert_eq!(actions(BAD), [StartBackoff(Duration::from_millis(100))]);
    assert_eq!(actions(StopAsked), [CancelBackoff]);
}

#[test]
fn restarts_older_than_the_window_do_not_count() {
    let mut machine = machine(RestartPolicy::OnFailure, ReadyBy::Start);
    let mut now = Instant::now();
    for _ in 0..10 {
        for event in [DependenciesMet, Spawned, BAD, BackoffOver] {
            let _ = machine.on(event, now);
        }
        assert_eq!(machine.state, Waiting);
        now += Duration::from_secs(31);
    }
    assert_eq!(machine.restarts, 10);
}

/// In every order of events there is at most one job at a time, only a service with a job is stopped or killed, and
/// after a request to stop the service ends and stays ended.
#[test]
fn every_order_of_events_has_one_job_at_a_time() {
    const EVENTS: [Event; 16] = [
        Unresponsive,
        DependenciesMet,
        DependencyFailed,
        Spawned,
        BecameReady,
        NotReady,
        OK,
        BAD,
        Ended(Err(Failure::NotEnded)),
        Ended(Err(Failure::SupervisorGone)),
        BackoffOver,
        StartAsked,
        RestartAsked,
        StopAsked,
        KillAsked,
        Ended(Err(Failure::NotStarted)),
    ];
    let now = Instant::now();
    for policy in [RestartPolicy::Never, RestartPolicy::OnFailure, RestartPolicy::Always] {
        for ready_by in [ReadyBy::Start, ReadyBy::Condition, ReadyBy::End] {
            let key = |machine: &Machine, jobs: u32| {
                (machine.state, machine.after_stop, machine.failure, machine.spawned, machine.recent.len(), jobs)
            };
            let first = machine(policy, ready_by);
            let mut seen = HashSet::from([key(&first, 0)]);
            let mut open = vec![(first, 0)];
            while let Some((machine, jobs)) = open.pop() {
                for event in EVENTS {
                    let mut next = machine.clone();
                    let is_end = matches!(event, Ended(_));
                    // Only a service with a job can end, become ready, or have its command executed.
                    if jobs == 0 && (is_end || matches!(event, Spawned | BecameReady | NotReady | Unresponsive)) {
                        continue;
                    }
                    let mut after = jobs - u32::from(is_end);
                    for action in next.on(event, now) {
                        match action {
                            Spawn => after += 1,
                            Stop | Kill => assert_eq!(after, 1, "{machine:?} {event:?}"),
                            StartBackoff(_) => assert_eq!(next.state, BackingOff),
                            CancelBackoff => assert_eq!(machine.state, BackingOff),
                        }
                    }
                    assert!(after <= 1, "{machine:?} {event:?}");
                    assert_eq!(next.state.has_job(), after == 1, "{machine:?} {event:?} {:?}", next.state);
                    assert_eq!(next.failure.is_some(), next.state == Failed);
                    if event == StopAsked {
                        assert!(next.state.is_over() || next.state == Stopping && next.after_stop == AfterStop::Finish);
                    }
                    if seen.insert(key(&next, after)) {
                        // This counter has no bound and decides nothing, so it does not belong to the state.
                        next.restarts = 0;
                        open.push((next, after));
                    }
                }
            }
            assert!(seen.len() > 10, "{}", seen.len());
        }
    }
}
