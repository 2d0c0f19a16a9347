//! Checks whether the job is ready (`--ready`).

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::report::Reason;
use crate::report::text::{printable, printable_path};
use crate::{Error, JobHandle, Readiness, Report};

use super::ended::ExitOverride;
use super::notify::Notify;
use crate::cli::exit::{FAILED, TIMED_OUT};
use crate::cli::print_message;

/// Parses the value of `--ready`.
pub fn parse(text: &str) -> Result<Readiness, String> {
    let wrong = || "write line:TEXT, port:[HOST:]PORT or file:PATH".to_owned();
    match text.split_once(':').ok_or_else(wrong)? {
        ("line", part) if part.contains('\n') => Err("TEXT cannot contain a newline".into()),
        ("line", part) if !part.is_empty() => Ok(Readiness::line(part)),
        ("file", path) if !path.is_empty() => {
            check_parents(Path::new(path))?;
            Ok(Readiness::file(path))
        }
        ("port", text) => port(text),
        _ => Err(wrong()),
    }
}

/// Parses `8080`, `192.0.2.1:8080`, `[::1]:8080` or `db.example:5432`.
fn port(text: &str) -> Result<Readiness, String> {
    let host = || {
        let (host, port) = text.rsplit_once(':')?;
        let port = port.parse().ok().filter(|port| *port > 0)?;
        let named = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        (!host.is_empty() && host.bytes().all(named)).then(|| Readiness::host_port(host, port))
    };
    match (text.parse::<u16>(), text.parse::<SocketAddr>()) {
        (Ok(port @ 1..), _) => Some(Readiness::local_port(port)),
        (_, Ok(address)) if address.port() > 0 => Some(Readiness::port(address)),
        (Err(_), Err(_)) => host(),
        _ => None,
    }
    .ok_or_else(|| "write a port like 8080, or 192.0.2.1:8080, [::1]:8080, localhost:8080".into())
}

/// Checks that the file can be created later: no parent of it may be a file.
fn check_parents(path: &Path) -> Result<(), String> {
    let file = path.ancestors().skip(1).find(|above| above.metadata().is_ok_and(|metadata| !metadata.is_dir()));
    file.map_or(Ok(()), |file| Err(format!("{} is not a directory", printable_path(file))))
}

/// The time in which a job must become ready. The time during which the terminal has stopped the job does not count.
pub struct ReadyTimeout<'a> {
    pub timeout: Duration,
    pub stopped_time: &'a Cell<Duration>,
}

impl ReadyTimeout<'_> {
    async fn expired(&self) {
        let begun = Instant::now();
        // A time that the clock cannot represent never ends.
        while let Some(at) = self.timeout.checked_add(self.stopped_time.get()).and_then(|time| begun.checked_add(time))
        {
            if at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(at.into()).await;
        }
        std::future::pending().await
    }
}

/// Waits until the job is ready and sends "ready"; otherwise sends "failed" and prints the reason. Call it before the
/// output is forwarded: a search for a line begins with this call.
pub fn ready<'a>(
    readiness: &'a Readiness,
    ready_timer: ReadyTimeout<'a>,
    notify: Option<&'a Notify>,
    job: &'a JobHandle,
) -> impl Future<Output = Result<(), ExitOverride>> + 'a {
    let is_ready = job.ready(readiness, Duration::MAX);
    async move {
        let done = tokio::select! {
            biased;
            done = is_ready => done.map_err(|error| ExitOverride {
                code: if matches!(error, Error::NotReady { .. }) { TIMED_OUT } else { FAILED },
                why: error.to_string(),
            }),
            () = ready_timer.expired() => {
                let why = format!("{} is not ready: {readiness} within {:?}", printable(job.name()), ready_timer.timeout);
                Err(ExitOverride { code: TIMED_OUT, why })
            }
        };
        if let Some(notify) = notify {
            notify.send(done.is_ok());
        }
        if let Err(exit_override) = &done {
            print_message(&exit_override.why);
        }
        done
    }
}

/// Decides after the end of a job and of its output whether the job was ready, if that was not known before. A job that
/// ended by itself with 0 and was never ready has failed.
pub async fn at_the_end(
    readiness: &Readiness,
    notify: Option<&Notify>,
    job: &JobHandle,
    report: &Report,
) -> Option<ExitOverride> {
    // The file may have been created just before the end. A port no longer accepts connections.
    let was_ready = job.ready(readiness, Duration::ZERO).await.is_ok();
    if let Some(notify) = notify {
        notify.send(was_ready);
    }
    if was_ready || report.reason != Reason::Exited {
        return None;
    }
    let why = format!("{} ended before it was ready: {readiness}", report.name);
    print_message(&why);
    Some(ExitOverride { code: if report.exit_code == 0 { TIMED_OUT } else { report.exit_code }, why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_ready() {
        assert_eq!(parse("line:listening on: 1"), Ok(Readiness::line("listening on: 1")));
        assert_eq!(parse("file:/run/a"), Ok(Readiness::file("/run/a")));
        for (text, by) in [
            ("port:80", Readiness::local_port(80)),
            ("port:127.0.0.1:80", Readiness::port(([127, 0, 0, 1], 80))),
            ("port:[::1]:80", Readiness::port(([0, 0, 0, 0, 0, 0, 0, 1], 80))),
            ("port:localhost:80", Readiness::host_port("localhost", 80)),
        ] {
            assert_eq!(parse(text), Ok(by), "{text}");
        }
        assert!(parse("file:/no/such/a").is_ok() && parse("file:a").is_ok());
        let wrong = [
            "",
            "line",
            "line:",
            "line:a\nb",
            "port:",
            "port:0",
            "port:x",
            "port:70000",
            "port::1:80",
            "port:[::1]:0",
            "port:a b:80",
            "port:localhost:0",
            "port::80",
            "file:",
            "file:/etc/passwd/a/b",
            "80",
        ];
        for text in wrong {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
