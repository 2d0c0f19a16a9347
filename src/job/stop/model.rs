//! An exhaustive exploration of the stop machine. It tries every order of events, and the death of the main process or
//! of the guard at every step, together with a model of the surroundings (processes, timers, the guard). It uses the
//! real functions of the machine.

use std::collections::{HashMap, HashSet, VecDeque};

use super::*;

/// A model of the surroundings of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct World {
    main_lives: bool,
    /// The other processes of the job.
    others: Others,
    guard_lives: bool,
    /// SIGKILL was sent, and has not taken effect yet.
    kill_pending: bool,
    /// The guard was asked to end the processes outside of the leaf.
    sweep_pending: bool,
    /// The kill bound was over while a process lived, so that the report names the process.
    reported_unkillable: bool,
    timers: Timers,
    /// How many requests from outside can still come.
    requests: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Others {
    None,
    Daemon,
    Filter,
    Unkillable,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Timers {
    deadline: bool,
    short_settle: bool,
    settle: bool,
    grace: bool,
    bound: bool,
}

type State = (Machine, World);

/// A possible next step. `certain`: it comes by itself sooner or later; otherwise it may never come.
struct Step {
    certain: bool,
    state: State,
}

impl World {
    fn is_empty(&self) -> bool {
        !self.main_lives && self.others == Others::None
    }
}

/// Feeds the machine as the actor does, and performs the actions on the model.
fn feed((machine, mut world): State, event: Event) -> State {
    let before = machine.phase;
    if event == Event::BoundOver && before == Phase::Killing && !world.is_empty() {
        world.reported_unkillable = true;
    }
    let (mut machine, actions) = machine.on(event);
    if machine.phase != before && machine.phase != Phase::Settling {
        (world.timers.short_settle, world.timers.settle) = (false, false);
    }
    for action in actions {
        match action {
            Action::StartSettle => (world.timers.short_settle, world.timers.settle) = (true, true),
            // The processes may ignore the signal.
            Action::SignalOthers | Action::Signal => {}
            Action::StartGrace => world.timers.grace = true,
            Action::Kill => world.kill_pending = true,
            Action::StartBound => (world.timers.grace, world.timers.bound) = (false, true),
            Action::Sweep if world.guard_lives => world.sweep_pending = true,
            // The supervisor has done the sweep itself.
            Action::Sweep => machine = machine.on(Event::Swept).0,
        }
    }
    (machine, world)
}

fn steps(state: State) -> Vec<Step> {
    let (machine, world) = state;
    let mut steps = Vec::new();
    let mut add = |certain: bool, change: &dyn Fn(&mut World), event: Option<Event>| {
        let (machine, mut world) = state;
        change(&mut world);
        let state = event.map_or((machine, world), |event| feed((machine, world), event));
        steps.push(Step { certain, state });
    };
    let killed = world.kill_pending;
    // Processes end by themselves, by a signal, or by the kill. An unkillable process never ends.
    if world.main_lives {
        let empty = world.others == Others::None;
        if world.guard_lives {
            add(killed, &|world| world.main_lives = false, Some(Event::MainExited { empty }));
        }
    }
    let others_can_end = !matches!(world.others, Others::None | Others::Unkillable);
    if others_can_end {
        let event = (!world.main_lives && machine.main_exited).then_some(Event::Emptied);
        // A filter whose input has no writer reads to the end, but may then do something else.
        add(killed, &|world| world.others = Others::None, event);
    }
    let timers = world.timers;
    if timers.deadline {
        add(true, &|world| world.timers.deadline = false, Some(Event::Deadline));
    }
    if timers.short_settle {
        let finishing = world.others == Others::Filter;
        add(true, &|world| world.timers.short_settle = false, Some(Event::ShortSettleOver { finishing }));
    }
    if timers.settle {
        add(true, &|world| world.timers.settle = false, Some(Event::SettleOver));
    }
    if timers.grace {
        add(true, &|world| world.timers.grace = false, Some(Event::GraceOver));
    }
    if timers.bound {
        add(true, &|world| world.timers.bound = false, Some(Event::BoundOver));
    }
    if world.sweep_pending && world.guard_lives {
        add(false, &|world| world.sweep_pending = false, Some(Event::Swept));
    }
    if world.guard_lives {
        let lose = |world: &mut World| {
            // PDEATHSIG ends the main process.
            (world.guard_lives, world.main_lives, world.sweep_pending) = (false, false, false);
        };
        add(false, &lose, Some(Event::GuardLost));
    }
    if world.requests > 0 {
        for event in [Event::StopAsked, Event::KillAsked, Event::Idle] {
            add(false, &|world| world.requests -= 1, Some(event));
        }
    }
    steps
}

fn starts() -> Vec<State> {
    let mut starts = Vec::new();
    for leftovers in [Leftovers::Kill, Leftovers::Wait] {
        for signal_to in [SignalTo::All, SignalTo::Main] {
            for others in [Others::None, Others::Daemon, Others::Filter, Others::Unkillable] {
                for (deadline, first_signal) in [(false, None), (true, None), (true, Some(Signal::INT))] {
                    let mut machine = Machine::new(leftovers, signal_to);
                    machine.begin_with(first_signal);
                    let world = World {
                        main_lives: true,
                        others,
                        guard_lives: true,
                        kill_pending: false,
                        sweep_pending: false,
                        reported_unkillable: false,
                        timers: Timers { deadline, ..Timers::default() },
                        requests: 3,
                    };
                    starts.push((machine, world));
                }
            }
        }
    }
    starts
}

/// Returns every reachable state, with the states that follow it.
fn explore() -> HashMap<State, Vec<Step>> {
    let mut known = HashMap::new();
    let mut open: VecDeque<State> = starts().into();
    while let Some(state) = open.pop_front() {
        if known.contains_key(&state) {
            continue;
        }
        let next = steps(state);
        open.extend(next.iter().map(|step| step.state));
        known.insert(state, next);
    }
    known
}

#[test]
fn a_job_is_gone_only_when_it_is_empty_or_its_report_names_the_rest() {
    let known = explore();
    assert!(known.len() > 1000, "{} states", known.len());
    for (machine, world) in known.keys() {
        if machine.phase == Phase::Gone {
            assert!(world.is_empty() || world.reported_unkillable, "{machine:?} {world:?}");
        }
        if machine.phase == Phase::Draining {
            assert!(machine.main_exited || world.reported_unkillable, "{machine:?} {world:?}");
        }
    }
}

#[test]
fn a_job_is_never_stuck() {
    for ((machine, world), next) in explore() {
        // In these states the machine waits for the processes by intention.
        let waits = machine.phase == Phase::Running
            && (world.main_lives || machine.leftovers == Leftovers::Wait && world.others != Others::None);
        if machine.phase != Phase::Gone && !waits {
            assert!(next.iter().any(|step| step.certain), "{machine:?} {world:?}");
        }
    }
}

#[test]
fn phases_only_go_forward_and_every_path_ends() {
    let known = explore();
    for (state, next) in &known {
        for step in next {
            assert!(step.state.0.phase as u8 >= state.0.phase as u8, "{state:?} to {:?}", step.state);
        }
    }
    // Every step uses something up (a process, a timer, the guard, a request, an answer), so no path returns to a
    // state.
    let (mut done, mut path): (HashSet<State>, HashSet<State>) = Default::default();
    for start in starts() {
        let mut stack = vec![(start, false)];
        while let Some((state, is_left)) = stack.pop() {
            if is_left {
                path.remove(&state);
                done.insert(state);
            } else if !done.contains(&state) {
                assert!(path.insert(state), "a cycle at {state:?}");
                stack.push((state, true));
                for step in &known[&state] {
                    assert!(!path.contains(&step.state), "a cycle: {state:?} to {:?}", step.state);
                    stack.push((step.state, false));
                }
            }
        }
    }
}
