//! `pinfold run`, from the outside: what goes in, what comes out.

mod support;

use support::{Canary, Run, has_cgroup};

#[test]
fn everything_ends_at_the_deadline_and_is_named() {
    if !has_cgroup() {
        return;
    }
    let canary = Canary::new();
    let script = "setsid sleep 999 & (setsid nohup sleep 999 >/dev/null 2>&1 &) ; env -i setsid sleep 999 & sleep 999";
    let ran = Run::new(["--timeout", "2s", "--", "bash", "-c", script]).run().assert_code(124);
    assert!((2.0..4.0).contains(&ran.elapsed.as_secs_f64()), "{ran:#?}");
    assert_eq!(ran.listed("stopped").lines().filter(|line| *line == "sleep 999").count(), 4, "{ran:#?}");
    assert_eq!(ran.report["stopped"]["count"], 5);
    canary.assert_alive();
}
