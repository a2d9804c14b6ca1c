//! What a confined process is refused, each seen in a forked child of its own.
#![expect(unsafe_code, reason = "fork and raw system calls are what is tested")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use sandbox::{AGENTD, Access, ENGINE, GATEWAY, PathRule, Profile, SandboxError, confine};

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It returned this code.
    Code(i32),
    /// It was killed by this signal.
    Signal(i32),
}

/// The child could not be confined.
const NOT_CONFINED: i32 = 250;

/// Confines a child by `profile`, runs `probe` in it and says how it ended.
fn child(profile: &Profile<'_>, probe: impl FnOnce() -> i32) -> End {
    let (mut confined, mut to_parent) = UnixStream::pair().unwrap();
    // SAFETY: the child only makes system calls and small allocations, and leaves by _exit.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork failed");
    if pid == 0 {
        let code = match confine(profile) {
            Ok(_) if to_parent.write_all(b"c").is_ok() => probe(),
            Ok(_) => NOT_CONFINED,
            Err(error) => {
                let text = format!("not confined: {error}\n");
                // SAFETY: the buffer is valid for its length.
                unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
                NOT_CONFINED
            }
        };
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
    drop(to_parent);
    if libc::WIFSIGNALED(status) {
        assert!(confined.read_exact(&mut [0]).is_ok(), "killed before it was confined");
        End::Signal(libc::WTERMSIG(status))
    } else {
        End::Code(libc::WEXITSTATUS(status))
    }
}

/// Makes a system call; returns 0 or the error number.
fn raw(number: i64, args: [i64; 6]) -> i32 {
    // SAFETY: arguments are numbers, null or pointers to static C strings.
    let result =
        unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) };
    if result < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or(-1) } else { 0 }
}

fn path(text: &'static std::ffi::CStr) -> i64 {
    text.as_ptr() as i64
}

#[test]
fn the_engine_cannot_open_files_or_make_sockets() {
    let flags = i64::from(libc::O_RDONLY);
    let at = i64::from(libc::AT_FDCWD);
    for (number, args) in [
        (libc::SYS_openat, [at, path(c"/etc/passwd"), flags, 0, 0, 0]),
        (libc::SYS_openat, [at, path(c"/dev/null"), flags, 0, 0, 0]),
        (libc::SYS_open, [path(c"/proc/self/mem"), flags, 0, 0, 0, 0]),
        (libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0]),
        (libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 262, 0, 0, 0]),
        (libc::SYS_socket, [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0]),
        (libc::SYS_socket, [libc::AF_PACKET.into(), libc::SOCK_RAW.into(), 0, 0, 0, 0]),
    ] {
        assert_eq!(
            child(&ENGINE, || raw(number, args)),
            End::Code(libc::EPERM),
            "{number} {args:?}"
        );
    }
}

#[test]
fn what_no_list_names_kills_the_engine() {
    for number in [
        libc::SYS_execve,
        libc::SYS_fork,
        libc::SYS_ptrace,
        libc::SYS_io_uring_setup,
        libc::SYS_bpf,
        libc::SYS_userfaultfd,
        libc::SYS_process_vm_readv,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_unshare,
        libc::SYS_memfd_create,
        libc::SYS_ioctl,
        libc::SYS_kill,
        libc::SYS_newfstatat,
        libc::SYS_unlink,
        libc::SYS_setuid,
        libc::SYS_seccomp,
    ] {
        assert_eq!(child(&ENGINE, || raw(number, [0; 6])), End::Signal(libc::SIGSYS), "{number}");
    }
}

#[test]
fn memory_never_becomes_code_and_no_process_is_made() {
    let (private, prot) = (i64::from(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS), libc::PROT_READ);
    let map = |prot: i32| [0, 4096, prot.into(), private, -1, 0];
    assert_eq!(child(&ENGINE, || raw(libc::SYS_mmap, map(prot))), End::Code(0));
    let exec = map(prot | libc::PROT_EXEC);
    assert_eq!(child(&ENGINE, || raw(libc::SYS_mmap, exec)), End::Signal(libc::SIGSYS));
    let fork = [libc::SIGCHLD.into(), 0, 0, 0, 0, 0];
    assert_eq!(child(&ENGINE, || raw(libc::SYS_clone, fork)), End::Signal(libc::SIGSYS));
    assert_eq!(child(&ENGINE, || raw(libc::SYS_clone3, [0; 6])), End::Code(libc::ENOSYS));
}

