//! Promise 1, tested with everything that gets away from a parent, a group, a session, a cgroup or a signal. Each way
//! to escape runs twice: once the deadline ends the job, and once the main process exits with 0 and leaves it behind.
//! Each runs with and without a cgroup.

use std::path::Path;

use crate::support::escape::{By, Escape, command, emigrant, escape};
use crate::support::{PINFOLD, Scratch, own_cgroup};

// Processes that leave their parent, group or session.

#[test]
#[each_containment]
fn a_process_group_of_its_own(containment: &str) {
    escape("escape_kin", "own-group").both(containment);
}

#[test]
#[each_containment]
fn a_session_of_its_own(containment: &str) {
    escape("escape_kin", "own-session").both(containment);
}

#[test]
#[each_containment]
fn a_double_fork(containment: &str) {
    escape("escape_kin", "double-fork").both(containment);
}

#[test]
#[each_containment]
fn daemon_3(containment: &str) {
    escape("escape_kin", "daemon").both(containment);
}

#[test]
#[requires(program("nohup"))]
#[each_containment]
fn under_nohup(containment: &str) {
    command("hangup-ignored", [""; 0]).under(["nohup"]).both(containment);
}

#[test]
#[requires(program("env"))]
#[each_containment]
fn without_an_environment(containment: &str) {
    command("no-environment", [""; 0]).under(["env", "-i"]).both(containment);
}

#[test]
#[each_containment]
fn without_any_descriptor(containment: &str) {
    escape("escape_kin", "all-closed").both(containment);
}

#[test]
#[each_containment]
fn a_sibling_by_clone_parent(containment: &str) {
    escape("escape_kin", "sibling").both(containment);
}

#[test]
#[each_containment]
fn below_a_subreaper_of_its_own(containment: &str) {
    escape("escape_kin", "own-subreaper").in_place(2).leftovers(2).both(containment);
}

#[test]
#[each_containment]
fn below_many_subreapers_that_end_at_once(containment: &str) {
    escape("escape_kin", "own-subreapers").in_place(80).leftovers(80).both(containment);
}

// Many processes.

#[test]
#[each_containment]
fn a_chain_of_vforks(containment: &str) {
    escape("escape_kin", "vfork-chain").leftovers(9).both(containment);
}

#[test]
#[each_containment]
fn threads_that_fork(containment: &str) {
    escape("escape_kin", "forking-threads").in_place(4).leftovers(5).both(containment);
}

#[test]
#[each_containment]
fn a_thread_that_outlives_its_leader(containment: &str) {
    escape("escape_kin", "dead-leader").both(containment);
}

