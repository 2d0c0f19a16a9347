//! What `pinfold run` does with each signal that it gets.

use std::time::{Duration, Instant};

use pinfold::Signal;
use pinfold::signal::Received;

/// A terminal's interrupts within this time end the patience.
const PATIENCE: Duration = Duration::from_secs(2);
pub const PATIENCE_INTERRUPTS: usize = 3;

/// timeout(1) and others send a signal to the process and then to its group: one wish, not two.
const SAME_WISH: Duration = Duration::from_millis(100);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    Stop,
    Kill,
    /// To the main process.
    PassOn(Signal),
    /// The job has it from the terminal; so many of late.
    LeftToTheJob(usize),
    Nothing,
}

/// The rules, and what they have to remember.
pub struct Rules {
    /// Standard input is the controlling terminal: its keys mean the job.
    pub stdin_is_terminal: bool,
    /// The job is in our process group, to which the terminal sends its signals.
    pub shares_group: bool,
    pub own_pid: u32,
    interrupts: Vec<Instant>,
    last_wish: Option<(Received, Instant)>,
}

impl Rules {
    pub fn new(stdin_is_terminal: bool, shares_group: bool) -> Self {
        Self { stdin_is_terminal, shares_group, own_pid: std::process::id(), interrupts: Vec::new(), last_wish: None }
    }

    pub fn respond(&mut self, received: Received, now: Instant) -> Response {
        let Received { signal, from_kernel, sender, .. } = received;
        // Of our own, for a message that nobody read or that was too much for its file (RLIMIT_FSIZE). Whatever else bears our
        // pid was sent before we were executed.
        if sender == self.own_pid && !from_kernel && [libc::SIGPIPE, libc::SIGXFSZ].contains(&signal.number()) {
            return Response::Nothing;
        }
        let has_it_already = from_kernel && self.shares_group;
        match signal {
            Signal::INT | Signal::QUIT if has_it_already && self.stdin_is_terminal => {
                self.interrupts.retain(|at| now.duration_since(*at) < PATIENCE);
                self.interrupts.push(now);
                match self.interrupts.len() {
                    PATIENCE_INTERRUPTS.. => Response::Kill,
                    count => Response::LeftToTheJob(count),
                }
            }
            Signal::INT | Signal::QUIT | Signal::TERM | Signal::HUP => {
                if let Some((last, at)) = self.last_wish {
                    // Counted from the first, so that somebody who sends it without a pause is heard too.
                    if last.signal == signal && last.sender == sender && now.duration_since(at) < SAME_WISH {
                        return Response::Nothing;
                    }
                }
                if self.last_wish.replace((received, now)).is_none() { Response::Stop } else { Response::Kill }
            }
            _ if has_it_already => Response::Nothing,
            other => Response::PassOn(other),
        }
    }
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
    fn the_second_wish_kills() {
        let mut rules = Rules::new(false, false);
        let start = Instant::now();
        assert_eq!(rules.respond(from(Signal::TERM, 7), start), Response::Stop);
        assert_eq!(rules.respond(from(Signal::TERM, 7), start + Duration::from_millis(20)), Response::Nothing);
        assert_eq!(rules.respond(from(Signal::HUP, 7), start + Duration::from_millis(30)), Response::Kill);

        let mut rules = Rules::new(false, false);
        let every_20_ms = |count: u64| start + Duration::from_millis(20 * count);
        let responses: Vec<_> = (0..6).map(|count| rules.respond(from(Signal::TERM, 7), every_20_ms(count))).collect();
        assert_eq!((responses[0], responses[4], responses[5]), (Response::Stop, Response::Nothing, Response::Kill));
    }

    #[test]
    fn keys_go_to_the_job_and_three_within_two_seconds_kill() {
        let mut rules = Rules::new(true, true);
        let start = Instant::now();
        for (seconds, response) in [
            (0, Response::LeftToTheJob(1)),
            (1, Response::LeftToTheJob(2)),
            (3, Response::LeftToTheJob(1)),
            (4, Response::LeftToTheJob(2)),
            (4, Response::Kill),
        ] {
            assert_eq!(rules.respond(key(Signal::INT), start + Duration::from_secs(seconds)), response);
        }
        assert_eq!(rules.respond(key(Signal::TSTP), start), Response::Nothing);
        assert_eq!(rules.respond(key(Signal::from_number(libc_winch()).unwrap()), start), Response::Nothing);
    }

    fn libc_winch() -> i32 {
        "WINCH".parse::<Signal>().unwrap().number()
    }

    #[test]
    fn without_a_terminal_on_stdin_an_interrupt_stops() {
        assert_eq!(Rules::new(false, true).respond(key(Signal::INT), Instant::now()), Response::Stop);
        assert_eq!(Rules::new(false, false).respond(from(Signal::QUIT, 1), Instant::now()), Response::Stop);
    }

    #[test]
    fn everything_else_is_passed_on() {
        let mut rules = Rules::new(true, true);
        for number in (1..=64).filter(|number| ![1, 2, 3, 9, 15, 19].contains(number)) {
            let signal = Signal::from_number(number).unwrap();
            assert_eq!(rules.respond(from(signal, 7), Instant::now()), Response::PassOn(signal));
        }
        for number in [libc::SIGPIPE, libc::SIGXFSZ] {
            let own = from(Signal::from_number(number).unwrap(), std::process::id());
            assert_eq!(rules.respond(own, Instant::now()), Response::Nothing);
        }
        // Sent, and blocked, before pinfold was executed by the same process.
        assert_eq!(rules.respond(from(Signal::TERM, std::process::id()), Instant::now()), Response::Stop);
    }
}
