//! The Landlock ruleset of a policy.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use landlock::{ABI, Access, AccessFs, AccessNet, BitFlags};
use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, open, stat};
use rustix::io::Errno;

use super::machine::Machine;
use super::policy::{Network, Sandbox, Unix};
use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::landlock::{Handled, allow_path, allow_port};

/// The paths that every job may read and execute, unless the policy says otherwise. Paths that do not exist are
/// ignored.
const SYSTEM: [&str; 27] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    // NixOS and Guix keep all programs here.
    "/nix/store",
    "/gnu/store",
    "/etc/alternatives",
    "/etc/group",
    "/etc/gai.conf",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/ca-certificates",
    "/etc/pki/tls/certs",
];

/// Devices that every job may use.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// An opened path with the rights that are granted on it.
type Grant = (OwnedFd, BitFlags<AccessFs>);

/// The device and the inode number of a granted file or directory, with the rights on it.
pub type GrantedFile = ((u64, u64), BitFlags<AccessFs>);

/// Returns the rights on files that the ruleset takes away; an empty set if this kernel's Landlock can't take them
/// away.
fn handled_files(sandbox: &Sandbox, machine: &Machine) -> Handled {
    let mut handled = match (&machine.files, &machine.files_but_truncate) {
        (Ok(()), _) => Handled::files(),
        // The kernel can't restrict truncate(2) and the promise is waived. The ruleset still takes away all other
        // rights.
        (Err(_), Ok(())) => Handled::files_but_truncate(),
        _ => return Handled::default(),
    };
    if machine.devices.is_ok() {
        handled = handled.and(Handled::devices());
    }
    if machine.unix_paths.is_ok() && sandbox.unix != Unix::None {
        handled = handled.and(Handled::unix_paths());
    }
    handled
}

/// Returns everything that the ruleset takes away.
pub fn handled(sandbox: &Sandbox, machine: &Machine) -> Handled {
    let mut handled = handled_files(sandbox, machine);
    if machine.ports.is_ok() && sandbox.network == Network::None {
        handled = handled.and(Handled::ports());
    }
    if machine.signals.is_ok() {
        handled = handled.and(Handled::signals());
    }
    if machine.abstract_sockets.is_ok() {
        handled = handled.and(Handled::abstract_sockets());
    }
    handled
}

/// A path with the device and inode number to which it led; `None` if the path was missing, which the policy allows.
type Found = (PathBuf, Option<(u64, u64)>);

/// A ruleset, and the files and directories to which its paths led when it was made.
#[derive(Clone, Debug)]
pub struct Ruleset {
    descriptor: Arc<OwnedFd>,
    paths: Arc<[Found]>,
}

impl Ruleset {
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        self.descriptor.clone()
    }

    /// Returns whether each path still leads to the same file. The ruleset keeps these files in the kernel's memory
    /// (`get_inode_object` in security/landlock/fs.c), so no other file can have their inode numbers.
    pub fn is_current(&self) -> bool {
        self.paths.iter().all(|(path, id)| stat(path).ok().as_ref().map(id_of) == *id)
    }
}

/// Makes the ruleset; `None` if the kernel supports nothing that it would contain. Each path is opened with the
/// caller's rights. `tmp` is one more directory to write to, besides those of the policy.
///
/// # Errors
/// [`Error::Invalid`] for a path that can't be opened; [`Error::System`] if the kernel refuses the ruleset.
pub fn ruleset(sandbox: &Sandbox, machine: &Machine, tmp: Option<BorrowedFd<'_>>) -> Result<Option<Ruleset>> {
    let grants = Grants::of(sandbox)?;
    let handled = handled(sandbox, machine);
    if handled == Handled::default() {
        return Ok(None);
    }
    let refused = |errno| Error::system("landlock_create_ruleset", "for the job", errno, short_of_descriptors(errno));
    let ruleset = handled.create().map_err(refused)?;
    let opened = grants.opened.iter().map(|(path, rights)| (path.as_fd(), *rights));
    for (path, rights) in opened.chain(tmp.map(|tmp| (tmp, writing()))) {
        let rights = rights & handled.files;
        if !rights.is_empty() {
            allow_path(ruleset.as_fd(), path, rights)
                .map_err(|errno| Error::system("landlock_add_rule", "for a path", errno, ""))?;
        }
    }
    if !handled.ports.is_empty() {
        let connect = sandbox.connect_tcp.iter().map(|port| (port, AccessNet::ConnectTcp));
        let listen = sandbox.listen_tcp.iter().map(|port| (port, AccessNet::BindTcp));
        for (port, right) in connect.chain(listen) {
            allow_port(ruleset.as_fd(), *port, right.into())
                .map_err(|errno| Error::system("landlock_add_rule", format!("for port {port}"), errno, ""))?;
        }
    }
    Ok(Some(Ruleset { descriptor: Arc::new(ruleset), paths: grants.paths.into() }))
}

/// Returns device and inode number.
#[allow(clippy::unnecessary_cast)] // The types differ between architectures.
fn id_of(stat: &Stat) -> (u64, u64) {
    (stat.st_dev as u64, stat.st_ino as u64)
}

