//! A model of the surroundings of the stop machine: the processes, the guard and its answers, the owner of the job.

use super::*;

/// A model of the surroundings of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub start: Start,
    pub main: MainProcess,
    /// The processes of the job besides the main process; with a leaf, those in the leaf.
    pub others: Others,
    /// With a leaf: a process of the job that is not in it.
    pub emigrant: bool,
    /// SIGKILL was sent to the main process, and to the others, and has not taken effect yet.
    pub main_killed: bool,
    pub others_killed: bool,
    pub guard: Guard,
    /// The messages that the guard has sent and the supervisor has not received yet, the oldest first.
    pub answers: [Option<Answer>; 5],
    /// The guard was asked to sweep.
    pub sweeping: bool,
    /// The guard has swept. It kills a command that is executed after that, and sends nothing more about the job.
    pub swept: bool,
    /// The report says that processes may be left.
    pub reported: bool,
    /// How many main processes have received the first signal of a stop.
    pub first_signals: u8,
    /// How many requests can still come.
    pub requests: u8,
}

/// The behaviour of the command when it is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Start {
    pub others: Others,
    pub emigrant: bool,
    /// SIGKILL does not end the process before its exec.
    pub hangs: bool,
    /// The guard has received the request.
    pub asked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum MainProcess {
    None,
    /// Cloned, and not executed yet.
    InExec,
    Runs,
    /// Ended, and not reaped yet.
    Zombie,
    Reaped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Others {
    None,
    Daemon,
    Filter,
    Unkillable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Guard {
    Lives,
    /// The supervisor has not noticed its end yet.
    Dead,
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Spawned,
    NotStarted,
    StartFailed,
    Hangs,
    Exited { childless: bool },
    Childless,
    Swept { survivors: bool },
}

pub(super) type State = (Machine, World);

/// A possible next step. `certain`: it comes by itself sooner or later; otherwise it may never come.
pub(super) struct Step {
    pub certain: bool,
    pub state: State,
}

impl World {
    pub fn main_lives(&self) -> bool {
        matches!(self.main, MainProcess::InExec | MainProcess::Runs)
    }

    fn leaf_is_empty(&self) -> bool {
        !self.main_lives() && self.others == Others::None
    }

    pub fn is_empty(&self) -> bool {
        self.leaf_is_empty() && !self.emigrant
    }

    fn answer(&mut self, answer: Answer) {
        let free = self.answers.iter().position(Option::is_none).expect("room for an answer");
        self.answers[free] = Some(answer);
    }

    /// The main process ends, and the guard sees it.
    fn reap(&mut self) {
        self.main = MainProcess::Reaped;
        self.answer(Answer::Exited { childless: self.others == Others::None && !self.emigrant });
    }

    /// Ends every process outside of a leaf that SIGKILL can end. Returns whether something survives.
    fn sweep(&mut self, has_leaf: bool) -> bool {
        self.emigrant = false;
        if has_leaf {
            return false;
        }
        if self.others != Others::Unkillable {
            self.others = Others::None;
        }
        !self.is_empty()
    }
}

/// Feeds the machine as the actor does, and performs the actions on the model.
fn feed((mut machine, mut world): State, event: Event) -> State {
    let mut next = Some(event);
    while let Some(event) = next.take() {
        let before = machine;
        for action in machine.on(event) {
            match action {
                Action::Spawn if world.guard == Guard::Lives => world.start.asked = true,
                Action::Spawn => next = Some(Event::StartFailed),
                Action::Start(timer) => assert!(machine.runs(timer), "{timer:?} of {machine:?}"),
                Action::Cancel(timer) => assert!(before.runs(timer), "{timer:?} of {before:?}"),
                Action::Inspect => next = Some(Event::Inspected { finishing: world.others == Others::Filter }),
                Action::Signal if world.main_lives() => world.first_signals += 1,
                Action::Kill => {
                    world.main_killed |= world.main_lives() && machine.main != Main::Exited;
                    world.others_killed |= machine.has_leaf;
                }
                Action::ListUnkillable => world.reported |= !world.leaf_is_empty(),
                Action::NoteNoAnswer => world.reported = true,
                Action::AskSweep => world.sweeping = world.guard == Guard::Lives,
                Action::EndOrphans => {
                    let survivors = world.sweep(machine.has_leaf);
                    world.reported |= survivors;
                    next = Some(Event::Swept { survivors });
                }
                // The processes may ignore signals. The other actions change nothing in the model.
                _ => {}
            }
        }
    }
    (machine, world)
}

pub(super) fn steps(state: State) -> Vec<Step> {
    let (machine, world) = state;
    if machine.phase == Phase::Gone {
        return Vec::new();
    }
    let mut steps = Vec::new();
    let mut add = |certain: bool, change: &dyn Fn(&mut World), event: Option<Event>| {
        let (machine, mut world) = state;
        change(&mut world);
        let state = event.map_or((machine, world), |event| feed((machine, world), event));
        steps.push(Step { certain, state });
    };
    if world.guard == Guard::Lives {
        guards_steps(&machine, &world, &mut add);
    }
    // Processes end by themselves, by a signal, or by the kill. An unkillable process never ends.
    if world.main == MainProcess::Runs {
        add(world.main_killed, &|world| world.main = MainProcess::Zombie, None);
    }
    if !matches!(world.others, Others::None | Others::Unkillable) {
        add(world.others_killed, &|world| world.others = Others::None, None);
    }
    if world.emigrant {
        add(false, &|world| world.emigrant = false, None);
    }
    // What the supervisor receives and notices.
    if let Some(answer) = world.answers[0] {
        let event = match answer {
            Answer::Spawned => Event::Spawned { signalled: world.first_signals > 0 },
            Answer::NotStarted => Event::NotStarted,
            Answer::StartFailed => Event::StartFailed,
            Answer::Hangs => Event::Hangs,
            Answer::Exited { childless } => {
                let empty = if machine.has_leaf { world.leaf_is_empty() } else { childless };
                Event::MainExited { empty, childless }
            }
            Answer::Childless => Event::Emptied,
            Answer::Swept { survivors } => Event::Swept { survivors },
        };
        let receive = |world: &mut World| {
            world.reported |= matches!(answer, Answer::Hangs | Answer::Swept { survivors: true });
            world.answers.rotate_left(1);
            world.answers[4] = None;
        };
        add(true, &receive, Some(event));
    } else if world.guard == Guard::Dead {
        add(true, &|world| world.guard = Guard::Lost, Some(Event::GuardLost));
    }
    if machine.main == Main::Running && matches!(world.main, MainProcess::Zombie | MainProcess::Reaped) {
        add(true, &|_| {}, Some(Event::MainEnded));
    }
    if machine.awaits_empty_leaf() && world.leaf_is_empty() {
        add(true, &|_| {}, Some(Event::Emptied));
    }
    for timer in Timer::ALL.into_iter().filter(|&timer| machine.runs(timer)) {
        add(true, &|_| {}, Some(Event::Expired(timer)));
    }
    // Deaths.
    if world.guard == Guard::Lives {
        let die = |world: &mut World| {
            (world.guard, world.sweeping, world.start.asked) = (Guard::Dead, false, false);
            if world.main_lives() {
                // PDEATHSIG.
                world.main = MainProcess::Reaped;
            }
        };
        add(false, &die, None);
    }
    // Requests, where the table has a row for them.
    if world.requests > 0 && machine.phase <= Phase::Stopping {
        let mut ask = |event| add(false, &|world| world.requests -= 1, Some(event));
        ask(Event::StopAsked { first: None });
        ask(Event::KillAsked);
        if machine.phase == Phase::Running {
            ask(Event::StopAsked { first: Some(Signal::INT) });
            ask(Event::Idle);
        }
        add(false, &|world| world.requests = 0, Some(Event::OwnerGone));
    }
    steps
}

/// Adds the steps of a living guard.
fn guards_steps(machine: &Machine, world: &World, add: &mut impl FnMut(bool, &dyn Fn(&mut World), Option<Event>)) {
    if world.start.asked {
        let clone = |world: &mut World| {
            (world.start.asked, world.main) = (false, MainProcess::InExec);
        };
        add(true, &clone, None);
        let fail = |world: &mut World| {
            world.start.asked = false;
            world.answer(Answer::StartFailed);
        };
        add(false, &fail, None);
    }
    if world.swept {
        if world.main_lives() {
            add(false, &|world| world.main = MainProcess::Reaped, None);
        }
        return;
    }
    if world.main == MainProcess::InExec {
        let execute = |world: &mut World| {
            (world.main, world.others, world.emigrant) = (MainProcess::Runs, world.start.others, world.start.emigrant);
            world.answer(Answer::Spawned);
        };
        add(false, &execute, None);
        let end = |world: &mut World| {
            // The kernel's kill-sequence bug can end it too.
            (world.main, world.main_killed, world.first_signals) = (MainProcess::None, false, 0);
            world.answer(Answer::NotStarted);
        };
        if !world.start.hangs {
            add(world.main_killed, &end, None);
        } else if world.main_killed && machine.main == Main::Starting && !world.answers.contains(&Some(Answer::Hangs)) {
            add(false, &|world| world.answer(Answer::Hangs), None);
        }
    }
    if world.main == MainProcess::Zombie {
        add(true, &World::reap, None);
    }
    // After an `Exited` with `childless`, the guard sends no further message.
    let reported = machine.childless
        || world
            .answers
            .iter()
            .flatten()
            .any(|answer| matches!(answer, Answer::Childless | Answer::Exited { childless: true }));
    if !machine.has_leaf && world.main == MainProcess::Reaped && world.is_empty() && !world.sweeping && !reported {
        add(true, &|world| world.answer(Answer::Childless), None);
    }
    // The guard reads its messages in order, so it sweeps only after it has read the start request.
    if world.sweeping && !world.start.asked {
        let has_leaf = machine.has_leaf;
        let sweep = |world: &mut World| {
            (world.sweeping, world.swept) = (false, true);
            if world.main == MainProcess::InExec && (has_leaf || world.start.hangs) {
                world.answer(Answer::Hangs);
            } else {
                match world.main {
                    // The report names this process already.
                    MainProcess::Runs if has_leaf && world.reported => {}
                    MainProcess::InExec => {
                        world.main = MainProcess::None;
                        world.answer(Answer::NotStarted);
                    }
                    MainProcess::Runs | MainProcess::Zombie => {
                        world.sweep(has_leaf);
                        world.reap();
                    }
                    MainProcess::None | MainProcess::Reaped => {}
                }
            }
            let survivors = world.sweep(has_leaf);
            world.answer(Answer::Swept { survivors });
        };
        add(false, &sweep, None);
    }
}
