//! The tables. `ENGINE` and `GATEWAY` open nothing once confined; all of them keep what they inherited.
//!
//! x86-64 only: a port adds its own numbers and tests.

use std::path::Path;

use libc::{
    AF_UNIX, CLONE_THREAD, CLONE_VM, ENOSYS, EPERM, MSG_FASTOPEN, PR_SET_NAME, PROT_EXEC,
    SOL_SOCKET,
};
use rustix::process::Resource;

use crate::profile::{Access, Allow, Arg, Limit, PathRule, Profile, Refuse};

/// Shortens a line of a table.
const fn allow(syscall: i64, why: &'static str) -> Allow {
    Allow { syscall, when: &[], why }
}

const fn allow_when(syscall: i64, when: &'static [Arg], why: &'static str) -> Allow {
    Allow { syscall, when, why }
}

const fn refuse(syscall: i64, errno: i32, why: &'static str) -> Refuse {
    Refuse { syscall, when: &[], errno, why }
}

/// `ioctl` requests are 32 bits wide; the C library's type is not.
const FIONBIO: u32 = 0x5421;
const NO_EXEC: &[Arg] = &[Arg::Lacks(2, PROT_EXEC as u64)];
const THREAD: &[Arg] = &[Arg::Has(0, (CLONE_VM | CLONE_THREAD) as u64)];
const SOCKET_LEVEL: &[Arg] = &[Arg::Is(1, SOL_SOCKET as u32)];
const NO_FAST_OPEN_SENDTO: &[Arg] = &[Arg::Lacks(3, MSG_FASTOPEN as u64)];
const NO_FAST_OPEN_SENDMSG: &[Arg] = &[Arg::Lacks(2, MSG_FASTOPEN as u64)];

/// What every Rust program does, with threads and without files.
macro_rules! runtime {
    ($($more:expr),* $(,)?) => {
        &[
            allow(libc::SYS_futex, "threads sleep on locks and condition variables"),
            allow_when(libc::SYS_mmap, NO_EXEC, "memory, stacks and sealed weights; never code"),
            allow_when(libc::SYS_mprotect, NO_EXEC, "guard pages and the allocator's arenas"),
            allow(libc::SYS_munmap, "memory is given back"),
            allow(libc::SYS_mremap, "large buffers grow"),
            allow(libc::SYS_madvise, "the allocator and ending threads give pages back"),
            allow(libc::SYS_brk, "the allocator's heap"),
            allow_when(libc::SYS_clone, THREAD, "threads; a process cannot be made"),
            allow(libc::SYS_set_robust_list, "a starting thread"),
            allow(libc::SYS_rseq, "a starting thread"),
            allow(libc::SYS_sigaltstack, "a thread's stack overflow is reported"),
            allow(libc::SYS_rt_sigprocmask, "starting and aborting threads mask signals"),
            allow(libc::SYS_rt_sigaction, "abort restores the default action"),
            allow(libc::SYS_rt_sigreturn, "a signal handler ends"),
            allow(libc::SYS_sched_getaffinity, "the C library sizes arenas and stacks by it"),
            allow(libc::SYS_sched_yield, "locks of the C library"),
            allow_when(libc::SYS_prctl, &[Arg::Is(0, PR_SET_NAME as u32)], "threads have names"),
            allow(libc::SYS_gettid, "abort"),
            allow(libc::SYS_getpid, "abort"),
            allow(libc::SYS_tgkill, "abort; Landlock confines signals to the process"),
            allow(libc::SYS_exit, "a thread ends"),
            allow(libc::SYS_exit_group, "the process ends"),
            allow(libc::SYS_restart_syscall, "a wait goes on after a stop"),
            allow(libc::SYS_clock_gettime, "clocks, where the vDSO has none"),
            allow(libc::SYS_clock_nanosleep, "pauses"),
            allow(libc::SYS_getrandom, "keys of hash tables"),
            allow(libc::SYS_read, "requests, and what else was inherited"),
            allow(libc::SYS_write, "replies, and the log on standard error"),
            allow(libc::SYS_writev, "as write"),
            allow(libc::SYS_close, "connections end"),
            allow(libc::SYS_fcntl, "seals are set and read, descriptors duplicated and made non-blocking"),
            allow(libc::SYS_fstat, "lengths of inherited descriptors"),
            allow(libc::SYS_poll, "a peer that leaves is noticed; the TPM answers"),
            allow(libc::SYS_ppoll, "as poll"),
            allow(libc::SYS_accept4, "inherited listening sockets"),
            allow(libc::SYS_recvfrom, "connections"),
            allow(libc::SYS_recvmsg, "connections that pass descriptors"),
            allow_when(libc::SYS_sendto, NO_FAST_OPEN_SENDTO, "connections"),
            allow_when(libc::SYS_sendmsg, NO_FAST_OPEN_SENDMSG, "connections"),
            allow_when(libc::SYS_setsockopt, SOCKET_LEVEL, "time limits of connections"),
            allow(libc::SYS_shutdown, "connections end"),
            $($more),*
        ]
    };
}

