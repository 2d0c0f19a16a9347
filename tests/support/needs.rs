//! What tests need on the machine: the names for `#[requires(…)]`. Each function looks at the machine when a test is
//! about to run, because a test binary may be copied to another machine.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use super::PINFOLD;
use super::harness::Lack;

/// What `#[requires]` expects of a function.
pub type Need = Result<(), Lack>;

/// Returns an error with the reason if the thing is not present. `name` is its name in `PINFOLD_REQUIRE`.
pub fn need(name: &str, present: bool, reason: &str) -> Need {
    if present { Ok(()) } else { Err(Lack { name: name.to_owned(), reason: reason.trim().to_owned() }) }
}

/// A cgroup v2 that pinfold can use.
pub fn cgroup() -> Need {
    static USABLE: OnceLock<Need> = OnceLock::new();
    let usable = USABLE.get_or_init(|| {
        let ran = Command::new(PINFOLD).args(["run", "--require", "cgroup", "--", "true"]).output().unwrap();
        need("cgroup", ran.status.success(), &String::from_utf8_lossy(&ran.stderr))
    });
    usable.clone()
}

/// The tests run as root, and so can become another user.
pub fn root() -> Need {
    let root = std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0);
    need("root", root, "these tests run as another user")
}

/// A program in PATH.
pub fn program(name: &str) -> Need {
    let path = std::env::var_os("PATH").unwrap_or_default();
    need(name, std::env::split_paths(&path).any(|directory| directory.join(name).is_file()), "it is not installed")
}

/// GNU coreutils' `timeout`.
pub fn coreutils() -> Need {
    let version = Command::new("timeout").arg("--version").output();
    let gnu = version.is_ok_and(|version| version.stdout.starts_with(b"timeout (GNU coreutils)"));
    need("timeout", gnu, "the machine's timeout is not GNU coreutils'")
}

/// Other users that can execute what was built here, and jobs with cgroups.
pub fn other_users() -> Need {
    cgroup()?;
    root()?;
    program("setpriv")?;
    let reached = |path: &str| {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid", "65534", "--clear-groups", "test", "-x", path]).status().unwrap().success()
    };
    let reached = reached(PINFOLD) && reached(env!("CARGO_TARGET_TMPDIR"));
    need("reach", reached, "no other user can reach the build directory")
}

/// A sandbox for the jobs of an ordinary user.
pub fn sandbox() -> Need {
    let user: &[&str] = match root() {
        Ok(()) => &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"],
        Err(_) => &["env"],
    };
    let run = [PINFOLD, "run", "--sandbox", "--", "true"];
    let ran = Command::new(user[0]).args(&user[1..]).args(run).output();
    let reason = |ran: &std::process::Output| String::from_utf8_lossy(&ran.stderr).into_owned();
    let ran = ran
        .map_err(|error| error.to_string())
        .and_then(|ran| ran.status.success().then_some(()).ok_or_else(|| reason(&ran)));
    need("sandbox", ran.is_ok(), &ran.err().unwrap_or_default())
}

/// PID namespaces. The tests also need root for them.
pub fn namespaces() -> Need {
    root()?;
    let made = Command::new("unshare").args(["--pid", "--fork", "--mount-proc", "true"]).output();
    need("namespaces", made.is_ok_and(|made| made.status.success()), "no PID namespace can be made here")
}

/// A FUSE device, and mount namespaces. The tests also need root for them.
pub fn fuse() -> Need {
    root()?;
    program("unshare")?;
    need("fuse", std::path::Path::new("/dev/fuse").exists(), "there is no /dev/fuse")
}

/// User namespaces. unshare(1) makes none in a chroot (user_namespaces(7)).
pub fn user_namespaces() -> Need {
    program("unshare")?;
    let made = Command::new("unshare").args(["--user", "true"]).output();
    need("user-namespaces", made.is_ok_and(|made| made.status.success()), "no user namespace can be made here")
}

/// Returns the directory of PostgreSQL's programs, which are not in PATH on Debian.
pub fn postgresql() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin")).find(|bin| bin.join("initdb").is_file())
}

/// PostgreSQL, Redis and nginx, and their clients.
pub fn servers() -> Need {
    need("postgresql", postgresql().is_some(), "there is no /usr/lib/postgresql/*/bin/initdb")?;
    ["redis-server", "redis-cli", "nginx", "psql", "python3"].into_iter().try_for_each(program)
}
