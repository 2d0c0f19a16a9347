//! What pinfold records about a running job, so that another pinfold process can find the job and control it. The
//! record is in extended attributes of the job's cgroup, or without a cgroup in the memory of its supervisor. It
//! vanishes with them.

use serde::{Deserialize, Serialize};

/// The version of [`Description`]. It increases when a field changes its meaning or is removed.
pub(crate) const VERSION: u32 = 1;

/// The program that supervises a job. It determines what a signal to the supervisor does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub(crate) enum SupervisorKind {
    Run,
    Timeout,
    Init,
    Watch,
    Pool,
    Serve,
    Up,
    /// A program that uses the library; also a kind that a newer pinfold has added.
    #[default]
    #[serde(other)]
    Library,
}

#[cfg(feature = "cli")]
impl SupervisorKind {
    /// Returns its name, as in the JSON form.
    pub fn name(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Timeout => "timeout",
            Self::Init => "init",
            Self::Watch => "watch",
            Self::Pool => "pool",
            Self::Serve => "serve",
            Self::Up => "up",
            Self::Library => "library",
        }
    }

    /// Returns whether the supervisor has one job at a time.
    pub fn has_one_job(self) -> bool {
        matches!(self, Self::Run | Self::Timeout | Self::Init | Self::Watch)
    }

    /// Returns whether the supervisor is a command of pinfold, which takes requests to stop or to kill its jobs.
    pub fn takes_requests(self) -> bool {
        self != Self::Library
    }
}

/// The record of one running job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Description {
    /// The version of the format: [`VERSION`].
    pub version: u32,
    /// The name that the caller gave to the job; otherwise the file name of the program.
    pub name: String,
    /// The command and its arguments, as far as they fit into [`Description::MAX_COMMAND`]. Invalid UTF-8 is replaced.
    pub command: Vec<String>,
    pub kind: SupervisorKind,
    /// The pid of the supervisor, in its own PID namespace.
    pub supervisor: i32,
    /// The pid of the guard that holds the job, in the same namespace.
    pub guard: i32,
    /// When pinfold started the job, in seconds since 1970.
    pub started: f64,
    /// The number of the stop signal.
    pub stop_signal: i32,
    /// The grace period, in seconds.
    pub grace: f64,
    /// How long processes may take to end after SIGKILL, in seconds.
    pub kill_bound: f64,
    /// The stop signal goes to the main process only.
    pub signal_to_main: bool,
    /// The job has a sandbox.
    pub sandboxed: bool,
}

impl Description {
    /// The highest number of bytes of the command line that is recorded. The kernel allows 128 KiB for all extended
    /// attributes of a cgroup (`KERNFS_USER_XATTR_SIZE_LIMIT`, include/linux/kernfs.h).
    const MAX_COMMAND: usize = 4096;

    /// Returns the arguments up to [`Self::MAX_COMMAND`] bytes. An ellipsis replaces the rest.
    pub fn shortened(command: &[String]) -> Vec<String> {
        let (mut all, mut left) = (Vec::new(), Self::MAX_COMMAND);
        for word in command {
            if word.len() >= left {
                let end = (0..=left).rev().find(|&at| word.is_char_boundary(at)).unwrap_or(0);
                all.push(format!("{}…", &word[..end]));
                break;
            }
            left -= word.len() + 1;
            all.push(word.clone());
        }
        all
    }

    /// Returns the JSON form, in one line.
    pub fn to_json(&self) -> String {
        // Every field has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the JSON form. Returns `None` for anything else, and for the form of a later version.
    #[cfg(feature = "cli")]
    pub fn from_json(text: &[u8]) -> Option<Self> {
        serde_json::from_slice::<Self>(text).ok().filter(|description| description.version == VERSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_command_is_shortened_at_a_character() {
        assert_eq!(Description::shortened(&["a", "b c"].map(str::to_owned)), ["a", "b c"]);
        let long = Description::shortened(&["a".to_owned(), "é".repeat(4000), "c".into()]);
        assert_eq!(long.len(), 2);
        assert!(long[1].len() <= Description::MAX_COMMAND + 3 && long[1].ends_with("é…"));
    }

    #[test]
    fn an_unknown_kind_is_a_library_and_a_later_version_is_unknown() {
        assert_eq!(serde_json::from_str::<SupervisorKind>("\"galaxy\"").unwrap(), SupervisorKind::Library);
        assert_eq!(Description::from_json(b"{\"version\":2}"), None);
    }
}
