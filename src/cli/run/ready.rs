//! Whether the job is ready, and who is told.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::Duration;

use pinfold::{Job, Readiness};
use tokio::sync::watch;

use crate::cli::report_sink::Destination;
use crate::cli::tell;

/// What a job is ready by.
#[derive(Clone, Debug, PartialEq)]
pub enum Ready {
    /// Looked for while the output is passed on.
    Line(Vec<u8>),
    Other(Readiness),
}

impl Ready {
    /// Reads the value of `--ready`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || "write line:TEXT, port:[ADDRESS:]PORT or file:PATH".to_owned();
        match text.split_once(':').ok_or_else(wrong)? {
            ("line", part) if !part.is_empty() => Ok(Self::Line(part.into())),
            ("file", path) if !path.is_empty() => Ok(Self::Other(Readiness::file(path))),
            ("port", port) => match (port.parse::<u16>(), port.parse::<SocketAddr>()) {
                (Ok(port @ 1..), _) => Ok(Self::Other(Readiness::port(([127, 0, 0, 1], port)))),
                (_, Ok(address)) => Ok(Self::Other(Readiness::port(address))),
                _ => Err("write a port like 8080, or 192.0.2.1:8080, or [::1]:8080".into()),
            },
            _ => Err(wrong()),
        }
    }
}

/// Where the line "ready" goes.
#[derive(Debug)]
pub enum Notify {
    File(PathBuf),
    Descriptor(File),
}

impl Notify {
    /// A descriptor is taken before there is a job that would inherit it.
    pub fn open(destination: Destination) -> pinfold::Result<Self> {
        match destination {
            Destination::File(path) => Ok(Self::File(path)),
            Destination::Stdout => Ok(Self::Descriptor(File::from(pinfold::adopt_descriptor(1)?))),
            Destination::Descriptor(number) => Ok(Self::Descriptor(pinfold::adopt_descriptor(number)?.into())),
        }
    }

    fn tell(&self) -> std::io::Result<()> {
        match self {
            Self::File(path) => {
                // A FIFO that nobody reads is an error, and not waited for (fifo(7)).
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(true).custom_flags(libc::O_NONBLOCK);
                options.open(path)?.write_all(b"ready\n")
            }
            Self::Descriptor(file) => (&*file).write_all(b"ready\n"),
        }
    }
}

/// Waits until the job is ready and tells so; tells a person where it is not in time. `true` where it is.
pub async fn ready(
    ready: &Ready,
    timeout: Duration,
    notify: Option<&Notify>,
    job: &Job,
    mut line_seen: watch::Receiver<bool>,
) -> bool {
    let done = match ready {
        Ready::Line(part) => {
            let seen = async {
                if line_seen.wait_for(|seen| *seen).await.is_err() {
                    // Its output is at its end: it is over soon, or the time is.
                    std::future::pending().await
                }
            };
            let late = || format!("no line of its output has had '{}' in it", String::from_utf8_lossy(part));
            tokio::time::timeout(timeout, seen)
                .await
                .map_err(|_| format!("{} is not ready: {} within {:?}", job.name(), late(), timeout))
        }
        Ready::Other(readiness) => job.ready(readiness, timeout).await.map_err(|error| error.to_string()),
    };
    match done {
        Ok(()) => {
            if let Some(Err(error)) = notify.map(Notify::tell) {
                tell(&format!("the job is ready, and who waits for that can't be told: {error}"));
            }
            true
        }
        Err(why) => {
            tell(&why);
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_in_every_way() {
        assert_eq!(Ready::parse("line:listening on: 1"), Ok(Ready::Line(b"listening on: 1".into())));
        assert_eq!(Ready::parse("file:/run/a"), Ok(Ready::Other(Readiness::file("/run/a"))));
        let port = Ok(Ready::Other(Readiness::port(([127, 0, 0, 1], 80))));
        assert_eq!((Ready::parse("port:80"), Ready::parse("port:127.0.0.1:80")), (port.clone(), port));
        for text in ["", "line", "line:", "port:", "port:0", "port:x", "port:70000", "file:", "80"] {
            assert!(Ready::parse(text).is_err(), "{text}");
        }
    }
}
