//! The transition table of the stop machine, and the important orders of events.

use proptest::prelude::*;

use super::Action::*;
use super::*;

const EVENTS: [Event; 14] = [
    Event::MainExited { empty: true, childless: true },
    Event::MainExited { empty: false, childless: false },
    Event::Emptied,
    Event::Expired(Timer::Deadline),
    Event::Idle,
    Event::StopAsked { first: None },
    Event::KillAsked,
    Event::Expired(Timer::Grace),
    Event::Expired(Timer::Kill),
    Event::Swept { survivors: false },
    Event::GuardLost,
    Event::Inspected { finishing: false },
    Event::Inspected { finishing: true },
    Event::Expired(Timer::Settle),
];

fn machine(leftovers: Leftovers, signal_to: SignalTo) -> Machine {
    let policy = StopPolicy { leftovers, signal_to, ..StopPolicy::default() };
    let mut machine = Machine::new(&policy, true, false, true);
    assert!(machine.on(Event::Spawned { signalled: false }).is_empty());
    machine
}

fn without_leaf() -> Machine {
    Machine { has_leaf: false, ..machine(Leftovers::Kill, SignalTo::All) }
}

fn starting() -> Machine {
    Machine::new(&StopPolicy::default(), true, false, false)
}

fn after(mut machine: Machine, events: &[Event]) -> Machine {
    for &event in events {
        let _ = machine.on(event);
    }
    machine
}

/// State × event → state. One row for each state (and whether its main process has exited); the columns are in the
/// order of `EVENTS`.
#[test]
fn the_table() {
    use Phase::{Draining as D, Gone as G, Killing as K, Running as R, Settling as T, Stopping as S};
    #[rustfmt::skip]
    let table: [(Phase, bool, Leftovers, [Phase; 14]); 11] = [
        //                             exit, left, emptied, deadline, idle, stop, kill, grace, bound, swept, lost, short, filters, settle
        (R, false, Leftovers::Kill, [G,    T,    R,       S,        S,    S,    K,    R,     R,     R,     K,    R,     R,       R]),
        (R, false, Leftovers::Wait, [G,    R,    R,       S,        S,    S,    K,    R,     R,     R,     K,    R,     R,       R]),
        (R, true,  Leftovers::Wait, [G,    R,    D,       S,        S,    S,    K,    R,     R,     R,     K,    R,     R,       R]),
        (T, true,  Leftovers::Kill, [G,    T,    D,       S,        S,    S,    K,    T,     T,     T,     K,    S,     T,       S]),
        (S, false, Leftovers::Kill, [G,    S,    S,       S,        S,    K,    K,    K,     S,     S,     K,    S,     S,       S]),
        (S, true,  Leftovers::Kill, [G,    S,    D,       S,        S,    K,    K,    K,     S,     S,     K,    S,     S,       S]),
        (K, false, Leftovers::Kill, [G,    K,    K,       K,        K,    K,    K,    K,     D,     K,     K,    K,     K,       K]),
        (K, true,  Leftovers::Kill, [G,    K,    D,       K,        K,    K,    K,    K,     D,     G,     K,    K,     K,       K]),
        (D, true,  Leftovers::Kill, [D,    D,    D,       D,        D,    D,    D,    D,     D,     G,     D,    D,     D,       D]),
        (G, true,  Leftovers::Kill, [G,    G,    G,       G,        G,    G,    G,    G,     G,     G,     G,    G,     G,       G]),
        (G, false, Leftovers::Kill, [G,    G,    G,       G,        G,    G,    G,    G,     G,     G,     G,    G,     G,       G]),
    ];
    for (phase, main_exited, leftovers, expected) in table {
        for (event, expected) in EVENTS.into_iter().zip(expected) {
            let main = if main_exited { Main::Exited } else { Main::Running };
            let before = Machine { phase, main, timers: u8::MAX, ..machine(leftovers, SignalTo::All) };
            let mut after = before;
            let _ = after.on(event);
            assert_eq!(after.phase, expected, "{before:?} on {event:?}");
        }
    }
}

