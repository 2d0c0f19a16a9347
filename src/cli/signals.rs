//! Decides what a subcommand does with each signal that it receives.

use std::time::{Duration, Instant};

use crate::Signal;
use crate::cli::jobs::Request;
use crate::kernel::own_signals::Received;

use super::on_signal::{Action, OnSignal};
use super::terminal;

/// This number of interrupts from the terminal kills the job, if they come within [`INTERRUPT_WINDOW`].
pub const KILL_INTERRUPTS: usize = 3;
const INTERRUPT_WINDOW: Duration = Duration::from_secs(2);

/// Two equal signals from the same sender within this time are one request. timeout(1) and others send a signal to the
/// process and then to its group.
const SAME_REQUEST: Duration = Duration::from_millis(100);

/// How the subcommand responds to a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// It stops the job. The job receives this signal first; with `None`, it receives the stop signal first.
    Stop(Option<Signal>),
    Kill,
    /// It sends this signal to the job.
    PassOn(Signal),
    /// It sends the signal to the foreground process group of the job's own terminal, as that terminal's key would.
    Key(Signal),
    /// It sends nothing, because the terminal has sent the signal to the job too. If the job has not received it after
    /// all, pinfold sends this signal to the job.
    LeftToJob(Signal),
    /// The same for a stop request. The number counts the interrupts within the last two seconds; it is 0 for SIGHUP.
    Interrupt(Signal, usize),
    /// The terminal's stop signal has reached pinfold, but not the job: pinfold stops the job, then itself.
    Suspend,
    /// pinfold stops itself when the job has had time to stop.
    SuspendLater,
    /// It acts as at the deadline.
    Deadline,
    /// It ignores the signal, because the rules say so.
    Ignore,
    /// pinfold does nothing: it caused the signal itself, or the signal repeats a request, or a key is to be ignored.
    Nothing,
}

/// Which processes receive a signal that the terminal sends to its foreground process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// pinfold and the job, which is in pinfold's process group.
    ReachJob,
    /// pinfold only. The job has a terminal of its own, and the keys are for that terminal.
    ForJobTerminal,
    /// pinfold only. The job has a session of its own, without a terminal.
    ForJobSession,
    /// pinfold only. The signals are requests to the subcommand, which manages many jobs.
    ReachPinfold,
}

/// The rules, and their state.
#[derive(Clone)]
pub struct Rules {
    pub keys: Keys,
    /// The last one for a signal counts.
    on_signal: Vec<OnSignal>,
    /// A signal without a rule is passed on. If this is `false`, some of these signals stop the job
    /// ([`Action::default_of`]).
    passes_all: bool,
    /// The user has chosen the stop signal, so every stop begins with that signal.
    stop_signal_chosen: bool,
    own_pid: u32,
    /// pinfold leads its session, so that the terminal sends SIGHUP to pinfold alone.
    leads_session: bool,
    interrupts: Vec<Instant>,
    last_request: Option<(Received, Instant)>,
}

impl Rules {
    pub fn new(keys: Keys) -> Self {
        let own_pid = std::process::id();
        Self {
            keys,
            on_signal: Vec::new(),
            passes_all: false,
            stop_signal_chosen: false,
            own_pid,
            leads_session: terminal::leads_session(),
            interrupts: Vec::new(),
            last_request: None,
        }
    }

    /// Adds the rules of the options `--on-signal` and `--stop-signal`.
    pub fn with(self, on_signal: Vec<OnSignal>, stop_signal_chosen: bool) -> Self {
        Self { on_signal, stop_signal_chosen, ..self }
    }

    /// Returns rules that pass on every signal except those of `on_signal`.
    pub fn passing_all(keys: Keys, on_signal: Vec<OnSignal>) -> Self {
        Self { on_signal, passes_all: true, ..Self::new(keys) }
    }

    /// Ignores this signal from now on.
    pub fn ignore(&mut self, signal: Signal) {
        self.on_signal.push(OnSignal { signal, action: Action::Ignore });
    }

    fn action(&self, signal: Signal) -> Action {
        match self.on_signal.iter().rev().find(|rule| rule.signal == signal) {
            Some(rule) => rule.action,
            None if self.passes_all => Action::Pass,
            None => Action::default_of(signal),
        }
    }

