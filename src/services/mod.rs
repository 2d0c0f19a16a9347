//! Services: jobs that are kept running, with readiness, dependencies and restarts.
