//! Which sandbox mechanisms work on this machine. pinfold tries each mechanism, because the version of a kernel or an
//! ABI does not show what works: vendors add mechanisms of newer kernels to older ones.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use rustix::io::Errno;

use super::apply;
use super::mounts::{self, Action};
use crate::kernel::landlock::{self as rulesets, Handled};
use crate::kernel::{seccomp, seccomp_notify, short_child};

/// Whether something works here, or why not.
pub type Support = Result<(), String>;

/// The mechanisms of this machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The version of Landlock's ABI that the kernel reports. It is only for the report.
    pub landlock_abi: Option<i32>,
    /// Landlock's rights on files, including truncate(2).
    pub files: Support,
    /// The same without truncate(2).
    pub files_but_truncate: Support,
    /// ioctl(2) on devices.
    pub devices: Support,
    /// TCP ports.
    pub ports: Support,
    pub signals: Support,
    pub abstract_sockets: Support,
    /// Connections to sockets at a path.
    pub unix_paths: Support,
    pub seccomp: Support,
    /// The result of [`Self::mounts`], after the first call.
    mounts: OnceLock<Support>,
    /// The result of [`Self::network`], after the first call.
    network: OnceLock<Support>,
    /// The result of [`Self::listener`], after the first call.
    listener: OnceLock<Support>,
}

impl Machine {
    /// Returns what works for this process. Each mechanism is tried once. Namespaces are tried only when a policy needs
    /// them, because this takes longer than all other tries together.
    pub fn get() -> &'static Self {
        static MACHINE: OnceLock<Machine> = OnceLock::new();
        MACHINE.get_or_init(Self::probe)
    }

    fn probe() -> Self {
        let landlock_abi = rulesets::reported_abi();
        let supported = largest_supported_set();
        let create = |handled: Handled, what: &str, version: &str| match landlock_abi {
            Err(Errno::NOSYS) => Err(format!("the kernel has no Landlock ({what} need Linux {version})")),
            Err(Errno::OPNOTSUPP) => Err("Landlock is off: add it to the kernel's parameter lsm=".into()),
            Err(errno) => Err(format!("Landlock can't be used here: {errno}")),
            Ok(_) if handled.is_within(supported) => Ok(()),
            Ok(abi) => handled.create().map(drop).map_err(|errno| match errno {
                Errno::INVAL | Errno::TOOBIG => {
                    format!("Landlock {abi} of this kernel has no {what}, which need Linux {version}")
                }
                errno => format!("Landlock can't be used here: {errno}"),
            }),
        };
        let filters = seccomp::probe(&[seccomp::KILL_PROCESS, seccomp::ERRNO]);
        Self {
            files: create(Handled::files(), "rules for files with truncate(2)", "6.2"),
            files_but_truncate: create(Handled::files_but_truncate(), "rules for files", "5.19"),
            devices: create(Handled::devices(), "rules for devices", "6.10"),
            ports: create(Handled::ports(), "rules for TCP ports", "6.7"),
            signals: create(Handled::signals(), "scopes for signals", "6.12"),
            abstract_sockets: create(Handled::abstract_sockets(), "scopes for abstract sockets", "6.12"),
            unix_paths: create(Handled::unix_paths(), "rules for Unix sockets", "7.1"),
            seccomp: filters.map_err(seccomp::reason),
            mounts: OnceLock::new(),
            network: OnceLock::new(),
            listener: OnceLock::new(),
            landlock_abi: landlock_abi.ok(),
        }
    }

    /// Returns whether the job can have a mount namespace with read-only mounts.
    pub fn mounts(&self) -> &Support {
        self.mounts.get_or_init(|| attempt(&mounts::probe_of_mounts()))
    }

    /// Returns whether the job can have a network namespace.
    pub fn network(&self) -> &Support {
        self.network.get_or_init(|| attempt(&mounts::probe_of_network()))
    }

    /// Returns whether a filter of the job can have a listener, which explains what the sandbox refuses.
    pub fn listener(&self) -> &Support {
        self.listener.get_or_init(|| {
            seccomp::probe(&[seccomp_notify::USER_NOTIF]).map_err(|errno| match errno {
                Errno::OPNOTSUPP => "the kernel has no listeners of seccomp filters, which need Linux 5.0".into(),
                errno => seccomp::reason(errno),
            })?;
            seccomp_notify::probe().map_err(|errno| match errno {
                Errno::BUSY => "pinfold itself runs under a seccomp filter with a listener".into(),
                errno => format!("a seccomp filter with a listener can't be installed here: {errno}"),
            })
        })
    }

    /// Returns the same machine with other mounts or another network.
    #[cfg(test)]
    pub fn with_namespaces(mut self, mounts: Support, network: Support) -> Self {
        (self.mounts, self.network) = (mounts.into(), network.into());
        self
    }

    /// A machine on which everything works.
    #[cfg(test)]
    pub fn complete() -> Self {
        Self {
            landlock_abi: Some(10),
            files: Ok(()),
            files_but_truncate: Ok(()),
            devices: Ok(()),
            ports: Ok(()),
            signals: Ok(()),
            abstract_sockets: Ok(()),
            unix_paths: Ok(()),
            seccomp: Ok(()),
            mounts: Ok(()).into(),
            network: Ok(()).into(),
            listener: Ok(()).into(),
        }
    }
}