#[test]
fn the_engine_still_starts_threads_and_talks_over_inherited_sockets() {
    let end = child(&ENGINE, || {
        let worker = std::thread::Builder::new().name("worker".to_owned()).spawn(|| {
            let big = vec![7_u8; 64 << 20];
            big.iter().map(|&b| usize::from(b)).sum::<usize>()
        });
        let Ok(sum) = worker.map(std::thread::JoinHandle::join) else { return 1 };
        i32::from(sum.ok() != Some(7 * (64 << 20)))
    });
    assert_eq!(end, End::Code(0));
    let (mut ours, mut theirs) = UnixStream::pair().unwrap();
    let end = child(&ENGINE, move || i32::from(theirs.write_all(b"hello").is_err()));
    assert_eq!(end, End::Code(0));
    let mut text = [0; 5];
    ours.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
}

#[test]
fn the_gateway_makes_unix_sockets_only_and_reaches_no_tcp_port() {
    let unix = [libc::AF_UNIX.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0];
    assert_eq!(child(&GATEWAY, || raw(libc::SYS_socket, unix)), End::Code(0));
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK]
    {
        let args = [family.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0];
        assert_eq!(
            child(&GATEWAY, || raw(libc::SYS_socket, args)),
            End::Code(libc::EPERM),
            "{family}"
        );
    }
    let open = [libc::AT_FDCWD.into(), path(c"/etc/passwd"), 0, 0, 0, 0];
    assert_eq!(child(&GATEWAY, || raw(libc::SYS_openat, open)), End::Code(libc::EPERM));
    assert_eq!(child(&GATEWAY, || raw(libc::SYS_execve, [0; 6])), End::Signal(libc::SIGSYS));
}

/// An accepted connection can be dissolved and pointed elsewhere (connect(2), `AF_UNSPEC`); Landlock's
/// TCP rule is what stops it.
#[test]
fn an_accepted_connection_cannot_be_pointed_elsewhere() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::net::TcpStream::connect(address).unwrap();
    let (accepted, _) = listener.accept().unwrap();
    let elsewhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let connect = |family: u16, port: u16| {
        use std::os::fd::AsRawFd;
        let mut bytes = [0_u8; 16];
        bytes[..2].copy_from_slice(&family.to_ne_bytes());
        bytes[2..4].copy_from_slice(&port.to_be_bytes());
        bytes[4..8].copy_from_slice(&[127, 0, 0, 1]);
        raw(libc::SYS_connect, [accepted.as_raw_fd().into(), bytes.as_ptr() as i64, 16, 0, 0, 0])
    };
    let inet = u16::try_from(libc::AF_INET).unwrap();
    let free = child(&GATEWAY, || {
        let dissolved = connect(0, 0);
        let reached = connect(inet, port);
        if reached == 0 { 99 } else { 100 + i32::from(dissolved != 0) + reached }
    });
    drop(client);
    // EACCES (13) from Landlock, whether or not the connection was dissolved first.
    assert!(free == End::Code(113) || free == End::Code(114), "{free:?}");
}

#[test]
fn a_refusal_wins_over_the_end_of_the_process() {
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let set = |level: i32| {
        use std::os::fd::AsRawFd;
        [tcp.as_raw_fd().into(), level.into(), libc::TCP_NODELAY.into(), 0, 0, 0]
    };
    let probe = || raw(libc::SYS_setsockopt, set(libc::IPPROTO_TCP));
    assert_eq!(child(&GATEWAY, probe), End::Code(libc::EPERM));
    assert_eq!(child(&AGENTD, probe), End::Signal(libc::SIGSYS), "the agent has no TCP sockets");
}

