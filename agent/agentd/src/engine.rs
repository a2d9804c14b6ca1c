//! Meeting the engine, and handing an admitted bundle to it.
//!
//! The control connection stays open from the engine's start to its end: it begins with the engine's word on its
//! confinement, and its end is how agentd learns that the next engine needs the weights again.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ipc::{
    Confinement, FRAME_BYTES_MAX, FrameError, Load, LoadFile, LoadReply, ModelInfo, read_frame,
    send_with_fds,
};
use rustix::net::{RecvFlags, recv};

use crate::admission::Admissible;

/// Longest that a starting engine may take to confine itself.
const MEETING_MAX: Duration = Duration::from_secs(60);
/// Longest that the engine may take to check and map the weights.
const REPLY_MAX: Duration = Duration::from_secs(600);
/// Longest that sending a frame may take.
const SEND_MAX: Duration = Duration::from_secs(30);

/// An engine that confined itself, says it.
#[derive(Debug)]
pub(crate) struct Met {
    stream: UnixStream,
    /// Its report, to be measured before anything else is done with it.
    pub(crate) confinement: Confinement,
}

/// An engine that has the bundle.
#[derive(Debug)]
pub(crate) struct Link {
    stream: UnixStream,
    /// The model that it answers for.
    pub(crate) model: ModelInfo,
}

/// Why the engine does not have the bundle.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// Nobody listens, or the engine went away.
    #[error("the engine cannot be reached at its control socket: {0}")]
    Unreachable(#[from] io::Error),
    /// The engine does not speak as agreed, or went away in the middle.
    #[error("the engine did not answer: {0}")]
    Frame(#[from] FrameError),
    /// The engine judged the bundle; asking again changes nothing.
    #[error("{reason}")]
    Refused { reason: String },
}

impl Met {
    /// Connects and waits for the engine's report.
    pub(crate) fn meet(socket: &Path) -> Result<Self, LoadError> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(MEETING_MAX))?;
        stream.set_write_timeout(Some(SEND_MAX))?;
        let confinement = read_frame(&mut stream, FRAME_BYTES_MAX)?;
        Ok(Self { stream, confinement })
    }

    /// Sends the bundle with read-only descriptors and waits for the engine's answer.
    pub(crate) fn load(mut self, bundle: &Admissible) -> Result<Link, LoadError> {
        self.stream.set_read_timeout(Some(REPLY_MAX))?;
        let readers = bundle
            .files
            .iter()
            .map(|(_, file)| file.reader())
            .collect::<io::Result<Vec<OwnedFd>>>()?;
        let fds: Vec<_> = readers.iter().map(AsFd::as_fd).collect();
        send_with_fds(&mut self.stream, &message(bundle), FRAME_BYTES_MAX, &fds)?;
        match read_frame(&mut self.stream, FRAME_BYTES_MAX)? {
            LoadReply::Loaded(model) => {
                check(&model, bundle)?;
                Ok(Link { stream: self.stream, model })
            }
            LoadReply::Refused { reason } => Err(LoadError::Refused { reason }),
        }
    }

    /// Whether the engine still holds its end.
    pub(crate) fn is_alive(&self) -> bool {
        is_open(&self.stream)
    }
}

impl Link {
    /// Whether the engine still holds its end.
    pub(crate) fn is_alive(&self) -> bool {
        is_open(&self.stream)
    }
}

fn is_open(stream: &UnixStream) -> bool {
    let mut byte = [0_u8; 1];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    // The engine has nothing to say unasked: any byte is as bad as the end.
    matches!(
        recv(stream, &mut byte, flags),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR)
    )
}

fn message(bundle: &Admissible) -> Load {
    Load {
        model_id: bundle.event.model_id.clone(),
        bundle_digest: bundle.event.bundle_digest.clone(),
        files: bundle
            .files
            .iter()
            .map(|(name, file)| LoadFile {
                name: name.clone(),
                bytes: file.bytes(),
                sha256: hex::encode(file.sha256()),
            })
            .collect(),
    }
}

fn check(model: &ModelInfo, bundle: &Admissible) -> Result<(), LoadError> {
    let (found, expected) = (&model.bundle_digest, &bundle.event.bundle_digest);
    if found != expected || model.model_id != bundle.event.model_id {
        let reason = format!("it answers for bundle {found}, it was given {expected}");
        return Err(LoadError::Refused { reason });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use evidence::format::BundleEvent;

    use super::*;
    use crate::sealed::SealedFile;

    fn bundle() -> Admissible {
        let event = BundleEvent {
            bundle_digest: "d".repeat(64),
            model_id: "m".to_owned(),
            version: 1,
            signers: Vec::new(),
        };
        let file = SealedFile::copy(&mut &b"weights"[..], 7).unwrap();
        Admissible { event, signatures: Vec::new(), files: vec![("w".to_owned(), file)] }
    }

    /// Plays the engine: takes one bundle and answers for `digest`.
    fn load(digest: &str) -> (Result<Link, LoadError>, UnixStream) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let listener = UnixListener::bind(&path).unwrap();
        let digest = digest.to_owned();
        let engine = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let report = Confinement {
                process: "engine".to_owned(),
                table_sha256: "t".to_owned(),
                self_test: Vec::new(),
            };
            ipc::write_frame(&mut stream, &report, FRAME_BYTES_MAX).unwrap();
            let (load, fds): (Load, _) = ipc::recv_with_fds(&mut stream, FRAME_BYTES_MAX).unwrap();
            let mut content = String::new();
            File::from(fds.into_iter().next().unwrap()).read_to_string(&mut content).unwrap();
            assert_eq!((content.as_str(), load.files[0].bytes), ("weights", 7));
            let model = ModelInfo {
                model_id: load.model_id,
                bundle_digest: digest,
                context_tokens_max: 1,
                kernels: "scalar".to_owned(),
            };
            ipc::write_frame(&mut stream, &LoadReply::Loaded(model), FRAME_BYTES_MAX).unwrap();
            stream
        });
        let met = Met::meet(&path).unwrap();
        assert!(met.is_alive() && met.confinement.process == "engine");
        let link = met.load(&bundle());
        (link, engine.join().unwrap())
    }

    #[test]
    fn the_link_lives_as_long_as_the_engine() {
        let (link, engine) = load(&"d".repeat(64));
        let link = link.unwrap();
        assert!(link.is_alive());
        drop(engine);
        assert!(!link.is_alive());
    }

    #[test]
    fn an_answer_for_another_bundle_is_no_answer() {
        let (link, _engine) = load(&"e".repeat(64));
        assert!(matches!(link, Err(LoadError::Refused { .. })));
    }

    #[test]
    fn an_absent_engine_is_unreachable() {
        let error = Met::meet(Path::new("/nonexistent/control")).unwrap_err();
        assert!(matches!(error, LoadError::Unreachable(_)), "{error}");
    }
}
