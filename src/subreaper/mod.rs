//! The containment without a cgroup: the descendants of a process are found through `/proc` and ended through pidfds.

pub(crate) mod descendants;
pub(crate) mod relay;
