//! The process that started pinfold: when it ends, `pinfold serve` ends all jobs, and so do other subcommands with
//! `--die-with-parent`. For `serve`, watching for the end of standard input is not enough: other processes, such as the
//! workers of the parent, may have the other end of this pipe open.

use std::pin::Pin;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::process::{Pid, getpid, getppid};

use crate::cli::jobs::Request;
use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::pidfd::Pidfd;

/// The parent process, watched through a pidfd. PR_SET_PDEATHSIG is not usable: the kernel sends that signal when the
/// *thread* that started pinfold ends (PR_SET_PDEATHSIG(2const)).
pub enum Parent {
    /// The parent is outside of pinfold's PID namespace, or there is no parent. pinfold notices only the end of the
    /// input.
    Unknown,
    Known(Pidfd),
    Ended,
}

impl Parent {
    /// Opens a pidfd of the parent. Call this first: if the parent has ended before this call, another process has
    /// become pinfold's parent, and pinfold would mistake it for the one that started pinfold. `expected` is the pid of
    /// the parent, if the caller knows it, which prevents this mistake.
    ///
    /// # Errors
    /// The errno of pidfd_open(2).
    pub fn open(expected: Option<Pid>) -> Result<Self> {
        if expected.is_some() && getppid() != expected {
            return Ok(Self::Ended);
        }
        // `None` stands for 0: the parent is not in pinfold's PID namespace (getppid(2)).
        let Some(pid) = getppid() else { return Ok(Self::Unknown) };
        match Pidfd::open(pid) {
            // The pidfd is that of the parent only if the parent is still the same: otherwise its pid may have been
            // reused.
            Ok(parent) if getppid() == Some(pid) => Ok(Self::Known(parent)),
            Ok(_) | Err(Errno::SRCH) => Ok(Self::Ended),
            Err(errno) => {
                let object = format!("the parent process {}", pid.as_raw_nonzero());
                Err(Error::system("open", object, errno, short_of_descriptors(errno)))
            }
        }
    }

    /// Requests a stop of pinfold's jobs when the parent ends: pinfold sends the request to itself. Call it in the
    /// context of a runtime, when the signals of pinfold are queued.
    ///
    /// # Errors
    /// If the parent is not visible, so that its end would not be noticed; or the errno of pidfd_open(2).
    pub fn stop_with_parent(self) -> Result<()> {
        let own = Pidfd::open(getpid())
            .map_err(|errno| Error::system("open", "a pidfd of this process", errno, short_of_descriptors(errno)))?;
        let stop = move || {
            // The queue of signals may be full (RLIMIT_SIGPENDING). SIGTERM without a value needs no room there.
            let _ = own.send_with(Request::SIGNAL, Request::Stop.value()).or_else(|_| own.send(Request::SIGNAL));
        };
        match self {
            Self::Unknown => {
                let advice = "the parent process is not visible in this PID namespace, so its end would not be noticed";
                return Err(Error::invalid("option", "--die-with-parent", advice));
            }
            Self::Ended => stop(),
            Self::Known(parent) => {
                let parent = Arc::new(parent);
                tokio::spawn(async move {
                    if parent.ended().await.is_ok() {
                        stop();
                    }
                });
            }
        }
        Ok(())
    }

    /// Starts to watch the parent. Call it in the context of a runtime.
    pub fn watch(self) -> WatchedParent {
        match self {
            Self::Unknown => WatchedParent::Unknown,
            Self::Ended => WatchedParent::Ended,
            Self::Known(pidfd) => {
                let parent = Arc::new(pidfd);
                WatchedParent::Known(Box::pin(async move {
                    if parent.ended().await.is_err() {
                        // pinfold still notices the end of the input.
                        std::future::pending().await
                    }
                }))
            }
        }
    }
}

/// The parent process, as the runtime watches it.
pub enum WatchedParent {
    Unknown,
    Known(Pin<Box<dyn Future<Output = ()>>>),
    Ended,
}

impl WatchedParent {
    /// Waits for the end of the parent. The second call waits forever. Cancel-safe.
    pub async fn end(&mut self) {
        if let Self::Known(end) = self {
            end.await;
            *self = Self::Ended;
            return;
        }
        std::future::pending().await
    }
}

/// The option `--die-with-parent`, which several subcommands have.
#[derive(Debug, Default, clap::Args)]
pub struct DieWithParent {
    /// Stop, as after SIGTERM, when the process that started pinfold has ended. With the PID of that process, pinfold
    /// also detects an end before it could start to watch
    #[arg(long, value_name = "PID", num_args = 0..=1, require_equals = true, value_parser = parse_pid)]
    die_with_parent: Option<Option<Pid>>,
}

impl DieWithParent {
    /// Starts to watch the parent, if the option was given. The errors are those of [`Parent::stop_with_parent`].
    pub fn apply(&self) -> Result<()> {
        self.die_with_parent.map_or(Ok(()), |expected| Parent::open(expected)?.stop_with_parent())
    }
}

/// Parses a pid.
pub fn parse_pid(text: &str) -> std::result::Result<Pid, String> {
    text.parse().ok().and_then(Pid::from_raw).ok_or_else(|| "write the pid of the parent process, such as $$".into())
}
