//! The promises of a sandbox, and which mechanism holds each one here.

use std::path::PathBuf;
use std::str::FromStr;

use super::machine::{Machine, Support};
use super::policy::{Network, Sandbox, Unix};
use crate::error::{Error, Result};
use crate::report::{Promise, PromiseReport, PromiseState};

impl FromStr for Promise {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|promise| promise.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            Error::invalid("promise", text, format!("the promises are {names}"))
        })
    }
}

/// The facts that decide whether a promise holds, in addition to the policy and the machine.
#[derive(Clone, Debug, Default)]
pub struct Circumstances {
    /// Whether the job runs with another user id than the supervisor.
    pub other_user: bool,
    /// A path to write, and the mount of a cgroup file system that it contains.
    pub writable_cgroups: Option<(PathBuf, PathBuf)>,
    /// A path to write, and the mount of a proc file system that it contains.
    pub writable_proc: Option<(PathBuf, PathBuf)>,
}

/// A promise that no mechanism of this machine can hold.
struct Missing {
    reason: String,
    /// Advice, other than to waive the promise.
    advice: String,
}

type Holds = std::result::Result<String, Missing>;

fn missing<T>(reason: impl Into<String>, advice: impl Into<String>) -> std::result::Result<T, Missing> {
    Err(Missing { reason: reason.into(), advice: advice.into() })
}

/// Returns the reason why `support` is missing.
fn needs(support: &Support, advice: &str) -> std::result::Result<(), Missing> {
    support.clone().map_err(|reason| Missing { reason, advice: advice.into() })
}

/// Decides for each promise whether it holds, and by what.
///
/// # Errors
/// [`Error::Promise`] if no mechanism can hold a promise that the policy makes and does not waive. It names the
/// promise, the reason, and advice.
pub fn resolve(sandbox: &Sandbox, machine: &Machine, circumstances: &Circumstances) -> Result<Vec<PromiseReport>> {
    let mut verdicts = Vec::new();
    for promise in Promise::ALL {
        let state = match holds(promise, sandbox, machine, circumstances) {
            None => PromiseState::NotPromised { reason: reason_not_promised(promise).into() },
            Some(Ok(by)) => PromiseState::Held { by },
            Some(Err(missing)) if sandbox.waive.contains(&promise) => PromiseState::Waived { reason: missing.reason },
            Some(Err(Missing { reason, advice })) => {
                let waive = format!("to go without this promise: {}", sandbox.spelling.waive(promise));
                let advice = if advice.is_empty() { waive } else { format!("{advice}; {waive}") };
                return Err(Error::Promise { promise, reason, advice });
            }
        };
        verdicts.push(PromiseReport { promise, state });
    }
    Ok(verdicts)
}

fn reason_not_promised(promise: Promise) -> &'static str {
    match promise {
        Promise::Metadata => "only a strict sandbox promises this",
        _ => "the policy grants the network of the host",
    }
}

/// Returns `None` if the policy does not make the promise.
fn holds(promise: Promise, sandbox: &Sandbox, machine: &Machine, circumstances: &Circumstances) -> Option<Holds> {
    Some(match promise {
        // no_new_privs exists since Linux 3.5, and every process may drop its capabilities.
        Promise::Privileges => Ok("no_new_privs, no capabilities".into()),
        Promise::Kernel => needs(&machine.seccomp, "").map(|()| "seccomp".into()),
        Promise::Processes => processes(sandbox, machine, circumstances),
        Promise::Leaf => leaf(sandbox, machine, circumstances),
        Promise::Files => needs(&machine.files, "").map(|()| "Landlock".into()),
        Promise::Metadata if !sandbox.strict => return None,
        Promise::Metadata => needs(machine.mounts(), "").map(|()| "read-only mounts in a namespace of the job".into()),
        Promise::Network => match sandbox.network {
            Network::Host => return None,
            Network::Own => needs(machine.network(), "").map(|()| "network namespace of the job, seccomp".into()),
            Network::None if !sandbox.has_ports() => needs(&machine.seccomp, "").map(|()| "seccomp".into()),
            Network::None => needs(&machine.seccomp, "")
                .and_then(|()| {
                    let own = sandbox.spelling.word("network", "own");
                    needs(&machine.ports, &format!("grant no single ports, or use {own}"))
                })
                .map(|()| "Landlock, seccomp".into()),
        },
        Promise::Unix => unix(sandbox, machine),
    })
}