const CLONE3: Refuse = refuse(
    libc::SYS_clone3,
    ENOSYS,
    "its flags are out of a filter's sight; the C library uses clone",
);
const OPEN_FAILS: &str = "libraries look for settings in /proc, /sys and /etc, and cope";
const NO_OPEN: [Refuse; 3] = [
    refuse(libc::SYS_open, EPERM, OPEN_FAILS),
    refuse(libc::SYS_openat, EPERM, OPEN_FAILS),
    refuse(libc::SYS_openat2, EPERM, OPEN_FAILS),
];

const ONLY_UNIX_SOCKETS: Refuse = Refuse {
    syscall: libc::SYS_socket,
    when: &[Arg::IsNot(0, AF_UNIX as u32)],
    errno: EPERM,
    why: "no address family but Unix: nothing can be reached over a network",
};

const NO_CORE: Limit =
    Limit { resource: Resource::Core, max: 0, why: "memory holds prompts and keys" };
const NO_LOCKED: Limit = Limit { resource: Resource::Memlock, max: 0, why: "nothing locks memory" };

/// The engine, from its start: it reads inherited descriptors and those that come by the control socket.
pub const ENGINE: Profile<'static> = Profile {
    name: "engine",
    allow: runtime!(),
    refuse: &[
        CLONE3,
        NO_OPEN[0],
        NO_OPEN[1],
        NO_OPEN[2],
        refuse(
            libc::SYS_socket,
            EPERM,
            "the self-test asks for an IP socket and must see a refusal",
        ),
    ],
    paths: &[],
    limits: &[
        NO_CORE,
        NO_LOCKED,
        Limit { resource: Resource::Nofile, max: 256, why: "connections and a bundle's files" },
    ],
};

/// The gateway, once it holds its listening socket and has read its TLS material.
pub const GATEWAY: Profile<'static> = Profile {
    name: "gateway",
    allow: runtime![
        allow(libc::SYS_epoll_create1, "the event loop"),
        allow(libc::SYS_epoll_ctl, "the event loop"),
        allow(libc::SYS_epoll_wait, "the event loop"),
        allow(libc::SYS_epoll_pwait, "the event loop"),
        allow(libc::SYS_epoll_pwait2, "the event loop"),
        allow(libc::SYS_eventfd2, "the event loop is woken"),
        allow(libc::SYS_socketpair, "signals reach the event loop"),
        allow_when(libc::SYS_ioctl, &[Arg::Is(1, FIONBIO)], "non-blocking sockets"),
        allow(libc::SYS_socket, "Unix sockets to the engine and the agent; see the refusals"),
        allow(libc::SYS_connect, "the engine and the agent; Landlock denies TCP"),
        allow(libc::SYS_getsockopt, "the result of connect"),
        allow(libc::SYS_getsockname, "addresses for the log"),
        allow(libc::SYS_getpeername, "addresses for the log"),
        allow(libc::SYS_readv, "as read"),
        allow(libc::SYS_nanosleep, "pauses"),
    ],
    refuse: &[
        CLONE3,
        NO_OPEN[0],
        NO_OPEN[1],
        NO_OPEN[2],
        ONLY_UNIX_SOCKETS,
        Refuse {
            syscall: libc::SYS_setsockopt,
            when: &[Arg::IsNot(1, SOL_SOCKET as u32)],
            errno: EPERM,
            why: "TCP_NODELAY and the like are optional",
        },
    ],
    paths: &[],
    limits: &[
        NO_CORE,
        NO_LOCKED,
        Limit { resource: Resource::Nofile, max: 4096, why: "two sockets per exchange" },
    ],
};

/// The folders of [`AGENTD`], wherever they are.
#[must_use]
pub fn agentd_paths<'a>(folders: &AgentdFolders<'a>) -> [PathRule<'a>; 5] {
    let rule = |path, access, why| PathRule { path, access, why };
    [
        rule(
            folders.media,
            Access::Read,
            "media are mounted below it later, and judged file by file",
        ),
        rule(
            folders.exchange,
            Access::ReadWrite,
            "an exchange medium is mounted below it later; answers are written beside questions",
        ),
        rule(
            folders.ledger,
            Access::ReadWrite,
            "records are appended, a torn one is cut, the checkpoint is replaced",
        ),
        rule(
            folders.tls,
            Access::ReadWrite,
            "the gateway's key is made at the first start, and read at the others",
        ),
        rule(folders.runtime, Access::ReadWrite, "the log of what was measured is replaced"),
    ]
}