#[test]
#[requires(root)]
#[each_containment]
fn a_fork_storm(containment: &str) {
    // One storm at a time: the limit on processes counts all processes of the user.
    let lock = std::fs::File::open(env!("CARGO_TARGET_TMPDIR")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let mut storm = escape("escape_kin", "storm").by(By::Kill);
    (storm.in_place, storm.leftovers) = (1..=usize::MAX, 1..=u64::MAX);
    storm.both(containment);
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
#[each_containment]
fn a_relay(containment: &str) {
    relay("relay", 1).both(containment);
}

#[test]
#[each_containment]
fn relays_in_sessions_of_their_own(containment: &str) {
    relay("relays-in-sessions", 3).both(containment);
}

#[test]
#[each_containment]
fn a_relay_in_shared_memory(containment: &str) {
    relay("relay-in-shared-memory", 1).both(containment);
}

// Processes that ignore signals.

#[test]
#[each_containment]
fn deaf_to_sigterm(containment: &str) {
    escape("escape_deaf", "deaf-to-term").by(By::Kill).both(containment);
}

#[test]
#[each_containment]
fn deaf_to_every_signal(containment: &str) {
    escape("escape_deaf", "deaf-to-all").by(By::Kill).both(containment);
}

#[test]
#[each_containment]
fn a_deaf_main_process(containment: &str) {
    escape("escape_deaf", "deaf-main").by(By::Kill).in_place(0).ended_by_the_deadline(containment);
}

#[test]
#[each_containment]
fn one_more_for_each_sigterm(containment: &str) {
    escape("escape_deaf", "fork-when-told").by(By::Kill).both(containment);
}

#[test]
#[each_containment]
fn relays_that_sigterm_sets_off(containment: &str) {
    escape("escape_deaf", "relays-when-told").by(By::Kill).in_place(100).leftovers(100).both(containment);
}

// Processes that ignore signals and whose first thread has exited: `cgroup.kill` alone does not end them.

#[test]
#[each_containment]
fn a_deaf_thread_that_outlives_its_leader(containment: &str) {
    escape("escape_deaf", "deaf-headless").by(By::Kill).both(containment);
}

#[test]
#[each_containment]
fn a_deaf_parent_whose_thread_outlives_its_leader(containment: &str) {
    escape("escape_deaf", "deaf-headless-parent").by(By::Kill).leftovers(9).both(containment);
}

#[test]
#[each_containment]
fn a_main_process_whose_thread_outlives_its_leader(containment: &str) {
    escape("escape_deaf", "headless-main").ended_by_the_deadline(containment);
}

#[test]
#[each_containment]
fn a_deaf_main_process_whose_thread_outlives_its_leader(containment: &str) {
    escape("escape_deaf", "deaf-headless-main").by(By::Kill).ended_by_the_deadline(containment);
}

// Processes that do not run: none of these receives the stop signal before it is continued.

#[test]
#[each_containment]
fn stopped(containment: &str) {
    escape("escape_deaf", "stopped").both(containment);
}

#[test]
#[each_containment]
fn stopped_under_a_tracer(containment: &str) {
    escape("escape_deaf", "traced").leftovers(2).both(containment);
}

#[test]
#[requires(root)]
#[each_containment]
fn a_main_process_held_by_a_tracer(containment: &str) {
    escape("escape_deaf", "traced-main").by(By::Kill).ended_by_the_deadline(containment);
}

// Processes of another user, or in another namespace.

#[test]
#[requires(root)]
#[each_containment]
fn another_users(containment: &str) {
    escape("escape_user", "another-user").both(containment);
}

#[test]
#[requires(root)]
#[each_containment]
fn in_a_pid_namespace(containment: &str) {
    escape("escape_user", "pid-namespace").by(By::Kill).in_place(2).leftovers(3).both(containment);
}

#[test]
#[requires(root, program("unshare"))]
#[each_containment]
fn by_unshare_1(containment: &str) {
    command("command", ["unshare", "--pid", "--fork"]).by(By::Kill).leftovers(2).both(containment);
}

#[test]
#[requires(root, user_namespaces)]
#[each_containment]
fn in_a_user_namespace(containment: &str) {
    escape("escape_user", "user-namespace").both(containment);
}

// Processes in a cgroup of their own.

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn in_a_cgroup_of_its_own(containment: &str) {
    escape("escape_cgroup", "own-cgroup").with([own_cgroup()]).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn the_main_process_in_a_cgroup_of_its_own(containment: &str) {
    escape("escape_cgroup", "own-cgroup-of-main").with([own_cgroup()]).leftovers(0).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn in_a_frozen_cgroup(containment: &str) {
    escape("escape_cgroup", "frozen").with([own_cgroup()]).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn at_the_bottom_of_thirty_cgroups(containment: &str) {
    escape("escape_cgroup", "deep").with([own_cgroup()]).in_place(3).leftovers(3).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn with_a_thread_in_a_threaded_cgroup(containment: &str) {
    escape("escape_cgroup", "threaded").with([own_cgroup()]).both(containment);
}

#[test]
#[requires(cgroup)]
#[each_containment]
fn in_a_nested_pinfold(containment: &str) {
    // The leftovers are the inner pinfold, its guard and its job.
    command("command", [PINFOLD, "run", "--"]).leftovers(3).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn in_a_nested_pinfold_that_holds_its_job_elsewhere(containment: &str) {
    let report = Scratch::new("nested");
    let words: [&Path; 6] =
        [PINFOLD.as_ref(), "run".as_ref(), "--report".as_ref(), report.path(), "--cgroup".as_ref(), &own_cgroup()];
    let nested = command("command", words.into_iter().chain([Path::new("--")])).leftovers(2).elsewhere(1);
    for run in [Escape::ended_by_the_deadline, Escape::left_behind] {
        run(&nested, containment);
        // The inner pinfold received the stop signal and ended its job itself.
        let inner: serde_json::Value = serde_json::from_str(&report.text()).unwrap();
        let leaf = Path::new(inner["containment"]["cgroup"].as_str().unwrap());
        assert!(!leaf.exists(), "{inner:#}");
    }
}

// Processes that leave the job's cgroup.

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn an_emigrant(containment: &str) {
    emigrant("emigrant").both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn a_deaf_emigrant(containment: &str) {
    emigrant("deaf-emigrant").by_without_cgroup(By::Kill).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn a_stopped_emigrant(containment: &str) {
    emigrant("stopped-emigrant").both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn hundreds_of_emigrants(containment: &str) {
    // The report does not count the main process.
    emigrant("many-emigrants").in_place(701).emigrants(700).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn a_family_of_emigrants(containment: &str) {
    emigrant("family-of-emigrants").in_place(4).leftovers(1).emigrants(3).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn an_emigrant_whose_thread_outlives_its_leader(containment: &str) {
    emigrant("headless-emigrant").both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn an_emigrant_that_is_replaced_between_two_looks(containment: &str) {
    let mut fleeting = emigrant("fleeting-emigrant").by_without_cgroup(By::Luck);
    fleeting.emigrants = 1..=u64::MAX;
    fleeting.both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn a_main_process_that_emigrates(containment: &str) {
    // The child of the main process, which is born outside, is the emigrant.
    emigrant("main-emigrates").in_place(2).both(containment);
}

#[test]
#[requires(cgroup, root)]
#[each_containment]
fn a_deaf_main_process_that_emigrates(containment: &str) {
    emigrant("deaf-main-emigrates").in_place(2).by(By::Kill).ended_by_the_deadline(containment);
}

#[test]
#[requires(cgroup, root)]
fn an_emigrant_that_froze_the_job() {
    emigrant("frozen-job").ended_by_the_deadline("cgroup");
}
