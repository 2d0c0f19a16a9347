//! Ways to escape, which run under each containment, and the expected contents of the report.

use std::ffi::OsString;
use std::ops::RangeInclusive;

use super::own_cgroup::OwnCgroup;
use super::{Canary, Ran, Run, own_cgroup, program};

/// How the job is ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// By the stop signal.
    Stop,
    /// By SIGKILL, when the grace period is over.
    Kill,
    /// By either of the two: the timing decides which processes receive the stop signal.
    Luck,
}

/// One way to escape, and the expected contents of its report.
#[derive(Clone)]
pub struct Escape {
    words: Vec<OsString>,
    /// The index in `words` at which the program's first argument is inserted: `stay` or `exit`.
    shape_at: usize,
    by: By,
    by_without_cgroup: By,
    /// The number of processes that have made their own cgroup below the job's: they are neither in the job's cgroup
    /// nor emigrants.
    elsewhere: u64,
    /// How many processes report that they have escaped.
    pub in_place: RangeInclusive<usize>,
    pub leftovers: RangeInclusive<u64>,
    pub emigrants: RangeInclusive<u64>,
}

/// Returns whether the main process has received the report of every process that must escape.
fn ready(ran: &Ran) -> bool {
    ran.stdout.lines().any(|line| line == "ready")
}

/// `PROGRAM stay|exit MODE`: one process that escapes, and ends when it receives the stop signal.
pub fn escape(source: &str, mode: &str) -> Escape {
    let words = vec![program(source).into(), mode.into()];
    Escape {
        words,
        shape_at: 1,
        by: By::Stop,
        by_without_cgroup: By::Stop,
        elsewhere: 0,
        in_place: 1..=1,
        leftovers: 1..=1,
        emigrants: 0..=0,
    }
}

/// A process that leaves the job's cgroup: it is an emigrant, and not a leftover.
pub fn emigrant(mode: &str) -> Escape {
    escape("escape_cgroup", mode).with([own_cgroup()]).leftovers(0).emigrants(1)
}

/// A child of the main process executes `words`. They end with the program that then reports that it has escaped.
pub fn command<I: IntoIterator<Item: Into<OsString>>>(mode: &str, words: I) -> Escape {
    escape("escape_kin", mode).with(words).with([program("escape_kin").into_os_string(), "here".into()])
}

impl Escape {
    pub fn with<I: IntoIterator<Item: Into<OsString>>>(mut self, words: I) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// Runs the whole command under another program.
    pub fn under<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.words.splice(0..0, words.map(Into::into));
        self.shape_at += N;
        self
    }

    pub fn by(mut self, by: By) -> Self {
        (self.by, self.by_without_cgroup) = (by, by);
        self
    }

    /// Sets how the job ends without a cgroup. This does not apply to processes that left a cgroup.
    pub fn by_without_cgroup(mut self, by: By) -> Self {
        self.by_without_cgroup = by;
        self
    }

    /// Only a search by descent finds this number of processes.
    pub fn elsewhere(mut self, count: u64) -> Self {
        self.elsewhere = count;
        self
    }

    pub fn in_place(mut self, count: usize) -> Self {
        self.in_place = count..=count;
        self
    }

    pub fn leftovers(mut self, count: u64) -> Self {
        self.leftovers = count..=count;
        self
    }

    pub fn emigrants(mut self, count: u64) -> Self {
        self.emigrants = count..=count;
        self
    }

    /// Returns the expectations for a containment.
    fn held_by(&self, containment: &str) -> Self {
        if containment == "cgroup" {
            return self.clone();
        }
        // Without a cgroup, a process that left the cgroup counts like any other process of the job.
        let (left, gone, elsewhere) = (&self.leftovers, &self.emigrants, self.elsewhere);
        // A single scan may find no process of a chain in which each process is soon replaced.
        let least = if *gone.end() == u64::MAX { 0 } else { *gone.start() };
        let leftovers =
            left.start() + least + elsewhere..=left.end().saturating_add(gone.end().saturating_add(elsewhere));
        Self { by: self.by_without_cgroup, leftovers, emigrants: 0..=0, ..self.clone() }
    }

    fn run(&self, containment: &str, shape: &str, timeout: &str) -> Ran {
        // A stop that works needs no SIGKILL, so its grace period is longer than any test.
        let grace = if self.by == By::Stop { "1m" } else { "300ms" };
        let mut words = self.words.clone();
        words.insert(self.shape_at, shape.into());
        let options = ["--timeout", timeout, "--grace", grace, "--"].map(Into::into);
        let canary = Canary::new();
        let ran = if containment == "cgroup" {
            Run::new(options.into_iter().chain(words)).run()
        } else {
            // Cgroups that the job itself makes there are not checked.
            let own = OwnCgroup::try_new().map(OwnCgroup::littered);
            let script = own.as_ref().map_or(String::new(), |own| own.enter() + "; ");
            let words = ["--containment", "subreaper"].map(Into::into).into_iter().chain(options).chain(words);
            Run::in_shell(&format!(r#"{script}exec "$@""#), words).run()
        };
        canary.assert_alive();
        ran
    }

    /// Checks a run, with a main process that stays or exits: the escape happened, it was ended in the expected way,
    /// and soon; nothing is left.
    fn check(&self, ran: &Ran) {
        let in_place = ran.stdout.lines().filter(|line| *line == "in place").count();
        assert!(self.in_place.contains(&in_place) && ready(ran), "it did not escape: {ran:#?}");
        let (killed, phases) = (ran.report["killed"].as_bool().unwrap(), &ran.report["phases"]);
        assert!(self.by == By::Luck || killed == (self.by == By::Kill), "{ran:#?}");
        let phase = |name: &str| phases[name].as_f64();
        if killed {
            assert!(phase("killing").unwrap() >= phase("stopping").unwrap() + 0.3, "{ran:#?}");
        }
        let ended = phase("stopping").or(phase("main_exited")).unwrap();
        assert!(phase("gone").unwrap() < ended + 5.0 * super::slowness(), "the end took too long: {ran:#?}");
        assert!(self.emigrants.contains(&ran.report["emigrants"]["count"].as_u64().unwrap()), "{ran:#?}");
        assert_eq!(ran.report["unkillable"]["count"], 0, "{ran:#?}");
        assert_eq!(ran.report["not_removed"], serde_json::json!([]), "{ran:#?}");
    }

    /// Runs the escape with a main process that stays until the deadline.
    pub fn ended_by_the_deadline(&self, containment: &str) {
        let escape = self.held_by(containment);
        // If the machine was too busy for the escape to happen in time, the test repeats it with more time.
        let ran = ["400ms", "3s"].iter().map(|timeout| escape.run(containment, "stay", timeout)).find(ready);
        let ran = ran.unwrap_or_else(|| escape.run(containment, "stay", "20s")).assert_code(124);
        escape.check(&ran);
        assert_eq!(ran.report["reason"], "deadline", "{ran:#?}");
        assert_eq!(ran.report["leftovers"]["count"], 0, "{ran:#?}");
    }

    /// Runs the escape with a main process that exits with 0.
    pub fn left_behind(&self, containment: &str) {
        let escape = self.held_by(containment);
        let ran = escape.run(containment, "exit", "1m").assert_code(0);
        escape.check(&ran);
        assert_eq!(ran.report["reason"], "exited", "{ran:#?}");
        let leftovers = &ran.report["leftovers"];
        assert!(escape.leftovers.contains(&leftovers["count"].as_u64().unwrap()), "{ran:#?}");
    }

    pub fn both(&self, containment: &str) {
        self.ended_by_the_deadline(containment);
        self.left_behind(containment);
    }
}
