//! An exhaustive exploration of the stop machine. It tries every order of events on the real functions of the machine,
//! together with a model of the surroundings. The guard and the supervisor can die at every step. There is no limit on
//! the depth: every path ends.

use std::collections::{HashMap, HashSet};

mod world;

use super::*;
use world::{Guard, MainProcess, Others, Start, State, Step, World, steps};

fn starts() -> Vec<State> {
    let mut starts = Vec::new();
    let all_others = [Others::Daemon, Others::Filter, Others::Unkillable];
    for (leftovers, signal_to) in
        [(Leftovers::Kill, SignalTo::All), (Leftovers::Kill, SignalTo::Main), (Leftovers::Wait, SignalTo::All)]
    {
        // In the model, processes can end at any time. So a job without other processes is included.
        for (has_leaf, emigrant) in [(true, true), (false, false)] {
            for (others, hangs) in all_others.into_iter().map(|others| (others, false)).chain([(Others::None, true)]) {
                let policy = StopPolicy { leftovers, signal_to, ..StopPolicy::default() };
                let world = World {
                    start: Start { others, emigrant, hangs, asked: true },
                    main: MainProcess::None,
                    others: Others::None,
                    emigrant: false,
                    main_killed: false,
                    others_killed: false,
                    guard: Guard::Lives,
                    answers: [None; 5],
                    sweeping: false,
                    swept: false,
                    reported: false,
                    first_signals: 0,
                    requests: 1,
                };
                starts.push((Machine::new(&policy, has_leaf, false, true), world));
            }
        }
    }
    starts
}

/// What one exploration has found.
#[derive(Default)]
struct Explored {
    /// For each state: the number of paths to an end, and the length of the longest.
    known: HashMap<State, (f64, u32)>,
    /// The states of the path that is explored now.
    path: HashSet<State>,
}

impl Explored {
    fn explore(&mut self, start: State) {
        let mut stack = vec![(start, false)];
        while let Some((state, is_done)) = stack.pop() {
            if self.known.contains_key(&state) {
                continue;
            }
            let next = steps(state);
            if is_done {
                self.path.remove(&state);
                // Here the supervisor can die, which ends the path: the guard does the rest. If the guard is dead too, the
                // next start finds the leaf, and the outer guard ends what has no leaf.
                let (mut paths, mut longest) = (1.0, 0);
                for step in &next {
                    let (further, length) = self.known[&step.state];
                    paths += further;
                    longest = longest.max(length + 1);
                }
                self.known.insert(state, (paths, longest));
                continue;
            }
            check(state, &next);
            assert!(self.path.insert(state), "a path returns to {state:?}");
            stack.push((state, true));
            for step in next {
                assert!(!self.path.contains(&step.state), "a path returns: {state:?} to {:?}", step.state);
                if !self.known.contains_key(&step.state) {
                    stack.push((step.state, false));
                }
            }
        }
    }
}

/// Checks one state and the steps from it.
fn check((machine, world): State, next: &[Step]) {
    let state = (machine, world);
    assert!(world.first_signals <= 1, "the main process receives the first signal of a stop again: {state:?}");
    for step in next {
        assert!(step.state.0.phase >= machine.phase, "back to an earlier phase: {state:?} to {:?}", step.state);
    }
    if machine.phase == Phase::Gone {
        // The removal of the leaf waits for the killed processes in it, or the report says that it failed. Without a
        // leaf, the actor ends the guard next, together with everything that the guard still starts.
        let others_left = world.others != Others::None && !(machine.has_leaf && world.others_killed);
        let start_left = world.start.asked && machine.has_leaf;
        let something_lives = world.main_lives() || world.emigrant || others_left || start_left;
        assert!(!something_lives || world.reported, "gone while something lives: {state:?}");
        assert!(Timer::ALL.into_iter().all(|timer| !machine.runs(timer)), "a timer runs on: {state:?}");
        return;
    }
    // In these states the machine waits for processes, by intention.
    let waits = machine.phase == Phase::Running
        && (world.main_lives() || machine.leftovers == Leftovers::Wait && !world.is_empty());
    assert!(waits || next.iter().any(|step| step.certain), "stuck: {state:?}");
}

#[test]
fn every_path_ends_and_no_job_is_gone_while_something_lives() {
    let mut explored = Explored::default();
    let (mut paths, mut longest) = (0.0, 0);
    for start in starts() {
        explored.explore(start);
        let (further, length) = explored.known[&start];
        paths += further;
        longest = longest.max(length);
    }
    println!("{} states, {paths:.1e} paths, the longest with {longest} steps", explored.known.len());
    assert!(explored.known.len() > 100_000, "{} states", explored.known.len());
}
