//! Attempts to reach other processes and machines.

use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use super::super::machine::Machine;
use super::super::policy::{Network, Sandbox, Unix};
use super::harness::Outside::{NotTried, Works};
use super::harness::{Nothing, Run, Scratch, Table, program, users};

const EPERM: &str = "denied EPERM";
const EACCES: &str = "denied EACCES";
const ALLOWED: &str = "allowed";

#[test]
fn no_network_means_no_sockets() {
    let names = [
        "tcp",
        "tcp6",
        "udp",
        "udp6",
        "ping",
        "raw",
        "mptcp",
        "sctp",
        "sctp_packets",
        "smc",
        "netlink",
        "netlink_events",
        "packets",
        "vsock",
        "crypto",
        "tcp_high_bits",
        "unix_socket",
        "pair_datagram",
        "pair_raw",
    ];
    let works = ["tcp", "udp", "netlink", "unix_socket", "pair_datagram", "pair_raw", "tcp_high_bits"];
    let rows = names.map(|name| (name, EPERM, if works.contains(&name) { Works } else { NotTried }));
    let table = Table { program: "sockets", sandbox: Sandbox::new(), rows: &rows };
    let differences = table.differences(|| (Vec::new(), Box::new(Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn connected_pairs_work() {
    let rows = ["self_pair", "self_pair_packets"].map(|name| (name, ALLOWED, Works));
    let table = Table { program: "sockets", sandbox: Sandbox::new(), rows: &rows };
    let differences = table.differences(|| (Vec::new(), Box::new(Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
}

/// Two servers; the job may connect to the first one.
fn servers() -> [TcpListener; 2] {
    [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap())
}

fn port(server: &TcpListener) -> u16 {
    server.local_addr().unwrap().port()
}

#[test]
fn only_the_granted_port_can_be_reached() {
    if Machine::get().ports.is_err() {
        eprintln!("SKIPPED: needs Landlock's rules for TCP ports");
        return;
    }
    let [granted, other] = servers();
    let mut sandbox = Sandbox::new();
    sandbox.connect_tcp(port(&granted));
    let reached = port(&granted).to_string();
    let rows = [("tcp_connect", ALLOWED, Works), ("tcp_connect_later", ALLOWED, Works)];
    let table = Table { program: "sockets", sandbox: sandbox.clone(), rows: &rows };
    let differences = table.differences(|| (vec![reached.clone()], Box::new(Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
    let rows = [
        ("tcp_connect", EACCES, Works),
        ("fast_open_sendto", EPERM, NotTried),
        ("fast_open_sendmsg", EPERM, NotTried),
        ("fast_open_sendmmsg", EPERM, NotTried),
        ("other_protocol", EPERM, NotTried),
        ("listen_without_bind", EPERM, Works),
        ("tcp_bind", EACCES, NotTried),
        ("udp", EPERM, Works),
        ("udp6", EPERM, NotTried),
        ("ping", EPERM, NotTried),
        ("raw", EPERM, NotTried),
        ("mptcp", EPERM, NotTried),
        ("sctp", EPERM, NotTried),
        ("sctp_packets", EPERM, NotTried),
        ("smc", EPERM, NotTried),
        ("netlink", EPERM, Works),
        ("unix_socket", EPERM, Works),
    ];
    let refused = port(&other).to_string();
    let table = Table { program: "sockets", sandbox, rows: &rows };
    let differences = table.differences(|| (vec![refused.clone()], Box::new(Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn a_connection_that_is_opened_later_is_refused_too() {
    if Machine::get().ports.is_err() {
        return;
    }
    let [granted, other] = servers();
    let program = program("sockets");
    let mut sandbox = Sandbox::new();
    sandbox.connect_tcp(port(&granted)).read(&program);
    for user in users() {
        let words = [program.to_str().unwrap(), "tcp_connect_later", &port(&other).to_string()];
        assert_eq!(Run::new(words).within(&sandbox, user).run().line(), EACCES);
    }
    other.set_nonblocking(true).unwrap();
    assert!(other.accept().is_err());
}

#[test]
fn a_granted_port_to_listen_on_works() {
    if Machine::get().ports.is_err() {
        return;
    }
    let free = port(&servers()[0]);
    let mut sandbox = Sandbox::new();
    sandbox.listen_tcp(free).connect_tcp(free);
    let table = Table { program: "sockets", sandbox, rows: &[("self_tcp", ALLOWED, NotTried)] };
    let differences = table.differences(|| (vec![free.to_string()], Box::new(Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn a_network_of_its_own_has_a_loopback_device_and_nothing_else() {
    if Machine::get().network().is_err() {
        eprintln!("SKIPPED: needs a network namespace");
        return;
    }
    let [server, _] = servers();
    let mut sandbox = Sandbox::new();
    sandbox.network(Network::Own);
    let rows =
        [("tcp_connect", "denied ECONNREFUSED", Works), ("udp", ALLOWED, Works), ("netlink_events", EPERM, NotTried)];
    let table = Table { program: "sockets", sandbox: sandbox.clone(), rows: &rows };
    let differences = table.differences(|| (vec![port(&server).to_string()], Box::new(Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
    let table = Table { program: "sockets", sandbox, rows: &[("self_tcp", ALLOWED, Works)] };
    let differences = table.differences(|| (vec!["0".into()], Box::new(Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
}

#[test]
fn only_own_and_granted_unix_sockets_can_be_reached() {
    let machine = Machine::get();
    if machine.unix_paths.is_err() || machine.abstract_sockets.is_err() {
        eprintln!("SKIPPED: needs Landlock's rules for Unix sockets");
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.at("socket");
    let _outside = UnixListener::bind(&path).unwrap();
    let _ = std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let name = format!("pinfold-sandbox-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    let _abstract = UnixListener::bind_addr(&address).unwrap();
    let own = scratch.directory("own");
    let mut sandbox = Sandbox::new();
    sandbox.unix(Unix::Own).write(&own);
    for (row, argument) in [
        (("unix_connect", EACCES, Works), path.clone()),
        (("abstract_connect", EPERM, Works), name),
        (("pair_datagram", EACCES, NotTried), path.clone()),
    ] {
        let table = Table { program: "sockets", sandbox: sandbox.clone(), rows: &[row] };
        let differences = table.differences(|| (vec![argument.clone()], Box::new(Nothing)));
        assert!(differences.is_empty(), "{differences:#?}");
    }
    let mut granted = sandbox.clone();
    granted.unix(Unix::Paths(vec![path.clone().into()]));
    let table = Table { program: "sockets", sandbox: granted, rows: &[("unix_connect", ALLOWED, Works)] };
    let differences = table.differences(|| (vec![path.clone()], Box::new(Nothing)));
    assert!(differences.is_empty(), "{differences:#?}");
    let number = std::cell::Cell::new(0);
    let table = Table { program: "sockets", sandbox, rows: &[("self_unix", ALLOWED, Works)] };
    let differences = table.differences(|| {
        number.set(number.get() + 1);
        (vec![format!("{own}/{}", number.get())], Box::new(Nothing))
    });
    assert!(differences.is_empty(), "{differences:#?}");
}
