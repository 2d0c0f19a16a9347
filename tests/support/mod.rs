//! Code that the tests share: the harness, what tests need on the machine, running pinfold under a warden that counts
//! survivors, and canaries.

#![allow(dead_code)] // Each test file is a crate of its own and uses only a part of this one.

pub mod alone;
pub mod escape;
pub mod events;
pub mod harness;
pub mod host;
pub mod messages;
pub mod needs;
pub mod own_cgroup;
pub mod pool;
pub mod pty;
pub mod random;
pub mod run;
pub mod surrounding;
pub mod watched;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

#[allow(unused_imports)] // For the same reason.
pub use harness::has;
#[allow(unused_imports)]
pub use run::{Ran, Run, Running};

/// The command under test.
pub const PINFOLD: &str = env!("CARGO_BIN_EXE_pinfold");

/// The directory in which tests may write. Each file has its own name, and [`Scratch`] removes it.
const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// The directory of this project.
pub const PROJECT: &str = env!("CARGO_MANIFEST_DIR");

/// Builds `tests/programs/NAME.c` once and returns the path of the program. It is static, so that it starts quickly and
/// works in any root.
pub fn program(name: &str) -> PathBuf {
    static BUILT: OnceLock<std::sync::Mutex<std::collections::HashSet<String>>> = OnceLock::new();
    let source = format!("{PROJECT}/tests/programs/{name}.c");
    let target = PathBuf::from(format!("{TMP}/{}", name.replace('/', "-")));
    let mut built = BUILT.get_or_init(Default::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    // A program that is newer than all sources does not need to be built again.
    if built.insert(name.to_owned()) && !is_fresh(&target, &source) {
        // Other test binaries build it too. The atomic rename ensures that none of them executes an incomplete program.
        let fresh = format!("{}.{}", target.display(), std::process::id());
        let done = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-static", "-pthread", "-o", &fresh, &source])
            .status()
            .expect("cc is needed, as it is for cargo itself");
        assert!(done.success(), "{source} does not compile");
        std::fs::rename(&fresh, &target).unwrap();
    }
    target
}

fn is_fresh(target: &Path, source: &str) -> bool {
    let changed = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
    let sources = std::fs::read_dir(Path::new(source).parent().unwrap()).unwrap();
    let newest = sources.filter_map(|source| changed(&source.unwrap().path())).max();
    changed(target).is_some_and(|built| newest.is_some_and(|newest| built > newest))
}

/// A path in the tests' directory. It is removed when this value is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(label: &str) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Self(format!("{TMP}/{label}-{}-{number}", std::process::id()).into())
    }

    /// The same, as a directory that exists.
    pub fn directory(label: &str) -> Self {
        let scratch = Self::new(label);
        std::fs::create_dir(&scratch.0).unwrap();
        scratch
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.0).unwrap_or_default()).into_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.is_dir() {
            let _ = std::fs::remove_dir_all(&self.0);
        } else {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// A copy of the command under test that another user can execute: that user may not be able to enter the project's
/// directory.
pub struct PublicCopy(String);

impl PublicCopy {
    pub fn new(label: &str) -> Self {
        let path = format!("/tmp/pinfold-{label}-{}", std::process::id());
        // Another process copies it: a child that another thread forks must not keep the file open for writing.
        let copied = Command::new("install").args(["-m", "755", PINFOLD, &path]).status().unwrap();
        assert!(copied.success());
        Self(path)
    }

    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for PublicCopy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A process that belongs to no job and must outlive every job.
pub struct Canary(Child);

impl Canary {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Asserts that it lives, and ends it.
    pub fn assert_alive(mut self) {
        assert!(self.0.try_wait().unwrap().is_none(), "the canary process was ended");
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

/// Asserts that a job inherits the same as without pinfold, from a shell that runs `setup` and then `exec PREFIX
/// COMMAND SUFFIX`. Returns what it inherits, one item in a line (`tests/programs/inherited.c`).
pub fn assert_same_without_pinfold(setup: &str, prefix: &str, suffix: &str) -> String {
    let inherited = program("inherited");
    let (without, with) = (Scratch::new("without"), Scratch::new("with"));
    let calls = format!(r#"(exec {prefix} "$INHERITED" "$WITHOUT" {suffix}); exec {prefix} "$@" {suffix}"#);
    let script = format!("{setup}\n{calls}");
    let mut run = Run::in_shell(&script, [inherited.as_os_str(), with.path().as_os_str()]);
    run.command().env("INHERITED", &inherited).env("WITHOUT", without.path());
    let ran = run.run().assert_code(0);
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    let (without, with) = (without.text(), with.text());
    for (without, with) in without.lines().zip(with.lines()) {
        assert_eq!(with, without, "pinfold changes what the job inherits: {script}");
    }
    assert_eq!(with.lines().count(), without.lines().count(), "{script}");
    assert!(with.contains("/proc/self/personality"), "the output is incomplete: {with}");
    with
}

/// Polls a state outside pinfold of which the kernel gives no event, for up to 20 s: the children of a process, its
/// state, its program and its descriptors in /proc, the number of bytes in a pipe. For everything else there is
/// [`events`].
pub fn wait_for<T>(mut seen: impl FnMut() -> Option<T>) -> T {
    let begun = std::time::Instant::now();
    loop {
        if let Some(value) = seen() {
            return value;
        }
        assert!(begun.elapsed().as_secs() < 20, "waited 20 s in vain");
        std::thread::yield_now();
    }
}

/// Waits until a signal has stopped the process. The kernel reports that only to its parent (waitpid(2), WUNTRACED).
pub fn wait_until_stopped(pid: i32) {
    wait_for(|| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(") ").next()?.starts_with('T').then_some(())
    });
}

/// Returns how many times slower than usual this machine is. It is above 1 on emulated machines, where bounds on time
/// would not hold.
pub fn slowness() -> f64 {
    std::env::var("PINFOLD_TEST_SLOWNESS").ok().and_then(|factor| factor.parse().ok()).unwrap_or(1.0)
}

/// Prints a measured value, also for tests that pass.
pub fn measured(what: &str) {
    print_line(&format!("MEASURED {}: {what}", harness::running()));
}

/// Prints a line on standard error in one write, so that the lines of tests that run at the same time stay whole.
pub fn print_line(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Returns the directory of this process's own cgroup v2.
pub fn own_cgroup() -> PathBuf {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let mount = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let point = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| point.to_owned())
    });
    Path::new(&mount.unwrap_or_default()).join(own)
}

/// Makes a directory for PATH in which `timeout` is pinfold.
pub fn named_timeout() -> Scratch {
    let directory = Scratch::directory("by-name");
    std::os::unix::fs::symlink(PINFOLD, directory.path().join("timeout")).unwrap();
    directory
}

/// Returns PATH with that directory first.
pub fn path_with(directory: &Scratch) -> String {
    format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap())
}
