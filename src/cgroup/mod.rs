//! Finds the cgroup that can hold jobs, and records the reason of each refusal.

pub(crate) mod apply;
pub(crate) mod base;
pub(crate) mod delegation;
mod description;
pub(crate) mod directory;
#[cfg(feature = "cli")]
pub(crate) mod init_leaf;
mod kill;
pub(crate) mod leaf;
pub(crate) mod limits;
pub(crate) mod lock;
mod modes;
pub(crate) mod removal;
pub(crate) mod signal;
pub(crate) mod sweep;
pub(crate) mod usage;

use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, Mode, OFlags, accessat, fstatfs, open};
use rustix::io::Errno;

use directory::Cgroup;

use crate::error::short_of_descriptors;
use crate::kernel::mount;
use crate::kernel::pidfd::Pidfd;
use crate::report::Refusal;

pub(crate) const NO_PROC: &str = "mount /proc, or name a cgroup with --cgroup DIR";

pub(crate) const NO_CGROUP2: &str = "boot with cgroup v2, or in a container ask for a private cgroup namespace";

pub(crate) const NOT_DELEGATED: &str =
    "have it delegated (systemd: Delegate=yes; or chown the directory and its cgroup.procs), or use --cgroup DIR";

pub(crate) const READ_ONLY: &str = "ask for a writable cgroup file system (Docker: --cgroupns=private --security-opt writable-cgroups=true; \
     Podman: --cgroupns=private --security-opt unmask=/sys/fs/cgroup; both: --privileged)";

/// The name of the leaf in which `pinfold init --delegate` puts all processes of a container.
pub(crate) const INIT_LEAF: &str = "pinfold-init";

/// The magic number of a cgroup2 file system (statfs(2)).
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Returns the cgroup to make bases in: `wanted` if it is given, otherwise this process's own cgroup. If that is the leaf
/// of `pinfold init --delegate`, returns the cgroup above, which has the controllers for the jobs.
pub(crate) fn place(wanted: Option<&Path>) -> Result<Cgroup, Vec<Refusal>> {
    if let Some(path) = wanted {
        return open_cgroup(path).map_err(|refusal| vec![refusal]);
    }
    let own = own_cgroup(open_cgroup)?;
    match own.path().parent().filter(|_| own.path().file_name() == Some(INIT_LEAF.as_ref())) {
        Some(above) => Ok(open_cgroup(above).unwrap_or(own)),
        None => Ok(own),
    }
}

/// Returns the same cgroup as [`place`], even if no base can be made in it. For a caller that only reads that cgroup.
pub(crate) fn visible(wanted: Option<&Path>) -> Result<Cgroup, Vec<Refusal>> {
    match wanted {
        Some(path) => open_visible(path).map_err(|refusal| vec![refusal]),
        None => own_cgroup(open_visible),
    }
}

/// Checks whether the guard can hold a job as its subreaper. For this, `/proc` must show the guard's descendants.
pub(crate) fn subreaper() -> Result<(), Refusal> {
    let refuse = |reason: String, advice: &str| Refusal::new("the guard as subreaper", reason, advice);
    let own = std::fs::read_link("/proc/self").map_err(|error| {
        refuse(format!("cannot read /proc/self: {error}"), "mount /proc: pinfold finds descendants there")
    })?;
    if own.to_str() == Some(&rustix::process::getpid().as_raw_nonzero().to_string()) {
        return Ok(());
    }
    Err(refuse("/proc shows another PID namespace".into(), "mount the /proc of this namespace: unshare --mount-proc"))
}

/// The usual mount points of cgroup2: on pure v2 hosts, then on hybrid hosts.
const USUAL_MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

type Open = fn(&Path) -> Result<Cgroup, Refusal>;

