//! What a job may touch: the policy as plain data, from a builder or from JSON.

// The steps from the policy to the sandbox:
//
// 1. `policy::Sandbox` says what the job may touch.
// 2. `machine::Machine` says which mechanisms work here. pinfold tries each one, and never derives this from a version.
// 3. `promise::resolve` chooses the mechanism that holds each promise, or refuses the job.
// 4. `prepare::prepare` opens the paths and makes the ruleset, the filters and the list of namespace calls. This
//    happens in the supervisor, so that paths are resolved with the caller's rights.
// 5. The child applies them between clone and exec (`apply`).

pub(crate) mod apply;
pub(crate) mod cache;
mod calls;
pub(crate) mod denials;
mod filter;
pub(crate) mod machine;
pub(crate) mod membership;
mod mounts;
mod policy;
pub(crate) mod prepare;
pub(crate) mod private_tmp;
mod program;
mod promise;
mod rules;
pub(crate) mod spelling;
#[cfg(test)]
mod tests;

pub use policy::{Network, Sandbox, Unix};
