//! Before `main`: what the kernel gave this process, and the start as a guard.
//!
//! The C library calls the functions of `.init_array` before it calls `main`, and those of a library when it loads that
//! (System V ABI, "Initialization and Termination Functions"). Ours runs before most others, since it has a low priority number.
//! So each program that has this library in it is a guard program, whatever its `main` does first.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::guard;
use crate::kernel::inherited;

/// The start of the environment that the kernel gave, as long as the constructor has seen that.
static ENVIRONMENT: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());

/// The constructor ran.
static RAN: AtomicBool = AtomicBool::new(false);

/// Standard input is a guard's socket, and the arguments could not be read: `init_with` gets them.
static UNDECIDED: AtomicBool = AtomicBool::new(false);

/// Standard input is such a socket, and no argument asks for a guard.
static NOT_ASKED: AtomicBool = AtomicBool::new(false);

/// glibc passes the arguments of `main`; musl passes nothing, and `words` is not looked at there.
extern "C" fn before_main(count: c_int, words: *const *const c_char, environment: *const *const c_char) {
    if cfg!(miri) {
        return;
    }
    inherited::read_before_main();
    RAN.store(true, Ordering::Relaxed);
    let environment = first_variable(environment);
    ENVIRONMENT.store(environment.cast_mut(), Ordering::Relaxed);
    // One system call tells almost every other process from a guard.
    if !has_guard_socket() {
        return;
    }
    match last_argument(count, words) {
        Some(last) => become_asked(&last),
        None => UNDECIDED.store(true, Ordering::Relaxed),
    }
}

/// Starts as a guard where this argument asks for it. Comes back where it does not.
fn become_asked(last: &[u8]) {
    guard::become_asked(last);
    NOT_ASKED.store(true, Ordering::Relaxed);
}

/// For what the constructor could not do: starts as a guard where these arguments ask for it.
pub(crate) fn decide(last: Option<&OsStr>) {
    if UNDECIDED.swap(false, Ordering::Relaxed)
        && let Some(last) = last
    {
        become_asked(last.as_bytes());
    }
}

#[allow(unsafe_code)]
mod constructor {
    use std::ffi::{c_char, c_int};

    pub type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

    // SAFETY: the C library calls each entry of .init_array once, before main. Ours makes a few system calls and touches a few
    // atomics; only in a process that is to be a guard, which never comes back, it does more. Entries with a number are called
    // before those without one, and the lower numbers first.
    #[used]
    #[unsafe(link_section = ".init_array.00098")]
    pub static CONSTRUCTOR: Constructor = super::before_main;
}

/// The last argument, as bytes without NUL; none where it is not known.
#[allow(unsafe_code)]
fn last_argument(count: c_int, words: *const *const c_char) -> Option<Vec<u8>> {
    if cfg!(target_env = "gnu") {
        let last = usize::try_from(count).ok()?.checked_sub(1)?;
        // SAFETY: glibc passes so many pointers to strings that end with NUL, here and for a library that is loaded later
        // (elf/dl-init.c).
        return Some(unsafe { CStr::from_ptr(*words.add(last)) }.to_bytes().to_owned());
    }
    let words = std::fs::read("/proc/self/cmdline").ok()?;
    Some(words.strip_suffix(b"\0")?.rsplit(|&byte| byte == 0).next()?.to_owned())
}

/// The first variable's text.
#[allow(unsafe_code)]
fn first_variable(passed: *const *const c_char) -> *const c_char {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: nothing changes the environment before main; glibc passes it, and musl has set it (environ(7)).
    unsafe {
        let environment = if cfg!(target_env = "gnu") { passed } else { environ };
        if environment.is_null() { std::ptr::null() } else { *environment }
    }
}

/// Whether standard input is a socket as the guard's.
fn has_guard_socket() -> bool {
    let Some(stdin) = crate::kernel::sys::inherited_fd(0) else { return false };
    sockopt::socket_type(stdin).is_ok_and(|kind| kind == SocketType::SEQPACKET)
        && sockopt::socket_domain(stdin).is_ok_and(|domain| domain == AddressFamily::UNIX)
}

