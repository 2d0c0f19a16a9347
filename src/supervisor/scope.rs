//! A transient scope from systemd with `Delegate=yes`: a cgroup that systemd delegates, with all controllers that
//! systemd itself has (systemd.scope(5), <https://systemd.io/CGROUP_DELEGATION/>). A user's scope comes from the user's
//! own manager, root's from the system manager.
//!
//! Only the guard moves into the scope, and the jobs are made there; the supervisor stays where it is. systemd removes
//! the scope when the guard has ended. This also works from a session whose scope belongs to root: the user manager
//! asks the system manager to move the process (`AttachProcessesToUnit`, systemd 238).

use crate::cgroup::directory::Cgroup;
use crate::report::Refusal;
use crate::supervisor::link::Link;

const TRIED: &str = "a scope of systemd";

#[cfg(not(feature = "systemd"))]
pub(super) async fn make(_link: &Link) -> Result<Cgroup, Refusal> {
    let advice = "build pinfold with the feature systemd, or name a cgroup with --cgroup DIR";
    Err(Refusal::new(TRIED, "this pinfold was built without it", advice))
}

#[cfg(feature = "systemd")]
pub(super) async fn make(link: &Link) -> Result<Cgroup, Refusal> {
    use std::time::Duration;

    /// A machine that is booting can be slow to answer, so this is long. It is bounded, because a bus that never
    /// answers must not block the start.
    const BOUND: Duration = Duration::from_secs(10);

    let refuse = |(reason, advice): (String, &str)| Refusal::new(TRIED, reason, advice);
    match tokio::time::timeout(BOUND, bus::start_scope(link.pid)).await {
        Ok(Ok(())) => of_process(link.pid),
        Ok(Err(reason)) => Err(refuse(reason)),
        Err(_) => Err(refuse(("systemd did not answer within 10 s".into(), "see systemctl status"))),
    }
}

/// Opens the cgroup that the guard was moved to.
#[cfg(feature = "systemd")]
fn of_process(pid: rustix::process::Pid) -> Result<Cgroup, Refusal> {
    use crate::kernel::mount;
    let refuse = |reason: String| Refusal::new(TRIED, reason, "name a cgroup with --cgroup DIR");
    let read =
        |file: String| crate::cgroup::read_file(&file).map_err(|error| refuse(format!("cannot read {file}: {error}")));
    let own = mount::own_path(&read(format!("/proc/{pid}/cgroup"))?);
    let mounts = mount::cgroup2_mounts(&read("/proc/self/mountinfo".into())?);
    let path = own.and_then(|own| mounts.iter().rev().find_map(|mount| mount::directory(mount, &own)));
    let path = path.ok_or_else(|| refuse("no cgroup2 mount here contains its cgroup".into()))?;
    crate::cgroup::open_cgroup(&path)
}

#[cfg(feature = "systemd")]
mod bus {
    use rustix::process::Pid;
    use tokio_stream::StreamExt;
    use zbus::zvariant::{OwnedObjectPath, Value};
    use zbus::{Connection, connection::Builder};

    /// The part of `org.freedesktop.systemd1.Manager` (org.freedesktop.systemd1(5)) that pinfold uses.
    #[zbus::proxy(
        interface = "org.freedesktop.systemd1.Manager",
        default_service = "org.freedesktop.systemd1",
        default_path = "/org/freedesktop/systemd1"
    )]
    trait Manager {
        fn subscribe(&self) -> zbus::Result<()>;

        fn start_transient_unit(
            &self,
            name: &str,
            mode: &str,
            properties: &[(&str, Value<'_>)],
            auxiliary: &[(&str, Vec<(&str, Value<'_>)>)],
        ) -> zbus::Result<OwnedObjectPath>;

        #[zbus(signal)]
        fn job_removed(&self, id: u32, job: OwnedObjectPath, unit: String, result: String) -> zbus::Result<()>;
    }

    type Reason = (String, &'static str);

    /// Connects to the bus of the responsible manager. After `su -l`, the environment does not name the user's bus.
    async fn connect() -> Result<Connection, Reason> {
        let user = rustix::process::geteuid();
        if user.is_root() {
            return Connection::system().await.map_err(|error| {
                (format!("cannot reach the system's bus: {error}"), "is this machine booted by systemd, with dbus?")
            });
        }
        let advice =
            "log in through PAM (ssh, a console, machinectl shell), or have root run: loginctl enable-linger USER";
        let failed = |error: zbus::Error| (format!("cannot reach the user's bus: {error}"), advice);
        if std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
            && let Ok(connection) = Connection::session().await
        {
            return Ok(connection);
        }
        let address = format!("unix:path=/run/user/{}/bus", user.as_raw());
        Builder::address(address.as_str()).map_err(failed)?.build().await.map_err(failed)
    }

    /// Starts a scope with the guard in it, and waits until it has been started.
    pub async fn start_scope(guard: Pid) -> Result<(), Reason> {
        let failed = |error: zbus::Error| (format!("it was refused: {error}"), "see journalctl; or use --cgroup DIR");
        let connection = connect().await?;
        let manager = ManagerProxy::new(&connection).await.map_err(failed)?;
        // pinfold subscribes before the call, because the systemd job may end at once.
        manager.subscribe().await.map_err(failed)?;
        let mut ended = manager.receive_job_removed().await.map_err(failed)?;
        let pid = guard.as_raw_nonzero().get();
        let name = format!("pinfold-{pid}.scope");
        let properties = [
            ("Description", Value::from("Jobs of pinfold")),
            ("PIDs", Value::from(vec![pid as u32])),
            ("Delegate", Value::from(true)),
            // systemd removes the scope when it is empty, also after a failure.
            ("CollectMode", Value::from("inactive-or-failed")),
        ];
        let job = manager.start_transient_unit(&name, "fail", &properties, &[]).await.map_err(failed)?;
        while let Some(signal) = ended.next().await {
            let arguments = signal.args().map_err(failed)?;
            if arguments.job == job {
                return match arguments.result.as_str() {
                    "done" => Ok(()),
                    result => Err((format!("its start ended as '{result}'"), "see journalctl")),
                };
            }
        }
        Err(("the bus closed the connection".into(), "see journalctl"))
    }
}
