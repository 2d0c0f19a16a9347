//! What a job may touch: the policy as plain data, from a builder or from JSON.

// The way of the data:
//
// 1. `policy::Sandbox` says what the job may touch.
// 2. `machine::Machine` says what the kernel offers here. Each mechanism is tried, never derived from a version.
// 3. `promise::resolve` decides for each promise what holds it, or refuses the job.
// 4. `prepare::prepare` opens the paths and makes the ruleset, the filters and the list of namespace calls. This
//    happens in the supervisor, so that paths resolve as the caller's.
// 5. `apply` is what the child does with them between clone and exec.

pub(crate) mod apply;
mod calls;
mod filter;
pub(crate) mod machine;
mod mounts;
mod policy;
pub(crate) mod prepare;
mod promise;
mod rules;
#[cfg(test)]
mod tests;

pub use policy::{Network, PrivateTmp, Sandbox, Unix};