    /// Returns the response to a signal that pinfold received at the time `now`.
    pub fn respond(&mut self, received: Received, now: Instant) -> Response {
        let Received { signal, from_kernel, sender, .. } = received;
        // pinfold caused this signal itself: it wrote a message to a closed pipe or to a file that is too large
        // (RLIMIT_FSIZE). Any other signal with pinfold's pid as the sender was sent before exec.
        if sender == self.own_pid && !from_kernel && [libc::SIGPIPE, libc::SIGXFSZ].contains(&signal.number()) {
            return Response::Nothing;
        }
        match received.value.and_then(Request::of_value) {
            Some(Request::Stop) => return Response::Stop(None),
            Some(Request::Kill) => return Response::Kill,
            None => {}
        }
        let action = self.action(signal);
        if received.is_from_terminal() && !(signal == Signal::HUP && self.leads_session) {
            match self.keys {
                Keys::ReachJob => return self.left_to_the_job(signal, action, now),
                Keys::ForJobTerminal if is_interrupt(signal) => {
                    return match self.left_to_the_job(signal, action, now) {
                        Response::LeftToJob(_) | Response::Interrupt(..) => Response::Key(signal),
                        other => other,
                    };
                }
                Keys::ForJobTerminal | Keys::ForJobSession if signal == Signal::TSTP && action == Action::Pass => {
                    return Response::Suspend;
                }
                Keys::ForJobTerminal | Keys::ForJobSession | Keys::ReachPinfold => {}
            }
        }
        match action {
            Action::Stop => self.stop(received, now),
            Action::Kill => Response::Kill,
            Action::Pass => Response::PassOn(signal),
            Action::PassAs(other) => Response::PassOn(other),
            Action::SuspendLater => Response::SuspendLater,
            Action::Deadline => Response::Deadline,
            Action::Ignore => Response::Ignore,
        }
    }

    fn left_to_the_job(&mut self, signal: Signal, action: Action, now: Instant) -> Response {
        match action {
            Action::Kill => Response::Kill,
            Action::Stop if is_interrupt(signal) => {
                self.interrupts.retain(|at| now.duration_since(*at) < INTERRUPT_WINDOW);
                self.interrupts.push(now);
                match self.interrupts.len() {
                    KILL_INTERRUPTS.. => Response::Kill,
                    count => Response::Interrupt(signal, count),
                }
            }
            Action::Stop if signal == Signal::HUP => Response::Interrupt(signal, 0),
            Action::Stop | Action::Pass => Response::LeftToJob(signal),
            Action::PassAs(other) => Response::LeftToJob(other),
            Action::SuspendLater => Response::SuspendLater,
            Action::Deadline => Response::Deadline,
            // pinfold ignores the key. A main process that has left pinfold's group still receives it.
            Action::Ignore if self.keys == Keys::ReachJob && !self.passes_all => Response::LeftToJob(signal),
            Action::Ignore => Response::Nothing,
        }
    }

    fn stop(&mut self, received: Received, now: Instant) -> Response {
        let signal = received.signal;
        if let Some((last, at)) = self.last_request {
            // The time counts from the first of the equal signals, so that a sender that repeats the signal without a
            // pause kills the job in the end.
            if last.signal == signal && last.sender == received.sender && now.duration_since(at) < SAME_REQUEST {
                return Response::Nothing;
            }
        }
        if self.last_request.replace((received, now)).is_some() {
            return Response::Kill;
        }
        let goes_first = !self.stop_signal_chosen && [Signal::INT, Signal::QUIT, Signal::HUP].contains(&signal);
        Response::Stop(goes_first.then_some(signal))
    }
}

