//! The input of execve: arguments, environment and the paths to try. Also checks that a command is valid.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::guard::identity;
use crate::guard::identity::Identity;
use crate::job::command::Command;

/// The variable that names the directory for temporary files.
const TMPDIR: &str = "TMPDIR";

impl Command {
    /// Checks whether the command is valid, as far as that is known without starting it: no NUL bytes, valid names of
    /// environment variables, streams that fit together. [`Supervisor::spawn`](crate::Supervisor::spawn) does the same
    /// check.
    ///
    /// # Errors
    /// [`Error::Invalid`], which says what is accepted.
    ///
    /// ```
    /// let mut command = pinfold::Command::new("echo");
    /// assert!(command.arg("a\0b").check().is_err());
    /// ```
    pub fn check(&self) -> Result<()> {
        self.check_streams()?;
        self.check_passed()?;
        self.sandbox.as_ref().map_or(Ok(()), |sandbox| sandbox.validate())?;
        self.check_strings()
    }

    /// Checks the strings that were set here. Inherited variables are valid, because they are already in an
    /// environment.
    fn check_strings(&self) -> Result<()> {
        let wrong = |key: &&OsString| key.is_empty() || key.as_bytes().contains(&b'=');
        if let Some(key) = self.env.keys().find(wrong) {
            let advice = "its name must not be empty or contain '='";
            return Err(Error::invalid("environment variable", key.to_string_lossy(), advice));
        }
        let words =
            std::iter::once(&self.program).chain(&self.arg0).chain(&self.args).map(|arg| ("argument", arg.as_bytes()));
        let variables = self.env.iter().flat_map(|(key, value)| [Some(key), value.as_ref()]).flatten();
        let users = self.user.iter().flat_map(|user| &user.environment).flat_map(|(key, value)| [key, value]);
        let variables = variables.chain(users).map(|text| ("environment variable", text.as_bytes()));
        let cwd = self.current_dir.iter().map(|cwd| ("working directory", cwd.as_os_str().as_bytes()));
        let Some((what, text)) = words.chain(variables).chain(cwd).find(|(_, text)| text.contains(&0)) else {
            return Ok(());
        };
        let shown = String::from_utf8_lossy(text).replace('\0', "\\0");
        Err(Error::invalid(what, shown, "it contains a NUL byte, which cannot be passed to a program"))
    }

    /// Returns the arguments, the environment and the paths to try, in the form that execve takes. `tmp` is the job's
    /// private directory for temporary files, which becomes the value of TMPDIR.
    pub(crate) fn strings(&self, tmp: Option<&Path>) -> Result<ExecStrings> {
        self.check_strings()?;
        let env = self.environment(tmp);
        let mut argv = CStrings::default();
        std::iter::once(self.arg0.as_ref().unwrap_or(&self.program))
            .chain(&self.args)
            .for_each(|arg| argv.push(&[arg.as_bytes()]));
        let path = env.iter().find_map(|entry| entry.strip_prefix(b"PATH=")?.split_last());
        let candidates = self.candidates(path.map(|(_nul, path)| path));
        let cwd = self.current_dir.as_ref().map(|cwd| [cwd.as_os_str().as_bytes(), b"\0"].concat());
        Ok(ExecStrings { argv, env, candidates, cwd })
    }

    /// Returns the environment of the job: the inherited variables in their order, with the changes of this command,
    /// then the new variables.
    fn environment(&self, tmp: Option<&Path>) -> CStrings {
        let inherited = (!self.clear_env).then(std::env::vars_os);
        let mut block =
            CStrings::with_capacity(inherited.as_ref().map_or(0, |known| known.size_hint().0) + self.env.len());
        let mut push = |key: &OsString, value: &OsString| {
            if tmp.is_none() || key != TMPDIR {
                block.push(&[key.as_bytes(), b"=", value.as_bytes()]);
            }
        };
        let users = self.user.iter().filter(|_| !self.clear_env).flat_map(|user| &user.environment);
        let users: Vec<_> = users.filter(|(key, _)| !self.env.contains_key(key)).collect();
        let passes = |key: &OsString| self.sandbox.as_ref().is_none_or(|sandbox| sandbox.passes(key));
        for (key, value) in inherited.into_iter().flatten().filter(|(key, _)| passes(key)) {
            if !self.env.contains_key(&key) && !users.iter().any(|(known, _)| *known == key) {
                push(&key, &value);
            }
        }
        users.into_iter().for_each(|(key, value)| push(key, value));
        self.env
            .iter()
            .filter_map(|(key, value)| Some((key, value.as_ref()?)))
            .for_each(|(key, value)| push(key, value));
        if let Some(tmp) = tmp {
            block.push(&[TMPDIR.as_bytes(), b"=", tmp.as_os_str().as_bytes()]);
        }
        block
    }