fn processes(sandbox: &Sandbox, machine: &Machine, circumstances: &Circumstances) -> Holds {
    needs(&machine.seccomp, "")?;
    if let Some((path, mount)) = &circumstances.writable_proc {
        let reason = format!("the path to write {} contains {}", path.display(), mount.display());
        return missing(reason, "grant a smaller path");
    }
    match &machine.signals {
        Ok(()) => Ok("Landlock, seccomp".into()),
        // Jobs of the same user can still send signals to each other, so the text names the mechanism.
        Err(_) if circumstances.other_user => Ok("another user id than the supervisor's, seccomp".into()),
        Err(reason) => missing(reason, another_user(sandbox)),
    }
}

fn another_user(sandbox: &Sandbox) -> String {
    format!("as root, run the job as another user: {}", sandbox.spelling.user())
}

fn leaf(sandbox: &Sandbox, machine: &Machine, circumstances: &Circumstances) -> Holds {
    needs(&machine.seccomp, "")?;
    if let Some((path, mount)) = &circumstances.writable_cgroups {
        let reason = format!("the path to write {} contains {}", path.display(), mount.display());
        return missing(reason, "grant a smaller path");
    }
    if let Err(Missing { reason, .. }) = unix(sandbox, machine) {
        // systemd moves processes on request.
        return missing(format!("the job could ask another process to move it: {reason}"), "grant no Unix sockets");
    }
    match &machine.files {
        Ok(()) => Ok("Landlock, seccomp".into()),
        Err(_) if machine.files_but_truncate.is_ok() => Ok("Landlock, seccomp".into()),
        Err(_) if circumstances.other_user => Ok("another user id than the supervisor's, seccomp".into()),
        Err(_) if sandbox.strict && machine.mounts().is_ok() => Ok("read-only mounts, seccomp".into()),
        Err(reason) => missing(reason, another_user(sandbox)),
    }
}

