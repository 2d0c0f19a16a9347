//! How messages name the parts of a policy: as its author wrote them.

use crate::report::Promise;

/// The form in which the author wrote a policy. Two spellings always compare as equal: policies in different forms can
/// be the same policy.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Spelling {
    /// Options of the command.
    Options,
    Json,
    /// Calls of methods.
    #[default]
    Methods,
}

impl PartialEq for Spelling {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Spelling {}

impl Spelling {
    /// Returns the value for a policy that is read from JSON.
    pub fn json() -> Self {
        Self::Json
    }

    /// Returns the name of a part of the policy. `name` is its key in JSON.
    pub fn part(self, name: &str) -> String {
        match self {
            Self::Options => format!("--{}", name.replace('_', "-")),
            Self::Json => format!("\"{name}\""),
            Self::Methods => format!("Sandbox::{name}"),
        }
    }

    /// Returns a part of the policy with a value, which is a word in JSON and in options.
    pub fn word(self, name: &str, word: &str) -> String {
        match self {
            Self::Options => format!("--{name} {word}"),
            Self::Json => format!("\"{name}\": \"{word}\""),
            Self::Methods => format!("Sandbox::{name}({}::{})", capital(name), capital(word)),
        }
    }

    /// Returns how a policy waives a promise.
    pub fn waive(self, promise: Promise) -> String {
        match self {
            Self::Options => format!("--waive {promise}"),
            Self::Json => format!("\"waive\": [\"{promise}\"]"),
            Self::Methods => format!("Sandbox::waive(Promise::{promise:?})"),
        }
    }

    /// Returns how the author gives the job another user.
    pub fn user(self) -> &'static str {
        match self {
            Self::Options => "--user NAME",
            Self::Json => "\"user\": \"NAME\"",
            Self::Methods => "Command::user",
        }
    }
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_use_the_form_of_the_policy() {
        let of = |spelling: Spelling| {
            let parts =
                [spelling.part("read_if_exists"), spelling.word("network", "own"), spelling.waive(Promise::Files)];
            [&parts[..], &[spelling.user().to_owned()]].concat()
        };
        assert_eq!(of(Spelling::Options), ["--read-if-exists", "--network own", "--waive files", "--user NAME"]);
        let json = [r#""read_if_exists""#, r#""network": "own""#, r#""waive": ["files"]"#, r#""user": "NAME""#];
        assert_eq!(of(Spelling::json()), json);
        let methods = ["Sandbox::read_if_exists", "Sandbox::network(Network::Own)", "Sandbox::waive(Promise::Files)"];
        assert_eq!(of(Spelling::default()), [&methods[..], &["Command::user"]].concat());
    }
}
