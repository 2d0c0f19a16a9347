//! Runs a program in a prepared sandbox, as the guard's child will: fork or vfork, the steps of [`super::super::apply`],
//! execve.

#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use super::super::apply::{Confinement, drop_privileges};
use super::super::machine::Machine;
use super::super::mounts::Ids;
use super::super::policy::Sandbox;
use super::super::prepare::{Prepared, Users, prepare};
use crate::kernel::landlock;
use crate::kernel::short_child;
use crate::kernel::syscall::{call, checked};

/// The user of the jobs, if the tests run as root.
pub const NOBODY: u32 = 65534;

/// Which user makes the sandbox, and which one the job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// An ordinary user has a job in a sandbox.
    Ordinary,
    /// Root has a job of another user in a sandbox.
    RootForAnother,
}

/// Returns the cases that can be tested here. Tests that run as root run once more as an ordinary user, see
/// [`again_as_an_ordinary_user`].
pub fn users() -> Vec<As> {
    if is_root() { vec![As::RootForAnother] } else { vec![As::Ordinary] }
}

/// A process that was root once could not have user namespaces of its own: the kernel gives its files in /proc to root.
#[test]
fn again_as_an_ordinary_user() {
    if !is_root() {
        return;
    }
    for name in ["files", "kernel", "privileges", "processes", "sockets"] {
        program(name);
    }
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["sandbox::", "--nocapture"]).uid(NOBODY).gid(NOBODY).current_dir("/").env(BUILT, "1");
    let done = tests.output().unwrap();
    let output = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{output}");
    assert!(output.contains("test result: ok"), "{output}");
    eprintln!("{output}");
}

/// In the environment of tests whose programs are built already.
const BUILT: &str = "PINFOLD_TEST_PROGRAMS_ARE_BUILT";

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns the ids of the job.
pub fn job_ids() -> Ids {
    match is_root() {
        true => Ids { uid: NOBODY, gid: NOBODY },
        false => Ids { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() },
    }
}

/// Builds `tests/programs/sandbox/NAME.c`, once in a run of the tests.
pub fn program(name: &str) -> PathBuf {
    static BUILDING: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let mut built = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let source = format!("{}/tests/programs/sandbox/{name}.c", env!("CARGO_MANIFEST_DIR"));
    let directory = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("tmp");
    let target = directory.join(format!("sandbox-{name}"));
    if !built.iter().any(|built| built == name) && std::env::var_os(BUILT).is_none() {
        std::fs::create_dir_all(&directory).unwrap();
        let fresh = directory.join(format!("sandbox-{name}.{}", std::process::id()));
        let done = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-static", "-pthread", "-o"])
            .args([&fresh, Path::new(&source)])
            .status()
            .expect("cc is needed, as it is for cargo itself");
        assert!(done.success(), "{source} does not compile");
        std::fs::rename(&fresh, &target).unwrap();
        built.push(name.to_owned());
    }
    target
}

