//! Promise 1, tested with everything that gets away from a parent, a group, a session, a cgroup or a signal. Each way
//! to escape runs twice: once the deadline ends the job, and once the main process exits with 0 and leaves it behind.
//! Each runs with and without a cgroup.

use std::path::Path;

use crate::support::escape::{By, Escape, command, emigrant, escape};
use crate::support::{PINFOLD, Scratch, has, has_cgroup, has_program, has_root, own_cgroup};

// Processes that leave their parent, group or session.

#[test]
fn a_process_group_of_its_own() {
    escape("escape_kin", "own-group").both();
}

#[test]
fn a_session_of_its_own() {
    escape("escape_kin", "own-session").both();
}

#[test]
fn a_double_fork() {
    escape("escape_kin", "double-fork").both();
}

#[test]
fn daemon_3() {
    escape("escape_kin", "daemon").both();
}

#[test]
fn under_nohup() {
    if has_program("nohup") {
        command("hangup-ignored", [""; 0]).under(["nohup"]).both();
    }
}

#[test]
fn without_an_environment() {
    if has_program("env") {
        command("no-environment", [""; 0]).under(["env", "-i"]).both();
    }
}

#[test]
fn without_any_descriptor() {
    escape("escape_kin", "all-closed").both();
}

#[test]
fn a_sibling_by_clone_parent() {
    escape("escape_kin", "sibling").both();
}

#[test]
fn below_a_subreaper_of_its_own() {
    escape("escape_kin", "own-subreaper").in_place(2).leftovers(2).both();
}

#[test]
fn below_many_subreapers_that_end_at_once() {
    escape("escape_kin", "own-subreapers").in_place(80).leftovers(80).both();
}

// Many processes.

#[test]
fn a_chain_of_vforks() {
    escape("escape_kin", "vfork-chain").leftovers(9).both();
}

#[test]
fn threads_that_fork() {
    escape("escape_kin", "forking-threads").in_place(4).leftovers(5).both();
}

#[test]
fn a_thread_that_outlives_its_leader() {
    escape("escape_kin", "dead-leader").both();
}

#[test]
fn a_fork_storm() {
    if has_root() {
        let mut storm = escape("escape_kin", "storm").by(By::Kill);
        (storm.in_place, storm.leftovers) = (1..=usize::MAX, 1..=u64::MAX);
        storm.both();
    }
}

// Processes that are replaced between two looks.

/// Returns an escape whose process starts a child that continues, and ends, again and again, in less than 0.1 ms.
fn relay(mode: &str, count: usize) -> Escape {
    let mut relay = escape("escape_kin", mode).by(By::Kill).in_place(count);
    // The single scan that counts leftovers may find none of them.
    relay.leftovers = 0..=u64::MAX;
    relay
}

#[test]
fn a_relay() {
    relay("relay", 1).both();
}

#[test]
fn relays_in_sessions_of_their_own() {
    relay("relays-in-sessions", 3).both();
}

#[test]
fn a_relay_in_shared_memory() {
    relay("relay-in-shared-memory", 1).both();
}

// Processes that ignore signals.

#[test]
fn deaf_to_sigterm() {
    escape("escape_deaf", "deaf-to-term").by(By::Kill).both();
}

#[test]
fn deaf_to_every_signal() {
    escape("escape_deaf", "deaf-to-all").by(By::Kill).both();
}

#[test]
fn a_deaf_main_process() {
    escape("escape_deaf", "deaf-main").by(By::Kill).in_place(0).ended_by_the_deadline();
}

#[test]
fn one_more_for_each_sigterm() {
    escape("escape_deaf", "fork-when-told").by(By::Kill).both();
}

#[test]
fn relays_that_sigterm_sets_off() {
    escape("escape_deaf", "relays-when-told").by(By::Kill).in_place(100).leftovers(100).both();
}

// Processes that ignore signals and whose first thread has exited: `cgroup.kill` alone does not end them.

#[test]
fn a_deaf_thread_that_outlives_its_leader() {
    escape("escape_deaf", "deaf-headless").by(By::Kill).both();
}

#[test]
fn a_deaf_parent_whose_thread_outlives_its_leader() {
    escape("escape_deaf", "deaf-headless-parent").by(By::Kill).leftovers(9).both();
}

