//! The sweep that runs at the same time as the start of the first job: it ends and removes abandoned bases in the same
//! cgroup.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;

use super::watch;
use crate::cgroup::directory::{Cgroup, populated};
use crate::cgroup::leaf::STEP;
use crate::cgroup::sweep::{BOUND, claim};
use crate::cgroup::{base, delegation};

/// How long one start may spend on removing cgroups. The next start removes the remaining ones.
pub(super) const REMOVAL_TIME: Duration = Duration::from_secs(2);

/// Removes abandoned bases in `place`, and ends the processes in them. If there are no cgroups below, this costs one
/// fstat. It yields to other tasks every few milliseconds.
///
/// It skips the supervisor's own base, which has the name `own`, and bases that this user has no permission to change;
/// their owner has to remove them. If the future is dropped, the next sweep does the rest.
pub(crate) async fn sweep(place: Arc<Cgroup>, own: String) {
    let (killing, removing) = (Instant::now() + BOUND, Instant::now() + REMOVAL_TIME);
    for name in place.children().unwrap_or_default() {
        if name == own || !name.starts_with(base::PREFIX) {
            continue;
        }
        if !base::is_name(&name) {
            delegation::remove_abandoned(&place, &name);
        } else if let Ok(Some(cgroup)) = claim(&place, &name) {
            // The lock is held until the directory is gone.
            kill_and_wait(&cgroup, killing).await;
            let mut removal = None;
            // If the directory is still busy, the next start tries again.
            while Instant::now() < removing
                && base::step(&place, &name, &mut removal, Some(Instant::now() + STEP)) == Ok(false)
            {
                tokio::task::yield_now().await;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Kills the processes in the cgroup and waits until none runs there, until `bound` at most.
async fn kill_and_wait(cgroup: &Cgroup, bound: Instant) {
    let Ok(events) = cgroup.events() else { return };
    if populated(&events) == Ok(false) || cgroup.kill().is_err() {
        return;
    }
    let Ok(watch) = watch::watched(events, Interest::PRIORITY) else { return };
    while populated(&watch) != Ok(false) && Instant::now() < bound {
        let again = cgroup.kill_again_at().unwrap_or(bound);
        if again <= Instant::now() {
            let _ = cgroup.kill_again();
            continue;
        }
        let until = again.min(bound);
        if let Ok(Ok(mut ready)) = tokio::time::timeout_at(until.into(), watch.ready(Interest::PRIORITY)).await {
            ready.clear_ready();
        }
    }
}