/// Opens this process's own cgroup below a usual mount point, and checks the cgroup's id (Linux 6.13). This avoids
/// reading the mount table, which is long on a busy container host.
fn own_cgroup_at_usual_place(open: Open) -> Option<Cgroup> {
    let id = Pidfd::open(rustix::process::getpid()).ok()?.cgroup_id()?;
    let own = mount::own_path(&read_file("/proc/self/cgroup").ok()?)?;
    let below = own.strip_prefix("/").ok()?;
    USUAL_MOUNTS.iter().find_map(|mount| {
        // Joining an empty path would add a slash at the end.
        let path = if below.as_os_str().is_empty() { mount.into() } else { Path::new(mount).join(below) };
        let cgroup = open(&path).ok()?;
        (cgroup.id().ok()? == id).then_some(cgroup)
    })
}

fn own_cgroup(open: Open) -> Result<Cgroup, Vec<Refusal>> {
    if let Some(cgroup) = own_cgroup_at_usual_place(open) {
        return Ok(cgroup);
    }
    let read = |file: &str| {
        read_file(file).map_err(|error| {
            let advice = match Errno::from_io_error(&error).map_or("", short_of_descriptors) {
                "" => NO_PROC,
                advice => advice,
            };
            vec![Refusal::new("this process's own cgroup", format!("cannot read {file}: {error}"), advice)]
        })
    };
    let mounts = mount::cgroup2_mounts(&read("/proc/self/mountinfo")?);
    if mounts.is_empty() {
        return Err(vec![Refusal::new(
            "this process's own cgroup",
            "no cgroup2 file system is mounted here",
            NO_CGROUP2,
        )]);
    }
    let Some(own) = mount::own_path(&read("/proc/self/cgroup")?) else {
        return Err(vec![Refusal::new(
            "this process's own cgroup",
            "/proc/self/cgroup has no line for cgroup v2",
            "Linux 5.7 or later is needed",
        )]);
    };
    let mut refusals = Vec::new();
    // The last mount at a point is the visible one.
    for mount in mounts.iter().rev() {
        let Some(path) = mount::directory(mount, &own) else {
            refusals.push(Refusal::new(
                format!("the cgroup2 mount at {}", mount.point.display()),
                format!("it shows {} and not this process's cgroup {}", mount.root.display(), own.display()),
                "name a cgroup with --cgroup DIR",
            ));
            continue;
        };
        match open(&path) {
            Ok(cgroup) => return Ok(cgroup),
            Err(refusal) => refusals.push(refusal),
        }
    }
    Err(refusals)
}

/// Reads a whole file of /proc. The buffer is large from the start, because each further read would make the kernel
/// produce the text again.
pub(crate) fn read_file(file: &str) -> std::io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(16 * 1024);
    std::io::Read::read_to_end(&mut std::fs::File::open(file)?, &mut text)?;
    Ok(text)
}

pub(crate) fn open_cgroup(path: &Path) -> Result<Cgroup, Refusal> {
    let refuse = |reason: String, advice: &str| Refusal::new(path.display().to_string(), reason, advice);
    let cgroup = open_visible(path)?;
    if fstatfs(&cgroup).is_ok_and(|stat| stat.f_flags as u64 & libc::ST_RDONLY != 0) {
        return Err(refuse("it is mounted read-only".into(), READ_ONLY));
    }
    match accessat(&cgroup, c".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        Ok(()) | Err(Errno::NOSYS) => Ok(cgroup),
        Err(errno) => Err(refuse(format!("this user can't make a directory in it: {errno}"), NOT_DELEGATED)),
    }
}

pub(crate) fn open_visible(path: &Path) -> Result<Cgroup, Refusal> {
    let refuse = |reason: String, advice: &str| Refusal::new(path.display().to_string(), reason, advice);
    let dir = open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(|errno| {
        let advice = match short_of_descriptors(errno) {
            "" => "it must be the directory of a cgroup v2",
            advice => advice,
        };
        refuse(format!("cannot open it: {errno}"), advice)
    })?;
    match fstatfs(&dir) {
        Ok(stat) if stat.f_type as u64 == CGROUP2_MAGIC => Ok(Cgroup::new(dir, absolute(path))),
        _ => Err(refuse(
            "it is not on a cgroup2 file system".into(),
            "name a directory below a cgroup2 mount: findmnt -t cgroup2",
        )),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
