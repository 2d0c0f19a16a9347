//! Converts a command of the standard library.

use crate::job::command::Command;

/// Copies everything that [`std::process::Command`] shows: the program, the arguments, the changes of the environment
/// and the working directory. `std::process::Command` does not show the following settings, so this conversion can't
/// copy them:
///
/// - [`env_clear`](std::process::Command::env_clear): the job inherits the environment. If it must not, call
///   [`Command::env_clear`] and set the variables again.
/// - the streams: they are inherited, unless you set them again.
/// - what [`CommandExt`](std::os::unix::process::CommandExt) sets: `arg0`, `uid`, `gid`, `process_group`, `pre_exec`.
///
/// To convert a `tokio::process::Command`, use its `as_std`.
///
/// ```
/// let mut from = std::process::Command::new("make");
/// from.arg("check").env("CI", "true").env_remove("DISPLAY").current_dir("/tmp");
/// let command = pinfold::Command::from(&from);
/// assert_eq!(command.get_program(), "make");
/// assert!(command.get_args().eq(from.get_args()) && command.get_envs().eq(from.get_envs()));
/// assert_eq!(command.get_current_dir(), from.get_current_dir());
/// ```
impl From<&std::process::Command> for Command {
    fn from(from: &std::process::Command) -> Self {
        let mut command = Self::new(from.get_program());
        command.args(from.get_args());
        for (key, value) in from.get_envs() {
            match value {
                Some(value) => command.env(key, value),
                None => command.env_remove(key),
            };
        }
        if let Some(directory) = from.get_current_dir() {
            command.current_dir(directory);
        }
        command
    }
}

/// The same as the conversion of a reference.
impl From<std::process::Command> for Command {
    fn from(from: std::process::Command) -> Self {
        Self::from(&from)
    }
}
