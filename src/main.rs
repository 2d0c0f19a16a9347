//! The `pinfold` command: parse, run, exit code.
//!
//! With glibc it starts at C's `main`: what Rust's runtime does before its own is measurable here (it reads
//! `/proc/self/maps` for a stack guard), and is not needed: [`pinfold::init`] sees to closed standard descriptors, and
//! signals are queued.

#![deny(unsafe_code)]
#![cfg_attr(all(target_env = "gnu", not(test)), no_main)]

mod cli;

#[cfg(all(target_env = "gnu", not(test)))]
mod entry {
    // SAFETY: this is the program's only `main`, with C's signature; the arguments are read through std.
    #[allow(unsafe_code)]
    #[unsafe(no_mangle)]
    extern "C" fn main(_argc: std::ffi::c_int, _argv: *const *const std::ffi::c_char) -> std::ffi::c_int {
        super::main()
    }
}

fn main() -> ! {
    pinfold::init();
    // Flushes standard output, which nothing else would do here.
    std::process::exit(cli::main().into())
}
