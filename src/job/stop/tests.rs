//! The transition table of the stop machine, and orders of events that matter.

use proptest::prelude::*;

use super::*;

const EVENTS: [Event; 14] = [
    Event::MainExited { empty: true },
    Event::MainExited { empty: false },
    Event::Emptied,
    Event::Deadline,
    Event::Idle,
    Event::StopAsked,
    Event::KillAsked,
    Event::GraceOver,
    Event::BoundOver,
    Event::Swept,
    Event::GuardLost,
    Event::ShortSettleOver { finishing: false },
    Event::ShortSettleOver { finishing: true },
    Event::SettleOver,
];

/// State × event → state. One row for each state (and whether its main process has exited); the columns are in the
/// order of `EVENTS`.
#[test]
fn the_table() {
    use Phase::{Draining as D, Gone as G, Killing as K, Running as R, Settling as T, Stopping as S};
    #[rustfmt::skip]
    let table: [(Phase, bool, Leftovers, [Phase; 14]); 11] = [
        //                             exit, left, emptied, deadline, idle, stop, kill, grace, bound, swept, lost, short, filters, settle
        (R, false, Leftovers::Kill, [D,    T,    R,       S,        S,    S,    K,    R,     R,     R,     K,    R,     R,       R]),
        (R, false, Leftovers::Wait, [D,    R,    R,       S,        S,    S,    K,    R,     R,     R,     K,    R,     R,       R]),
        (R, true,  Leftovers::Wait, [D,    R,    D,       S,        S,    S,    K,    R,     R,     R,     K,    R,     R,       R]),
        (T, true,  Leftovers::Kill, [D,    T,    D,       S,        S,    S,    K,    T,     T,     T,     K,    S,     T,       S]),
        (S, false, Leftovers::Kill, [D,    S,    S,       S,        S,    K,    K,    K,     S,     S,     K,    S,     S,       S]),
        (S, true,  Leftovers::Kill, [D,    S,    D,       S,        S,    K,    K,    K,     S,     S,     K,    S,     S,       S]),
        (K, false, Leftovers::Kill, [D,    K,    K,       K,        K,    K,    K,    K,     D,     K,     K,    K,     K,       K]),
        (K, true,  Leftovers::Kill, [D,    K,    D,       K,        K,    K,    K,    K,     D,     K,     K,    K,     K,       K]),
        (D, true,  Leftovers::Kill, [D,    D,    D,       D,        D,    D,    D,    D,     G,     G,     D,    D,     D,       D]),
        (G, true,  Leftovers::Kill, [G,    G,    G,       G,        G,    G,    G,    G,     G,     G,     G,    G,     G,       G]),
        (G, false, Leftovers::Kill, [G,    G,    G,       G,        G,    G,    G,    G,     G,     G,     G,    G,     G,       G]),
    ];
    for (phase, main_exited, leftovers, expected) in table {
        for (event, expected) in EVENTS.into_iter().zip(expected) {
            let before = Machine { phase, main_exited, ..Machine::new(leftovers, SignalTo::All) };
            let (after, actions) = before.on(event);
            assert_eq!(after.phase, expected, "{before:?} on {event:?}");
            let entered = match (phase, event) {
                (K, Event::GuardLost) => KILL_AGAIN,
                (D, Event::GuardLost) => SWEEP_AGAIN,
                (T, Event::ShortSettleOver { finishing: true }) => STOP_OTHERS,
                _ if after.phase == phase => NOTHING,
                _ => entry_actions(after.phase),
            };
            assert_eq!(actions, entered, "{before:?} on {event:?}");
        }
    }
}

fn entry_actions(phase: Phase) -> &'static [Action] {
    match phase {
        Phase::Settling => SETTLE,
        Phase::Stopping => STOP,
        Phase::Killing => KILL,
        Phase::Draining => DRAIN,
        Phase::Running | Phase::Gone => NOTHING,
    }
}