/// Where the agent's folders are.
#[derive(Clone, Copy, Debug)]
pub struct AgentdFolders<'a> {
    /// Above the mount points of media.
    pub media: &'a Path,
    /// Above the mount point of an exchange medium.
    pub exchange: &'a Path,
    /// The ledger.
    pub ledger: &'a Path,
    /// The gateway's key.
    pub tls: &'a Path,
    /// What outlives the process but not the boot.
    pub runtime: &'a Path,
}

/// Process and [`Profile::table_sha256`] of each process, as they are on an appliance.
#[must_use]
pub fn appliance_tables() -> [(&'static str, String); 3] {
    let paths = agentd_paths(&AgentdFolders {
        media: Path::new("/run/casemate"),
        exchange: Path::new("/run/casemate/exchange"),
        ledger: Path::new("/var/lib/casemate/ledger"),
        tls: Path::new("/var/lib/casemate/tls"),
        runtime: Path::new("/run/casemate-agentd"),
    });
    [Profile { paths: &paths, ..AGENTD }, ENGINE, GATEWAY]
        .map(|profile| (profile.name, profile.table_sha256()))
}

/// The agent, once its TPM is open: that takes libraries, the device and files of settings. Its paths are options.
pub const AGENTD: Profile<'static> = Profile {
    name: "agentd",
    allow: runtime![
        allow(libc::SYS_openat, "the ledger, the log of measurements; Landlock names the paths"),
        allow(libc::SYS_open, "as openat: the medium's root, sealed memory to be read"),
        allow(libc::SYS_openat2, "files of the medium, beneath its root; Landlock names the paths"),
        allow(libc::SYS_newfstatat, "fstat of the C library: its folder reader, the TPM library"),
        allow(libc::SYS_statx, "lengths and kinds of files, which medium it is"),
        allow(libc::SYS_getdents64, "the medium's folders are listed"),
        allow(libc::SYS_lseek, "what is left of a file, before it is read whole"),
        allow(libc::SYS_pread64, "event logs, and sealed memory as it is hashed"),
        allow(libc::SYS_fsync, "a checkpoint is on disk before it replaces the last one"),
        allow(libc::SYS_fdatasync, "a record is on disk before it is acknowledged"),
        allow(libc::SYS_ftruncate, "a torn record is cut off"),
        allow(libc::SYS_rename, "files are replaced at once or not at all"),
        allow(libc::SYS_renameat, "as rename, beneath the root of an exchange medium"),
        allow(libc::SYS_flock, "one agent writes the ledger"),
        allow(libc::SYS_memfd_create, "a bundle's files are copied into sealed memory"),
        allow(libc::SYS_ioctl, "non-blocking sockets; see the refusals"),
        allow(libc::SYS_socket, "Unix sockets to the engine and to init; see the refusals"),
        allow(libc::SYS_connect, "the engine and init; Landlock denies TCP"),
    ],
    refuse: &[
        CLONE3,
        Refuse {
            syscall: libc::SYS_ioctl,
            when: &[Arg::IsNot(1, FIONBIO)],
            errno: libc::ENOTTY,
            why: "libraries ask whether a file is a terminal",
        },
        ONLY_UNIX_SOCKETS,
    ],
    paths: &[],
    limits: &[
        NO_CORE,
        NO_LOCKED,
        Limit {
            resource: Resource::Nofile,
            max: 1024,
            why: "256 connections, a bundle's files as memory and as descriptors in flight",
        },
    ],
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ALL: [Profile<'static>; 3] = [ENGINE, GATEWAY, AGENTD];

    #[test]
    fn no_rule_is_redundant_and_each_has_a_reason() {
        for profile in ALL {
            let mut allowed = BTreeSet::new();
            for rule in profile.allow {
                assert!(allowed.insert(rule.syscall), "{}: {} twice", profile.name, rule.syscall);
                assert!(!rule.why.is_empty());
            }
            let mut refused = BTreeSet::new();
            for rule in profile.refuse {
                assert!(refused.insert(rule.syscall), "{}: {} twice", profile.name, rule.syscall);
                let shadows = rule.when.is_empty() && allowed.contains(&rule.syscall);
                assert!(!shadows, "{}: {} is always refused", profile.name, rule.syscall);
            }
        }
    }

    #[test]
    fn no_profile_allows_what_none_may_do() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_io_uring_setup,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_kexec_load,
            libc::SYS_init_module,
            libc::SYS_keyctl,
            libc::SYS_pidfd_getfd,
            libc::SYS_bind,
            libc::SYS_listen,
        ];
        for profile in ALL {
            for number in never {
                assert!(
                    profile.allow.iter().all(|rule| rule.syscall != number),
                    "{} allows {number}",
                    profile.name
                );
            }
        }
    }
}
