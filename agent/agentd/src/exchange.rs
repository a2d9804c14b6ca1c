//! Questions and answers that travel on a stick: a medium with the partition label `casemate-exchange`.
//!
//! | found | written |
//! |---|---|
//! | the medium | `identity.json`, and `recovery.json` if the state partition has a recovery key |
//! | `challenge.json` | `response.json` |
//! | `nonce.txt` | `evidence.json` |
//!
//! Invariants: a medium is answered once each time it is plugged in; everything read is bounded, resolved beneath the
//! medium's root and through no link; an answer is written beside and renamed, so that a stick which is pulled holds a
//! whole answer or none; whatever fails here is a line on the console and stops nothing else.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags, renameat, statx};

use crate::agent::{Agent, AgentError};
use crate::files::{open_beneath, read_all};
use crate::journal::say;
use crate::medium::IDENTITY;

/// How often the mount point is looked at.
const TICK: Duration = Duration::from_secs(1);
/// Longest `nonce.txt`: 64 hex digits, and what editors put around them.
const NONCE_BYTES_MAX: u64 = 128;
/// Times that a challenge is put off because the TPM answered another one just now.
const BUSY_MAX: u32 = 10;

/// Which medium is there: the same one plugged in again is another value.
type Identity = (u64, u32, u32, u64);

/// The watching thread's state.
#[derive(Debug)]
pub(crate) struct Exchange {
    agent: Arc<Agent>,
    folder: PathBuf,
    /// The recovery key, encrypted to the escrow key; or that it was shown on the console.
    recovery: Option<String>,
    /// This process's user, to whom mount options give a medium; the empty mount point is root's.
    user: u32,
    /// The medium that was answered last.
    answered: Option<Identity>,
    /// Last trouble with the mount point itself, so that it is printed once.
    trouble: Option<String>,
}