fn is_interrupt(signal: Signal) -> bool {
    [Signal::INT, Signal::QUIT].contains(&signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(signal: Signal, sender: u32) -> Received {
        Received::new(signal, false, sender)
    }

    fn key(signal: Signal) -> Received {
        Received::new(signal, true, 0)
    }

    #[test]
    fn the_second_request_kills() {
        let mut rules = Rules::new(Keys::ReachPinfold);
        let start = Instant::now();
        assert_eq!(rules.respond(from(Signal::TERM, 7), start), Response::Stop(None));
        assert_eq!(rules.respond(from(Signal::TERM, 7), start + Duration::from_millis(20)), Response::Nothing);
        assert_eq!(rules.respond(from(Signal::HUP, 7), start + Duration::from_millis(30)), Response::Kill);

        let mut rules = Rules::new(Keys::ReachPinfold);
        let every_20_ms = |count: u64| start + Duration::from_millis(20 * count);
        let responses: Vec<_> = (0..6).map(|count| rules.respond(from(Signal::TERM, 7), every_20_ms(count))).collect();
        assert_eq!(
            (responses[0], responses[4], responses[5]),
            (Response::Stop(None), Response::Nothing, Response::Kill)
        );
    }

    #[test]
    fn a_stop_begins_with_the_signal_that_was_received() {
        for (signal, first) in [
            (Signal::INT, Some(Signal::INT)),
            (Signal::HUP, Some(Signal::HUP)),
            (Signal::QUIT, Some(Signal::QUIT)),
            (Signal::TERM, None),
        ] {
            for keys in [Keys::ReachJob, Keys::ForJobTerminal, Keys::ReachPinfold] {
                assert_eq!(Rules::new(keys).respond(from(signal, 7), Instant::now()), Response::Stop(first));
            }
            let mut chosen = Rules::new(Keys::ReachPinfold).with(Vec::new(), true);
            assert_eq!(chosen.respond(from(signal, 7), Instant::now()), Response::Stop(None));
        }
    }

    #[test]
    fn keys_go_to_the_job_and_three_within_two_seconds_kill() {
        for (keys, left) in [
            (Keys::ReachJob, [1, 2].map(|count| Response::Interrupt(Signal::INT, count))),
            (Keys::ForJobTerminal, [Response::Key(Signal::INT); 2]),
        ] {
            let mut rules = Rules::new(keys);
            let start = Instant::now();
            for (seconds, response) in [(0, left[0]), (1, left[1]), (3, left[0]), (4, left[1]), (4, Response::Kill)] {
                assert_eq!(rules.respond(key(Signal::INT), start + Duration::from_secs(seconds)), response);
            }
        }
        let mut rules = Rules::new(Keys::ReachJob);
        for name in ["TSTP", "WINCH", "CONT", "TTIN"] {
            let signal = name.parse().unwrap();
            assert_eq!(rules.respond(key(signal), Instant::now()), Response::LeftToJob(signal));
        }
        assert_eq!(
            Rules::new(Keys::ReachPinfold).respond(key(Signal::INT), Instant::now()),
            Response::Stop(Some(Signal::INT))
        );
    }

    /// A hang-up of the terminal sends SIGHUP to the leader of the session alone. Any other process receives that
    /// SIGHUP together with its process group.
    #[test]
    fn a_hangup_is_left_to_the_job_unless_only_the_leader_receives_it() {
        let mut rules = Rules { leads_session: false, ..Rules::new(Keys::ReachJob) };
        assert_eq!(rules.respond(key(Signal::HUP), Instant::now()), Response::Interrupt(Signal::HUP, 0));
        let mut rules = Rules { leads_session: true, ..Rules::new(Keys::ReachJob) };
        assert_eq!(rules.respond(key(Signal::HUP), Instant::now()), Response::Stop(Some(Signal::HUP)));
        let mut rules = Rules { leads_session: false, ..Rules::new(Keys::ForJobTerminal) };
        assert_eq!(rules.respond(key(Signal::HUP), Instant::now()), Response::Stop(Some(Signal::HUP)));
    }

    #[test]
    fn an_action_of_the_options_comes_before_the_rules() {
        let rules = |keys, options: &[&str]| {
            let options = options.iter().map(|option| option.parse().unwrap()).collect();
            Rules::new(keys).with(options, false)
        };
        let respond =
            |options: &[&str], signal| rules(Keys::ReachJob, options).respond(from(signal, 7), Instant::now());
        assert_eq!(respond(&["HUP=pass"], Signal::HUP), Response::PassOn(Signal::HUP));
        assert_eq!(respond(&["int=kill"], Signal::INT), Response::Kill);
        assert_eq!(respond(&["SIGTERM=ignore"], Signal::TERM), Response::Ignore);
        // The last option for a signal counts. If a signal stops the job only because of the option, the stop begins
        // with the stop signal.
        assert_eq!(respond(&["TERM=ignore", "ALRM=stop", "15=pass"], Signal::TERM), Response::PassOn(Signal::TERM));
        assert_eq!(respond(&["ALRM=stop"], Signal::ALRM), Response::Stop(None));
        for (option, responses) in [
            ("INT=ignore", [Response::LeftToJob(Signal::INT), Response::Nothing]),
            ("INT=pass", [Response::LeftToJob(Signal::INT), Response::Key(Signal::INT)]),
            ("INT=kill", [Response::Kill; 2]),
        ] {
            for (keys, response) in [Keys::ReachJob, Keys::ForJobTerminal].into_iter().zip(responses) {
                let mut rules = rules(keys, &[option]);
                let last = (0..4).map(|_| rules.respond(key(Signal::INT), Instant::now())).last();
                assert_eq!(last, Some(response), "{option} {keys:?}");
            }
        }
    }

    #[test]
    fn everything_else_is_passed_on() {
        let mut rules = Rules::new(Keys::ReachJob);
        for number in (1..=64).filter(|number| ![1, 2, 3, 9, 15, 19].contains(number)) {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(rules.respond(from(signal, 7), Instant::now()), Response::PassOn(signal));
        }
        // The kernel sends these, but not for the terminal: for a timer that was set before exec, or for a limit on CPU
        // time.
        for number in [libc::SIGALRM, libc::SIGXCPU] {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(rules.respond(key(signal), Instant::now()), Response::PassOn(signal));
        }
        for number in [libc::SIGPIPE, libc::SIGXFSZ] {
            let own = from(Signal::from_number(number).unwrap(), std::process::id());
            assert_eq!(rules.respond(own, Instant::now()), Response::Nothing);
        }
        // The same process sent this signal to itself before it executed pinfold, while the signal was blocked.
        assert_eq!(rules.respond(from(Signal::TERM, std::process::id()), Instant::now()), Response::Stop(None));
    }
}
