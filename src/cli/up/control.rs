//! The server at the control socket of `pinfold up`.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::getuid;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use super::message::{Answer, PROTOCOL, Request};
use crate::services::Services;

/// The longest request, in bytes.
const MAX_REQUEST: u64 = 64 * 1024;

/// How long the server waits after it could not accept a connection.
const RETRY_ACCEPT: Duration = Duration::from_secs(1);

/// Answers requests until the future is dropped.
pub async fn serve(listener: &UnixListener, services: Services, down: watch::Sender<bool>) -> Result<()> {
    let copy = listener.try_clone().context("cannot copy the control socket")?;
    let listener = tokio::net::UnixListener::from_std(copy).context("cannot wait for the control socket")?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                match accepted {
                    Ok((stream, _)) => drop(connections.spawn(serve_one(stream, services.clone(), down.clone()))),
                    // This process has no free descriptor (EMFILE, accept(2)). The connection waits, so the next
                    // attempt would fail at once.
                    Err(_) => tokio::time::sleep(RETRY_ACCEPT).await,
                }
            }
        }
    }
}

/// One connection.
struct Connection {
    services: Services,
    down: watch::Sender<bool>,
    writer: Mutex<OwnedWriteHalf>,
}

async fn serve_one(stream: UnixStream, services: Services, down: watch::Sender<bool>) {
    // The mode of the directory keeps other users out. This check also works if the mode was changed.
    let is_allowed = |uid| uid == getuid().as_raw() || uid == 0;
    if !stream.peer_cred().is_ok_and(|peer| is_allowed(peer.uid())) {
        return;
    }
    let (reader, writer) = stream.into_split();
    let connection = Arc::new(Connection { services, down, writer: Mutex::new(writer) });
    let names = connection.services.status().iter().map(|one| one.name.to_string()).collect();
    let version = env!("CARGO_PKG_VERSION").into();
    connection.send(&Answer::Hello { protocol: PROTOCOL, version, pid: std::process::id(), services: names }).await;
    let mut reader = BufReader::new(reader);
    let mut requests = JoinSet::new();
    let mut number = 0;
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(MAX_REQUEST).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            return; // Dropping the set ends the requests of this connection.
        }
        number += 1;
        let connection = connection.clone();
        requests.spawn(async move {
            let done = match serde_json::from_slice(&line) {
                Ok(request) => connection.perform(number, request).await,
                Err(error) => Err(format!("this is not a valid request: {error}")),
            };
            let answer = match done {
                Ok(()) => Answer::Done { request: number },
                Err(message) => Answer::Error { request: number, message: message.into() },
            };
            connection.send(&answer).await;
        });
        while requests.try_join_next().is_some() {}
    }
}

impl Connection {
    async fn send(&self, answer: &Answer<'_>) {
        // If the client is gone, `serve_one` reads the end of the connection.
        let _ = self.writer.lock().await.write_all(&answer.to_line()).await;
    }

    async fn perform(&self, number: u64, request: Request) -> Result<(), String> {
        let text = |error: crate::Error| error.to_string();
        match request {
            Request::Status => {
                let services = self.services.status();
                self.send(&Answer::Status { request: number, services: &services }).await;
            }
            Request::Down => {
                self.down.send_replace(true);
                self.services.stop().await;
            }
            Request::Kill => {
                self.down.send_replace(true);
                self.services.start_kill();
                self.services.stopped().await;
            }
            Request::Restart { names } => {
                let all = || self.services.status().iter().map(|one| one.name.to_string()).collect();
                let names = if names.is_empty() { all() } else { names };
                for name in &names {
                    self.services.restart(name).map_err(text)?;
                }
                self.services.ready_some(&names).await.map_err(text)?;
            }
            Request::Logs { names, lines, follow } => {
                let mut output = self.services.follow(&names, lines).map_err(text)?;
                let (last, _) = output.lines_so_far();
                for line in &last {
                    self.send(&Answer::output(number, line)).await;
                }
                while follow && let Some((lines, missed)) = output.next_lines().await {
                    if missed > 0 {
                        self.send(&Answer::Missed { request: number, lines: missed }).await;
                    }
                    for line in &lines {
                        self.send(&Answer::output(number, line)).await;
                    }
                }
            }
        }
        Ok(())
    }
}
