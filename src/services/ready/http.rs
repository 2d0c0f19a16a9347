//! Readiness by the status of an HTTP response.

use std::net::IpAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::{ATTEMPT_TIMEOUT, Pauses};
use crate::error::{Error, Result};
use crate::job::ready::port::{self, Endpoint};

/// The longest head of a response that pinfold reads, in bytes, and the largest number of header lines in it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 128;

/// A URL. The service is ready when it answers a request for the URL with the expected status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpCheck {
    url: String,
    endpoint: Endpoint,
    /// The host and the port, for the header `Host`.
    authority: String,
    /// The path with the query.
    target: String,
    /// `None` for every status from 200 to 299.
    status: Option<u16>,
}

impl HttpCheck {
    /// Parses a URL such as `http://127.0.0.1:8080/health`. Without a `status`, every status from 200 to 299 counts.
    ///
    /// # Errors
    /// [`Error::Invalid`], which says what is accepted.
    pub fn new(url: &str, status: Option<u16>) -> Result<Self> {
        let bad = |advice: &str| Error::invalid("URL", url, advice);
        if url.starts_with("https:") {
            return Err(bad(
                "pinfold does not support TLS: use a plain port of the service, or a command such as curl",
            ));
        }
        let bad_form = || bad("write it as http://127.0.0.1:8080/health");
        let rest = url.strip_prefix("http://").ok_or_else(bad_form)?;
        if !url.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(bad("it has characters that must be encoded with %"));
        }
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let target = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        // An IPv6 address is in brackets and has colons.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok().filter(|port| *port > 0)),
            _ => (authority, Some(80)),
        };
        let port: u16 = port.ok_or_else(|| bad("a port is a number from 1 to 65535"))?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains('@') {
            return Err(bad_form());
        }
        let endpoint = match host.parse::<IpAddr>() {
            Ok(address) => Endpoint::Address((address, port).into()),
            Err(_) => Endpoint::Host(host.to_owned(), port),
        };
        if status.is_some_and(|status| !(100..=599).contains(&status)) {
            return Err(Error::invalid(
                "status",
                status.unwrap_or_default().to_string(),
                "a status is a number from 100 to 599",
            ));
        }
        Ok(Self { url: url.to_owned(), endpoint, authority: authority.to_owned(), target, status })
    }

    /// Returns the address at which the service will answer. Before the start, call its `listener` to check that no
    /// other process listens there, because pinfold can't see which process answers a request.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits until the answer has the expected status. `failed` receives the reason for each attempt that fails.
    ///
    /// Cancel-safe.
    pub async fn wait(&self, mut failed: impl FnMut(String)) {
        let mut pauses = Pauses::new();
        loop {
            match self.attempt(ATTEMPT_TIMEOUT).await {
                Ok(()) => return,
                Err(why) => failed(why),
            }
            pauses.pause().await;
        }
    }

    /// Sends one request. Returns why the service is not ready.
    async fn attempt(&self, bound: Duration) -> std::result::Result<(), String> {
        let answer = async {
            let mut last = Err(format!("the host of {} has no address", self.url));
            for address in self.endpoint.addresses().await {
                last = self.status_at(address).await;
                if last.is_ok() {
                    break;
                }
            }
            last
        };
        let status = timeout(bound, answer)
            .await
            .unwrap_or_else(|_| Err(format!("{} did not answer within {bound:?}", self.url)))?;
        match self.status {
            Some(wanted) if status == wanted => Ok(()),
            Some(wanted) => Err(format!("{} answered with status {status}, not {wanted}", self.url)),
            None if (200..300).contains(&status) => Ok(()),
            None => Err(format!("{} answered with status {status}", self.url)),
        }
    }

    async fn status_at(&self, address: std::net::SocketAddr) -> std::result::Result<u16, String> {
        let nothing = || format!("no process listens on {address}");
        let mut stream = match port::connect(address).await {
            Ok(stream) => stream.ok_or_else(nothing)?,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => return Err(nothing()),
            Err(error) => return Err(format!("cannot connect to {address}: {error}")),
        };
        let lost = |error: std::io::Error| format!("{} did not answer: {error}", self.url);
        let agent = concat!("pinfold/", env!("CARGO_PKG_VERSION"));
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: {agent}\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            self.target, self.authority
        );
        stream.write_all(request.as_bytes()).await.map_err(lost)?;
        let mut head = Vec::new();
        loop {
            let length = stream.read_buf(&mut head).await.map_err(lost)?;
            if let Some(status) = status_of(&head).map_err(|why| format!("{} answered with {why}", self.url))? {
                return Ok(status);
            }
            if length == 0 || head.len() > MAX_HEAD {
                return Err(format!("{} did not answer with HTTP", self.url));
            }
        }
    }
}