#[test]
fn the_actions_of_each_phase() {
    let start = machine(Leftovers::Kill, SignalTo::All);
    let cancel_deadline = Cancel(Timer::Deadline);
    let mut running = start;
    assert_eq!(running.on(Event::StopAsked { first: None }), [cancel_deadline, Signal, Start(Timer::Grace)]);
    assert_eq!(running.on(Event::KillAsked), [Cancel(Timer::Grace), Start(Timer::Kill), Kill]);
    assert_eq!(running.on(Event::Emptied), [AskReap]);
    assert_eq!(
        running.on(Event::MainExited { empty: true, childless: false }),
        [Cancel(Timer::Kill), NoteEmpty, Start(Timer::Sweep), AskSweep]
    );
    assert_eq!(running.on(Event::Swept { survivors: false }), [Cancel(Timer::Sweep)]);
    assert_eq!(running.phase, Phase::Gone);

    let mut settling = start;
    let left = Event::MainExited { empty: false, childless: false };
    assert_eq!(settling.on(left), [Start(Timer::ShortSettle), Start(Timer::Settle)]);
    assert_eq!(settling.on(Event::Expired(Timer::ShortSettle)), [Inspect]);
    assert_eq!(settling.on(Event::Inspected { finishing: true }), [ListOthers, SignalOthers]);
    let stop = [ListLeftovers, cancel_deadline, Signal, Start(Timer::Grace)];
    assert_eq!(settling.on(Event::Expired(Timer::Settle)), stop);
    assert_eq!(settling.reason, Reason::Exited);

    let mut waiting = machine(Leftovers::Wait, SignalTo::All);
    assert_eq!(waiting.on(left), [ListLeftovers]);

    let mut alone = without_leaf();
    assert_eq!(alone.on(Event::KillAsked), [cancel_deadline, Start(Timer::Kill), Kill, AskSweep]);
    assert_eq!(alone.on(left), [ExpectAnswer]);
    assert_eq!(alone.on(Event::Swept { survivors: false }), [Cancel(Timer::Kill), NoteEmpty]);
    assert_eq!(alone.phase, Phase::Gone);
}

#[test]
fn a_lost_guard_is_replaced() {
    let mut killing = after(machine(Leftovers::Kill, SignalTo::All), &[Event::KillAsked]);
    assert_eq!(killing.on(Event::GuardLost), [Kill]);
    assert_eq!(killing.on(Event::Emptied), [Cancel(Timer::Kill), NoteEmpty, EndOrphans]);
    let swept = [Event::MainExited { empty: true, childless: false }];
    let mut draining = after(machine(Leftovers::Kill, SignalTo::All), &swept);
    assert_eq!(draining.on(Event::GuardLost), [EndOrphans]);
    let mut alone = without_leaf();
    assert_eq!(alone.on(Event::GuardLost), [Cancel(Timer::Deadline), Start(Timer::Kill), Kill, EndOrphans]);
    assert_eq!(alone.on(Event::Swept { survivors: true }), [Cancel(Timer::Kill), NoteEmpty]);
    assert_eq!((alone.phase, alone.reason), (Phase::Gone, Reason::GuardLost));
}

#[test]
fn a_start_is_tried_again_once() {
    let mut machine = starting();
    assert_eq!(machine.on(Event::NotStarted), [Spawn]);
    assert!(machine.join);
    assert_eq!(machine.on(Event::NotStarted), []);
    assert_eq!((machine.phase, machine.reason), (Phase::Gone, Reason::Exited));
    let mut stopped = after(starting(), &[Event::StopAsked { first: None }]);
    assert_eq!(stopped.on(Event::NotStarted), [Cancel(Timer::Exec)]);
    assert_eq!((stopped.phase, stopped.reason), (Phase::Gone, Reason::Stopped));
}

#[test]
fn a_command_that_is_executed_during_a_stop_has_the_whole_grace_period() {
    for (signalled, first) in [(false, &[Signal][..]), (true, &[])] {
        let mut machine = starting();
        assert_eq!(machine.on(Event::StopAsked { first: None }), [Signal, Start(Timer::Exec)]);
        let expected = [first, &[Cancel(Timer::Exec), Start(Timer::Grace)]].concat();
        assert_eq!(machine.on(Event::Spawned { signalled }), expected);
    }
    let mut machine = after(starting(), &[Event::StopAsked { first: None }]);
    assert_eq!(machine.on(Event::Expired(Timer::Exec)), [Start(Timer::Kill), Kill]);
}

#[test]
fn a_command_that_is_executed_after_the_kill_is_killed_too() {
    let killing = after(starting(), &[Event::KillAsked]);
    for mut machine in [killing, after(killing, &[Event::Hangs, Event::Expired(Timer::Kill)])] {
        assert!(machine.phase >= Phase::Killing);
        assert_eq!(machine.on(Event::Spawned { signalled: false }), [Kill]);
    }
}

#[test]
fn a_start_that_hangs_is_killed() {
    let mut machine = starting();
    assert_eq!(machine.on(Event::Hangs), [Start(Timer::Kill), Kill]);
    assert_eq!(machine.reason, Reason::SpawnFailed);
    let expected = [ListUnkillable, Cancel(Timer::Kill), NoteEmpty, Start(Timer::Sweep), AskSweep];
    let expected: Vec<_> = expected.into_iter().filter(|action| *action != Cancel(Timer::Kill)).collect();
    assert_eq!(machine.on(Event::Expired(Timer::Kill)), expected);
    assert_eq!(machine.on(Event::Expired(Timer::Sweep)), [NoteNoAnswer]);
    assert_eq!(machine.phase, Phase::Gone);
}

