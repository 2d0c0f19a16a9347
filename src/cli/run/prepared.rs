//! The resources that `pinfold run` needs before it can start anything.

use std::fs::File;

use rustix::io::{Errno, fcntl_dupfd_cloexec};

use crate::Guard;
use crate::cli::terminal::Terminal;
use crate::kernel::inherited;
use crate::kernel::own_signals::SignalQueue;

/// The number of descriptors that a run needs in addition to those of the signals, the guard, the terminal and the
/// report: 15, and 3 more where tokio was built with its signal support.
const DESCRIPTORS: usize = 18;

/// The resources that must exist before anything else, in this order.
pub struct Prepared {
    pub signals: SignalQueue,
    pub terminal: Option<Terminal>,
    pub guard: Guard,
    /// The limit on open files, where it is known.
    pub open_files: Option<u64>,
}

impl Prepared {
    pub fn new() -> crate::Result<Self> {
        // From here on no signal may end pinfold. Read the state of the terminal before the guard exists, because the
        // guard changes whether the process group is orphaned.
        let signals = SignalQueue::block_all()?;
        let terminal = Terminal::open();
        let guard = Guard::fork()?;
        let open_files = inherited::raise_own_limits();
        Ok(Self { signals, terminal, guard, open_files })
    }

    /// Checks that as many descriptors are available as a run needs. An error now is better than one in the middle of
    /// the run.
    ///
    /// # Errors
    /// The errno of the descriptor that could not be allocated.
    pub fn enough_descriptors(&self) -> crate::Result<()> {
        const PLENTY: u64 = 4096;
        let limit = self.open_files;
        if limit.is_none_or(|limit| limit >= PLENTY) {
            return Ok(());
        }
        let root = File::open("/").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO));
        let allocated: Result<Vec<_>, _> =
            root.and_then(|root| (1..DESCRIPTORS).map(|_| fcntl_dupfd_cloexec(&root, 0)).collect());
        allocated.map(drop).map_err(|errno| crate::Error::System {
            operation: "open",
            object: format!("{DESCRIPTORS} descriptors"),
            source: errno.into(),
            advice: format!(
                "the hard limit on open files is {}: close some open files, or see ulimit -Hn",
                limit.unwrap_or_default()
            ),
        })
    }
}
