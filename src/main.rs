//! The `pinfold` command: parse, run, exit code.
//!
//! With glibc and musl it starts at C's `main`: what Rust's runtime does before its own is measurable here (it looks for the
//! end of the stack), and is not needed: [`pinfold::init_with`] sees to closed standard descriptors, and signals are queued.

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
        // musl tells Rust's standard library nothing of the arguments.
        let words: Vec<OsString> = (0..usize::try_from(count).unwrap_or(0))
            // SAFETY: C's runtime passes so many pointers to strings that end with NUL and live as long as the program.
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
    // Flushes standard output, which nothing else would do here.
    std::process::exit(cli::main(words).into())
}

/// A process whose stack is at its limit receives SIGSEGV, which explains nothing (getrlimit(2), RLIMIT_STACK).
///
/// # Errors
/// A message with the limit and what pinfold needs.
fn enough_stack(words: &[OsString]) -> Result<(), String> {
    /// A release build has much smaller frames.
    const NEEDED: u64 = if cfg!(debug_assertions) { 512 << 10 } else { 256 << 10 };
    let limit = getrlimit(Resource::Stack);
    let word = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    // These start their guard first, whose limit is that of the jobs, and then raise their own as far as the hard limit allows.
    let raises = ["run", "watch"].contains(&word);
    match if raises { limit.maximum } else { limit.current } {
        Some(bytes) if bytes < NEEDED => Err(format!(
            "the limit on the stack is {} KiB, and pinfold needs {}: raise it (ulimit -s)",
            bytes >> 10,
            NEEDED >> 10
        )),
        _ => Ok(()),
    }
}
