//! The real `engine` binary, started as systemd starts it, and its two sockets.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use ipc::{
    Chat, Confinement, EngineReply, EngineRequest, FRAME_BYTES_MAX, Finish, Load, LoadFile,
    LoadReply, Message, Receipt, Role, Sampling, TokenLogprobs, read_frame, send_with_fds,
    write_frame,
};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// Longest wait for anything.
const WAIT: Duration = Duration::from_secs(120);

pub(crate) struct Engine {
    child: Child,
    folder: tempfile::TempDir,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
}

/// What a chat gave. How much of it the cache had is not part of the answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenLogprobs>,
    pub(crate) finish: Finish,
    pub(crate) prompt_tokens: u32,
    pub(crate) completion_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) receipt: Option<Box<Receipt>>,
}

impl PartialEq for Answer {
    fn eq(&self, other: &Self) -> bool {
        let what = |a: &Self| (a.finish, a.prompt_tokens, a.completion_tokens);
        self.text == other.text && what(self) == what(other)
    }
}

impl Engine {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listen = |name| UnixListener::bind(folder.path().join(name)).unwrap();
        let (control, requests) = (listen("control"), listen("requests"));
        // LISTEN_PID must be the engine's own; descriptors 3 and 4 are standard output and input here, since
        // only those can be passed without unsafe code.
        let mut child = Command::new("sh")
            .arg("-c")
            .arg("exec 3<&0 4<&1 </dev/null >/dev/null; export LISTEN_PID=$$; exec \"$0\"")
            .arg(env!("CARGO_BIN_EXE_engine"))
            .env("LISTEN_FDS", "2")
            .env("LISTEN_FDNAMES", "control:requests")
            .stdin(OwnedFd::from(control))
            .stdout(OwnedFd::from(requests))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (lines, copy) =
            (BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        let reader = std::thread::spawn(move || {
            for line in lines {
                *copy.lock().unwrap() += &(line.unwrap() + "\n");
            }
        });
        Self { child, folder, log, reader: Some(reader) }
    }

    pub(crate) fn connect(&self, name: &str) -> UnixStream {
        let stream = UnixStream::connect(self.folder.path().join(name)).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }

    pub(crate) fn load(&self, gguf: &[u8], seals: SealFlags) -> LoadReply {
        self.load_files(&[("model/tiny.gguf", gguf)], seals)
    }

    pub(crate) fn load_files(&self, files: &[(&str, &[u8])], seals: SealFlags) -> LoadReply {
        let memfds: Vec<OwnedFd> = files.iter().map(|(_, bytes)| memfd(bytes, seals)).collect();
        let files = files.iter().map(|(name, bytes)| LoadFile {
            name: (*name).to_owned(),
            bytes: bytes.len() as u64,
            sha256: "5b".repeat(32),
        });
        let load = Load {
            model_id: "tiny".to_owned(),
            bundle_digest: "5a".repeat(32),
            files: files.collect(),
        };
        let fds: Vec<_> = memfds.iter().map(AsFd::as_fd).collect();
        let mut stream = self.connect("control");
        let told: Confinement = read_frame(&mut stream, FRAME_BYTES_MAX).unwrap();
        assert_eq!(told.process, "engine");
        assert_eq!(told.table_sha256, sandbox::ENGINE.table_sha256());
        assert_eq!(told.self_test, sandbox::self_test_names());
        send_with_fds(&mut stream, &load, FRAME_BYTES_MAX, &fds).unwrap();
        read_frame(&mut stream, FRAME_BYTES_MAX).unwrap()
    }

    pub(crate) fn load_sealed(&self, gguf: &[u8]) {
        let reply = self.load(gguf, sealed());
        assert!(matches!(&reply, LoadReply::Loaded(info) if info.model_id == "tiny"), "{reply:?}");
    }

    pub(crate) fn ask(&self, request: &EngineRequest) -> UnixStream {
        let mut stream = self.connect("requests");
        write_frame(&mut stream, request, FRAME_BYTES_MAX).unwrap();
        stream
    }

    pub(crate) fn first_reply(&self, request: &EngineRequest) -> EngineReply {
        reply(&mut self.ask(request))
    }

    pub(crate) fn chat(&self, chat: &Chat) -> Answer {
        answer(&mut self.ask(&EngineRequest::Chat(chat.clone())))
    }

    pub(crate) fn alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What the kernel says of the process.
    pub(crate) fn kernel_status(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap()
    }

    /// Waits until the log has `text`.
    pub(crate) fn expect_log(&self, text: &str) {
        let until = std::time::Instant::now() + WAIT;
        while !self.log.lock().unwrap().contains(text) {
            assert!(std::time::Instant::now() < until, "no {text:?} in the log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.take().unwrap().join().unwrap();
        if std::thread::panicking() {
            println!("{}", self.log());
        }
    }
}

pub(crate) fn sealed() -> SealFlags {
    SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL
}

fn memfd(bytes: &[u8], seals: SealFlags) -> OwnedFd {
    let fd = memfd_create("model", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest).unwrap();
        rest = &rest[written..];
    }
    fcntl_add_seals(&fd, seals).unwrap();
    fd
}

pub(crate) fn user(text: &str, max_tokens: u32) -> Chat {
    Chat {
        messages: vec![Message { role: Role::User, content: text.to_owned() }],
        max_tokens,
        sampling: Sampling { seed: 1, ..Sampling::greedy() },
        logprobs: None,
        format: None,
        stop: Vec::new(),
        partition: "test".to_owned(),
        priority: 0,
        receipt: None,
    }
}

pub(crate) fn reply(stream: &mut UnixStream) -> EngineReply {
    read_frame(stream, FRAME_BYTES_MAX).unwrap()
}

/// Reads a whole chat and checks the order of its replies.
pub(crate) fn answer(stream: &mut UnixStream) -> Answer {
    let EngineReply::Accepted { prompt_tokens: accepted } = reply(stream) else {
        panic!("the first reply is not Accepted");
    };
    let (mut text, mut tokens) = (String::new(), Vec::new());
    loop {
        match reply(stream) {
            EngineReply::Delta { text: more, tokens: more_tokens } => {
                text += &more;
                tokens.extend(more_tokens);
            }
            EngineReply::Done {
                finish,
                prompt_tokens,
                completion_tokens,
                cached_tokens,
                receipt,
            } => {
                assert_eq!(prompt_tokens, accepted);
                let end: Result<EngineReply, _> = read_frame(stream, FRAME_BYTES_MAX);
                assert!(matches!(end, Err(ipc::FrameError::Closed)), "{end:?}");
                return Answer {
                    text,
                    tokens,
                    finish,
                    prompt_tokens,
                    completion_tokens,
                    cached_tokens,
                    receipt,
                };
            }
            other => panic!("{other:?} in the middle of an answer"),
        }
    }
}

/// The real model, if the environment names it.
pub(crate) fn real_model() -> Option<Vec<u8>> {
    let path = std::env::var_os("CASEMATE_TEST_MODEL").map(PathBuf::from);
    match path {
        Some(path) => Some(std::fs::read(path).unwrap()),
        None => {
            println!("skipped: CASEMATE_TEST_MODEL does not name a GGUF file");
            None
        }
    }
}