fn unix(sandbox: &Sandbox, machine: &Machine) -> Holds {
    needs(&machine.seccomp, "")?;
    match sandbox.unix {
        Unix::None => Ok("seccomp".into()),
        Unix::Own | Unix::Paths(_) => {
            let advice = format!("grant no Unix sockets: {}", sandbox.spelling.word("unix", "none"));
            needs(&machine.unix_paths, &advice)?;
            needs(&machine.abstract_sockets, &advice)?;
            Ok("Landlock, seccomp".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(sandbox: &Sandbox, machine: &Machine, circumstances: &Circumstances, promise: Promise) -> PromiseState {
        let verdicts = resolve(sandbox, machine, circumstances).unwrap();
        verdicts.into_iter().find(|verdict| verdict.promise == promise).unwrap().state
    }

    fn refused(sandbox: &Sandbox, machine: &Machine, circumstances: &Circumstances) -> String {
        resolve(sandbox, machine, circumstances).unwrap_err().to_string()
    }

    #[test]
    fn everything_holds_where_the_kernel_has_everything() {
        let (machine, none) = (Machine::complete(), Circumstances::default());
        let verdicts = resolve(Sandbox::new().strict().unix(Unix::Own), &machine, &none).unwrap();
        assert!(verdicts.iter().all(|verdict| matches!(verdict.state, PromiseState::Held { .. })), "{verdicts:?}");
        assert_eq!(verdicts.iter().map(|verdict| verdict.promise).collect::<Vec<_>>(), Promise::ALL);
        let plain = Sandbox::new();
        assert!(matches!(state(&plain, &machine, &none, Promise::Metadata), PromiseState::NotPromised { .. }));
    }

    #[test]
    fn each_missing_mechanism_refuses_a_promise_that_can_be_waived() {
        let none = Circumstances::default();
        let lacking = |lack: fn(&mut Machine) -> &mut Support| {
            let mut machine = Machine::complete();
            *lack(&mut machine) = Err("REASON".into());
            machine
        };
        let mut own = Sandbox::new();
        own.unix(Unix::Own);
        let mut ports = Sandbox::new();
        ports.connect_tcp(443);
        let mut strict = Sandbox::new();
        strict.strict();
        let mut network = Sandbox::new();
        network.network(Network::Own);
        let cases: [(&Sandbox, Machine, &[Promise]); 8] = [
            (&own, lacking(|machine| &mut machine.signals), &[Promise::Processes]),
            (&own, lacking(|machine| &mut machine.files), &[Promise::Files]),
            (&own, lacking(|machine| &mut machine.abstract_sockets), &[Promise::Leaf, Promise::Unix]),
            (&own, lacking(|machine| &mut machine.unix_paths), &[Promise::Leaf, Promise::Unix]),
            (&ports, lacking(|machine| &mut machine.ports), &[Promise::Network]),
            (&strict, Machine::complete().with_namespaces(Err("REASON".into()), Ok(())), &[Promise::Metadata]),
            (&network, Machine::complete().with_namespaces(Ok(()), Err("REASON".into())), &[Promise::Network]),
            (
                &ports,
                lacking(|machine| &mut machine.seccomp),
                &[Promise::Kernel, Promise::Processes, Promise::Leaf, Promise::Network, Promise::Unix],
            ),
        ];
        for (sandbox, machine, promises) in cases {
            let mut sandbox = sandbox.clone();
            for promise in promises {
                let message = refused(&sandbox, &machine, &none);
                assert!(message.contains(&format!("promise '{promise}' of the sandbox")), "{message}");
                assert!(
                    message.contains("REASON") && message.contains(&format!("Sandbox::waive(Promise::{promise:?})")),
                    "{message}"
                );
                sandbox.waive(*promise);
            }
            for promise in promises {
                let state = state(&sandbox, &machine, &none, *promise);
                assert!(matches!(&state, PromiseState::Waived { reason } if reason.contains("REASON")), "{state:?}");
            }
        }
    }

    #[test]
    fn another_user_takes_the_place_of_the_signal_scope() {
        let mut machine = Machine::complete();
        machine.signals = Err("older than 6.12".into());
        let other = Circumstances { other_user: true, ..Circumstances::default() };
        let state = state(&Sandbox::new(), &machine, &other, Promise::Processes);
        assert!(matches!(state, PromiseState::Held { by } if by.contains("another user id")));
        assert!(refused(&Sandbox::new(), &machine, &Circumstances::default()).contains("Command::user"));
    }

    #[test]
    fn a_waiver_of_what_holds_changes_nothing() {
        let (machine, none) = (Machine::complete(), Circumstances::default());
        let state = state(Sandbox::new().waive(Promise::Files), &machine, &none, Promise::Files);
        assert!(matches!(state, PromiseState::Held { .. }));
    }

    #[test]
    fn a_path_to_write_that_contains_proc_or_a_cgroup_breaks_a_promise() {
        let machine = Machine::complete();
        let proc = Some(("/".into(), "/proc".into()));
        let circumstances = Circumstances { writable_proc: proc, ..Circumstances::default() };
        assert!(refused(&Sandbox::new(), &machine, &circumstances).contains("path to write / contains /proc"));
        let cgroups = Some(("/sys".into(), "/sys/fs/cgroup".into()));
        let circumstances = Circumstances { writable_cgroups: cgroups, ..Circumstances::default() };
        let message = refused(&Sandbox::new(), &machine, &circumstances);
        assert!(message.contains("'leaf'") && message.contains("/sys/fs/cgroup"), "{message}");
    }

    /// Prints what holds here: scripts collect these lines on several kernels.
    #[test]
    fn each_promise_of_each_policy_is_held_or_refused_here() {
        let mut policies = [(); 5].map(|()| Sandbox::new());
        let [_, ports, own, network, strict] = &mut policies;
        ports.connect_tcp(443);
        own.unix(Unix::Own);
        network.network(Network::Own);
        strict.strict();
        let names = ["plain", "connect-tcp", "unix own", "network own", "strict"];
        for (name, policy) in names.into_iter().zip(&mut policies) {
            for promise in Promise::ALL {
                policy.waive(promise);
            }
            for other_user in [false, true] {
                let circumstances = Circumstances { other_user, ..Circumstances::default() };
                for verdict in resolve(policy, Machine::get(), &circumstances).unwrap() {
                    let state = match verdict.state {
                        PromiseState::Held { by } => format!("held by {by}"),
                        PromiseState::Waived { reason } => format!("refused: {reason}"),
                        PromiseState::NotPromised { reason } => format!("not promised: {reason}"),
                    };
                    let user = if other_user { "another user" } else { "same user" };
                    println!("PROMISE | {name} | {user} | {} | {state}", verdict.promise);
                }
            }
        }
    }

    #[test]
    fn names_are_read_back() {
        for promise in Promise::ALL {
            assert_eq!(promise.name().parse::<Promise>().unwrap(), promise);
            assert_eq!(serde_json::to_value(promise).unwrap(), promise.name());
        }
        assert!("all".parse::<Promise>().unwrap_err().to_string().contains("privileges, kernel"));
    }
}