#[test]
fn the_agent_opens_nothing_outside_its_paths() {
    let (read, write) = (i64::from(libc::O_RDONLY), i64::from(libc::O_WRONLY));
    let at = i64::from(libc::AT_FDCWD);
    for (file, flags) in [
        (c"/etc/passwd", read),
        (c"/proc/self/mem", read),
        (c"/proc/self/status", read),
        (c"/dev/null", write),
        (c"/tmp", read),
    ] {
        let open = || raw(libc::SYS_openat, [at, path(file), flags, 0, 0, 0]);
        assert_eq!(child(&AGENTD, open), End::Code(libc::EACCES), "{file:?}");
        let how = [flags, 0, 0];
        let beneath = || {
            let how = how.as_ptr() as i64;
            raw(libc::SYS_openat2, [at, path(file), how, 24, 0, 0])
        };
        assert_eq!(child(&AGENTD, beneath), End::Code(libc::EACCES), "{file:?}");
    }
}

#[test]
fn the_agent_starts_no_program_and_reaches_no_network() {
    for number in [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_mount,
        libc::SYS_unlink,
        libc::SYS_mkdir,
        libc::SYS_symlink,
        libc::SYS_chmod,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_io_uring_setup,
        libc::SYS_kill,
    ] {
        assert_eq!(child(&AGENTD, || raw(number, [0; 6])), End::Signal(libc::SIGSYS), "{number}");
    }
    for family in [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET, libc::AF_VSOCK]
    {
        let args = [family.into(), libc::SOCK_STREAM.into(), 0, 0, 0, 0];
        let probe = || raw(libc::SYS_socket, args);
        assert_eq!(child(&AGENTD, probe), End::Code(libc::EPERM), "{family}");
    }
}

#[test]
fn the_agent_reopens_its_sealed_memory_to_read_it() {
    let end = child(&AGENTD, || {
        use std::os::fd::AsRawFd;
        let Ok(memory) = rustix::fs::memfd_create("w", rustix::fs::MemfdFlags::CLOEXEC) else {
            return 1;
        };
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        i32::from(std::fs::File::open(path).is_err())
    });
    assert_eq!(end, End::Code(0));
}

#[test]
fn a_path_rule_opens_its_path_and_nothing_else() {
    let folder = std::env::temp_dir().join(format!("casemate-sandbox-{}", std::process::id()));
    let kept = folder.join("kept");
    std::fs::create_dir_all(&kept).unwrap();
    std::fs::write(folder.join("other"), b"x").unwrap();
    let (inside, other) = (kept.join("file"), folder.join("other"));
    let run = |access, probe: &dyn Fn() -> std::io::Result<()>| {
        let paths = [PathRule { path: &kept, access, why: "the test's folder" }];
        child(&Profile { paths: &paths, ..AGENTD }, || {
            probe().map_or_else(|error| error.raw_os_error().unwrap_or(-1), |()| 0)
        })
    };
    let write = || std::fs::write(&inside, b"record");
    let replace = || std::fs::rename(&inside, kept.join("replaced"));
    let read = |path: &std::path::Path| std::fs::read(path).map(drop);
    assert_eq!(run(Access::Read, &write), End::Code(libc::EACCES));
    assert_eq!(run(Access::ReadWrite, &write), End::Code(0));
    assert_eq!(run(Access::Read, &|| read(&inside)), End::Code(0));
    assert_eq!(run(Access::Read, &replace), End::Code(libc::EACCES));
    assert_eq!(run(Access::ReadWrite, &replace), End::Code(0));
    assert_eq!(run(Access::ReadWrite, &|| read(&other)), End::Code(libc::EACCES));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_path_that_does_not_exist_stops_the_process() {
    let path = std::path::Path::new("/nonexistent/casemate");
    let paths = [PathRule { path, access: Access::Read, why: "a test" }];
    assert_eq!(child(&Profile { paths: &paths, ..AGENTD }, || 0), End::Code(NOT_CONFINED));
}

#[test]
fn a_process_with_threads_is_not_confined() {
    let (done, wait) = std::sync::mpsc::channel::<()>();
    let other = std::thread::spawn(move || wait.recv().is_err());
    let error = confine(&ENGINE).unwrap_err();
    assert!(matches!(error, SandboxError::Threads { found: 2.. }), "{error}");
    drop(done);
    assert!(other.join().unwrap());
}
