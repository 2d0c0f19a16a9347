//! The dependencies between services: checked before anything starts.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::services::config::Service;

/// The services in the order of their description, with their dependencies as positions in that list.
#[derive(Debug)]
pub(super) struct Graph {
    /// For each service, the positions of the services that it depends on.
    pub needs: Vec<Vec<usize>>,
    /// For each service, the positions of the services that depend on it, directly or through other services.
    pub needed_by: Vec<Vec<usize>>,
}

impl Graph {
    /// Checks the services, and resolves their dependencies.
    ///
    /// # Errors
    /// [`Error::Config`] for the first mistake, with its place: two services with the same name, an unknown name, a
    /// service that depends on itself, a cycle.
    pub fn of(services: &[Service]) -> Result<Self> {
        let mut positions = HashMap::new();
        for (position, service) in services.iter().enumerate() {
            service.check()?;
            if let Some(first) = positions.insert(&*service.name, position) {
                let earlier: &Service = &services[first];
                let first = earlier.place.as_ref().map(|place| format!(", the first one is in line {}", place.line));
                let message = format!("two services have the name '{}'{}", service.name, first.unwrap_or_default());
                return Err(service.error(message));
            }
        }
        let mut needs = vec![Vec::new(); services.len()];
        for (position, service) in services.iter().enumerate() {
            for dependency in &service.depends_on {
                let Some(&other) = positions.get(&*dependency.name) else {
                    let names = services.iter().map(Service::name);
                    let message = format!(
                        "{} depends on '{}', which is no service{}",
                        service.name,
                        dependency.name,
                        did_you_mean(&dependency.name, names)
                    );
                    return Err(error_at(service, dependency, message));
                };
                needs[position].push(other);
            }
        }
        let mut graph = Self { needs, needed_by: vec![Vec::new(); services.len()] };
        graph.check_cycles(services)?;
        for position in 0..services.len() {
            for other in graph.with_needs(graph.needs[position].clone()) {
                graph.needed_by[other].push(position);
            }
        }
        Ok(graph)
    }

    /// Returns these services and everything that they need, in the order of the services.
    fn with_needs(&self, mut pending: Vec<usize>) -> Vec<usize> {
        let mut wanted = vec![false; self.needs.len()];
        while let Some(position) = pending.pop() {
            if !std::mem::replace(&mut wanted[position], true) {
                pending.extend(&self.needs[position]);
            }
        }
        (0..wanted.len()).filter(|&position| wanted[position]).collect()
    }

    fn check_cycles(&self, services: &[Service]) -> Result<()> {
        let mut done = vec![false; services.len()];
        for start in 0..services.len() {
            let mut path = Vec::new();
            if let Some(cycle) = self.find_cycle(start, &mut path, &mut done) {
                let first = &services[cycle[0]];
                let second = cycle.get(1).copied().unwrap_or(cycle[0]);
                let dependency = first.depends_on.iter().find(|other| other.name == services[second].name);
                let names: Vec<_> =
                    cycle.iter().chain(&cycle[..1]).map(|&position| services[position].name()).collect();
                let message = format!(
                    "the dependencies form a cycle, so none of these services could start: {}",
                    names.join(" needs ")
                );
                return Err(dependency.map_or_else(
                    || first.error(message.clone()),
                    |dependency| error_at(first, dependency, message.clone()),
                ));
            }
        }
        Ok(())
    }

    /// Searches for a cycle among `from` and the services that it needs. `path` leads to `from`. `done` marks the
    /// services that are known to be in no cycle.
    fn find_cycle(&self, from: usize, path: &mut Vec<usize>, done: &mut [bool]) -> Option<Vec<usize>> {
        if done[from] {
            return None;
        }
        if let Some(begin) = path.iter().position(|&known| known == from) {
            return Some(path[begin..].to_vec());
        }
        path.push(from);
        for &other in &self.needs[from] {
            if let Some(cycle) = self.find_cycle(other, path, done) {
                return Some(cycle);
            }
        }
        path.pop();
        done[from] = true;
        None
    }
}

