//! The engine's end of the control socket.

use std::fs::File;
use std::io::Read;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use ipc::{Confinement, FrameError, Load, LoadReply, ModelInfo};
use sha2::{Digest, Sha256};

/// What one engine process was given: file names with their contents, and its end of the connection.
pub(crate) struct Given {
    pub(crate) load: Load,
    pub(crate) files: Vec<(String, Vec<u8>)>,
    /// Closing it is the end of that engine.
    pub(crate) process: UnixStream,
}

/// Engines, one for each time that agentd hands a bundle over.
pub(crate) struct Engine(Receiver<Given>);

impl Engine {
    /// Listens at `socket`; takes every bundle, or refuses each for `refusal`.
    pub(crate) fn listen(socket: &Path, refusal: Option<&'static str>) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (sender, receiver) = channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                // An agentd that ended before it had a bundle.
                let Some(given) = take(stream.unwrap(), refusal) else { continue };
                // The test is over when nobody receives.
                if sender.send(given).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// The next bundle that was handed over.
    pub(crate) fn given(&self) -> Given {
        self.0.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    /// Whether nothing was handed over until now.
    pub(crate) fn is_untouched(&self) -> bool {
        self.0.try_recv().is_err()
    }
}

/// What a process reports that is confined as its table says.
pub(crate) fn report(profile: &sandbox::Profile<'_>) -> Confinement {
    Confinement {
        process: profile.name.to_owned(),
        table_sha256: profile.table_sha256(),
        self_test: sandbox::self_test_names().into_iter().map(str::to_owned).collect(),
    }
}

fn take(mut process: UnixStream, refusal: Option<&str>) -> Option<Given> {
    ipc::write_frame(&mut process, &report(&sandbox::ENGINE), ipc::FRAME_BYTES_MAX).unwrap();
    let (load, fds): (Load, _) = match ipc::recv_with_fds(&mut process, ipc::FRAME_BYTES_MAX) {
        Ok(received) => received,
        Err(FrameError::Closed) => return None,
        Err(error) => panic!("{error}"),
    };
    assert_eq!(load.files.len(), fds.len());
    let mut files = Vec::new();
    for (file, fd) in load.files.iter().zip(fds) {
        let mut content = Vec::new();
        File::from(fd).read_to_end(&mut content).unwrap();
        assert_eq!(content.len() as u64, file.bytes);
        assert_eq!(file.sha256, hex::encode(Sha256::digest(&content)));
        files.push((file.name.clone(), content));
    }
    let reply = match refusal {
        Some(reason) => LoadReply::Refused { reason: reason.to_owned() },
        None => LoadReply::Loaded(ModelInfo {
            model_id: load.model_id.clone(),
            bundle_digest: load.bundle_digest.clone(),
            context_tokens_max: 2048,
            kernels: "scalar".to_owned(),
        }),
    };
    ipc::write_frame(&mut process, &reply, ipc::FRAME_BYTES_MAX).unwrap();
    Some(Given { load, files, process })
}
