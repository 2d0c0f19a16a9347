//! The socket of sd_notify(3): a service says that it is ready, what it does, and that it is alive.

mod members;
mod message;

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use self::members::Verdict;
use crate::error::{Error, Result};
use crate::job::command::Command;
use crate::kernel::sender;
use crate::report::ProcessInfo;
use crate::supervisor::watch;
pub(crate) use members::Members;
pub(crate) use message::Notice;

/// The longest message, in bytes. systemd has the same bound (NOTIFY_BUFFER_MAX, PIPE_BUF).
const MAX_MESSAGE: usize = 4096;

/// The socket for the messages of one start of a service. Each start has a socket of its own, so that a late message of
/// the previous instance does not count.
#[derive(Debug)]
pub(crate) struct NotifySocket {
    socket: AsyncFd<OwnedFd>,
    /// The value of `NOTIFY_SOCKET`.
    address: String,
}

impl NotifySocket {
    /// Makes a socket in the abstract namespace (unix(7)): it needs no file, so nothing is left of it when pinfold is
    /// killed, and a service that runs as another user can reach it. A service in another network namespace can't reach
    /// it, and a service in a sandbox can't either (Landlock's scope of abstract sockets, Linux 6.12).
    ///
    /// # Errors
    /// [`Error::System`] if the kernel can't make the socket, for example because this process has no free descriptor.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub fn new() -> Result<Self> {
        let mut random = [0; 16];
        getrandom(&mut random, GetRandomFlags::empty()).map_err(|errno| failed("@pinfold-notify", errno))?;
        let name = format!("pinfold-notify-{:032x}", u128::from_ne_bytes(random));
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).map_err(|errno| failed(&name, errno))?;
        Self::bound(&address, format!("@{name}"))
    }

    fn bound(address: &SocketAddrUnix, value: String) -> Result<Self> {
        let make = || {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
            // This comes before the bind, so that the kernel adds the sender to the first message too.
            sender::identify_senders(&socket)?;
            rustix::net::bind(&socket, address)?;
            watch::watched(socket, Interest::READABLE)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        let socket = make().map_err(|errno| failed(&value, errno))?;
        Ok(Self { socket, address: value })
    }

    /// Sets `NOTIFY_SOCKET` for the command and, with a watchdog, `WATCHDOG_USEC` and `WATCHDOG_PID`
    /// (sd_watchdog_enabled(3)): the service must send `WATCHDOG=1` at least once in this time. Without a watchdog, the
    /// command does not inherit the variables of pinfold's own watchdog.
    pub fn pass_to(&self, command: &mut Command, watchdog: Option<Duration>) {
        command.env("NOTIFY_SOCKET", &self.address);
        match watchdog {
            Some(interval) => {
                command.env("WATCHDOG_USEC", interval.as_micros().to_string()).env_pid("WATCHDOG_PID");
            }
            None => {
                command.env_remove("WATCHDOG_USEC").env_remove("WATCHDOG_PID");
            }
        }
    }

    /// Waits for the next message of a process of the job, and returns what it says. A message of another process, or
    /// one that is too long, is returned as [`Notice::Refused`], which names its sender.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The errno of recvmsg(2).
    pub async fn next(&self, members: &Members) -> std::io::Result<Vec<Notice>> {
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let mut ready = self.socket.readable().await?;
            let received = ready.try_io(|socket| sender::receive(socket.get_ref(), &mut buffer).map_err(Into::into));
            let datagram = match received {
                // The socket has no datagram: wait again.
                Err(_would_block) => continue,
                Ok(received) => received?,
            };
            let refuse = |why: String| Ok(vec![Notice::Refused(format!("a message was ignored: {why}"))]);
            let Some(from) = datagram.sender else { return refuse("the kernel did not name its sender".into()) };
            match members.verdict(&from) {
                Verdict::Member => {}
                Verdict::Stranger => return refuse(format!("{} does not belong to the service", described(from.pid))),
                Verdict::Unknown => {
                    return refuse(format!(
                        "its sender, process {}, ended before pinfold could see that it belongs to the service (a sender \
                         that waits, as systemd-notify does, has no such problem)",
                        from.pid
                    ));
                }
            }
            if !datagram.is_complete {
                return refuse(format!("it has more than {MAX_MESSAGE} bytes"));
            }
            return Ok(message::notices(&buffer[..datagram.length]));
        }
    }
}

fn described(pid: i32) -> String {
    let known = rustix::process::Pid::from_raw(pid).and_then(ProcessInfo::read);
    known.map_or_else(|| format!("process {pid}"), |process| format!("process {process}"))
}

fn failed(address: &str, errno: Errno) -> Error {
    Error::system("make the socket for notifications", address, errno, "see ulimit -n")
}
