//! The supervisor's end of the socket to a guard: sends and receives one message, and waits while the socket is full or
//! empty.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::guard::protocol;
use crate::guard::protocol::{FromGuard, ToGuard};

/// The pause between two tries to send to a full socket, if no descriptor is available to watch the socket.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Sends one message.
pub(super) async fn send(socket: &AsyncFd<OwnedFd>, message: &ToGuard, descriptors: &[BorrowedFd<'_>]) -> Result<()> {
    let failed = |errno| Error::system("sendmsg", "to the guard", errno, "");
    let long = if let ToGuard::Spawn { spec: Some(spec), .. } = message { spec.len() } else { 0 };
    let bytes = protocol::encode_long(message, 128 + long).map_err(failed)?;
    // The socket is watched only while it is full. Otherwise, this process would wake up needlessly each time the guard
    // reads a message and so makes room.
    let mut room: Option<AsyncFd<OwnedFd>> = None;
    loop {
        match protocol::send(socket, &bytes, descriptors) {
            Ok(()) => return Ok(()),
            Err(Errno::AGAIN) => {
                if room.is_none() {
                    let copy = fcntl_dupfd_cloexec(socket, 0);
                    room = copy.ok().and_then(|copy| crate::supervisor::watch::watched(copy, Interest::WRITABLE).ok());
                }
                match &room {
                    Some(room) => {
                        let mut ready = room.writable().await.map_err(|_| Error::GuardLost)?;
                        // The socket may have room by now. Only a later send that is refused proves that it is full.
                        ready.clear_ready();
                    }
                    // No descriptor was available to watch the socket.
                    None => tokio::time::sleep(RETRY_PAUSE).await,
                }
            }
            Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(Error::GuardLost),
            Err(errno) => return Err(failed(errno)),
        }
    }
}

/// Receives one message; `None` at the end of the connection.
pub(super) async fn receive(
    socket: &AsyncFd<OwnedFd>,
    buffer: &mut Vec<u8>,
) -> rustix::io::Result<Option<(FromGuard, Vec<OwnedFd>)>> {
    loop {
        let mut ready = socket.readable().await.map_err(|_| Errno::IO)?;
        match protocol::receive(socket, buffer) {
            Err(Errno::AGAIN) => ready.clear_ready(),
            done => return done,
        }
    }
}
