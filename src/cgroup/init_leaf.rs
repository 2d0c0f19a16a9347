//! The leaf in which `pinfold init --delegate` puts all processes of a container, so that the container's own cgroup can
//! give its controllers to the jobs. Supervisors that run in this leaf make their bases beside it.

use rustix::io::Errno;
use rustix::process::getpid;

use super::INIT_LEAF;
use super::directory::Cgroup;
use super::limits::Controller;

/// How many times pinfold lists the processes at most. While it moves them, they can start other processes.
const PASSES: u32 = 1000;

/// Moves all processes of the cgroup `place` to a leaf below it, and enables the controllers that pinfold knows, as far
/// as `place` has them. Returns the names of the controllers.
///
/// # Errors
/// The operation that failed, and the errno: `BUSY` if processes of another PID namespace are in the cgroup, or if its
/// processes start new ones faster than they are moved.
pub(crate) fn delegate(place: &Cgroup) -> std::result::Result<Vec<&'static str>, (String, Errno)> {
    let leaf = match place.make(INIT_LEAF) {
        Err(Errno::EXIST) => place.open(INIT_LEAF),
        made => made,
    };
    let leaf = leaf.map_err(|errno| (format!("make the cgroup {INIT_LEAF}"), errno))?;
    // This process first: then the processes that it starts are in the leaf.
    leaf.write(c"cgroup.procs", b"0").map_err(|errno| (format!("move process {} to {INIT_LEAF}", getpid()), errno))?;
    for _ in 0..PASSES {
        let inside = place.list().map_err(|errno| ("list the processes".into(), errno))?;
        if inside.is_empty() {
            break;
        }
        for pid in inside.into_iter().flatten() {
            match leaf.write(c"cgroup.procs", pid.to_string().as_bytes()) {
                // ESRCH: the process has ended.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(errno) => return Err((format!("move process {pid} to {INIT_LEAF}"), errno)),
            }
        }
    }
    let own = place.read(c"cgroup.controllers").unwrap_or_default();
    let available =
        Controller::ALL.into_iter().filter(|known| own.split_ascii_whitespace().any(|name| name == known.name()));
    let mut enabled = Vec::new();
    for controller in available {
        place
            .write(c"cgroup.subtree_control", format!("+{controller}").as_bytes())
            .map_err(|errno| (format!("give the {controller} controller to its children"), errno))?;
        enabled.push(controller.name());
    }
    Ok(enabled)
}