#[test]
fn a_main_process_whose_thread_outlives_its_leader() {
    escape("escape_deaf", "headless-main").ended_by_the_deadline();
}

#[test]
fn a_deaf_main_process_whose_thread_outlives_its_leader() {
    escape("escape_deaf", "deaf-headless-main").by(By::Kill).ended_by_the_deadline();
}

// Processes that do not run: none of these receives the stop signal before it is continued.

#[test]
fn stopped() {
    escape("escape_deaf", "stopped").both();
}

#[test]
fn stopped_under_a_tracer() {
    escape("escape_deaf", "traced").leftovers(2).both();
}

#[test]
fn a_main_process_held_by_a_tracer() {
    if has_root() {
        escape("escape_deaf", "traced-main").by(By::Kill).ended_by_the_deadline();
    }
}

// Processes of another user, or in another namespace.

#[test]
fn another_users() {
    if has_root() {
        escape("escape_user", "another-user").both();
    }
}

#[test]
fn in_a_pid_namespace() {
    if has_root() {
        escape("escape_user", "pid-namespace").by(By::Kill).in_place(2).leftovers(3).both();
    }
}

#[test]
fn by_unshare_1() {
    if has_root() && has_program("unshare") {
        command("command", ["unshare", "--pid", "--fork"]).by(By::Kill).leftovers(2).both();
    }
}

#[test]
fn in_a_user_namespace() {
    let may =
        || std::process::Command::new("unshare").args(["--user", "true"]).status().is_ok_and(|done| done.success());
    // unshare does not work in a chroot (user_namespaces(7)).
    if has_root() && has_program("unshare") && has("user-namespaces", may(), "no user namespace can be made here") {
        escape("escape_user", "user-namespace").both();
    }
}

// Processes in a cgroup of their own.

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
        escape("escape_cgroup", "deep").with([own_cgroup()]).in_place(3).leftovers(3).both();
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
        // The leftovers are the inner pinfold, its guard and its job.
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
    let nested = command("command", words.into_iter().chain([Path::new("--")])).leftovers(2).elsewhere(1);
    for run in [Escape::ended_by_the_deadline, Escape::left_behind] {
        run(&nested);
        // The inner pinfold received the stop signal and ended its job itself.
        let inner: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
        let leaf = Path::new(inner["containment"]["cgroup"].as_str().unwrap());
        assert!(!leaf.exists(), "{inner:#}");
    }
}

// Processes that leave the job's cgroup.

#[test]
fn an_emigrant() {
    if has_cgroup() && has_root() {
        emigrant("emigrant").both();
    }
}

#[test]
fn a_deaf_emigrant() {
    if has_cgroup() && has_root() {
        emigrant("deaf-emigrant").by_without_cgroup(By::Kill).both();
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
        // The report does not count the main process.
        emigrant("many-emigrants").in_place(701).emigrants(700).both();
    }
}

#[test]
fn a_family_of_emigrants() {
    if has_cgroup() && has_root() {
        emigrant("family-of-emigrants").in_place(4).leftovers(1).emigrants(3).both();
    }
}

#[test]
fn an_emigrant_whose_thread_outlives_its_leader() {
    if has_cgroup() && has_root() {
        emigrant("headless-emigrant").both();
    }
}

#[test]
fn an_emigrant_that_is_replaced_between_two_looks() {
    if has_cgroup() && has_root() {
        let mut fleeting = emigrant("fleeting-emigrant").by_without_cgroup(By::Luck);
        fleeting.emigrants = 1..=u64::MAX;
        fleeting.both();
    }
}

#[test]
fn a_main_process_that_emigrates() {
    if has_cgroup() && has_root() {
        // The child of the main process, which is born outside, is the emigrant.
        emigrant("main-emigrates").in_place(2).both();
    }
}

#[test]
fn a_deaf_main_process_that_emigrates() {
    if has_cgroup() && has_root() {
        emigrant("deaf-main-emigrates").in_place(2).by(By::Kill).ended_by_the_deadline();
    }
}

#[test]
fn an_emigrant_that_froze_the_job() {
    if has_cgroup() && has_root() {
        emigrant("frozen-job").cgroup_only().ended_by_the_deadline();
    }
}
