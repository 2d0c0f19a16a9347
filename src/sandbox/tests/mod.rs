//! The attacks.