/// All granted paths.
#[derive(Default)]
struct Grants {
    opened: Vec<Grant>,
    paths: Vec<Found>,
}

impl Grants {
    /// Opens all granted paths.
    fn of(sandbox: &Sandbox) -> Result<Self> {
        let reading = AccessFs::from_read(ABI::V1);
        let mut grants = Self::default();
        if !sandbox.no_system {
            for path in SYSTEM.map(Path::new) {
                grants.add_if_exists("path to read", path, reading, sandbox)?;
            }
            for path in DEVICES.map(Path::new) {
                grants.add_if_exists("device", path, reading | AccessFs::WriteFile, sandbox)?;
            }
        }
        for path in &sandbox.read_if_exists {
            grants.add_if_exists("path to read", path, reading, sandbox)?;
        }
        for path in &sandbox.read {
            grants.add("path to read", path, reading, sandbox)?;
        }
        for path in &sandbox.write {
            grants.add("path to write", path, writing(), sandbox)?;
        }
        if let Unix::Paths(paths) = &sandbox.unix {
            for path in paths {
                grants.add("Unix socket", path, AccessFs::ResolveUnix.into(), sandbox)?;
            }
        }
        Ok(grants)
    }

    fn add(&mut self, what: &'static str, path: &Path, rights: BitFlags<AccessFs>, sandbox: &Sandbox) -> Result<()> {
        self.try_add(path, rights).map_err(|errno| unusable(what, path, errno, sandbox))
    }

    fn add_if_exists(
        &mut self,
        what: &'static str,
        path: &Path,
        rights: BitFlags<AccessFs>,
        sandbox: &Sandbox,
    ) -> Result<()> {
        match self.try_add(path, rights) {
            // If this user can't reach the path, the job can't reach it either, so it needs no rule.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {
                self.paths.push((path.to_owned(), None));
                Ok(())
            }
            other => other.map_err(|errno| unusable(what, path, errno, sandbox)),
        }
    }

    /// Opens a path, and grants those rights that apply to this kind of file.
    fn try_add(&mut self, path: &Path, rights: BitFlags<AccessFs>) -> rustix::io::Result<()> {
        let file = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = fstat(&file)?;
        let rights = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => rights,
            // If the policy names a device, the job needs ioctl(2) to use it.
            FileType::CharacterDevice | FileType::BlockDevice if rights.contains(AccessFs::Truncate) => {
                rights & AccessFs::from_file(ABI::V9) | AccessFs::IoctlDev
            }
            _ => rights & AccessFs::from_file(ABI::V9),
        };
        self.opened.push((file, rights));
        self.paths.push((path.to_owned(), Some(id_of(&stat))));
        Ok(())
    }
}

/// Returns the granted files and directories, for the explanation of denials.
///
/// # Errors
/// [`Error::Invalid`] for a path that can't be opened.
pub fn granted_files(sandbox: &Sandbox, tmp: Option<BorrowedFd<'_>>) -> Result<Vec<GrantedFile>> {
    let place = |file: BorrowedFd<'_>, rights| {
        let stat = fstat(file).map_err(|errno| Error::system("stat", "a granted path", errno, ""))?;
        Ok((id_of(&stat), rights))
    };
    let granted = Grants::of(sandbox)?;
    let granted =
        granted.opened.iter().map(|(file, rights)| (file.as_fd(), *rights)).chain(tmp.map(|tmp| (tmp, writing())));
    granted.map(|(file, rights)| place(file, rights)).collect()
}

/// Returns all rights, except the rights to make devices and to connect to sockets of other processes.
pub fn writing() -> BitFlags<AccessFs> {
    AccessFs::from_all(ABI::V3) & !(AccessFs::MakeChar | AccessFs::MakeBlock)
}

fn unusable(what: &'static str, path: &Path, errno: Errno, sandbox: &Sandbox) -> Error {
    let advice = match errno {
        Errno::NOENT if what == "path to read" => {
            format!("it does not exist; for a path that may be missing: {}", sandbox.spelling.part("read_if_exists"))
        }
        Errno::NOENT => "it does not exist".into(),
        Errno::ACCESS => "this user can't reach it".into(),
        _ => return Error::system("open", path.to_string_lossy(), errno, what),
    };
    Error::invalid(what, path.to_string_lossy(), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_cannot_be_opened_is_an_error() {
        let machine = Machine::get();
        let message = |sandbox: &Sandbox| ruleset(sandbox, machine, None).unwrap_err().to_string();
        assert!(message(Sandbox::new().read("/no/such/path")).contains("path to read '/no/such/path' is not valid"));
        assert!(message(Sandbox::new().read("/no/such/path")).contains("Sandbox::read_if_exists"));
        assert!(message(Sandbox::new().write("/dev/null/x")).contains("/dev/null/x"));
        assert!(message(Sandbox::new().unix(Unix::Paths(vec!["/no/socket".into()]))).contains("Unix socket"));
        ruleset(Sandbox::new().read_if_exists("/no/such/path"), machine, None).unwrap();
    }
}
