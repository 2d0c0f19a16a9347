//! Tables of attempts.

use std::os::unix::fs::MetadataExt;

use super::build::program;
use super::run::Run;
use super::users::users;
use super::victim::Victim;
use crate::sandbox::policy::Sandbox;

/// The value for an attempt that needs no [`Kept`] value.
pub struct Nothing;

/// A value that lives as long as an attempt.
pub trait Kept {}

impl Kept for Nothing {}
impl Kept for Victim {}

/// Makes attempts of one program in a sandbox and without one. A row contains the attempt, its output in the sandbox,
/// and its result without a sandbox.
pub struct Table<'a> {
    pub program: &'a str,
    pub sandbox: Sandbox,
    pub rows: &'a [(&'a str, &'a str, Outside)],
}

/// The result of an attempt without a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// The attempt succeeds. So its failure in a sandbox is caused by the sandbox.
    Works,
    /// The test does not make the attempt, because the result depends on the machine, or because it would do harm.
    NotTried,
}

impl Table<'_> {
    /// Runs all rows. `arguments` makes the arguments for each run. Returns a line for each unexpected result.
    pub fn differences(mut self, arguments: impl Fn() -> (Vec<String>, Box<dyn Kept>)) -> Vec<String> {
        let program = program(self.program);
        assert!(program.metadata().unwrap().mode() & 0o005 == 0o005);
        self.sandbox.read(&program);
        let mut differences = Vec::new();
        let words = |attempt: &str, arguments: Vec<String>| {
            let program = program.to_str().unwrap().to_owned();
            [program, attempt.to_owned()].into_iter().chain(arguments).collect::<Vec<_>>()
        };
        for (attempt, expected, outside) in self.rows {
            if *outside == Outside::Works {
                let (arguments, _kept) = arguments();
                let line = Run::new(words(attempt, arguments)).run().line();
                if line != "allowed" {
                    differences.push(format!("{attempt} without a sandbox: {line}"));
                }
            }
            let ways = [(true, false), (false, false), (true, true)];
            for (user, (vfork, explain)) in users().into_iter().flat_map(|user| ways.map(|way| (user, way))) {
                let (arguments, _kept) = arguments();
                let mut run = Run::new(words(attempt, arguments)).within(&self.sandbox, user);
                (run.vfork, run.explain) = (vfork, explain);
                let ran = run.run();
                let (line, way) = (ran.line(), format!("as {user:?}, vfork {vfork}, explained {explain}"));
                if line != *expected {
                    differences.push(format!("{attempt} {way}: {line}, expected {expected}"));
                }
                // If an attempt works without a sandbox, its failure is a denial, which pinfold must explain. The
                // exception is an attempt that only reads an attribute of the process: there, no call fails.
                let is_refused = ["denied EPERM", "denied EACCES", "denied EXDEV"].contains(&line.as_str())
                    && *attempt != "has_new_privileges";
                if explain && *outside == Outside::Works && is_refused && ran.refused.denials.is_empty() {
                    differences.push(format!("{attempt} {way}: not explained"));
                }
            }
        }
        differences
    }
}