/// Tries two sets of rights, the larger one first. Returns the first set that the kernel supports completely, or an
/// empty set. This saves time: only the rights outside of the returned set must be tried one by one.
fn largest_supported_set() -> Handled {
    let old = [Handled::files(), Handled::devices(), Handled::ports(), Handled::signals(), Handled::abstract_sockets()];
    let old = old.into_iter().fold(Handled::default(), Handled::and);
    let all = [old.and(Handled::unix_paths()), old];
    all.into_iter().find(|handled| handled.create().is_ok()).unwrap_or_default()
}

/// An attempt to make a list of system calls, in memory that parent and child share.
struct Attempt<'a> {
    actions: &'a [Action],
    done: usize,
    errno: i32,
}

/// Makes the calls in a child that then exits.
fn attempt(actions: &[Action]) -> Support {
    extern "C" fn entry(argument: *mut c_void) -> c_int {
        // SAFETY: `attempt` passes a pointer to its own structure, and waits.
        let attempt = unsafe { &mut *argument.cast::<Attempt<'_>>() };
        for action in attempt.actions {
            // SAFETY: this process is a child that exits now.
            if let Err(errno) = unsafe { apply::act(action, -1, -1) } {
                attempt.errno = errno;
                return 1;
            }
            attempt.done += 1;
        }
        0
    }
    let mut attempt = Attempt { actions, done: 0, errno: 0 };
    // SAFETY: `act` makes only system calls, on memory that the actions own; `attempt` outlives the child.
    let status = unsafe { short_child::run(entry, (&raw mut attempt).cast()) };
    let failed = attempt.actions.get(attempt.done);
    match (status, failed) {
        (Err(errno), _) => Err(format!("the process that tries it can't be started: {errno}")),
        (Ok(0), None) => Ok(()),
        (Ok(_), Some(action)) => {
            let errno = Errno::from_raw_os_error(attempt.errno);
            Err(format!("{}: {errno}{}", action.words(), mounts::hint(action, errno)))
        }
        // A seccomp filter that this process runs under has killed the child.
        (Ok(status), None) => Err(format!("the attempt ended with the wait status {status:#x}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::get();
        println!("{machine:#?}");
        let reasons = [&machine.files, &machine.signals, &machine.unix_paths, machine.mounts(), machine.network()];
        assert!(reasons.into_iter().all(|support| support.as_ref().err().is_none_or(|reason| reason.len() > 10)));
        // `files` needs a newer kernel than `files_but_truncate`.
        assert!(machine.files.is_err() || machine.files_but_truncate.is_ok());
    }
}