/// A directory that belongs to the user of the jobs. Removed when this value is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("pinfold-sandbox-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        let scratch = Self(path);
        give_away(scratch.path());
        scratch
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn at(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Makes a file that belongs to the user of the jobs.
    pub fn file(&self, name: &str, mode: u32) -> String {
        let path = self.at(name);
        std::fs::write(&path, "a secret").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        give_away(Path::new(&path));
        path
    }

    pub fn directory(&self, name: &str) -> String {
        let path = self.at(name);
        std::fs::create_dir(&path).unwrap();
        give_away(Path::new(&path));
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn give_away(path: &Path) {
    if is_root() {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
}

/// A process of the job's user, outside of any sandbox. It ends when this value is dropped.
pub struct Victim(Child);

impl Victim {
    pub fn new() -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        Self(command.spawn().unwrap())
    }

    pub fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Stops it, and waits until it has stopped.
    pub fn stop(&self) {
        let pid = self.0.id() as libc::pid_t;
        // SAFETY: signals and waits for our own child, which stays a child.
        unsafe {
            assert_eq!(libc::kill(pid, libc::SIGSTOP), 0);
            assert_eq!(libc::waitpid(pid, std::ptr::null_mut(), libc::WUNTRACED), pid);
        }
    }

    /// Returns the letter of the process's state (proc_pid_stat(5)).
    pub fn state(&self) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap();
        stat.rsplit(')').next().unwrap().trim_start().chars().next().unwrap()
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// In place of something that lives as long as an attempt.
pub struct Nothing;

/// A value that lives as long as an attempt.
pub trait Kept {}

impl Kept for Nothing {}
impl Kept for Victim {}

/// How a program in a sandbox ended.
#[derive(Debug)]
pub struct Ran {
    /// What it wrote to standard output and standard error.
    pub output: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The step of the sandbox that failed, with its errno.
    pub failed: Option<i32>,
}

impl Ran {
    /// Returns the first line of the output, or the signal that ended the program.
    pub fn line(&self) -> String {
        match (self.signal, self.failed) {
            (_, Some(failed)) => format!("not started: {failed:?}"),
            (Some(signal), _) => format!("signal {signal}"),
            _ => self.output.lines().next().unwrap_or_default().to_owned(),
        }
    }
}

/// Everything that the child uses.
struct Launch {
    confinement: *const Confinement,
    ruleset: RawFd,
    user: As,
    ids: Option<Ids>,
    stdin: RawFd,
    output: RawFd,
    cwd: *const c_char,
    argv: *const *const c_char,
    env: *const *const c_char,
    /// In memory that the child shares.
    failed: *mut Option<i32>,
}

/// A run of a program.
pub struct Run<'a> {
    pub sandbox: Option<&'a Sandbox>,
    pub user: As,
    pub vfork: bool,
    pub words: Vec<CString>,
    pub env: Vec<CString>,
    pub cwd: CString,
    pub stdin: Option<File>,
}

impl<'a> Run<'a> {
    pub fn new<I: IntoIterator<Item: AsRef<std::ffi::OsStr>>>(words: I) -> Self {
        let words = words.into_iter().map(|word| CString::new(word.as_ref().as_bytes()).unwrap()).collect();
        let env = ["PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/nonexistent", "LC_ALL=C.UTF-8"];
        let env = env.map(|entry| CString::new(entry).unwrap()).to_vec();
        Self { sandbox: None, user: As::Ordinary, vfork: true, words, env, cwd: c"/".to_owned(), stdin: None }
    }

    pub fn within(mut self, sandbox: &'a Sandbox, user: As) -> Self {
        (self.sandbox, self.user) = (Some(sandbox), user);
        self
    }

    /// Prepares the sandbox as the supervisor would.
    fn prepared(&self) -> Option<Prepared> {
        let sandbox = self.sandbox?;
        let caller = if self.user == As::Ordinary { job_ids() } else { Ids { uid: 0, gid: 0 } };
        let users = Users { caller, job: job_ids() };
        Some(prepare(sandbox, Machine::get(), users, None).unwrap())
    }

    pub fn run(self) -> Ran {
        let prepared = self.prepared();
        let empty = Confinement::default();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let stdin = self.stdin.unwrap_or_else(|| File::open("/dev/null").unwrap());
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
        };
        let (argv, env) = (pointers(&self.words), pointers(&self.env));
        let failed = Sharedi32::new();
        let mut launch = Launch {
            confinement: prepared.as_ref().map_or(&raw const empty, |prepared| &raw const prepared.confinement),
            ruleset: prepared.as_ref().and_then(|prepared| prepared.ruleset.as_ref()).map_or(-1, AsRawFd::as_raw_fd),
            user: self.user,
            ids: is_root().then(job_ids),
            stdin: stdin.as_raw_fd(),
            output: writer.as_raw_fd(),
            cwd: self.cwd.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            failed: failed.0,
        };
        let is_bare = prepared.is_none();
        let status = if self.vfork {
            let entry = if is_bare { bare } else { confined };
            // SAFETY: the entries make only system calls, on memory that lives until the child has ended.
            unsafe { short_child::run(entry, (&raw mut launch).cast()) }.unwrap()
        } else {
            // SAFETY: the child calls only an entry, see above, and ends.
            unsafe {
                let pid = libc::fork();
                assert!(pid >= 0);
                if pid == 0 {
                    let code = if is_bare { bare } else { confined }((&raw mut launch).cast());
                    libc::_exit(code);
                }
                let mut status = 0;
                assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
                status
            }
        };
        drop(writer);
        let mut output = Vec::new();
        reader.read_to_end(&mut output).unwrap();
        Ran {
            output: String::from_utf8_lossy(&output).into_owned(),
            code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
            signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
            failed: failed.get(),
        }
    }
}

/// Memory that a forked child shares with this process.
struct Sharedi32(*mut Option<i32>);

impl Sharedi32 {
    fn new() -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping, large enough and aligned for the value.
        unsafe {
            let page =
                libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1, 0);
            assert_ne!(page, libc::MAP_FAILED);
            let failed = page.cast::<Option<i32>>();
            failed.write(None);
            Self(failed)
        }
    }

    fn get(&self) -> Option<i32> {
        // SAFETY: the child that wrote it has ended.
        unsafe { *self.0 }
    }
}