/// Returns the services with these names, and everything that they need, in the order of their description. Without
/// names, returns all services.
///
/// # Errors
/// [`Error::Invalid`] for a name that no service has, and the errors of [`Graph::of`].
pub(super) fn select(services: Vec<Service>, names: &[String]) -> Result<Vec<Service>> {
    let graph = Graph::of(&services)?;
    if names.is_empty() {
        return Ok(services);
    }
    let mut pending = Vec::new();
    for name in names {
        let position = services.iter().position(|service| service.name() == name);
        pending.push(position.ok_or_else(|| unknown(name, services.iter().map(Service::name)))?);
    }
    let wanted = graph.with_needs(pending);
    let all = services.into_iter().enumerate();
    Ok(all.filter(|(position, _)| wanted.contains(position)).map(|(_, service)| service).collect())
}

/// Returns the error for a name that no service has.
pub(super) fn unknown<'a>(name: &str, names: impl Iterator<Item = &'a str> + Clone) -> Error {
    let nearest = did_you_mean(name, names.clone());
    let advice = match nearest.is_empty() {
        true => format!("no service has this name; the services are {}", names.collect::<Vec<_>>().join(", ")),
        false => format!("no service has this name{nearest}"),
    };
    Error::invalid("name of a service", name, advice)
}

fn error_at(service: &Service, dependency: &super::config::Dependency, message: String) -> Error {
    match &dependency.place {
        Some(place) => place.error(message),
        None => service.error(message),
    }
}

/// Returns the known word that is most similar to `word`, as a question, or an empty text if none is similar.
pub(super) fn did_you_mean<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> String {
    /// The similarity of two words is from 0 (all letters differ) to 1 (no letter differs). Words with at most this
    /// similarity differ in half of their letters or more.
    const SIMILAR: f64 = 0.5;
    // Unlike the Jaro distance, this distance counts two swapped letters as one mistake, also in a short word.
    let similarity = |other: &'a str| (strsim::normalized_damerau_levenshtein(word, other), other);
    let nearest = known.map(similarity).filter(|(alike, _)| *alike > SIMILAR).max_by(|a, b| a.0.total_cmp(&b.0));
    nearest.map(|(_, other)| format!(" (did you mean '{other}'?)")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::command::Command;
    use crate::services::config::Condition;

    fn services(all: &[(&str, &[&str])]) -> Vec<Service> {
        let service = |(name, needs): &(&str, &[&str])| {
            let new = Service::new(name, Command::new("true"));
            needs.iter().fold(new, |service, other| service.depends_on(other, Condition::Ready))
        };
        all.iter().map(service).collect()
    }

    fn message(all: &[(&str, &[&str])]) -> String {
        Graph::of(&services(all)).unwrap_err().to_string()
    }

    #[test]
    fn mistakes_are_found() {
        assert_eq!(message(&[("a", &[]), ("a", &[])]), "service 'a': two services have the name 'a'");
        assert_eq!(
            message(&[("web", &["databse"]), ("database", &[])]),
            "service 'web': web depends on 'databse', which is no service (did you mean 'database'?)"
        );
        assert_eq!(
            message(&[("x", &["a"]), ("a", &["b"]), ("b", &["c"]), ("c", &["a"])]),
            "service 'a': the dependencies form a cycle, so none of these services could start: a needs b needs c \
             needs a"
        );
        assert!(message(&[("a", &["a"])]).ends_with("a needs a"));
        assert!(message(&[("a b", &[])]).contains("can't be the name"));
    }

    #[test]
    fn a_service_is_needed_also_through_others() {
        let graph = Graph::of(&services(&[("a", &["b"]), ("b", &["c"]), ("c", &[])])).unwrap();
        assert_eq!(graph.needed_by, [vec![], vec![0], vec![0, 1]]);
    }

    #[test]
    fn a_selected_service_brings_the_services_that_it_needs() {
        let all: &[(&str, &[&str])] = &[("a", &["b"]), ("b", &["d"]), ("c", &[]), ("d", &[])];
        let selected = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            select(services(all), &names).map(|some| some.iter().map(|one| one.name.to_string()).collect::<String>())
        };
        assert_eq!(selected(&[]).unwrap(), "abcd");
        assert_eq!(selected(&["a"]).unwrap(), "abd");
        assert_eq!(selected(&["c", "d"]).unwrap(), "cd");
        assert!(selected(&["z"]).unwrap_err().to_string().contains("the services are a, b, c, d"));
    }
}
