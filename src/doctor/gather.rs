//! Gathers the facts.

use std::collections::BTreeMap;
use std::ffi::{CStr, OsStr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, fgetxattr, fstatfs, open};
use rustix::process::{Pid, geteuid};

use super::facts::*;
use crate::cgroup as containment;
use crate::cgroup::{directory, lock};
use crate::doctor::probe;
use crate::kernel::{mount, rlimit};
use crate::report::ProcessInfo;
use crate::sandbox::machine::Machine;
use crate::sandbox::prepare::promises_here;

/// The inode number of the machine's own cgroup namespace (`PROC_CGROUP_INIT_INO`, include/linux/proc_ns.h).
const MACHINES_CGROUP_NAMESPACE: u64 = 0xEFFF_FFFB;

/// The magic number of a proc file system (statfs(2)).
const PROC_MAGIC: u64 = 0x9fa0;

impl Facts {
    /// Gathers the facts about this machine. If `cgroup` is given, it is used in place of this process's own cgroup.
    #[must_use]
    pub fn gather(cgroup: Option<&Path>) -> Self {
        let uname = rustix::system::uname();
        let mountinfo = std::fs::read("/proc/self/mountinfo");
        let place = containment::place(cgroup);
        let locked = place.as_ref().map(locked).unwrap_or_default();
        let scratch = place.as_ref().ok().map(probe::scratch);
        let (clone3, waitid_pidfd) = probe::clone3_and_waitid();
        let (pidfd_open, pidfd_send_signal, pidfd_get_info) = probe::pidfds();
        let clone_into_cgroup = match &scratch {
            Some(Scratch { cloned: Tried::Works, .. }) => Tried::Works,
            _ => probe::knows_clone_into_cgroup(),
        };
        Self {
            pinfold: env!("CARGO_PKG_VERSION").into(),
            kernel: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            user: geteuid().as_raw(),
            calls: Calls { clone3, clone_into_cgroup, pidfd_open, pidfd_send_signal, waitid_pidfd, pidfd_get_info },
            mounts: mounts(&mountinfo),
            cgroup: containment::visible(cgroup).ok().map(|there| describe(&there, cgroup.is_none())),
            place: Place {
                requested: cgroup.is_some(),
                directory: place.as_ref().ok().map(|place| place.path().display().to_string()),
                refused: place.err().unwrap_or_default(),
            },
            locked,
            scratch,
            subreaper: containment::subreaper().err(),
            containment: None,
            systemd: systemd(),
            containers: containers(),
            proc: proc(mountinfo.as_deref().unwrap_or_default()),
            limits: limits(),
            sandbox: promises_here(),
            denials_refused: Machine::get().listener().clone().err(),
        }
    }
}

fn mounts(mountinfo: &std::io::Result<Vec<u8>>) -> Mounts {
    let text = match mountinfo {
        Ok(text) => text,
        Err(error) => {
            return Mounts { unknown: Some(format!("cannot read /proc/self/mountinfo: {error}")), ..Mounts::default() };
        }
    };
    let v2 = mount::cgroup2_mounts(text).into_iter().map(|mount| Mount {
        point: mount.point.display().to_string(),
        root: mount.root.display().to_string(),
        read_only: mount.read_only,
    });
    let namespace = std::fs::metadata("/proc/self/ns/cgroup").ok();
    Mounts {
        unknown: None,
        v2: v2.collect(),
        v1: v1_controllers(&String::from_utf8_lossy(text)),
        namespaced: namespace.map(|namespace| namespace.ino() != MACHINES_CGROUP_NAMESPACE),
    }
}

/// Returns the controllers of the v1 hierarchies, and the names of hierarchies without a controller. mountinfo lists
/// them among the options of the file system; the other options in that list are skipped (cgroups(7)).
fn v1_controllers(mountinfo: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (_, after) in mountinfo.lines().filter_map(|line| line.split_once(" - ")) {
        let mut fields = after.split(' ');
        if fields.next() != Some("cgroup") {
            continue;
        }
        for option in fields.nth(1).unwrap_or_default().split(',') {
            let plain = !option.contains('=') || option.starts_with("name=");
            let known = ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"];
            if plain && !known.contains(&option) && !found.iter().any(|there| there == option) {
                found.push(option.to_owned());
            }
        }
    }
    found
}

