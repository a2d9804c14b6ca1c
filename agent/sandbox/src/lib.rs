//! Landlock, seccomp and capabilities: a hard requirement, self-tested.
