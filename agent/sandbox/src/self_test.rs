//! What a process tries at its start, and must see refused.
//!
//! Two kinds: what fails with an error number is tried by the process itself once it is confined; what ends the
//! process is tried by a child that is confined by the same profile, before the process is.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketType};

use crate::confine::{SandboxError, restrict};
use crate::profile::Profile;

/// Sockets that no process can make.
const SOCKETS: [(&str, AddressFamily, SocketType); 4] = [
    ("socket-tcp", AddressFamily::INET, SocketType::STREAM),
    ("socket-udp", AddressFamily::INET6, SocketType::DGRAM),
    ("socket-netlink", AddressFamily::NETLINK, SocketType::RAW),
    ("socket-vsock", AddressFamily::VSOCK, SocketType::STREAM),
];
/// Calls that end whoever makes them.
const DEADLY: [(&str, i64); 3] = [
    ("execve-kills", libc::SYS_execve),
    ("fork-kills", libc::SYS_fork),
    ("ptrace-kills", libc::SYS_ptrace),
];
const OPEN_LANDLOCK: &str = "open-root-landlock";
const OPEN: &str = "open-root";

/// The child could not be confined.
const NOT_CONFINED: i32 = 2;

/// Everything that is tried, the same for every profile: a table that allows one of them stops its process.
pub(crate) fn names() -> Vec<&'static str> {
    let deadly = DEADLY.iter().map(|(name, _)| *name);
    deadly.chain([OPEN_LANDLOCK, OPEN]).chain(SOCKETS.iter().map(|(name, ..)| *name)).collect()
}

/// Tries what ends a process, each in a child of its own. Called while this process is still free.
pub(crate) fn deadly(profile: &Profile<'_>) -> Result<(), SandboxError> {
    for (probe, syscall) in DEADLY {
        // SAFETY: there is one thread (the caller has checked), so the child is whole; it makes system calls and
        // small allocations, and leaves by `_exit`.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let code = child(profile, syscall);
            // SAFETY: ends the child without running what the parent registered for its own end.
            unsafe { libc::_exit(code) };
        }
        if pid < 0 {
            let cause = std::io::Error::last_os_error();
            return Err(SandboxError::Step { profile: profile.name, step: "fork", cause });
        }
        let found = wait(profile, pid)?;
        if libc::WIFEXITED(found) && libc::WEXITSTATUS(found) == NOT_CONFINED {
            // What stopped the child stops this process too, and here it is told.
            restrict(profile)?;
        }
        if !(libc::WIFSIGNALED(found) && libc::WTERMSIG(found) == libc::SIGSYS) {
            return Err(SandboxError::SelfTest {
                profile: profile.name,
                probe,
                found: format!("wait status {found:#x}"),
                expected: "an end by SIGSYS",
            });
        }
    }
    Ok(())
}

/// Confines the child, then makes the call with arguments that would fail anyway.
fn child(profile: &Profile<'_>, syscall: i64) -> i32 {
    if restrict(profile).is_err() {
        return NOT_CONFINED;
    }
    // SAFETY: null arguments: whatever the call is, it has nothing to read or write.
    unsafe { libc::syscall(syscall, 0, 0, 0, 0, 0, 0) };
    // It came back, in the child or, after a fork, in both.
    0
}

fn wait(profile: &Profile<'_>, pid: libc::pid_t) -> Result<i32, SandboxError> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the result, and `pid` is a child of ours.
        if unsafe { libc::waitpid(pid, &raw mut status, 0) } == pid {
            return Ok(status);
        }
        let cause = std::io::Error::last_os_error();
        if cause.kind() != std::io::ErrorKind::Interrupted {
            return Err(SandboxError::Step { profile: profile.name, step: "wait", cause });
        }
    }
}

/// After Landlock and before seccomp: the root folder is below no rule of any profile.
pub(crate) fn open_by_landlock(profile: &Profile<'_>) -> Result<(), SandboxError> {
    test_open(profile, OPEN_LANDLOCK, Errno::ACCESS)
}

/// Once confined: by Landlock or, where it refuses paths, by seccomp.
pub(crate) fn open(profile: &Profile<'_>) -> Result<(), SandboxError> {
    let refused = profile.refuse.iter().find(|rule| rule.syscall == libc::SYS_openat);
    let expected = refused.map_or(Errno::ACCESS, |rule| Errno::from_raw_os_error(rule.errno));
    test_open(profile, OPEN, expected)
}

fn test_open(
    profile: &Profile<'_>,
    probe: &'static str,
    expected: Errno,
) -> Result<(), SandboxError> {
    let opened = rustix::fs::open("/", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
    match opened {
        Err(errno) if errno == expected => Ok(()),
        other => Err(SandboxError::SelfTest {
            profile: profile.name,
            probe,
            found: describe(&other.map(drop)),
            expected: "a refusal",
        }),
    }
}

pub(crate) fn sockets(profile: &Profile<'_>) -> Result<(), SandboxError> {
    for (probe, family, kind) in SOCKETS {
        let made = rustix::net::socket(family, kind, None);
        if !matches!(made, Err(Errno::PERM)) {
            return Err(SandboxError::SelfTest {
                profile: profile.name,
                probe,
                found: describe(&made.map(drop)),
                expected: "a refusal (EPERM)",
            });
        }
    }
    Ok(())
}

fn describe(result: &rustix::io::Result<()>) -> String {
    match result {
        Ok(()) => "success".to_owned(),
        Err(errno) => errno.to_string(),
    }
}
