//! Attacks on prepared sandboxes, by programs in `tests/programs/sandbox/`. Each test first makes the same attempts
//! without a sandbox. If an attempt fails there too, its failure in the sandbox proves nothing.

mod files;
mod harness;
mod kernel;
mod processes;
mod programs;
mod sockets;