#[test]
fn a_stop_of_the_main_process_alone_lets_the_others_settle_and_stops_them_then() {
    let stopping = Machine::new(Leftovers::Kill, SignalTo::Main).on(Event::StopAsked).0;
    // No signal before the main process has exited.
    assert_eq!(stopping.on(Event::SettleOver).1, NOTHING);
    let (settling, actions) = stopping.on(Event::MainExited { empty: false });
    assert_eq!((settling.phase, actions), (Phase::Stopping, SETTLE));
    for (event, expected) in [
        (Event::ShortSettleOver { finishing: true }, STOP_OTHERS),
        (Event::ShortSettleOver { finishing: false }, STOP_REST),
        (Event::SettleOver, STOP_REST),
    ] {
        let (after, actions) = settling.on(event);
        assert_eq!((after.phase, actions), (Phase::Stopping, expected));
    }
}

#[test]
fn a_stop_that_began_with_another_signal_goes_on_with_the_stop_signal_when_the_main_process_has_exited() {
    let mut machine = Machine::new(Leftovers::Kill, SignalTo::All);
    machine.begin_with(Some(Signal::INT));
    let stopping = machine.on(Event::StopAsked).0;
    assert_eq!((stopping.phase, stopping.first_signal), (Phase::Stopping, Some(Signal::INT)));
    let mut late = stopping;
    late.begin_with(Some(Signal::HUP));
    assert_eq!(late.first_signal, Some(Signal::INT));
    let (settling, actions) = stopping.on(Event::MainExited { empty: false });
    assert_eq!((settling.phase, actions, settling.first_signal), (Phase::Stopping, SETTLE, None));
    assert_eq!(settling.on(Event::StopAsked).0.phase, Phase::Killing);
    let (after, actions) = settling.on(Event::ShortSettleOver { finishing: false });
    assert_eq!((after.phase, actions), (Phase::Stopping, STOP_REST));
    // With `Leftovers::Wait`, the leftovers receive the stop signal.
    let mut waited = Machine::new(Leftovers::Wait, SignalTo::All).on(Event::MainExited { empty: false }).0;
    waited.begin_with(Some(Signal::INT));
    assert_eq!(waited.first_signal, None);
}

#[test]
fn the_first_reason_stays() {
    let run = |events: &[Event]| {
        events.iter().fold(Machine::new(Leftovers::Kill, SignalTo::All), |machine, &event| machine.on(event).0).reason
    };
    assert_eq!(run(&[Event::MainExited { empty: false }, Event::Deadline, Event::StopAsked]), Reason::Exited);
    assert_eq!(run(&[Event::MainExited { empty: false }, Event::StopAsked, Event::StopAsked]), Reason::Exited);
    assert_eq!(run(&[Event::MainExited { empty: false }, Event::GuardLost]), Reason::Exited);
    assert_eq!(run(&[Event::Deadline, Event::KillAsked]), Reason::Deadline);
    assert_eq!(run(&[Event::StopAsked, Event::GraceOver]), Reason::Stopped);
    assert_eq!(run(&[Event::KillAsked, Event::Deadline]), Reason::Killed);
    assert_eq!(run(&[Event::GuardLost, Event::StopAsked]), Reason::GuardLost);
    assert_eq!(run(&[Event::Deadline, Event::GuardLost]), Reason::Deadline);
}

proptest! {
    /// For every order of events: phases only go forward, the machine ends within its bounds, and every kill starts a
    /// bound.
    #[test]
    fn every_order_ends(order in prop::collection::vec(0..EVENTS.len(), 0..40), wait: bool) {
        let mut machine = Machine::new(if wait { Leftovers::Wait } else { Leftovers::Kill }, SignalTo::All);
        for event in order.into_iter().map(|index| EVENTS[index]) {
            let (next, actions) = machine.on(event);
            prop_assert!(next.phase as u8 >= machine.phase as u8);
            prop_assert!(machine.main_exited <= next.main_exited);
            // The kill comes at the entry of the phase, and again when the guard that was asked for it is lost.
            let begins = machine.phase != Phase::Killing || event == Event::GuardLost;
            prop_assert_eq!(actions.contains(&Kill), next.phase == Phase::Killing && begins);
            machine = next;
        }
        for event in [Event::StopAsked, Event::GraceOver, Event::BoundOver, Event::BoundOver] {
            machine = machine.on(event).0;
        }
        prop_assert_eq!(machine.phase, Phase::Gone);
    }
}