fn describe(there: &directory::Cgroup, own: bool) -> Cgroup {
    let path = there.path();
    let metadata = std::fs::metadata(path).ok();
    let words = |file: &CStr| -> Vec<String> {
        let text = there.read(file).unwrap_or_default();
        text.split_ascii_whitespace().map(str::to_owned).collect()
    };
    let marked = |name: &str| {
        let mut value = [0; 8];
        fgetxattr(there, name, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
    };
    Cgroup {
        directory: path.display().to_string(),
        owner: metadata.as_ref().map_or(0, MetadataExt::uid),
        mode: metadata.as_ref().map_or(0, |metadata| metadata.mode() & 0o7777),
        writable: may_write(path),
        procs_writable: may_write(&path.join("cgroup.procs")),
        ancestor: if own { None } else { ancestor(path) },
        marked_delegated: marked("user.delegate") || marked("trusted.delegate"),
        kind: there.read(c"cgroup.type").ok().map(|text| text.trim().to_owned()),
        controllers: words(c"cgroup.controllers"),
        subtree_control: words(c"cgroup.subtree_control"),
        swap: there.read(c"memory.max").ok().map(|_| there.read(c"memory.swap.max").is_ok()),
        processes: there.read_whole(c"cgroup.procs").map_or(0, |text| text.lines().count() as u64),
        limits: cgroup_limits(path),
    }
}

/// Returns whether this process may write to the path, with its effective ids.
fn may_write(path: &Path) -> bool {
    accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS).is_ok()
}

/// Returns the lowest cgroup above both `path` and this process's own.
fn ancestor(path: &Path) -> Option<Ancestor> {
    let own = containment::visible(None).ok()?;
    // Both paths are taken from one mount: paths in different mounts can't be compared.
    let own = std::fs::canonicalize(own.path()).ok()?;
    let path = std::fs::canonicalize(path).ok()?;
    let common = own.ancestors().find(|above| path.starts_with(above))?;
    let is_cgroup = common.join("cgroup.procs").exists();
    is_cgroup.then(|| Ancestor {
        directory: common.display().to_string(),
        procs_writable: may_write(&common.join("cgroup.procs")),
    })
}

/// Returns the lowest value of each limit from `path` upwards, as far as this mount shows them.
fn cgroup_limits(path: &Path) -> BTreeMap<String, u64> {
    let mut lowest = BTreeMap::new();
    for above in path.ancestors().take_while(|above| above.join("cgroup.procs").exists()) {
        for file in ["cgroup.max.descendants", "cgroup.max.depth", "pids.max"] {
            // "max" is not a number: there is no limit.
            let Some(limit) = number(&above.join(file)) else { continue };
            lowest.entry(file.to_owned()).and_modify(|there: &mut u64| *there = limit.min(*there)).or_insert(limit);
        }
    }
    lowest
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Tests whether the managers of systemd can be reached: connects to a socket of each, and closes the connection. Each
/// manager listens on a private socket in its runtime directory. Only root may use the socket of the system manager;
/// for another user, this function connects to the system bus instead.
fn systemd() -> Systemd {
    let booted = Path::new("/run/systemd/system").is_dir();
    let root = geteuid().is_root();
    let system = if root { "/run/systemd/private" } else { "/run/dbus/system_bus_socket" };
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    Systemd { booted, system: reach(Some(system.into())), user: reach(runtime.map(|dir| dir.join("systemd/private"))) }
}

fn reach(socket: Option<PathBuf>) -> Manager {
    let Some(socket) = socket else {
        return Manager { error: Some("XDG_RUNTIME_DIR is not set".into()), ..Manager::default() };
    };
    let connected = UnixStream::connect(&socket);
    Manager {
        socket: Some(socket.display().to_string()),
        reachable: connected.is_ok(),
        error: connected.err().map(|error| error.to_string()),
    }
}

fn containers() -> Vec<Container> {
    let mut found: Vec<Container> = Vec::new();
    let mut add = |kind: ContainerKind, sign: &str| {
        if !found.iter().any(|there| there.kind == kind) {
            found.push(Container { kind, sign: sign.to_owned() });
        }
    };
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        add(ContainerKind::Kubernetes, "KUBERNETES_SERVICE_HOST");
    }
    for (file, kind) in [
        ("/var/run/secrets/kubernetes.io", ContainerKind::Kubernetes),
        ("/run/.containerenv", ContainerKind::Podman),
        ("/.dockerenv", ContainerKind::Docker),
        ("/dev/.lxc", ContainerKind::Lxc),
        ("/dev/lxd/sock", ContainerKind::Lxc),
        ("/dev/incus/sock", ContainerKind::Lxc),
    ] {
        if Path::new(file).exists() {
            add(kind, file);
        }
    }
    // Container managers set a variable for the init process; systemd as init keeps its value in a file.
    let named = |name: &str| match name.trim() {
        "docker" => ContainerKind::Docker,
        "podman" => ContainerKind::Podman,
        "lxc" | "lxc-libvirt" => ContainerKind::Lxc,
        "systemd-nspawn" => ContainerKind::Nspawn,
        other => ContainerKind::Other(other.to_owned()),
    };
    for file in ["/run/host/container-manager", "/run/systemd/container"] {
        if let Ok(name) = std::fs::read_to_string(file)
            && !name.trim().is_empty()
        {
            add(named(&name), file);
        }
    }
    // Only root can read this file.
    let init = std::fs::read("/proc/1/environ").unwrap_or_default();
    for variable in init.split(|&byte| byte == 0) {
        if let Some(name) = variable.strip_prefix(b"container=").and_then(|name| std::str::from_utf8(name).ok())
            && !name.is_empty()
            && name != "oci"
        {
            add(named(name), "/proc/1/environ");
        }
    }
    if let Some(name) = std::env::var_os("container").as_deref().and_then(OsStr::to_str)
        && !name.is_empty()
        // "oci" is a generic name; the other signs are more precise.
        && name != "oci"
    {
        add(named(name), "the variable container");
    }
    found
}

