//! The text of a message of sd_notify(3): one assignment in each line.

use std::time::Duration;

/// What a service says in a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// `READY=1`: it is ready, or has finished reloading.
    Ready,
    /// `STATUS=…`: a line about its state, for a person.
    Status(String),
    /// `WATCHDOG=1`: it is alive.
    Alive,
    /// `WATCHDOG=trigger`: it asks to be treated as if the watchdog had expired.
    WatchdogTrigger,
    /// `WATCHDOG_USEC=…`: the new interval of its watchdog.
    WatchdogInterval(Duration),
    /// `STOPPING=1`: it is ending by itself.
    Stopping,
    /// `RELOADING=1`: it reloads its configuration; `READY=1` follows.
    Reloading,
    /// `EXTEND_TIMEOUT_USEC=…`: its start, stop or reload may take this time from now on.
    ExtendTimeout(Duration),
    /// `ERRNO=…`: why it fails.
    Errno(i32),
    /// An assignment that pinfold does not accept, with the reason.
    Refused(String),
}

/// Why `MAINPID=` is refused.
const MAIN_PID: &str = "pinfold started the main process and waits for it, so the service can't name another one; a \
                        process that remains after the main process belongs to the job";

/// Returns what a message says, in the order of its lines. pinfold ignores unknown assignments, as sd_notify(3)
/// requires.
pub(super) fn notices(message: &[u8]) -> Vec<Notice> {
    let text = String::from_utf8_lossy(message);
    text.lines().filter_map(|line| line.split_once('=')).filter_map(|(key, value)| notice(key, value)).collect()
}

fn notice(key: &str, value: &str) -> Option<Notice> {
    let time = |notice: fn(Duration) -> Notice| match value.parse::<u64>() {
        // systemd does not accept 0 or the largest number as a time.
        Ok(time) if time > 0 && time < u64::MAX => notice(Duration::from_micros(time)),
        _ => refused(key, value, "it must be a number of microseconds"),
    };
    Some(match (key, value) {
        ("READY", "1") => Notice::Ready,
        ("STOPPING", "1") => Notice::Stopping,
        ("RELOADING", "1") => Notice::Reloading,
        ("WATCHDOG", "1") => Notice::Alive,
        ("WATCHDOG", "trigger") => Notice::WatchdogTrigger,
        ("STATUS", status) => Notice::Status(status.to_owned()),
        ("WATCHDOG_USEC", _) => time(Notice::WatchdogInterval),
        ("EXTEND_TIMEOUT_USEC", _) => time(Notice::ExtendTimeout),
        ("ERRNO", number) => match number.parse() {
            Ok(number) => Notice::Errno(number),
            Err(_) => refused(key, value, "it must be an errno"),
        },
        ("MAINPID" | "MAINPIDFDID", _) => refused(key, value, MAIN_PID),
        // FDSTORE, BARRIER, MONOTONIC_USEC, BUSERROR, …: pinfold closes the descriptors that come with the first two.
        _ => return None,
    })
}

fn refused(key: &str, value: &str, why: &str) -> Notice {
    Notice::Refused(format!("{key}={} is not accepted: {why}", crate::report::text::printable(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments() {
        let message = b"READY=1\nSTATUS=Listening on :80\nWATCHDOG=1\nWATCHDOG_USEC=2000000\nX_OWN=1\nno assignment\n";
        let expected = [
            Notice::Ready,
            Notice::Status("Listening on :80".into()),
            Notice::Alive,
            Notice::WatchdogInterval(Duration::from_secs(2)),
        ];
        assert_eq!(notices(message), expected);
        assert_eq!(notices(b"STOPPING=1"), [Notice::Stopping]);
        assert_eq!(notices(b"RELOADING=1\nMONOTONIC_USEC=17"), [Notice::Reloading]);
        assert_eq!(notices(b"EXTEND_TIMEOUT_USEC=500000"), [Notice::ExtendTimeout(Duration::from_millis(500))]);
        assert_eq!(notices(b"WATCHDOG=trigger\nERRNO=2"), [Notice::WatchdogTrigger, Notice::Errno(2)]);
        assert_eq!(notices(b"STATUS=\xff"), [Notice::Status("\u{fffd}".into())]);
        // Only the value 1 counts.
        assert_eq!(notices(b"READY=0\nFDSTORE=1\nBARRIER=1\nSTOPPING=yes"), []);
    }

    #[test]
    fn assignments_that_are_refused() {
        for (message, part) in [
            ("MAINPID=17", "MAINPID=17 is not accepted: pinfold started the main process"),
            ("WATCHDOG_USEC=0", "microseconds"),
            ("EXTEND_TIMEOUT_USEC=soon", "microseconds"),
            ("ERRNO=x\u{1b}[2J", "ERRNO=x\\033[2J"),
        ] {
            match notices(message.as_bytes()).as_slice() {
                [Notice::Refused(why)] => assert!(why.contains(part), "{why}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
