//! Waiting until nothing runs in a leaf.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::containment::leaf::Leaf;

/// How often a leaf is looked at that can't be watched, because no descriptor is to be had.
const BLIND: Duration = Duration::from_millis(50);

/// How often a leaf is looked at that the guard may remove at the same time: the kernel spaces notifications by 10 ms, and
/// with the directory it drops the one that is due.
const REMOVED_UNSEEN: Duration = Duration::from_millis(10);

/// Waits until nothing runs in the leaf. Its file is read first: a notification can be 10 ms late (kernfs spaces
/// them), and what is true already is never told again. A guard that is lost removes the directory too, unless it was
/// killed.
pub(super) async fn emptied(leaf: Option<&Leaf>, watch: Option<&AsyncFd<OwnedFd>>, guard_lost: bool) {
    let Some(leaf) = leaf else {
        // The guard tells.
        return pending().await;
    };
    loop {
        let watch = match (leaf.populated(), watch) {
            (Ok(false), _) => return,
            (Ok(true), Some(watch)) => watch,
            // No descriptor was to be had for a watch, or no memory for a look.
            _ => {
                tokio::time::sleep(BLIND).await;
                continue;
            }
        };
        let ready = async {
            match watch.ready(Interest::PRIORITY).await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            () = ready => {}
            () = tokio::time::sleep(REMOVED_UNSEEN), if guard_lost => {}
        }
    }
}
