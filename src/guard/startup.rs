//! Code that runs before `main` of the host: it records what this process received from the kernel, and becomes the
//! guard where this process was started as one.
//!
//! The C library calls the functions of `.init_array` before it calls `main`. It calls those of a shared library when
//! it loads the library (System V ABI, "Initialization and Termination Functions"). Our function runs before most
//! others, since it has a low priority number. So each program that contains this library is a guard program, whatever
//! its `main` does first.

use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use rustix::net::{AddressFamily, SocketType, sockopt};

use crate::guard;
use crate::kernel::{descriptor, inherited};

/// The address of the environment that the kernel provided, as the constructor found it.
static ENVIRONMENT: AtomicPtr<c_char> = AtomicPtr::new(std::ptr::null_mut());

/// The constructor has run.
static RAN: AtomicBool = AtomicBool::new(false);

/// Standard input is a guard's socket, and the constructor could not read the arguments. `init_with` receives the
/// arguments and decides.
static UNDECIDED: AtomicBool = AtomicBool::new(false);

/// Standard input is a guard's socket, and no argument asks this process to be a guard.
static NOT_REQUESTED: AtomicBool = AtomicBool::new(false);

/// glibc passes the arguments of `main` to a constructor. musl passes nothing, so these arguments are not read there.
extern "C" fn before_main(argc: c_int, argv: *const *const c_char, environment: *const *const c_char) {
    if cfg!(miri) {
        return;
    }
    inherited::read_before_main();
    RAN.store(true, Ordering::Relaxed);
    let environment = first_variable(environment);
    ENVIRONMENT.store(environment.cast_mut(), Ordering::Relaxed);
    // Almost every process that is not a guard returns after this one system call.
    if !has_guard_socket() {
        return;
    }
    match last_argument(argc, argv) {
        Some(last) => become_guard_if_requested(&last),
        None => UNDECIDED.store(true, Ordering::Relaxed),
    }
}

/// Starts as a guard if this argument asks for it; returns if not.
fn become_guard_if_requested(last: &[u8]) {
    guard::become_guard_if_requested(last);
    NOT_REQUESTED.store(true, Ordering::Relaxed);
}

/// Does what the constructor could not do: starts as a guard if these arguments ask for it.
pub(crate) fn decide(last: Option<&OsStr>) {
    if UNDECIDED.swap(false, Ordering::Relaxed)
        && let Some(last) = last
    {
        become_guard_if_requested(last.as_bytes());
    }
}

#[allow(unsafe_code)]
mod constructor {
    use std::ffi::{c_char, c_int};

    pub type Constructor = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

    // SAFETY: the C library calls each entry of .init_array once, before main. Ours makes a few system calls and uses a
    // few atomics. It does more only in a process that becomes a guard, where it never returns. Entries with a number
    // are called before those without one, lower numbers first.
    #[used]
    #[unsafe(link_section = ".init_array.00098")]
    pub static CONSTRUCTOR: Constructor = super::before_main;
}

/// Returns the last argument, as bytes without NUL; `None` if it is not known.
#[allow(unsafe_code)]
fn last_argument(argc: c_int, argv: *const *const c_char) -> Option<Vec<u8>> {
    if cfg!(target_env = "gnu") {
        let last = usize::try_from(argc).ok()?.checked_sub(1)?;
        // SAFETY: glibc passes `argc` pointers to strings that end with NUL, here and for a library that is loaded
        // later (elf/dl-init.c).
        return Some(unsafe { CStr::from_ptr(*argv.add(last)) }.to_bytes().to_owned());
    }
    let arguments = std::fs::read("/proc/self/cmdline").ok()?;
    Some(arguments.strip_suffix(b"\0")?.rsplit(|&byte| byte == 0).next()?.to_owned())
}

/// Returns a pointer to the text of the first environment variable.
#[allow(unsafe_code)]
fn first_variable(passed: *const *const c_char) -> *const c_char {
    unsafe extern "C" {
        static environ: *const *const c_char;
    }
    // SAFETY: nothing changes the environment before main. glibc passes it as an argument; musl has set `environ`
    // (environ(7)).
    unsafe {
        let environment = if cfg!(target_env = "gnu") { passed } else { environ };
        if environment.is_null() { std::ptr::null() } else { *environment }
    }
}

