//! What `pinfold run` has to have before it can start anything.

use std::fs::File;

use pinfold::Guard;
use pinfold::signal::SignalQueue;
use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::cli::terminal::Terminal;

/// So many descriptors the rest takes (15, and 3 for a tokio that has been built with its signals), once the signals, the
/// guard, the terminal and the report have theirs.
const DESCRIPTORS: usize = 18;

/// What has to be there before anything else, in this order.
pub struct Prepared {
    pub signals: SignalQueue,
    pub terminal: Option<Terminal>,
    pub guard: Guard,
    /// How many files may be open at once, where that is told.
    pub open_files: Option<u64>,
}

impl Prepared {
    pub fn new() -> pinfold::Result<Self> {
        // No signal may end pinfold from here on, and what the terminal was like is known only before the guard exists.
        let signals = SignalQueue::block_all()?;
        let terminal = Terminal::open();
        let guard = Guard::fork()?;
        let open_files = pinfold::raise_own_limits();
        Ok(Self { signals, terminal, guard, open_files })
    }

    /// Whether there are as many descriptors to be had as a run takes: what is too little is better told now than in the middle.
    pub fn enough_descriptors(&self) -> pinfold::Result<()> {
        const PLENTY: u64 = 4096;
        let limit = self.open_files;
        if limit.is_none_or(|limit| limit >= PLENTY) {
            return Ok(());
        }
        let null = File::open("/").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let had: Result<Vec<_>, _> =
            null.and_then(|null| (1..DESCRIPTORS).map(|_| fcntl_dupfd_cloexec(&null, 0)).collect());
        had.map(drop).map_err(|errno| pinfold::Error::System {
            operation: "take",
            object: format!("{DESCRIPTORS} descriptors"),
            errno,
            advice: format!(
                "the hard limit on open files is {}: close some of those that are open, or see ulimit -Hn",
                limit.unwrap_or_default()
            ),
        })
    }
}
