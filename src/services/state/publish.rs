//! Publishes what happens to services.

use std::time::{Duration, SystemTime};

use super::{Fulfilled, Shared, States};
use crate::services::events::{ServiceEvent, ServiceEventKind};
use crate::services::machine::{Failure, State};

impl Shared {
    /// Returns the event for the present state of a service, and updates the message of its status.
    pub(super) fn kind_of(&self, states: &mut States, service: usize, pause: Duration) -> ServiceEventKind {
        let needs: Vec<_> = self.services[service].depends_on.iter().zip(&self.graph.needs[service]).collect();
        let names_of = |wanted: Fulfilled| {
            let found = needs.iter().filter(|(need, other)| self.fulfilled(states, **other, need.condition) == wanted);
            found.map(|(need, _)| need.name.to_string()).collect::<Vec<_>>()
        };
        let waits_for = names_of(Fulfilled::NotYet);
        let failed = names_of(Fulfilled::Never);
        let within = self.services[service].restart.within;
        let entry = &mut states.all[service];
        let reason = entry.reason.clone();
        match entry.machine.state {
            State::Waiting => {
                entry.reason = match waits_for.is_empty() {
                    true => String::new(),
                    false => format!("waits for {}", waits_for.join(", ")),
                };
                ServiceEventKind::Waiting { needs: waits_for }
            }
            State::Starting => {
                entry.reason.clear();
                ServiceEventKind::Starting
            }
            State::Ready => ServiceEventKind::Ready,
            State::Stopping => ServiceEventKind::Stopping,
            State::BackingOff => {
                let (seconds, restarts) = (pause.as_secs_f64(), entry.machine.restarts);
                ServiceEventKind::BackingOff { seconds, restarts, reason }
            }
            State::Failed => {
                let failure = entry.machine.failure.unwrap_or(Failure::Exited);
                let reason = match failure {
                    Failure::Dependency => format!("it depends on {}, which has ended", failed.join(", ")),
                    Failure::NotEnded | Failure::SupervisorGone => reason,
                    _ => match entry.machine.recent_restarts() {
                        0 => reason,
                        restarts => format!(
                            "{reason}; it was started again {restarts} times within {}, which is its limit",
                            humantime::format_duration(within)
                        ),
                    },
                };
                entry.reason.clone_from(&reason);
                ServiceEventKind::Failed { failure, reason }
            }
            State::Finished => ServiceEventKind::Finished { stopped: entry.machine.stopped, reason },
        }
    }

    pub(super) fn publish(&self, states: &mut States, service: usize, kind: ServiceEventKind) {
        let event = ServiceEvent { service: self.services[service].name.clone(), at: SystemTime::now(), kind };
        states.listeners.retain(|listener| listener.send(event.clone()));
    }
}
