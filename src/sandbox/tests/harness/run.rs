//! Runs a program in a prepared sandbox as the guard's child does: fork or vfork, the steps of [`apply`], execve.
//!
//! [`apply`]: crate::sandbox::apply

#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use super::launch::{Launch, bare, confined};
use super::users::{As, is_root, job_ids};
use crate::kernel::short_child;
use crate::sandbox::apply::Confinement;
use crate::sandbox::cache::Cache;
use crate::sandbox::denials::{self, DenialListener, Members, Record};
use crate::sandbox::machine::Machine;
use crate::sandbox::mounts::Ids;
use crate::sandbox::policy::Sandbox;
use crate::sandbox::prepare::{Prepared, Users, prepare};

/// How a program in a sandbox ended.
#[derive(Debug)]
pub struct Ran {
    /// What it wrote to standard output and standard error.
    pub output: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// The step of the sandbox that failed, with its errno.
    pub failed: Option<i32>,
    pub refused: Record,
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

/// A run of a program.
pub struct Run<'a> {
    pub sandbox: Option<&'a Sandbox>,
    pub user: As,
    pub vfork: bool,
    /// Whether the sandbox explains its denials.
    pub explain: bool,
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
        let cwd = c"/".to_owned();
        Self { sandbox: None, user: As::Ordinary, vfork: true, explain: false, words, env, cwd, stdin: None }
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
        let mut sandbox = sandbox.clone();
        sandbox.explain_denials(self.explain);
        Some(prepare(&sandbox, Machine::get(), users, None, &Cache::default()).unwrap())
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
        let explainer = prepared.as_ref().and_then(|prepared| prepared.explainer.clone());
        let explain = |explainer| {
            let (ours, theirs) = denials::channel().unwrap();
            // No process except the caller itself counts as a part of the job.
            (DenialListener::start(explainer, ours, Members::DescendantsOf(i32::MAX)).unwrap(), theirs)
        };
        let (denial_listener, listener) = explainer.map(explain).unzip();
        let mut launch = Launch {
            confinement: prepared.as_ref().map_or(&raw const empty, |prepared| &raw const prepared.confinement),
            ruleset: prepared.as_ref().and_then(|prepared| prepared.ruleset.as_ref()).map_or(-1, AsRawFd::as_raw_fd),
            listener: listener.as_ref().map_or(-1, AsRawFd::as_raw_fd),
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
            refused: denial_listener.map(|denial_listener| denial_listener.record()).unwrap_or_default(),
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