/// Returns whether standard input is a socket of the type that a guard has.
#[allow(unsafe_code)]
fn has_guard_socket() -> bool {
    if !descriptor::is_open(0) {
        return false;
    }
    // SAFETY: it is open, and no other code runs before `main` that could close it.
    let stdin = unsafe { BorrowedFd::borrow_raw(0) };
    sockopt::socket_type(stdin).is_ok_and(|kind| kind == SocketType::SEQPACKET)
        && sockopt::socket_domain(stdin).is_ok_and(|domain| domain == AddressFamily::UNIX)
}

/// Returns whether a supervisor expects this process to be its guard, although its arguments do not ask for a guard.
/// Such a program would start itself again and again.
pub(crate) fn has_guards_stdin() -> bool {
    NOT_REQUESTED.load(Ordering::Relaxed) && has_guard_socket() && guard::has_first_message(std::io::stdin())
}

/// Overwrites the environment that the kernel shows of this process (`/proc/PID/environ`, proc_pid_environ(5)). Only
/// for a guard. Reason: some CI engines end each process that has a certain variable in its environment.
#[allow(unsafe_code)]
pub(crate) fn clear_environment() {
    /// MAX_ARG_STRLEN and the kernel's other limits allow no larger environment (execve(2), "Limits on size").
    const MAX_SIZE: usize = 6 << 20;
    let first = ENVIRONMENT.load(Ordering::Relaxed);
    // SAFETY: getauxval(3) has no obligations.
    let end = unsafe { libc::getauxval(libc::AT_EXECFN) } as usize;
    let length = end.wrapping_sub(first as usize);
    // The kernel writes the arguments, the environment and the name of the executed file in this order and without gaps
    // (fs/exec.c, fs/binfmt_elf.c). If the first variable has been moved to other memory since, the distance is too
    // large, and nothing is overwritten.
    if first.is_null() || length > MAX_SIZE {
        return;
    }
    // SAFETY: this memory is the process's initial stack, which stays mapped. The guard has one thread and reads no
    // variable.
    unsafe { std::ptr::write_bytes(first.cast::<u8>(), 0, length) };
}

/// Where this library is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LibraryLocation {
    /// In the program that this process executes, which is therefore a guard program.
    Program,
    /// In a shared library. `dynamic` says that the program has a dynamic loader, which can load the library first.
    Library { path: PathBuf, dynamic: bool },
    /// The constructor did not run.
    NoConstructor,
}

/// Returns where this library is in this process.
pub(crate) fn library_location() -> LibraryLocation {
    // A linker takes only referenced objects from an archive; this read is the reference that makes it include the
    // constructor.
    let constructor = std::hint::black_box(&constructor::CONSTRUCTOR);
    if !RAN.load(Ordering::Relaxed) {
        return LibraryLocation::NoConstructor;
    }
    let mut search = Search { address: *constructor as usize, number: 0, dynamic: false, found: None };
    search.run();
    match search.found {
        Some((0, _)) => LibraryLocation::Program,
        Some((_, path)) => LibraryLocation::Library { path, dynamic: search.dynamic },
        None => LibraryLocation::NoConstructor,
    }
}

/// Searches for the object that contains an address (dl_iterate_phdr(3): the first object is the main program).
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
        // SAFETY: the callback receives a pointer to this structure, which outlives the call.
        unsafe { libc::dl_iterate_phdr(Some(visit), std::ptr::from_mut(self).cast()) };
    }
}

#[allow(unsafe_code)]
unsafe extern "C" fn visit(object: *mut libc::dl_phdr_info, _size: libc::size_t, search: *mut c_void) -> c_int {
    // SAFETY: the loader passes one object with its program headers; `search` is the pointer that `run` has passed.
    let (object, search) = unsafe { (&*object, &mut *search.cast::<Search>()) };
    // SAFETY: the program headers are an array of `dlpi_phnum` elements in the object's memory, which stays mapped
    // during the visit (dl_iterate_phdr(3)).
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
            // SAFETY: a string that ends with NUL and lives as long as the object.
            unsafe { CStr::from_ptr(object.dlpi_name) }
        };
        search.found = Some((search.number, OsStr::from_bytes(name.to_bytes()).into()));
        return 1;
    }
    search.number += 1;
    0
}

/// Returns whether this process has more rights than the user that started it: a set-user-ID program, or one with file
/// capabilities (AT_SECURE, getauxval(3)). Then its environment cannot be trusted.
#[allow(unsafe_code)]
pub(crate) fn is_privileged() -> bool {
    // SAFETY: getauxval(3) has no obligations.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
