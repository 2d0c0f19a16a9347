//! The containment without a cgroup: pinfold finds the descendants of a process through `/proc` and kills them through
//! pidfds.

pub(crate) mod children;
pub(crate) mod descendants;
pub(crate) mod description;
mod found;
pub(crate) mod relay;
