//! Promise 1 against everything that gets away from a parent, a group, a session, a cgroup or a signal: each way to
//! escape twice, once ended by the deadline and once left behind by a main process that exits 0.

mod support;

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::Path;

use support::{Canary, PINFOLD, Ran, Run, Scratch, has_cgroup, has_program, has_root, own_cgroup, program};

/// What brings the job to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    /// The stop signal.
    Stop,
    /// SIGKILL, when the grace period is over.
    Kill,
    /// Either: it is a matter of luck who gets the stop signal.
    Luck,
}

/// One way to escape, and what the report has to say of it.
struct Escape {
    words: Vec<OsString>,
    /// Where in `words` the program's first argument goes: `stay` or `exit`.
    shape_at: usize,
    by: By,
    /// How many processes say that they are in place.
    told: RangeInclusive<usize>,
    leftovers: RangeInclusive<u64>,
    emigrants: RangeInclusive<u64>,
}

/// The main process has heard all that are in place.
fn ready(ran: &Ran) -> bool {
    ran.stdout.lines().any(|line| line == "ready")
}

/// `PROGRAM stay|exit MODE`: one process that gets away, and ends when it is told to.
fn escape(source: &str, mode: &str) -> Escape {
    let words = vec![program(source).into(), mode.into()];
    Escape { words, shape_at: 1, by: By::Stop, told: 1..=1, leftovers: 1..=1, emigrants: 0..=0 }
}

/// One that leaves the job's cgroup: no leftover, but an emigrant.
fn emigrant(mode: &str) -> Escape {
    escape("escape_cgroup", mode).with([own_cgroup()]).leftovers(0).emigrants(1)
}

/// A child of the main process executes `words`, which end with the program that is then in place.
fn command<I: IntoIterator<Item: Into<OsString>>>(mode: &str, words: I) -> Escape {
    escape("escape_kin", mode).with(words).with([program("escape_kin").into_os_string(), "here".into()])
}

impl Escape {
    fn with<I: IntoIterator<Item: Into<OsString>>>(mut self, words: I) -> Self {
        self.words.extend(words.into_iter().map(Into::into));
        self
    }

    /// The whole program is run by another one.
    fn under<const N: usize>(mut self, words: [&str; N]) -> Self {
        self.words.splice(0..0, words.map(Into::into));
        self.shape_at += N;
        self
    }

    fn by(mut self, by: By) -> Self {
        self.by = by;
        self
    }

    fn told(mut self, count: usize) -> Self {
        self.told = count..=count;
        self
    }

    fn leftovers(mut self, count: u64) -> Self {
        self.leftovers = count..=count;
        self
    }

    fn emigrants(mut self, count: u64) -> Self {
        self.emigrants = count..=count;
        self
    }

    fn run(&self, shape: &str, timeout: &str) -> Ran {
        // A stop that works needs no kill: then the grace period is longer than any test.
        let grace = if self.by == By::Stop { "1m" } else { "300ms" };
        let mut words = self.words.clone();
        words.insert(self.shape_at, shape.into());
        let canary = Canary::new();
        let ran =
            Run::new(["--timeout", timeout, "--grace", grace, "--"].map(Into::into).into_iter().chain(words)).run();
        canary.assert_alive();
        ran
    }

    /// Of both shapes: it was in place, it was ended in the way it should be, and soon; nothing is left.
    fn check(&self, ran: &Ran) {
        let told = ran.stdout.lines().filter(|line| *line == "in place").count();
        assert!(self.told.contains(&told) && ready(ran), "it did not escape: {ran:#?}");
        let (killed, phases) = (ran.report["killed"].as_bool().unwrap(), &ran.report["phases"]);
        assert!(self.by == By::Luck || killed == (self.by == By::Kill), "{ran:#?}");
        let phase = |name: &str| phases[name].as_f64();
        if killed {
            assert!(phase("killing").unwrap() >= phase("stopping").unwrap() + 0.3, "{ran:#?}");
        }
        let ended = phase("stopping").or(phase("main_exited")).unwrap();
        assert!(phase("gone").unwrap() < ended + 5.0, "that took long: {ran:#?}");
        assert!(self.emigrants.contains(&ran.report["emigrants"]["count"].as_u64().unwrap()), "{ran:#?}");
        assert_eq!(ran.report["unkillable"]["count"], 0, "{ran:#?}");
        assert_eq!(ran.report["not_removed"], serde_json::json!([]), "{ran:#?}");
    }

