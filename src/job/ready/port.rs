//! Readiness by a port: the job is ready when a process accepts connections there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpSocket, TcpStream};

use crate::report::text::printable;

/// How often pinfold tries a port. The kernel has no notification for a process that starts to listen. (sock_diag(7)
/// has groups for sockets that are destroyed, include/uapi/linux/sock_diag.h, and none for sockets that start to
/// listen.)
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// How often pinfold tries the addresses of a name before it looks up the name again.
const TRIES_PER_LOOKUP: u32 = 50;

/// How long pinfold waits for one address. The kernel itself would wait for two minutes (`tcp_syn_retries`, tcp(7)).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where a process accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Address(SocketAddr),
    /// A port of this machine, at 127.0.0.1 or ::1.
    Local(u16),
    /// A host name, which pinfold looks up again at intervals.
    Host(String, u16),
}

fn local(port: u16) -> Vec<SocketAddr> {
    vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

impl Endpoint {
    /// Returns all addresses of the endpoint; an empty list if the name has none now.
    pub(crate) async fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Address(address) => vec![*address],
            // Both addresses always count (RFC 6761, 6.3), even if /etc/hosts gives localhost only one of them.
            Self::Host(name, port) if name.eq_ignore_ascii_case("localhost") => local(*port),
            Self::Local(port) => local(*port),
            Self::Host(name, port) => {
                tokio::net::lookup_host((name.as_str(), *port)).await.map(Iterator::collect).unwrap_or_default()
            }
        }
    }

    /// Returns the addresses that are known without a look-up.
    #[cfg(feature = "services")]
    pub(crate) fn fixed_addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Address(address) => vec![*address],
            Self::Local(port) => local(*port),
            Self::Host(name, port) if name.eq_ignore_ascii_case("localhost") => local(*port),
            Self::Host(..) => Vec::new(),
        }
    }

    /// Returns whether the addresses can change: a name may get an address only after the job has started.
    fn can_change(&self) -> bool {
        matches!(self, Self::Host(..))
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Local(port) => write!(f, "127.0.0.1:{port} or [::1]:{port}"),
            Self::Host(name, port) => write!(f, "{}:{port}", printable(name)),
        }
    }
}

/// Waits until a process accepts connections at the endpoint.
pub(super) async fn wait_for_listener(endpoint: &Endpoint) {
    let ephemeral = ephemeral_ports();
    loop {
        let addresses = endpoint.addresses().await;
        let tries = if endpoint.can_change() { TRIES_PER_LOOKUP } else { u32::MAX };
        for _ in 0..tries {
            if listener(&addresses, ephemeral).await.is_some() {
                return;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }
}

impl Endpoint {
    /// Returns an address of the endpoint at which a process accepts connections now.
    pub async fn listener(&self) -> Option<SocketAddr> {
        listener(&self.addresses().await, ephemeral_ports()).await
    }
}

/// Returns the first address at which a process accepts connections.
async fn listener(addresses: &[SocketAddr], ephemeral: (u16, u16)) -> Option<SocketAddr> {
    for address in addresses {
        // An address that does not answer must not delay the others.
        if let Ok(Ok(true)) = tokio::time::timeout(CONNECT_TIMEOUT, accepts(*address, ephemeral)).await {
            return Some(*address);
        }
    }
    None
}

/// Returns whether a process accepts connections at the address.
async fn accepts(address: SocketAddr, ephemeral: (u16, u16)) -> std::io::Result<bool> {
    connect_from_other_port(address, ephemeral).await.map(|stream| stream.is_some())
}

/// Connects to the address, without a time limit of its own. Returns `None` if only this process itself is there.
#[cfg(feature = "services")]
pub(crate) async fn connect(address: SocketAddr) -> std::io::Result<Option<TcpStream>> {
    connect_from_other_port(address, ephemeral_ports()).await
}

/// Connects to the address. The local port of our own socket must not be this port, for two reasons. The server could
/// not bind the port meanwhile. And two ends that connect to each other at the same time form a connection, even if
/// both are the same socket (RFC 9293, 3.5, "simultaneous open").
async fn connect_from_other_port(address: SocketAddr, ephemeral: (u16, u16)) -> std::io::Result<Option<TcpStream>> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if crate::kernel::socket::leave_out_local_port(&socket, address.port(), ephemeral).is_err() {
        // Before Linux 6.3, the socket takes any free port, and pinfold checks which one it is.
        socket.bind(SocketAddr::new(if address.is_ipv4() { V4_ANY } else { V6_ANY }, 0))?;
        if socket.local_addr()?.port() == address.port() {
            return Ok(None);
        }
    }
    let stream = socket.connect(address).await?;
    Ok((stream.local_addr()? != stream.peer_addr()?).then_some(stream))
}

const V4_ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6_ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Returns the first and the last port that the kernel assigns to connections (ip(7), `ip_local_port_range`). If the
/// file can't be read, returns the default range.
fn ephemeral_ports() -> (u16, u16) {
    const DEFAULT: (u16, u16) = (32768, 60999);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = range.split_ascii_whitespace().map_while(|port| port.parse().ok());
    ports.next().zip(ports.next()).unwrap_or(DEFAULT)
}
