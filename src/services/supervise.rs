//! The services of a program together: the program starts, watches and stops them.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::kernel::creator::Creator;
use crate::kernel::signal::Signal;
use crate::services::config::Service;
use crate::services::events::{ServiceEvents, ServiceStatus};
use crate::services::graph::{self, Graph};
use crate::services::machine::{Event, State};
use crate::services::output::{Follow, OutputLine, OutputLines};
use crate::services::state::Shared;
use crate::supervisor::Supervisor;

/// How to start [`Services`].
///
/// ```
/// use pinfold::Command;
/// use pinfold::services::{Service, Services};
/// let builder = Services::builder().service(Service::new("web", Command::new("./serve")));
/// # drop(builder);
/// ```
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct ServicesBuilder {
    services: Vec<Service>,
}

impl ServicesBuilder {
    /// Adds a service.
    pub fn service(mut self, service: Service) -> Self {
        self.services.push(service);
        self
    }

    /// Adds services, for example those of a [`ServiceFile`](crate::services::ServiceFile).
    pub fn services(mut self, services: impl IntoIterator<Item = Service>) -> Self {
        self.services.extend(services);
        self
    }

    /// Starts the services in the order of their dependencies, and returns at once. The services run in the runtime that
    /// the supervisor was started in. A service with limits needs a supervisor with the controllers for them
    /// ([`Service::controllers`]).
    ///
    /// # Errors
    /// [`Error::Config`] if the services can't be started as they are described: for example, another process listens at
    /// an address of [`Service::listen`]. No service was started then.
    pub fn start(self, supervisor: &Supervisor) -> Result<Services> {
        let services = self.build(supervisor)?;
        services.start_all();
        Ok(services)
    }

    /// Returns the services without starting them, so that the caller can first call [`events`](Services::events) and
    /// [`output`](Services::output), and then receives every event and every line. [`Services::start_all`] starts them.
    ///
    /// # Errors
    /// The same as for [`start`](Self::start).
    pub fn build(self, supervisor: &Supervisor) -> Result<Services> {
        let _entered = supervisor.inner.runtime.handle.enter();
        let graph = Graph::of(&self.services)?;
        let shared = Arc::new(Shared::new(supervisor.uncounted(), self.services, graph)?);
        Ok(Services { owner: Arc::new(Owner(shared, Creator::current_process())) })
    }
}

/// Runs services: commands that are kept running. All clones refer to the same services. When the last clone is
/// dropped, pinfold kills the services.
///
/// ```rust,standalone_crate
/// use std::time::Duration;
/// use pinfold::services::{Condition, Ready, Restart, Service, Services};
/// use pinfold::{Command, Readiness, Supervisor};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
///     runtime.block_on(async {
///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
///         let mut command = Command::new("sh");
///         command.args(["-c", "echo listening; exec sleep 999"]);
///         let db = Service::new("db", command).ready(Readiness::line("listening")).restart(Restart::on_failure());
///         let mut command = Command::new("sh");
///         command.args(["-c", "echo the database is there; exec sleep 999"]);
///         let web = Service::new("web", command).depends_on("db", Condition::Ready);
///         let services = Services::builder().service(db).service(web).start(&supervisor)?;
///         services.ready().await?;
///         services.restart("db")?;
///         services.ready().await?;
///         services.stop().await; // First web, then db.
///         supervisor.close().await;
///         Ok(())
///     })
/// }
/// ```
///
/// ```
/// fn is_for_any_thread<T: Clone + Send + Sync + 'static>() {}
/// is_for_any_thread::<pinfold::services::Services>();
/// ```
#[derive(Clone, Debug)]
pub struct Services {
    owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner(Arc<Shared>, Creator);

impl Drop for Owner {
    fn drop(&mut self) {
        if self.1.is_another_process() {
            return self.1.leak_in_forked_copy(&self.0);
        }
        self.0.kill();
    }
}

impl Services {
    /// Returns a builder.
    pub fn builder() -> ServicesBuilder {
        ServicesBuilder::default()
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.0
    }

    /// Returns the position of a service.
    fn find(&self, name: &str) -> Result<usize> {
        let services = &self.shared().services;
        let found = services.iter().position(|service| service.name() == name);
        found.ok_or_else(|| graph::unknown(name, services.iter().map(Service::name)))
    }

    /// Returns the events of all services from now on. The stream ends when all services have been stopped.
    #[must_use]
    pub fn events(&self) -> ServiceEvents {
        ServiceEvents(self.shared().listen())
    }

    /// Returns all lines of output from now on. The stream ends when all services have been stopped. A slow reader
    /// delays the services, as a slow reader of a pipe does, until it is dropped. A reader from
    /// [`follow`](Self::follow) does not delay them.
    #[must_use]
    pub fn output(&self) -> OutputLines {
        self.shared().tails.listen()
    }

    /// Returns the last lines of a service, at most `count`. pinfold keeps at most the last 1000 lines and the last
    /// 1 MiB of each service, including lines of earlier jobs.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no service has this name.
    pub fn last_lines(&self, name: &str, count: usize) -> Result<Vec<OutputLine>> {
        Ok(self.shared().tails.last(self.find(name)?, count))
    }

    /// Follows the output of these services, beginning with the last `count` lines of each one. Without names, follows
    /// all services.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that no service has.
    pub fn follow(&self, names: &[String], count: usize) -> Result<Follow> {
        let services = self.positions(names)?;
        Ok(self.shared().tails.follow(&services, count))
    }

