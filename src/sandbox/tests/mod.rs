//! Attacks on prepared sandboxes, by programs in `tests/programs/sandbox/`. Each test makes the same attempts without a
//! sandbox first: an attempt that fails there too shows nothing.

mod files;
mod harness;
mod kernel;
mod processes;
mod programs;
mod sockets;