    /// Returns the positions of the variables that get the identity of the job's main process: those of
    /// [`env_pid`](Self::env_pid), and inherited ones that hold the identity of this process, such as LISTEN_PID.
    ///
    /// An inherited variable is not among them if this command sets it, or if the job does not inherit the passed
    /// sockets too.
    pub(crate) fn identities(&self, environment: &CStrings) -> Vec<(usize, Identity)> {
        let name =
            |entry: &[u8]| OsString::from_vec(entry.split(|&byte| byte == b'=').next().unwrap_or_default().into());
        let mut identities = Vec::new();
        if self.inherit_descriptors {
            identities = identity::of_this_process(environment.iter(), |entry| self.env.contains_key(&name(entry)));
        }
        if !self.pid_variables.is_empty() {
            let own = environment.iter().enumerate().filter(|(_, entry)| self.pid_variables.contains(&name(entry)));
            identities.extend(own.map(|(place, _)| (place, Identity::Pid)));
        }
        identities
    }

    fn candidates(&self, path: Option<&[u8]>) -> CStrings {
        let program = self.program.as_bytes();
        let mut candidates = CStrings::default();
        if program.is_empty() || program.contains(&b'/') {
            candidates.push(&[program]);
            return candidates;
        }
        // execvp(3): an empty entry is the working directory; without PATH, glibc searches /bin and /usr/bin.
        for directory in path.unwrap_or(b"/bin:/usr/bin").split(|&byte| byte == b':') {
            candidates.push(&[if directory.is_empty() { b"." } else { directory }, b"/", program]);
        }
        candidates
    }
}

/// The input of execve.
pub(crate) struct ExecStrings {
    pub argv: CStrings,
    pub env: CStrings,
    pub candidates: CStrings,
    /// With its final NUL byte.
    pub cwd: Option<Vec<u8>>,
}

/// C strings in one buffer, each with its final NUL byte. One buffer needs one allocation, instead of one for each
/// string.
#[derive(Default)]
pub(crate) struct CStrings {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl CStrings {
    /// Returns an empty list with room for this many strings, so that it does not have to grow repeatedly.
    fn with_capacity(strings: usize) -> Self {
        /// The length of a typical string.
        const BYTES: usize = 48;
        Self { bytes: Vec::with_capacity(strings * BYTES), ends: Vec::with_capacity(strings) }
    }

    /// Returns the total length in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a string that consists of these parts.
    fn push(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.bytes.push(0);
        self.ends.push(self.bytes.len());
    }

    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Returns the strings, each with its final NUL byte.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let begins = std::iter::once(0).chain(self.ends.iter().copied());
        begins.zip(&self.ends).map(|(begin, &end)| &self.bytes[begin..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_through_path() {
        let paths = |program: &str, path: Option<&str>| {
            let found = Command::new(program).candidates(path.map(str::as_bytes));
            found.iter().map(|path| std::str::from_utf8(path).unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(paths("ls", Some("/bin::/x")), ["/bin/ls\0", "./ls\0", "/x/ls\0"]);
        assert_eq!(paths("./ls", Some("/bin")), ["./ls\0"]);
        assert_eq!(paths("ls", None), ["/bin/ls\0", "/usr/bin/ls\0"]);
        assert_eq!(paths("ls", Some("")), ["./ls\0"]);
    }

    #[test]
    fn nul_bytes_are_refused() {
        let mut command = Command::new("true");
        command.arg("a\0b");
        let error = command.strings(None).err().unwrap().to_string();
        assert!(error.contains("argument 'a\\0b'") && error.contains("NUL"), "{error}");
        assert_eq!(command.check().unwrap_err().to_string(), error);
        for (key, value) in [("A=B", "c"), ("", "c"), ("A\0", "c"), ("A", "\0")] {
            let mut command = Command::new("true");
            command.env(key, value);
            assert!(command.strings(None).is_err() && command.check().is_err(), "{key:?} {value:?}");
        }
        let mut elsewhere = Command::new("a");
        elsewhere.current_dir("/\0");
        for wrong in [Command::new("a\0"), elsewhere] {
            assert!(wrong.strings(None).is_err() && wrong.check().is_err());
        }
    }
}
