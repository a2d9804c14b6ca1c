//! A process's confinement as data: one line per permission, each with its reason.

use std::path::Path;

/// Everything that [`crate::confine`] enforces for one process.
#[derive(Clone, Copy, Debug)]
pub struct Profile<'a> {
    /// Name of the process.
    pub name: &'static str,
    /// System calls that work. Anything in neither list kills the process.
    pub allow: &'static [Allow],
    /// System calls that fail with an error number, because libraries try them and cope.
    pub refuse: &'static [Refuse],
    /// The only paths that can be opened; none if empty. Where they are is known to the process, not to the table:
    /// `Profile { paths: &paths, ..AGENTD }`.
    pub paths: &'a [PathRule<'a>],
    /// Resource limits.
    pub limits: &'static [Limit],
}

/// A system call that works, if every condition holds; otherwise it kills the process.
#[derive(Clone, Copy, Debug)]
pub struct Allow {
    /// Number on this architecture.
    pub syscall: i64,
    /// Conditions on arguments, all of which must hold.
    pub when: &'static [Arg],
    /// What it is needed for.
    pub why: &'static str,
}

/// A system call that fails with `errno` if every condition holds, whatever [`Profile::allow`] says; otherwise that
/// decides.
#[derive(Clone, Copy, Debug)]
pub struct Refuse {
    /// Number on this architecture.
    pub syscall: i64,
    /// Conditions on arguments, all of which must hold.
    pub when: &'static [Arg],
    /// The error number.
    pub errno: i32,
    /// Why it fails rather than kills.
    pub why: &'static str,
}

/// A condition on the 64 bits of one argument.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    /// The lower 32 bits of argument `.0` are `.1`.
    Is(u8, u32),
    /// The lower 32 bits of argument `.0` are not `.1`.
    IsNot(u8, u32),
    /// Argument `.0` has, of the bits `.1`, none set.
    Lacks(u8, u64),
    /// Argument `.0` has all of the bits `.1` set.
    Has(u8, u64),
}

/// A path that can be opened, and everything below it.
#[derive(Clone, Copy, Debug)]
pub struct PathRule<'a> {
    /// It must exist when the process is confined. A rule on a mount point does not reach what is mounted there
    /// later; one on a folder above it does.
    pub path: &'a Path,
    /// What for.
    pub access: Access,
    /// What it is needed for.
    pub why: &'static str,
}

/// What may be done below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read files and list folders.
    Read,
    /// Also write, create, replace and remove regular files.
    ReadWrite,
}

/// One resource limit, soft and hard.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The resource.
    pub resource: rustix::process::Resource,
    /// The most of it.
    pub max: u64,
    /// Why.
    pub why: &'static str,
}
