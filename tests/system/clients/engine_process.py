"""The real `engine`, started as systemd starts it and given its model as agentd gives it: a sealed memfd."""

import fcntl
import hashlib
import json
import os
import pathlib
import signal
import socket
import struct
import sys
import tempfile

# Seconds: longest wait for any reply.
WAIT_S = 300
MEMFD_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class EngineProcess:
    """A running engine; use in a `with` block."""

    def __init__(self, program: pathlib.Path, model: pathlib.Path):
        self.folder = tempfile.TemporaryDirectory(prefix="casemate-peer-")
        listening = [self._listen(name) for name in ("control", "requests")]
        self.log = pathlib.Path(self.folder.name, "log")
        self.pid = os.fork()
        if self.pid == 0:
            _become(program, listening, self.log)
        for end in listening:
            end.close()
        try:
            self.control = self._connect("control")
            self.confinement = _read(self.control)
            if self.confinement.get("process") != "engine":
                raise RuntimeError(f"the engine does not say how it is confined: {self.confinement}")
            self.info = self._load(model)
        except BaseException:
            self.close(failed=True)
            raise

    def __enter__(self) -> "EngineProcess":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool) -> None:
        """Ends the engine; shows its log if something failed."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if failed and self.log.exists():
            print(self.log.read_text(errors="replace"), end="", file=sys.stderr)
        self.folder.cleanup()

    def chat(self, content: str, max_tokens: int) -> dict:
        """A greedy answer: pieces of text as they came, finish, prompt_tokens, completion_tokens."""
        chat = {
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "sampling": {"temperature": 0.0, "seed": 0},
            "stop": [],
            "partition": "peer",
        }
        pieces = []
        with self._connect("requests") as stream:
            stream.sendall(_frame({"chat": chat}))
            while True:
                reply = _read(stream)
                if "delta" in reply:
                    pieces.append(reply["delta"]["text"])
                elif "done" in reply:
                    return {"pieces": pieces, **reply["done"]}
                elif "accepted" not in reply:
                    raise RuntimeError(f"the engine says {reply}")

    def _load(self, model: pathlib.Path) -> dict:
        memfd = os.memfd_create("model", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
        try:
            with model.open("rb") as source, os.fdopen(memfd, "wb", closefd=False) as target:
                digest = hashlib.sha256()
                while chunk := source.read(1 << 20):
                    target.write(chunk)
                    digest.update(chunk)
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, MEMFD_SEALS)
            file = {"name": f"model/{model.name}", "bytes": model.stat().st_size, "sha256": digest.hexdigest()}
            # No agentd verified anything here, so the digest is nobody's.
            load = {"model_id": model.stem, "bundle_digest": "0" * 64, "files": [file]}
            frame = _frame(load)
            if socket.send_fds(self.control, [frame], [memfd]) != len(frame):
                raise RuntimeError("the load message was cut")
        finally:
            os.close(memfd)
        reply = _read(self.control)
        if "loaded" not in reply:
            raise RuntimeError(f"the engine did not load {model}: {reply}")
        return reply["loaded"]

    def _listen(self, name: str) -> socket.socket:
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.bind(f"{self.folder.name}/{name}")
        end.listen(16)
        return end

    def _connect(self, name: str) -> socket.socket:
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(WAIT_S)
        stream.connect(f"{self.folder.name}/{name}")
        return stream


def _become(program: pathlib.Path, listening: list[socket.socket], log: pathlib.Path) -> None:
    """Turns this (forked) process into the engine; sd_listen_fds(3): descriptors begin at 3, the PID is its own."""
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT, 0o600), 2)
        # Out of the way first: 3 and 4 may be in use by what is moved there.
        high = [fcntl.fcntl(end.fileno(), fcntl.F_DUPFD, 64) for end in listening]
        for target, source in enumerate(high, start=3):
            os.dup2(source, target)
        os.closerange(3 + len(listening), 256)
        environment = {
            "LISTEN_PID": str(os.getpid()),
            "LISTEN_FDS": str(len(listening)),
            "LISTEN_FDNAMES": "control:requests",
        }
        os.execve(program, [str(program)], environment)
    finally:
        os._exit(127)


def _frame(message: dict) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack("<I", len(body)) + body


def _read(stream: socket.socket) -> dict:
    (length,) = struct.unpack("<I", _exactly(stream, 4))
    return json.loads(_exactly(stream, length))


def _exactly(stream: socket.socket, count: int) -> bytes:
    parts = b""
    while len(parts) < count:
        part = stream.recv(count - len(parts))
        if not part:
            raise RuntimeError("the engine closed the connection; its log follows")
        parts += part
    return parts