/// Why a question has no answer on the medium.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    /// The medium failed, is full, read-only or gone.
    #[error("cannot {doing} {name}: {cause}")]
    Medium { doing: &'static str, name: &'static str, cause: io::Error },
    /// The question is not text.
    #[error("{name} is not UTF-8")]
    Text { name: &'static str },
    /// The agent has no answer.
    #[error("no answer to {name}: {cause}")]
    Agent { name: &'static str, cause: AgentError },
}

impl Exchange {
    pub(crate) fn new(
        agent: Arc<Agent>,
        folder: PathBuf,
        recovery: Option<String>,
        user: u32,
    ) -> Self {
        Self { agent, folder, recovery, user, answered: None, trouble: None }
    }

    /// Never returns; ends with the process.
    pub(crate) fn watch(mut self) {
        loop {
            match self.look() {
                Ok(()) => self.trouble = None,
                Err(error) => {
                    let trouble = error.to_string();
                    if self.trouble.as_ref() != Some(&trouble) {
                        say(&format!("exchange medium: {trouble}"));
                        self.trouble = Some(trouble);
                    }
                }
            }
            thread::sleep(TICK);
        }
    }

    fn look(&mut self) -> Result<(), ExchangeError> {
        let Some((root, identity)) = self.find()? else {
            self.answered = None;
            return Ok(());
        };
        if self.answered == Some(identity) {
            return Ok(());
        }
        // Before the work: what fails is said once for each time that the medium is plugged in.
        self.answered = Some(identity);
        self.answer(&root);
        say("exchange medium: done; it may be pulled");
        Ok(())
    }

    /// The medium's root, if one is mounted.
    fn find(&self) -> Result<Option<(OwnedFd, Identity)>, ExchangeError> {
        let refuse = |cause: rustix::io::Errno| ExchangeError::Medium {
            doing: "look at",
            name: "the mount point",
            cause: cause.into(),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = match rustix::fs::open(&self.folder, flags, Mode::empty()) {
            Ok(root) => root,
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(error) => return Err(refuse(error)),
        };
        let stat = statx(&root, "", AtFlags::EMPTY_PATH, IDENTITY).map_err(refuse)?;
        if stat.stx_uid != self.user {
            return Ok(None);
        }
        let identity = (stat.stx_mnt_id, stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
        Ok(Some((root, identity)))
    }

    /// Each question by itself: one that fails keeps no other from its answer.
    fn answer(&self, root: &OwnedFd) {
        let identity = self
            .agent
            .identity()
            .map_err(|cause| ExchangeError::Agent { name: "who this machine is", cause })
            .and_then(|json| write(root, "identity.json", "identity.json.new", &json));
        report(identity);
        if let Some(recovery) = &self.recovery {
            report(write(root, "recovery.json", "recovery.json.new", recovery));
        }
        let challenge_max = ipc::CHALLENGE_BYTES_MAX as u64;
        report(question(root, "challenge.json", challenge_max).and_then(|challenge| {
            let Some(challenge) = challenge else { return Ok(()) };
            let json = self.enrol(&challenge)?;
            write(root, "response.json", "response.json.new", &json)
        }));
        report(question(root, "nonce.txt", NONCE_BYTES_MAX).and_then(|nonce| {
            let Some(nonce) = nonce else { return Ok(()) };
            let nonce = nonce.trim().to_ascii_lowercase();
            let json = self
                .agent
                .evidence(&nonce)
                .map_err(|cause| ExchangeError::Agent { name: "nonce.txt", cause })?;
            write(root, "evidence.json", "evidence.json.new", &json)
        }));
    }

    fn enrol(&self, challenge: &str) -> Result<String, ExchangeError> {
        let mut attempt = 1;
        loop {
            match self.agent.enrol(challenge) {
                Err(AgentError::Busy { seconds }) if attempt < BUSY_MAX => {
                    attempt += 1;
                    thread::sleep(Duration::from_secs(seconds));
                }
                answer => {
                    let name = "challenge.json";
                    return answer.map_err(|cause| ExchangeError::Agent { name, cause });
                }
            }
        }
    }
}

fn report(outcome: Result<(), ExchangeError>) {
    if let Err(error) = outcome {
        say(&format!("exchange medium: {error}"));
    }
}

/// A question's text, if it was asked.
fn question(
    root: &OwnedFd,
    name: &'static str,
    bytes_max: u64,
) -> Result<Option<String>, ExchangeError> {
    let failed = |cause| ExchangeError::Medium { doing: "read", name, cause };
    let file = match open(root, name, OFlags::RDONLY | OFlags::NONBLOCK) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a file")));
    }
    let bytes = read_all(file, bytes_max).map_err(failed)?;
    String::from_utf8(bytes).map(Some).map_err(|_| ExchangeError::Text { name })
}

/// Writes an answer under the name `beside`, has the medium keep it, and gives it its `name`.
fn write(
    root: &OwnedFd,
    name: &'static str,
    beside: &'static str,
    text: &str,
) -> Result<(), ExchangeError> {
    let write = || {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NONBLOCK;
        let mut file = open(root, beside, flags)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        drop(file);
        renameat(root, beside, root, name)?;
        rustix::fs::fsync(root)?;
        Ok(())
    };
    write().map_err(|cause| ExchangeError::Medium { doing: "write", name, cause })?;
    say(&format!("exchange medium: {name} written, {} bytes", text.len()));
    Ok(())
}

/// Opens a file right beneath the medium's root.
fn open(root: &OwnedFd, name: &str, flags: OFlags) -> io::Result<File> {
    let mode = if flags.contains(OFlags::CREATE) { Mode::RUSR | Mode::WUSR } else { Mode::empty() };
    Ok(File::from(open_beneath(root, name, flags | OFlags::NOFOLLOW, mode)?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    fn root(folder: &Path) -> OwnedFd {
        File::open(folder).unwrap().into()
    }

    #[test]
    fn an_answer_is_whole_and_replaces_the_last_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(folder.path());
        for text in ["a long answer", "short"] {
            write(&root, "response.json", "response.json.new", text).unwrap();
            assert_eq!(fs::read_to_string(folder.path().join("response.json")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn questions_are_bounded_and_links_are_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (root, path) = (root(folder.path()), folder.path().join("nonce.txt"));
        assert!(question(&root, "nonce.txt", 8).unwrap().is_none());
        fs::write(&path, "12345678").unwrap();
        assert_eq!(question(&root, "nonce.txt", 8).unwrap().unwrap(), "12345678");
        fs::write(&path, "123456789").unwrap();
        question(&root, "nonce.txt", 8).unwrap_err();
        fs::write(&path, b"\xff").unwrap();
        let error = question(&root, "nonce.txt", 8).unwrap_err();
        assert!(matches!(error, ExchangeError::Text { .. }), "{error}");
        fs::remove_file(&path).unwrap();
        symlink("/etc/hostname", &path).unwrap();
        question(&root, "nonce.txt", 1 << 10).unwrap_err();
        let outside = tempfile::NamedTempFile::new().unwrap();
        symlink(outside.path(), folder.path().join("identity.json.new")).unwrap();
        write(&root, "identity.json", "identity.json.new", "x").unwrap_err();
        assert_eq!(fs::read(outside.path()).unwrap(), b"");
    }

    #[test]
    fn a_full_medium_is_an_error_and_leaves_the_last_answer() {
        let folder = tempfile::tempdir().unwrap();
        let root = root(folder.path());
        write(&root, "evidence.json", "evidence.json.new", "old").unwrap();
        // A directory in the place of the new file stands for every write that fails.
        fs::create_dir(folder.path().join("evidence.json.new")).unwrap();
        let error = write(&root, "evidence.json", "evidence.json.new", "new").unwrap_err();
        assert!(error.to_string().contains("cannot write evidence.json"), "{error}");
        assert_eq!(fs::read_to_string(folder.path().join("evidence.json")).unwrap(), "old");
    }
}