    /// The main process stays until the deadline.
    fn ended_by_the_deadline(&self) {
        // A machine that was too busy for it to get in place in time: once more, with more time.
        let ran = ["400ms", "3s"].iter().map(|timeout| self.run("stay", timeout)).find(ready);
        let ran = ran.unwrap_or_else(|| self.run("stay", "20s")).assert_code(124);
        self.check(&ran);
        assert_eq!(ran.report["reason"], "deadline", "{ran:#?}");
        assert_eq!(ran.report["leftovers"]["count"], 0, "{ran:#?}");
    }

    /// The main process exits 0.
    fn left_behind(&self) {
        let ran = self.run("exit", "1m").assert_code(0);
        self.check(&ran);
        assert_eq!(ran.report["reason"], "exited", "{ran:#?}");
        let leftovers = &ran.report["leftovers"];
        assert!(self.leftovers.contains(&leftovers["count"].as_u64().unwrap()), "{ran:#?}");
    }

    fn both(&self) {
        self.ended_by_the_deadline();
        self.left_behind();
    }
}

// Away from the parent, the group, the session.

#[test]
fn a_process_group_of_its_own() {
    if has_cgroup() {
        escape("escape_kin", "own-group").both();
    }
}

#[test]
fn a_session_of_its_own() {
    if has_cgroup() {
        escape("escape_kin", "own-session").both();
    }
}

#[test]
fn a_double_fork() {
    if has_cgroup() {
        escape("escape_kin", "double-fork").both();
    }
}

#[test]
fn daemon_3() {
    if has_cgroup() {
        escape("escape_kin", "daemon").both();
    }
}

#[test]
fn under_nohup() {
    if has_cgroup() && has_program("nohup") {
        command("hangup-ignored", [""; 0]).under(["nohup"]).both();
    }
}

#[test]
fn without_an_environment() {
    if has_cgroup() && has_program("env") {
        command("no-environment", [""; 0]).under(["env", "-i"]).both();
    }
}

#[test]
fn without_any_descriptor() {
    if has_cgroup() {
        escape("escape_kin", "all-closed").both();
    }
}

#[test]
fn a_sibling_by_clone_parent() {
    if has_cgroup() {
        escape("escape_kin", "sibling").both();
    }
}

#[test]
fn below_a_subreaper_of_its_own() {
    if has_cgroup() {
        escape("escape_kin", "own-subreaper").told(2).leftovers(2).both();
    }
}

// Many.

#[test]
fn a_chain_of_vforks() {
    if has_cgroup() {
        escape("escape_kin", "vfork-chain").leftovers(9).both();
    }
}

#[test]
fn threads_that_fork() {
    if has_cgroup() {
        escape("escape_kin", "forking-threads").told(4).leftovers(5).both();
    }
}

#[test]
fn a_thread_that_outlives_its_leader() {
    if has_cgroup() {
        escape("escape_kin", "dead-leader").both();
    }
}

#[test]
fn a_fork_storm() {
    if has_cgroup() && has_root() {
        let mut storm = escape("escape_kin", "storm").by(By::Kill);
        (storm.told, storm.leftovers) = (1..=usize::MAX, 1..=u64::MAX);
        storm.both();
    }
}

// Deaf.

#[test]
fn deaf_to_sigterm() {
    if has_cgroup() {
        escape("escape_deaf", "deaf-to-term").by(By::Kill).both();
    }
}

#[test]
fn deaf_to_every_signal() {
    if has_cgroup() {
        escape("escape_deaf", "deaf-to-all").by(By::Kill).both();
    }
}

#[test]
fn a_deaf_main_process() {
    if has_cgroup() {
        escape("escape_deaf", "deaf-main").by(By::Kill).told(0).ended_by_the_deadline();
    }
}

#[test]
fn one_more_for_each_sigterm() {
    if has_cgroup() {
        escape("escape_deaf", "fork-when-told").by(By::Kill).both();
    }
}

#[test]
fn relays_that_sigterm_sets_off() {
    if has_cgroup() {
        escape("escape_deaf", "relays-when-told").by(By::Kill).told(100).leftovers(100).both();
    }
}

// Not running: none of these sees the stop signal unless it is let go.

#[test]
fn stopped() {
    if has_cgroup() {
        escape("escape_deaf", "stopped").both();
    }
}

#[test]
fn stopped_under_a_tracer() {
    if has_cgroup() {
        escape("escape_deaf", "traced").leftovers(2).both();
    }
}

#[test]
fn a_main_process_held_by_a_tracer() {
    if has_cgroup() && has_root() {
        escape("escape_deaf", "traced-main").by(By::Kill).ended_by_the_deadline();
    }
}

// Somebody else.

#[test]
fn another_users() {
    if has_cgroup() && has_root() {
        escape("escape_user", "another-user").both();
    }
}

