//! What execve takes: arguments, environment, the paths to try; and whether it can be meant.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::Command;
use crate::error::{Error, Result};

impl Command {
    /// Tells whether it can be meant, as far as that is known without starting it: no NUL bytes, names of environment variables
    /// that can be names, streams that fit together. [`Supervisor::spawn`](crate::Supervisor::spawn) does the same.
    ///
    /// # Errors
    /// [`Error::Invalid`], with what is accepted.
    ///
    /// ```
    /// let mut command = pinfold::Command::new("echo");
    /// assert!(command.arg("a\0b").check().is_err());
    /// ```
    pub fn check(&self) -> Result<()> {
        self.check_streams()?;
        self.check_names()?;
        // What is inherited has been an environment before.
        let words = std::iter::once(&self.program).chain(&self.args).map(|arg| ("argument", arg.as_bytes()));
        let variables = self.env.iter().flat_map(|(key, value)| [Some(key), value.as_ref()]).flatten();
        let cwd = self.cwd.iter().map(|cwd| ("working directory", cwd.as_os_str().as_bytes()));
        words
            .chain(variables.map(|text| ("environment variable", text.as_bytes())))
            .chain(cwd)
            .find(|(_, text)| text.contains(&0))
            .map_or(Ok(()), |(what, text)| Err(holds_nul(what, text)))
    }

    fn check_names(&self) -> Result<()> {
        let wrong = |key: &&OsString| key.is_empty() || key.as_bytes().contains(&b'=');
        self.env.keys().find(wrong).map_or(Ok(()), |key| {
            let advice = "its name must not be empty or hold '='";
            Err(Error::invalid("environment variable", key.to_string_lossy(), advice))
        })
    }

    /// The arguments, the environment and the paths to try, as execve takes them.
    pub(crate) fn strings(&self) -> Result<Strings> {
        let env = self.environment()?;
        let path = env.iter().find(|(key, _)| key == "PATH").map(|(_, path)| path.as_bytes());
        let candidates = self.candidates(path);
        Ok(Strings {
            argv: std::iter::once(&self.program)
                .chain(&self.args)
                .map(|arg| c_string("argument", arg))
                .collect::<Result<_>>()?,
            env: env
                .into_iter()
                .map(|(key, value)| {
                    let mut entry = Vec::with_capacity(key.len() + value.len() + 2);
                    entry.extend_from_slice(key.as_bytes());
                    entry.push(b'=');
                    entry.extend_from_slice(value.as_bytes());
                    in_c("environment variable", entry)
                })
                .collect::<Result<_>>()?,
            candidates: candidates
                .iter()
                .map(|path| c_string("program", OsStr::from_bytes(path)))
                .collect::<Result<_>>()?,
            cwd: self.cwd.as_ref().map(|cwd| c_string("working directory", cwd.as_os_str())).transpose()?,
        })
    }

    /// The inherited variables in their order, changed as asked, then the new ones.
    fn environment(&self) -> Result<Vec<(OsString, OsString)>> {
        self.check_names()?;
        let mut env: Vec<_> = if self.clear_env { Vec::new() } else { std::env::vars_os().collect() };
        let users = self.user.iter().filter(|_| !self.clear_env).flat_map(|user| user.environment.iter());
        for (key, value) in users {
            env.retain(|(known, _)| known != key);
            env.push((key.clone(), value.clone()));
        }
        env.retain(|(key, _)| !self.env.contains_key(key));
        env.extend(self.env.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))));
        Ok(env)
    }

    fn candidates(&self, path: Option<&[u8]>) -> Vec<Vec<u8>> {
        let program = self.program.as_bytes();
        if program.is_empty() || program.contains(&b'/') {
            return vec![program.to_vec()];
        }
        // execvp(3): an empty entry is the working directory; without PATH glibc takes /bin and /usr/bin.
        path.unwrap_or(b"/bin:/usr/bin")
            .split(|&byte| byte == b':')
            .map(|directory| match directory {
                b"" => [b"./", program].concat(),
                directory => [directory, b"/", program].concat(),
            })
            .collect()
    }
}

/// What execve takes, each with its NUL.
pub(crate) struct Strings {
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    pub candidates: Vec<CString>,
    pub cwd: Option<CString>,
}

fn c_string(what: &'static str, text: &OsStr) -> Result<CString> {
    in_c(what, text.to_owned().into_vec())
}

fn in_c(what: &'static str, text: Vec<u8>) -> Result<CString> {
    CString::new(text).map_err(|error| holds_nul(what, &error.into_vec()))
}

fn holds_nul(what: &'static str, text: &[u8]) -> Error {
    let advice = "it holds a NUL byte, which no program can be given";
    Error::invalid(what, String::from_utf8_lossy(text).replace('\0', "\\0"), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_through_path() {
        let paths = |program: &str, path: Option<&str>| {
            let found = Command::new(program).candidates(path.map(str::as_bytes));
            found.into_iter().map(|path| String::from_utf8(path).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(paths("ls", Some("/bin::/x")), ["/bin/ls", "./ls", "/x/ls"]);
        assert_eq!(paths("./ls", Some("/bin")), ["./ls"]);
        assert_eq!(paths("ls", None), ["/bin/ls", "/usr/bin/ls"]);
        assert_eq!(paths("ls", Some("")), ["./ls"]);
    }

    #[test]
    fn nul_bytes_are_refused() {
        let mut command = Command::new("true");
        command.arg("a\0b");
        let error = command.strings().err().unwrap().to_string();
        assert!(error.contains("argument 'a\\0b'") && error.contains("NUL"), "{error}");
        assert_eq!(command.check().unwrap_err().to_string(), error);
        for (key, value) in [("A=B", "c"), ("", "c"), ("A\0", "c"), ("A", "\0")] {
            let mut command = Command::new("true");
            command.env(key, value);
            assert!(command.strings().is_err() && command.check().is_err(), "{key:?} {value:?}");
        }
        let mut elsewhere = Command::new("a");
        elsewhere.cwd("/\0");
        for wrong in [Command::new("a\0"), elsewhere] {
            assert!(wrong.strings().is_err() && wrong.check().is_err());
        }
    }
}