    /// Returns the positions of these services. Without names, returns the positions of all services.
    fn positions(&self, names: &[String]) -> Result<Vec<usize>> {
        match names {
            [] => Ok((0..self.shared().services.len()).collect()),
            names => names.iter().map(|name| self.find(name)).collect(),
        }
    }

    /// Returns the state of each service, in the order in which the services were added.
    #[must_use]
    pub fn status(&self) -> Vec<ServiceStatus> {
        self.shared().status()
    }

    /// Waits until each service is ready or has finished. A one-shot is ready when it has exited with 0.
    ///
    /// Cancel-safe: dropping the future changes nothing.
    ///
    /// # Errors
    /// [`Error::NotReady`] as soon as a service has failed, or has been stopped. The other services continue to run.
    pub async fn ready(&self) -> Result<()> {
        self.ready_some(&[]).await
    }

    /// Waits for these services as [`ready`](Self::ready) does. Without names, waits for all services.
    ///
    /// Cancel-safe: dropping the future changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that no service has, and those of [`ready`](Self::ready).
    pub async fn ready_some(&self, names: &[String]) -> Result<()> {
        let services = self.positions(names)?;
        let mut changes = self.shared().changes();
        loop {
            changes.borrow_and_update();
            let all = self.status();
            let status: Vec<_> = services.iter().map(|&service| &all[service]).collect();
            let gone = status.iter().find(|one| one.state == State::Failed || one.stopped);
            if let Some(gone) = gone {
                let why = if gone.stopped { "it was stopped".into() } else { gone.message.clone() };
                return Err(Error::NotReady { program: gone.name.to_string(), why });
            }
            if status.iter().all(|one| matches!(one.state, State::Ready | State::Finished)) {
                return Ok(());
            }
            // `self` owns the sender, so this returns no error.
            let _ = changes.changed().await;
        }
    }

    /// Starts all services that [`ServicesBuilder::build`] has returned, in the order of their dependencies, and
    /// returns at once. A second call does nothing.
    pub fn start_all(&self) {
        self.shared().begin();
    }

    /// Begins to start a service that has ended, or that waits for its next restart, and returns at once. The service
    /// waits for the services that it depends on, but this method does not start them.
    ///
    /// # Errors
    /// [`Error::Invalid`] if no service has this name, or if all services are being stopped.
    pub fn start(&self, name: &str) -> Result<()> {
        self.begin(name, Event::StartAsked)
    }

    /// Begins to restart a service, and returns at once: stops it, and starts it again when no process of it is left and
    /// the services that it depends on fulfil their conditions. Services that depend on it continue to run.
    ///
    /// # Errors
    /// The same as for [`start`](Self::start).
    pub fn restart(&self, name: &str) -> Result<()> {
        self.begin(name, Event::RestartAsked)
    }

    fn begin(&self, name: &str, event: Event) -> Result<()> {
        match self.shared().start(self.find(name)?, event) {
            true => Ok(()),
            false => Err(Error::invalid("start of the service", name, "all services are being stopped")),
        }
    }

    /// Stops these services in the reverse order of their dependencies, and waits until no process of them is left.
    /// Services that depend on them continue to run. Without names, stops nothing.
    ///
    /// Cancel-safe: the stop continues if the future is dropped. Nothing happens before the first poll of the future.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that no service has. Nothing was stopped then.
    pub async fn stop_some(&self, names: &[String]) -> Result<()> {
        let services = names.iter().map(|name| self.find(name)).collect::<Result<Vec<_>>>()?;
        self.shared().stop(&services, false, None);
        self.until(|status| services.iter().all(|&service| status[service].state.is_over())).await;
        Ok(())
    }

    /// Stops all services in the reverse order of their dependencies, and waits until no process of them is left.
    ///
    /// Cancel-safe: the stop continues if the future is dropped, and another call waits for it. Nothing happens before
    /// the first poll of the future.
    pub async fn stop(&self) {
        self.start_stop();
        self.stopped().await;
    }

    /// Begins the same stop as [`stop`](Self::stop), and returns at once. A second stop changes nothing.
    pub fn start_stop(&self) {
        self.shared().stop(&self.all(), true, None);
    }

    /// Begins a stop in which each service receives this signal first, instead of its own stop signal
    /// ([`start_stop_with`](crate::JobHandle::start_stop_with)).
    pub fn start_stop_with(&self, first: Signal) {
        self.shared().stop(&self.all(), true, Some(first));
    }

    /// Begins to kill all services at once, in no particular order, and returns at once.
    pub fn start_kill(&self) {
        self.shared().kill();
    }

    /// Waits until all services have ended, because of a stop or by themselves. A service that waits, or that pinfold
    /// will start again, has not ended.
    ///
    /// Cancel-safe.
    pub async fn stopped(&self) {
        self.until(|status| status.iter().all(|one| one.state.is_over())).await;
    }

    async fn until(&self, is_reached: impl Fn(&[ServiceStatus]) -> bool) {
        let mut changes = self.shared().changes();
        loop {
            changes.borrow_and_update();
            if is_reached(&self.status()) {
                return;
            }
            // `self` owns the sender, so this returns no error.
            let _ = changes.changed().await;
        }
    }

    fn all(&self) -> Vec<usize> {
        (0..self.shared().services.len()).collect()
    }
}