fn proc(mountinfo: &[u8]) -> Proc {
    let dir = open("/proc", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let mounted = dir.is_ok_and(|dir| fstatfs(dir).is_ok_and(|stat| stat.f_type as u64 == PROC_MAGIC));
    let text = String::from_utf8_lossy(mountinfo);
    let hidepid = hidepid(&text).unwrap_or("0").to_owned();
    // With `hidepid`, /proc shows process 1 to its owner, and to processes that `hidepid` does not apply to.
    let first = std::fs::metadata("/proc/1").ok();
    let user = geteuid();
    let shown = first.is_some_and(|first| user.is_root() || first.uid() != user.as_raw());
    let weak = ["0", "1", "off", "noaccess"].contains(&hidepid.as_str());
    Proc {
        mounted,
        shows_others: mounted && (weak || shown),
        hidepid,
        children: Path::new("/proc/thread-self/children").exists(),
    }
}

/// Returns the option `hidepid` of the file system that was mounted last at /proc, which hides earlier ones.
fn hidepid(mountinfo: &str) -> Option<&str> {
    let line = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some("/proc"))?;
    let (_, after) = line.split_once(" - ")?;
    after.split(' ').nth(2)?.split(',').find_map(|option| option.strip_prefix("hidepid="))
}

fn limits() -> Limits {
    let set = |limit: Option<u64>| limit.filter(|&limit| limit != libc::RLIM_INFINITY);
    let files = rlimit::limit(libc::RLIMIT_NOFILE);
    let soft = |limit: Option<(u64, u64)>| set(limit.map(|(soft, _)| soft));
    Limits {
        files_soft: soft(files),
        files_hard: set(files.map(|(_, hard)| hard)),
        processes: soft(rlimit::limit(libc::RLIMIT_NPROC)),
        pending_signals: soft(rlimit::limit(libc::RLIMIT_SIGPENDING)),
        machine_threads: number(Path::new("/proc/sys/kernel/threads-max")),
        machine_pids: number(Path::new("/proc/sys/kernel/pid_max")),
    }
}

/// Returns descriptions of the bases in `place` that are locked and have no guard.
fn locked(place: &directory::Cgroup) -> Vec<String> {
    let holders = |pids: Vec<Pid>| {
        let described = pids.into_iter().map(|pid| match ProcessInfo::of_living(pid) {
            Some(process) => process.to_string(),
            None => pid.as_raw_nonzero().to_string(),
        });
        described.collect::<Vec<_>>().join(", ")
    };
    lock::without_guard(place).into_iter().map(|(path, pids)| format!("{path}, by {}", holders(pids))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_mounts() {
        let hybrid = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
            36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,xattr,cpu,cpuacct,release_agent=/x\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(v1_controllers(hybrid), ["memory", "cpu", "cpuacct", "name=systemd"]);
        assert_eq!(hidepid("5 1 0:4 / /proc rw - proc proc rw,hidepid=invisible\n"), Some("invisible"));
        assert_eq!(hidepid("5 1 0:4 / /proc rw - proc proc rw,hidepid=2\n6 5 0:9 / /proc rw - proc proc rw\n"), None);
        assert_eq!(hidepid("garbage\n\n"), None);
    }
}
