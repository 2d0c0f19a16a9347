//! The `pinfold` command: it parses the arguments, runs the subcommand, and ends with the exit code.
//!
//! With glibc and musl the program starts at C's `main`. The work of Rust's runtime before Rust's own `main` takes a
//! measurable time here (it looks for the end of the stack), and pinfold does not need it: [`pinfold::init_with`]
//! handles closed standard descriptors, and pinfold reads signals from a queue.

#![deny(unsafe_code)]
#![cfg_attr(all(any(target_env = "gnu", target_env = "musl"), not(test)), no_main)]

mod cli;

use std::ffi::OsString;

use rustix::process::{Resource, getrlimit};

#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[cfg(all(any(target_env = "gnu", target_env = "musl"), not(test)))]
mod entry {
    use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
    use std::os::unix::ffi::OsStrExt;

    // SAFETY: this is the program's only `main`, with C's signature.
    #[allow(unsafe_code)]
    #[unsafe(no_mangle)]
    extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
        // musl does not give the arguments to Rust's standard library.
        let words: Vec<OsString> = (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: C's runtime passes `count` pointers to strings that end with NUL and live as long as the program.
            .map(|index| unsafe { CStr::from_ptr(*words.add(index)) })
            .map(|word| OsStr::from_bytes(word.to_bytes()).to_owned())
            .collect();
        super::start(&words)
    }
}

#[cfg(not(all(any(target_env = "gnu", target_env = "musl"), not(test))))]
fn main() -> ! {
    let words: Vec<OsString> = std::env::args_os().collect();
    start(&words)
}

fn start(words: &[OsString]) -> ! {
    pinfold::init_with(words);
    if let Err(message) = enough_stack(words) {
        eprintln!("pinfold: {message}");
        std::process::exit(125);
    }
    // `exit` flushes standard output. Rust's runtime, which flushes it elsewhere, does not run here.
    std::process::exit(cli::main(words).into())
}

/// Checks that the limit on the stack is large enough. A process that exceeds this limit receives SIGSEGV, without an
/// explanation (getrlimit(2), RLIMIT_STACK).
///
/// # Errors
/// A message with the limit and what pinfold needs.
fn enough_stack(words: &[OsString]) -> Result<(), String> {
    /// The frames of a release build are much smaller.
    const NEEDED: u64 = if cfg!(debug_assertions) { 512 << 10 } else { 256 << 10 };
    let limit = getrlimit(Resource::Stack);
    let word = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    // These subcommands start their guard first, because the jobs inherit the guard's limit. Then they raise their own
    // limit as far as the hard limit allows.
    let raises = ["run", "watch"].contains(&word);
    match if raises { limit.maximum } else { limit.current } {
        Some(bytes) if bytes < NEEDED => Err(format!(
            "the limit on the stack is {} KiB, but pinfold needs {} KiB: raise it (ulimit -s)",
            bytes >> 10,
            NEEDED >> 10
        )),
        _ => Ok(()),
    }
}
