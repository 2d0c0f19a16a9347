//! Whether the job is ready, and who is told.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use pinfold::Job;
use tokio::sync::watch;

use super::streams::{Ready, StreamArgs};
use crate::cli::report_sink::Destination;
use crate::cli::tell;

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
pub async fn ready(args: &StreamArgs, job: &Job, mut line_seen: watch::Receiver<bool>) -> bool {
    let Some(ready) = &args.ready else { return std::future::pending().await };
    let done = match ready {
        Ready::Line(part) => {
            let seen = async {
                if line_seen.wait_for(|seen| *seen).await.is_err() {
                    // Its output is at its end: it is over soon, or the time is.
                    std::future::pending().await
                }
            };
            let late = || format!("no line of its output has had '{}' in it", String::from_utf8_lossy(part));
            tokio::time::timeout(args.ready_timeout, seen)
                .await
                .map_err(|_| format!("{} is not ready: {} within {:?}", job.name(), late(), args.ready_timeout))
        }
        Ready::Other(readiness) => job.ready(readiness, args.ready_timeout).await.map_err(|error| error.to_string()),
    };
    match done {
        Ok(()) => {
            if let Some(Err(error)) = args.notify.as_ref().map(Notify::tell) {
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