/// Whether a supervisor takes this process for its guard, and its arguments do not say so: the program would start itself again
/// and again.
pub(crate) fn has_guards_stdin() -> bool {
    NOT_ASKED.load(Ordering::Relaxed) && has_guard_socket() && guard::is_greeted(std::io::stdin())
}

/// Overwrites the environment that the kernel shows of this process (`/proc/PID/environ`, proc_pid_environ(5)). Only for a
/// guard: engines end processes by a variable that they find there.
#[allow(unsafe_code)]
pub(crate) fn clear_environment() {
    /// MAX_ARG_STRLEN and the rest of the kernel's limits leave no room for more (execve(2), "Limits on size").
    const MOST: usize = 6 << 20;
    let first = ENVIRONMENT.load(Ordering::Relaxed);
    // SAFETY: getauxval(3) has no obligations.
    let end = unsafe { libc::getauxval(libc::AT_EXECFN) } as usize;
    let length = end.wrapping_sub(first as usize);
    // The kernel writes the arguments, the environment and the name of the executed file, in this order and without gaps
    // (fs/exec.c, fs/binfmt_elf.c). Where the first variable has been moved elsewhere meanwhile, the distance shows it.
    if first.is_null() || length > MOST {
        return;
    }
    // SAFETY: this memory is the process's initial stack, which stays; the guard has one thread and reads no variable.
    unsafe { std::ptr::write_bytes(first.cast::<u8>(), 0, length) };
}

/// Where this library is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In the program that this process executes: that is a guard program.
    Program,
    /// In a shared library. The program is one that can be made to load it first, or not.
    Library { path: PathBuf, dynamic: bool },
    /// The constructor did not run.
    NoConstructor,
}

/// Where this library is in this process.
pub(crate) fn home() -> Home {
    // Read, so that a linker that takes only what is needed from an archive takes the constructor too.
    let constructor = std::hint::black_box(&constructor::CONSTRUCTOR);
    if !RAN.load(Ordering::Relaxed) {
        return Home::NoConstructor;
    }
    let mut search = Search { address: *constructor as usize, number: 0, dynamic: false, found: None };
    search.run();
    match search.found {
        Some((0, _)) => Home::Program,
        Some((_, path)) => Home::Library { path, dynamic: search.dynamic },
        None => Home::NoConstructor,
    }
}

/// Looks for the object that an address is in (dl_iterate_phdr(3): the first object is the main program).
struct Search {
    address: usize,
    number: usize,
    /// The main program has a dynamic loader.
    dynamic: bool,
    found: Option<(usize, PathBuf)>,
}

impl Search {
    #[allow(unsafe_code)]
    fn run(&mut self) {
        // SAFETY: the callback gets a pointer to this structure, which outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::from_mut(self).cast()) };
    }
}

#[allow(unsafe_code)]
unsafe extern "C" fn visit(object: *mut libc::dl_phdr_info, _size: libc::size_t, search: *mut c_void) -> c_int {
    // SAFETY: the loader passes one object with its program headers; `search` is what `run` has passed.
    let (object, search) = unsafe { (&*object, &mut *search.cast::<Search>()) };
    // SAFETY: as above.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    if search.number == 0 {
        search.dynamic = headers.iter().any(|header| header.p_type == libc::PT_INTERP);
    }
    let offset = search.address.wrapping_sub(object.dlpi_addr as usize);
    let holds = |header: &libc::Elf64_Phdr| {
        header.p_type == libc::PT_LOAD && offset.wrapping_sub(header.p_vaddr as usize) < header.p_memsz as usize
    };
    if headers.iter().any(holds) {
        let name = if object.dlpi_name.is_null() {
            c""
        } else {
            // SAFETY: a string that ends with NUL and stays as long as the object.
            unsafe { CStr::from_ptr(object.dlpi_name) }
        };
        search.found = Some((search.number, OsStr::from_bytes(name.to_bytes()).into()));
        return 1;
    }
    search.number += 1;
    0
}

/// Whether this process has more rights than the user that started it: a set-user-ID program, or one with file capabilities
/// (AT_SECURE, getauxval(3)). Its environment is not to be trusted.
#[allow(unsafe_code)]
pub(crate) fn is_privileged() -> bool {
    // SAFETY: getauxval(3) has no obligations.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
