//! `--on-signal SIGNAL=ACTION`: what pinfold does with the job when it receives a signal.

use std::str::FromStr;

use crate::Signal;

/// What pinfold does when it receives a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It sends the signal to the main process.
    Pass,
    /// It sends another signal instead.
    PassAs(Signal),
    /// It stops the job. If it is stopping the job already, it kills the job.
    Stop,
    Kill,
    Ignore,
    /// It stops itself after the job has had time to stop.
    SuspendLater,
    /// It acts as at the deadline.
    Deadline,
}

/// Returns whether a program usually ends when it receives this signal.
pub fn is_stop_request(signal: Signal) -> bool {
    [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT].contains(&signal)
}

impl Action {
    /// Returns the action for a signal without an option.
    pub fn default_of(signal: Signal) -> Self {
        if is_stop_request(signal) { Self::Stop } else { Self::Pass }
    }
}

/// One `--on-signal`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnSignal {
    pub signal: Signal,
    pub action: Action,
}

impl FromStr for OnSignal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (signal, action) = text.split_once('=').ok_or("write SIGNAL=ACTION, for example HUP=pass")?;
        let signal: Signal = signal.parse().map_err(|error: crate::Error| error.to_string())?;
        if [Signal::KILL, Signal::STOP, Signal::CHLD].contains(&signal) {
            return Err(format!("pinfold cannot receive {signal}: choose another signal"));
        }
        let action = match action {
            "pass" => Action::Pass,
            "stop" => Action::Stop,
            "kill" => Action::Kill,
            "ignore" => Action::Ignore,
            _ => return Err(format!("'{action}' is not an action: write pass, stop, kill or ignore")),
        };
        Ok(Self { signal, action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_and_invalid_rules() {
        let parsed = |text: &str| text.parse::<OnSignal>();
        let rule = parsed("usr1=stop").unwrap();
        assert_eq!((rule.signal.to_string(), rule.action), ("SIGUSR1".to_owned(), Action::Stop));
        for wrong in
            ["", "HUP", "=pass", "HUP=", "HUP=PASS", "HUP=reload", "FOO=pass", "KILL=pass", "9=stop", "CHLD=kill"]
        {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }
}