impl std::fmt::Display for HttpCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

/// Returns the status of a response; `None` if its head is not complete. An interim response (1xx in RFC 9110, 15.2),
/// such as 103, precedes the final response. 101 is final: no other HTTP response follows it on the connection.
fn status_of(mut head: &[u8]) -> std::result::Result<Option<u16>, String> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(head).map_err(|error| format!("no valid HTTP ({error})"))? {
            httparse::Status::Partial => return Ok(None),
            httparse::Status::Complete(length) => match response.code {
                Some(100 | 102..=199) => head = &head[length..],
                code => return Ok(code),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn urls() {
        let parts = |url: &str| {
            let check = HttpCheck::new(url, None).unwrap();
            (check.endpoint.to_string(), check.authority, check.target)
        };
        let expected =
            |endpoint: &str, authority: &str, target: &str| (endpoint.into(), authority.into(), target.into());
        assert_eq!(parts("http://127.0.0.1:8080/health"), expected("127.0.0.1:8080", "127.0.0.1:8080", "/health"));
        assert_eq!(parts("http://[::1]:81/a?b=c#d"), expected("[::1]:81", "[::1]:81", "/a?b=c"));
        assert_eq!(parts("http://[::1]"), expected("[::1]:80", "[::1]", "/"));
        assert_eq!(parts("http://localhost?x"), expected("localhost:80", "localhost", "/?x"));
        for url in
            ["", "127.0.0.1:80", "http://", "http://:80/", "http://a:0/", "http://a:x/", "http://u@a/", "http://a/ü"]
        {
            assert!(HttpCheck::new(url, None).is_err(), "{url}");
        }
        assert!(HttpCheck::new("https://a/", None).unwrap_err().to_string().contains("TLS"));
        assert!(HttpCheck::new("http://a/", Some(99)).is_err());
    }

    #[test]
    fn statuses() {
        assert_eq!(status_of(b"HTTP/1.1 200 OK\r\nA: b\r\n"), Ok(None));
        assert_eq!(status_of(b"HTTP/1.1 204 No Content\r\n\r\nbody"), Ok(Some(204)));
        assert_eq!(status_of(b"HTTP/1.0 503 \r\n\r\n"), Ok(Some(503)));
        assert_eq!(status_of(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"), Ok(Some(200)));
        assert_eq!(status_of(b"HTTP/1.1 100 Continue\r\n\r\n"), Ok(None));
        assert!(status_of(b"SSH-2.0-OpenSSH\r\n").is_err());
    }

    /// A server that answers each connection with the next of these.
    fn server(answers: &'static [&'static str]) -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 4096];
                let length = stream.read(&mut request).unwrap();
                assert!(request[..length].starts_with(b"GET /health?x HTTP/1.1\r\nHost: 127.0.0.1:"));
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        address
    }

    #[test]
    fn pinfold_waits_for_the_expected_status() {
        let answers = &[
            "HTTP/1.1 503 Starting\r\n\r\n",
            "no HTTP\r\n",
            "",
            "HTTP/1.1 404 Not Found\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
        ];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for (status, last) in [(None, 4), (Some(404), 3)] {
            let url = format!("http://{}/health?x", server(answers));
            let check = HttpCheck::new(&url, status).unwrap();
            let mut failures = Vec::new();
            runtime.block_on(check.wait(|why| failures.push(why)));
            assert_eq!(failures.len(), last, "{failures:#?}");
            let wanted = if status.is_some() { ", not 404" } else { "" };
            assert_eq!(failures[0], format!("{url} answered with status 503{wanted}"));
            assert!(failures[1].contains("no valid HTTP") && failures[2].contains("did not answer"), "{failures:#?}");
        }
    }

    #[test]
    fn a_server_that_never_answers_is_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let address = listener.local_addr().unwrap();
        let check = HttpCheck::new(&format!("http://{address}/"), None).unwrap();
        let why = runtime.block_on(check.attempt(Duration::from_millis(50))).unwrap_err();
        assert!(why.ends_with("did not answer within 50ms"), "{why}");
        drop(listener);
        let why = runtime.block_on(check.attempt(ATTEMPT_TIMEOUT)).unwrap_err();
        assert_eq!(why, format!("no process listens on {address}"));
    }
}