#[test]
fn in_a_pid_namespace() {
    if has_cgroup() && has_root() {
        escape("escape_user", "pid-namespace").by(By::Kill).told(2).leftovers(3).both();
    }
}

#[test]
fn by_unshare_1() {
    if has_cgroup() && has_root() && has_program("unshare") {
        command("command", ["unshare", "--pid", "--fork"]).by(By::Kill).leftovers(2).both();
    }
}

#[test]
fn in_a_user_namespace() {
    if has_cgroup() && has_root() {
        escape("escape_user", "user-namespace").both();
    }
}

// In a cgroup of its own.

#[test]
fn in_a_cgroup_of_its_own() {
    if has_cgroup() && has_root() {
        escape("escape_cgroup", "own-cgroup").with([own_cgroup()]).both();
    }
}

#[test]
fn the_main_process_in_a_cgroup_of_its_own() {
    if has_cgroup() && has_root() {
        escape("escape_cgroup", "own-cgroup-of-main").with([own_cgroup()]).leftovers(0).both();
    }
}

#[test]
fn in_a_frozen_cgroup() {
    if has_cgroup() && has_root() {
        escape("escape_cgroup", "frozen").with([own_cgroup()]).both();
    }
}

#[test]
fn at_the_bottom_of_thirty_cgroups() {
    if has_cgroup() && has_root() {
        escape("escape_cgroup", "deep").with([own_cgroup()]).told(3).leftovers(3).both();
    }
}

#[test]
fn with_a_thread_in_a_threaded_cgroup() {
    if has_cgroup() && has_root() {
        escape("escape_cgroup", "threaded").with([own_cgroup()]).both();
    }
}

#[test]
fn in_a_nested_pinfold() {
    if has_cgroup() {
        // pinfold, its guard, its job.
        command("command", [PINFOLD, "run", "--"]).leftovers(3).both();
    }
}

#[test]
fn in_a_nested_pinfold_that_holds_its_job_elsewhere() {
    if !(has_cgroup() && has_root()) {
        return;
    }
    let report = Scratch::new("nested");
    let words: [&Path; 6] =
        [PINFOLD.as_ref(), "run".as_ref(), "--report".as_ref(), report.path(), "--cgroup".as_ref(), &own_cgroup()];
    let nested = command("command", words.into_iter().chain([Path::new("--")])).leftovers(2);
    for run in [Escape::ended_by_the_deadline, Escape::left_behind] {
        run(&nested);
        // Told to stop, it has ended its job itself.
        let inner: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
        let leaf = Path::new(inner["containment"]["cgroup"].as_str().unwrap());
        assert!(!leaf.exists(), "{inner:#}");
    }
}

// Out of the job's cgroup.

#[test]
fn an_emigrant() {
    if has_cgroup() && has_root() {
        emigrant("emigrant").both();
    }
}

#[test]
fn a_deaf_emigrant() {
    if has_cgroup() && has_root() {
        emigrant("deaf-emigrant").both();
    }
}

#[test]
fn a_stopped_emigrant() {
    if has_cgroup() && has_root() {
        emigrant("stopped-emigrant").both();
    }
}

#[test]
fn hundreds_of_emigrants() {
    if has_cgroup() && has_root() {
        // The main process is the one that the report does not count.
        emigrant("many-emigrants").told(701).emigrants(700).both();
    }
}

#[test]
fn a_family_of_emigrants() {
    if has_cgroup() && has_root() {
        emigrant("family-of-emigrants").told(4).leftovers(1).emigrants(3).both();
    }
}

#[test]
fn an_emigrant_whose_thread_outlives_its_leader() {
    if has_cgroup() && has_root() {
        emigrant("headless-emigrant").both();
    }
}

#[test]
fn an_emigrant_that_is_another_one_at_each_look() {
    if has_cgroup() && has_root() {
        let mut fleeting = emigrant("fleeting-emigrant");
        fleeting.emigrants = 1..=u64::MAX;
        fleeting.both();
    }
}

#[test]
fn a_main_process_that_emigrates() {
    if has_cgroup() && has_root() {
        // Its child, born outside, is the emigrant.
        emigrant("main-emigrates").told(2).both();
    }
}

#[test]
fn a_deaf_main_process_that_emigrates() {
    if has_cgroup() && has_root() {
        emigrant("deaf-main-emigrates").told(2).by(By::Kill).ended_by_the_deadline();
    }
}

#[test]
fn an_emigrant_that_froze_the_job() {
    if has_cgroup() && has_root() {
        emigrant("frozen-job").ended_by_the_deadline();
    }
}