impl Drop for Sharedi32 {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, and not used any more.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

/// The child without a sandbox.
extern "C" fn bare(argument: *mut c_void) -> c_int {
    // SAFETY: as in `confined`.
    unsafe {
        let launch = &*argument.cast::<Launch>();
        streams(launch);
        become_user(launch);
        execute(launch)
    }
}

/// The child of a sandbox: the order of the steps is that of the guard's child.
extern "C" fn confined(argument: *mut c_void) -> c_int {
    // SAFETY: the argument points to a launch that outlives this process, which makes only system calls.
    unsafe {
        let launch = &*argument.cast::<Launch>();
        let confinement = &*launch.confinement;
        streams(launch);
        call(libc::SYS_setsid, []);
        let mut done = confinement.enter(launch.ruleset);
        if launch.user == As::RootForAnother {
            become_user(launch);
        }
        call(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0]);
        done = done.and_then(|()| drop_privileges());
        if launch.ruleset >= 0 {
            done = done.and_then(|()| landlock::restrict_self(launch.ruleset));
        }
        done = done.and_then(|()| {
            let none = 0_u64;
            let arguments = [libc::SIG_SETMASK as usize, &raw const none as usize, 0, size_of::<u64>()];
            call(libc::SYS_rt_sigprocmask, arguments);
            confinement.filter()
        });
        if let Err(failed) = done {
            *launch.failed = Some(failed);
            return 125;
        }
        execute(launch)
    }
}

unsafe fn streams(launch: &Launch) {
    // SAFETY: descriptors of this process.
    unsafe {
        call(libc::SYS_dup3, [launch.stdin as usize, 0, 0]);
        call(libc::SYS_dup3, [launch.output as usize, 1, 0]);
        call(libc::SYS_dup3, [launch.output as usize, 2, 0]);
    }
}

unsafe fn become_user(launch: &Launch) {
    let Some(Ids { uid, gid }) = launch.ids else { return };
    let (uid, gid) = (uid as usize, gid as usize);
    // SAFETY: credentials of this process only.
    unsafe {
        call(libc::SYS_setgroups, [0, 0]);
        call(libc::SYS_setresgid, [gid, gid, gid]);
        call(libc::SYS_setresuid, [uid, uid, uid]);
    }
}

unsafe fn execute(launch: &Launch) -> c_int {
    // SAFETY: arrays of strings that end with null, and a string.
    unsafe {
        call(libc::SYS_chdir, [launch.cwd as usize]);
        // A mask that the maker set for the time of the start.
        let none = 0_u64;
        let arguments = [libc::SIG_SETMASK as usize, &raw const none as usize, 0, size_of::<u64>()];
        call(libc::SYS_rt_sigprocmask, arguments);
        // Descriptors of the maker of the tests. The guard has none that a job could inherit.
        call(libc::SYS_close_range, [3, u32::MAX as usize, libc::CLOSE_RANGE_CLOEXEC as usize]);
        let program = *launch.argv as usize;
        let errno = checked(libc::SYS_execve, [program, launch.argv as usize, launch.env as usize]).unwrap_err();
        *launch.failed = Some(errno);
        126
    }
}

/// Makes attempts of one program in a sandbox and without one. Each row: the attempt, what it prints in the sandbox, and
/// whether it works without.
pub struct Table<'a> {
    pub program: &'a str,
    pub sandbox: Sandbox,
    pub rows: &'a [(&'a str, &'a str, Outside)],
}

/// The result of an attempt without a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It works, and so its failure in a sandbox is due to the sandbox.
    Works,
    /// It depends on the machine, or would do harm.
    NotTried,
}

impl Table<'_> {
    /// Runs all rows, with arguments that `arguments` makes for each run. Returns what was different than expected.
    pub fn differences(mut self, arguments: impl Fn() -> (Vec<String>, Box<dyn Kept>)) -> Vec<String> {
        let program = program(self.program);
        assert!(program.metadata().unwrap().mode() & 0o005 == 0o005);
        self.sandbox.read(&program);
        let mut differences = Vec::new();
        let words = |attempt: &str, arguments: Vec<String>| {
            let program = program.to_str().unwrap().to_owned();
            [program, attempt.to_owned()].into_iter().chain(arguments).collect::<Vec<_>>()
        };
        for (attempt, expected, outside) in self.rows {
            if *outside == Outside::Works {
                let (arguments, _kept) = arguments();
                let line = Run::new(words(attempt, arguments)).run().line();
                if line != "allowed" {
                    differences.push(format!("{attempt} without a sandbox: {line}"));
                }
            }
            for (user, vfork) in users().into_iter().flat_map(|user| [(user, true), (user, false)]) {
                let (arguments, _kept) = arguments();
                let mut run = Run::new(words(attempt, arguments)).within(&self.sandbox, user);
                run.vfork = vfork;
                let line = run.run().line();
                if line != *expected {
                    differences.push(format!("{attempt} as {user:?}, vfork {vfork}: {line}, expected {expected}"));
                }
            }
        }
        differences
    }
}
