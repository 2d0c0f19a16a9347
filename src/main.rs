//! The start of the `pinfold` command. The command itself is `src/cli/`, a module of the library.
//!
//! With glibc and musl the program starts at C's `main`. The work of Rust's runtime before Rust's own `main` takes a
//! measurable time here (it looks for the end of the stack), and pinfold does not need it: it handles
//! closed standard descriptors itself, and it reads signals from a queue.

#![deny(unsafe_code)]
#![cfg_attr(all(any(target_env = "gnu", target_env = "musl"), not(test)), no_main)]

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
        pinfold::cli::main(&words)
    }
}

#[cfg(not(all(any(target_env = "gnu", target_env = "musl"), not(test))))]
fn main() -> ! {
    let words: Vec<_> = std::env::args_os().collect();
    pinfold::cli::main(&words)
}
