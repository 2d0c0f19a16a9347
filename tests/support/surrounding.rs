//! The environments in which pinfold runs, and what it must ensure in each.

use std::sync::atomic::{AtomicU32, Ordering};

use super::{Canary, Ran, Run};

/// A job that leaves a process behind, in its own session.
pub const LEAVES: [&str; 3] = ["bash", "-c", "setsid sleep 999 & echo ready; exit 3"];
/// A job that does not end by itself.
pub const STAYS: [&str; 3] = ["bash", "-c", "setsid sleep 999 & echo ready; wait"];

/// An environment: the script that sets it up and then executes `"$@"`, and options for pinfold.
pub struct Surrounding<'a> {
    pub script: &'a str,
    pub options: &'a [&'a str],
}

impl Surrounding<'_> {
    pub fn run(&self, options: &[&str], words: &[&str]) -> Ran {
        let run = Run::in_shell(self.script, [self.options, options, &["--"], words].concat()).run();
        assert!(run.report.is_object(), "no report: {run:#?}");
        run
    }

    /// Runs a job that leaves a process behind, and a job that has to be stopped.
    pub fn holds(&self) -> [Ran; 2] {
        let canary = Canary::new();
        let left = self.run(&["--grace", "1m"], &LEAVES).assert_code(3);
        assert_eq!(left.report["reason"], "exited", "{left:#?}");
        assert_eq!(left.report["leftovers"]["count"], 1, "{left:#?}");
        // This is enough time to print "ready" anywhere, except on a machine that is too busy: then the test repeats it
        // with more time.
        let stays = |timeout| self.run(&["--grace", "1m", "--timeout", timeout], &STAYS).assert_code(124);
        let mut stopped = stays("500ms");
        if stopped.stdout != "ready\n" {
            stopped = stays("5s");
        }
        assert_eq!(stopped.report["reason"], "deadline", "{stopped:#?}");
        assert_eq!(stopped.report["stopped"]["count"], 2, "{stopped:#?}");
        canary.assert_alive();
        for ran in [&left, &stopped] {
            assert_eq!(ran.stdout, "ready\n", "{ran:#?}");
            assert_eq!(ran.report["error"], serde_json::Value::Null, "{ran:#?}");
            assert_eq!(ran.report["killed"], false, "{ran:#?}");
            assert_eq!(ran.report["containment"]["kind"], "cgroup", "{ran:#?}");
            assert_eq!(ran.report["unkillable"]["count"], 0, "{ran:#?}");
            assert_eq!(ran.report["emigrants"]["count"], 0, "{ran:#?}");
            assert_eq!(ran.report["not_removed"], serde_json::json!([]), "{ran:#?}");
        }
        [left, stopped]
    }
}

pub fn holds(script: &str) -> [Ran; 2] {
    Surrounding { script, options: &[] }.holds()
}

/// Returns a user of this test only, so that no other processes count against its limits.
pub fn fresh_user() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    200_000 + std::process::id() % 10_000 * 10 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Returns a script that becomes a user, with a report file that this user can write.
pub fn become_user(uid: u32) -> String {
    format!(r#": >"$4"; chmod 666 "$4"; exec setpriv --reuid {uid} --regid {uid} --clear-groups "$@""#)
}
