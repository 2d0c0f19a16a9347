//! Descriptors that a command passes to its job under given numbers, and variables with the pid of the main process.

use std::ffi::OsStr;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::job::command::Command;

/// The first number of passed sockets (`SD_LISTEN_FDS_START`, sd_listen_fds(3)).
const FIRST: RawFd = 3;

impl Command {
    /// Gives the job this descriptor under the number `number`, which is 3 or higher. Every job of the command gets it,
    /// so a job that is started again has it too. The supervisor's own descriptor keeps its close-on-exec flag.
    ///
    /// The job gets the descriptor in a sandbox too. The descriptor replaces one that the job would get under this
    /// number through [`inherit_descriptors`](Self::inherit_descriptors).
    ///
    /// ```
    /// use pinfold::Command;
    /// let mut command = Command::new("sh");
    /// command.args(["-c", "read line <&5"]).pass_descriptor(5, std::fs::File::open("/etc/hostname")?);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn pass_descriptor(&mut self, number: RawFd, descriptor: impl Into<OwnedFd>) -> &mut Self {
        self.pass_shared_descriptor(number, Arc::new(descriptor.into()))
    }

    pub(crate) fn pass_shared_descriptor(&mut self, number: RawFd, descriptor: Arc<OwnedFd>) -> &mut Self {
        self.passed.insert(number, descriptor);
        self
    }

    /// Sets an environment variable to the pid of the main process, as the job sees it: for `LISTEN_PID`
    /// (sd_listen_fds(3)) or `WATCHDOG_PID` (sd_watchdog_enabled(3)). A later [`env`](Self::env) or
    /// [`env_remove`](Self::env_remove) of the same name replaces it.
    ///
    /// ```
    /// let mut command = pinfold::Command::new("sh");
    /// command.args(["-c", "test $MAIN = $$"]).env_pid("MAIN");
    /// ```
    pub fn env_pid(&mut self, key: impl AsRef<OsStr>) -> &mut Self {
        // The main process replaces this value before it executes the program.
        self.env(&key, "0");
        self.pid_variables.insert(key.as_ref().into());
        self
    }

    /// Passes listening sockets to the job, as a service manager does (sd_listen_fds(3)): the sockets are the
    /// descriptors from 3 on, and the variables `LISTEN_FDS`, `LISTEN_PID` and `LISTEN_FDNAMES` describe them. Each
    /// socket has a name. pinfold replaces colons and control characters in it with `_`.
    ///
    /// ```
    /// let socket = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let mut command = pinfold::Command::new("server");
    /// command.listen_descriptors([("http".to_owned(), socket)]);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn listen_descriptors<D: Into<OwnedFd>>(
        &mut self,
        sockets: impl IntoIterator<Item = (String, D)>,
    ) -> &mut Self {
        self.listen_on(sockets.into_iter().map(|(name, socket)| (name, Arc::new(socket.into()))))
    }

    pub(crate) fn listen_on(&mut self, sockets: impl IntoIterator<Item = (String, Arc<OwnedFd>)>) -> &mut Self {
        let mut names = Vec::new();
        for ((name, socket), number) in sockets.into_iter().zip(FIRST..) {
            self.pass_shared_descriptor(number, socket);
            names.push(name.replace(|c: char| c == ':' || c.is_control(), "_"));
        }
        self.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        self.env_remove("LISTEN_PIDFDID").env_pid("LISTEN_PID")
    }

    /// Returns an error if a descriptor is passed under a number that it can't have.
    pub(crate) fn check_passed(&self) -> Result<()> {
        match self.passed.keys().find(|number| **number < FIRST) {
            Some(number) => {
                let advice = "the number must be 3 or higher; use stdin, stdout and stderr for the others";
                Err(Error::invalid("number of a passed descriptor", number.to_string(), advice))
            }
            None => Ok(()),
        }
    }
}