#[test]
fn a_guard_that_is_lost_during_the_start_leaves_no_emigrant() {
    let mut machine = starting();
    assert_eq!(machine.on(Event::GuardLost), [Start(Timer::Kill), Kill]);
    assert!(machine.awaits_empty_leaf());
    assert_eq!(machine.on(Event::Emptied), [Cancel(Timer::Kill), NoteEmpty, EndOrphans]);
    assert_eq!(after(machine, &[Event::Swept { survivors: false }]).phase, Phase::Gone);
}

#[test]
fn a_stop_of_the_main_process_alone_stops_the_others_after_their_settle_time() {
    let stopping = after(machine(Leftovers::Kill, SignalTo::Main), &[Event::StopAsked { first: None }]);
    let mut settling = stopping;
    let actions = settling.on(Event::MainExited { empty: false, childless: false });
    assert_eq!(
        (settling.phase, &actions[..]),
        (Phase::Stopping, &[Start(Timer::ShortSettle), Start(Timer::Settle)][..])
    );
    for (event, expected) in [
        (Event::Inspected { finishing: true }, &[SignalOthers][..]),
        (Event::Inspected { finishing: false }, &[Cancel(Timer::ShortSettle), Cancel(Timer::Settle), SignalRest]),
        (Event::Expired(Timer::Settle), &[Cancel(Timer::ShortSettle), SignalRest]),
    ] {
        let mut after = settling;
        assert_eq!(after.on(event), expected);
        assert_eq!(after.phase, Phase::Stopping);
    }
}

#[test]
fn a_stop_with_another_first_signal_sends_the_stop_signal_after_the_main_process_has_exited() {
    let ask = |signal| Event::StopAsked { first: Some(signal) };
    let left = Event::MainExited { empty: false, childless: false };
    let mut stopping = after(machine(Leftovers::Kill, SignalTo::All), &[ask(super::Signal::INT)]);
    assert_eq!((stopping.phase, stopping.first_signal), (Phase::Stopping, Some(super::Signal::INT)));
    assert_eq!(after(stopping, &[ask(super::Signal::HUP)]).first_signal, Some(super::Signal::INT));
    assert_eq!(stopping.on(left), [Start(Timer::ShortSettle), Start(Timer::Settle)]);
    assert_eq!((stopping.phase, stopping.first_signal), (Phase::Stopping, None));
    assert_eq!(after(stopping, &[ask(super::Signal::INT)]).phase, Phase::Killing);
    // With `Leftovers::Wait`, the leftovers receive the stop signal.
    let waited = after(machine(Leftovers::Wait, SignalTo::All), &[left, ask(super::Signal::INT)]);
    assert_eq!((waited.phase, waited.first_signal), (Phase::Stopping, None));
}

#[test]
fn the_first_reason_stays() {
    let stop = Event::StopAsked { first: None };
    let left = Event::MainExited { empty: false, childless: false };
    let run = |events: &[Event]| after(machine(Leftovers::Kill, SignalTo::All), events).reason;
    assert_eq!(run(&[left, Event::Deadline, stop]), Reason::Exited);
    assert_eq!(run(&[left, stop, stop]), Reason::Exited);
    assert_eq!(run(&[left, Event::GuardLost]), Reason::Exited);
    assert_eq!(run(&[Event::Deadline, Event::KillAsked]), Reason::Deadline);
    assert_eq!(run(&[stop, Event::Expired(Timer::Grace)]), Reason::Stopped);
    assert_eq!(run(&[Event::KillAsked, Event::Deadline]), Reason::Killed);
    assert_eq!(run(&[Event::OwnerGone, stop]), Reason::Killed);
    assert_eq!(run(&[Event::GuardLost, stop]), Reason::GuardLost);
    assert_eq!(run(&[Event::Deadline, Event::GuardLost]), Reason::Deadline);
}

proptest! {
    /// For every order of events, even of events that cannot occur: phases only go forward, and the machine ends within
    /// its bounds.
    #[test]
    fn every_order_ends(order in prop::collection::vec(0..EVENTS.len(), 0..40), wait: bool) {
        let mut machine = machine(if wait { Leftovers::Wait } else { Leftovers::Kill }, SignalTo::All);
        for event in order.into_iter().map(|index| EVENTS[index]) {
            let before = machine;
            let actions = machine.on(event);
            prop_assert!(machine.phase >= before.phase);
            // The machine kills when it enters the phase, and again when the guard is lost.
            let begins = before.phase != Phase::Killing || event == Event::GuardLost;
            prop_assert_eq!(actions.contains(&Kill), machine.phase == Phase::Killing && begins);
        }
        for event in [Event::KillAsked, Event::Expired(Timer::Kill), Event::Expired(Timer::Sweep)] {
            let _ = machine.on(event);
        }
        if machine.phase == Phase::Draining {
            // A lost guard: the actor ends the orphans at once.
            let _ = machine.on(Event::Swept { survivors: false });
        }
        prop_assert_eq!(machine.phase, Phase::Gone);
    }
}
