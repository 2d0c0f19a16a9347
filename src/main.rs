//! The `pinfold` command: parse, run, exit code.
//!
//! With glibc and musl it starts at C's `main`: what Rust's runtime does before its own is measurable here (it looks for the
//! end of the stack), and is not needed: [`pinfold::init_with`] sees to closed standard descriptors, and signals are queued.

#![deny(unsafe_code)]
#![cfg_attr(all(any(target_env = "gnu", target_env = "musl"), not(test)), no_main)]

mod cli;

use std::ffi::OsString;

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
    // Flushes standard output, which nothing else would do here.
    std::process::exit(cli::main(words).into())
}
