//! Lets the guards restore the terminal settings that the `pinfold` command changes for its job.

use std::os::fd::AsFd;

use super::Supervisor;
use crate::error::{Error, Result};
use crate::guard::protocol::ToGuard;
use crate::guard::terminal::Settings;

impl Supervisor {
    /// Asks the guards that run now to restore the current settings of this terminal when this process is gone, however
    /// it ends. Call this method before the settings are changed. If another process group is the terminal's foreground
    /// group by then (for example a shell with job control), the guards do not touch the settings.
    ///
    /// Cancel-safe: each guard has either received the request or not.
    ///
    /// # Errors
    /// `ENOTTY` if the descriptor is not a terminal; [`Error::GuardLost`].
    pub(crate) async fn restore_terminal_at_exit(&self, terminal: impl AsFd) -> Result<()> {
        let failed = |errno| Error::system("read", "the settings of the terminal", errno, "");
        let settings = Settings::of(&terminal).map_err(failed)?;
        self.inner.check_process()?;
        for link in self.inner.backend().links() {
            let message = ToGuard::Terminal { settings: settings.clone() };
            self.inner.runtime.inside(link.send(&message, &[terminal.as_fd()])).await?;
        }
        Ok(())
    }
}
