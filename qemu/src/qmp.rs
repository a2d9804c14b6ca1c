//! A client of QEMU's machine protocol: one JSON object a line, over a unix socket.
//! QEMU documentation, "QEMU Machine Protocol Specification".

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest message that is accepted.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// Events that are kept until somebody looks; older ones are dropped.
const EVENTS_MAX: usize = 256;
/// Longest wait for one reply: an emulated machine under load holds QEMU's lock for long.
const REPLY_LIMIT: Duration = Duration::from_secs(60);

/// Failures of the protocol.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed.
    #[error("QMP {doing}: {cause}")]
    Io {
        /// What was being done.
        doing: String,
        /// The system's reason.
        cause: std::io::Error,
    },
    /// QEMU closed the socket.
    #[error("QEMU closed its QMP socket during {doing}")]
    Closed {
        /// What was being done.
        doing: String,
    },
    /// Something that the protocol does not know.
    #[error("QMP {doing}: not a message of the protocol: {found}")]
    Malformed {
        /// What was being done.
        doing: String,
        /// What came.
        found: String,
    },
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// A job, an event or a state did not come in time.
    #[error("{what} did not come within {limit_s} s; last state: {last}")]
    Late {
        /// What was awaited.
        what: String,
        /// The limit in seconds.
        limit_s: u64,
        /// What was seen last.
        last: String,
    },
}

/// What QEMU says, sorted.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Event(String),
    Return(Value),
    Error(String),
}

impl Message {
    fn parse(line: &str) -> Option<Self> {
        let Value::Object(mut fields) = serde_json::from_str(line).ok()? else { return None };
        if let Some(value) = fields.remove("return") {
            return Some(Self::Return(value));
        }
        if let Some(error) = fields.get("error") {
            return Some(Self::Error(error.get("desc")?.as_str()?.to_owned()));
        }
        if let Some(event) = fields.get("event") {
            return Some(Self::Event(event.as_str()?.to_owned()));
        }
        fields.contains_key("QMP").then_some(Self::Greeting)
    }
}

/// A connection in command mode.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    events: VecDeque<String>,
}

impl Qmp {
    /// Connects and leaves the negotiation mode.
    pub fn connect(socket: &Path) -> Result<Self, QmpError> {
        let io = |cause| QmpError::Io { doing: "connect".to_owned(), cause };
        let stream = UnixStream::connect(socket).map_err(io)?;
        stream.set_read_timeout(Some(REPLY_LIMIT)).map_err(io)?;
        stream.set_write_timeout(Some(REPLY_LIMIT)).map_err(io)?;
        let mut qmp = Self { reader: BufReader::new(stream), events: VecDeque::new() };
        match qmp.read("greeting")? {
            Message::Greeting => {}
            other => return Err(malformed("greeting", &format!("{other:?}"))),
        }
        qmp.execute("qmp_capabilities", &json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        let io = |cause| QmpError::Io { doing: command.to_owned(), cause };
        self.reader.get_mut().write_all(line.as_bytes()).map_err(io)?;
        let deadline = Instant::now() + REPLY_LIMIT;
        while Instant::now() < deadline {
            match self.read(command)? {
                Message::Return(value) => return Ok(value),
                Message::Error(reason) => {
                    return Err(QmpError::Refused { command: command.to_owned(), reason });
                }
                Message::Event(name) => {
                    if self.events.len() == EVENTS_MAX {
                        self.events.pop_front();
                    }
                    self.events.push_back(name);
                }
                Message::Greeting => return Err(malformed(command, "a second greeting")),
            }
        }
        Err(QmpError::Late {
            what: format!("the reply to {command}"),
            limit_s: REPLY_LIMIT.as_secs(),
            last: "only events".to_owned(),
        })
    }

    /// Runs a command of the human monitor and returns its text.
    pub fn human(&mut self, command_line: &str) -> Result<String, QmpError> {
        let value =
            self.execute("human-monitor-command", &json!({ "command-line": command_line }))?;
        match value {
            Value::String(text) => Ok(text),
            other => Err(malformed(command_line, &other.to_string())),
        }
    }

    /// Repeats `command` until `field` of its result is one of `wanted`; fails on one of `bad`.
    pub fn wait_state(
        &mut self,
        (command, field): (&str, &str),
        wanted: &[&str],
        bad: &[&str],
        limit: Duration,
    ) -> Result<(), QmpError> {
        let deadline = Instant::now() + limit;
        loop {
            let reply = self.execute(command, &json!({}))?;
            let state = reply.get(field).and_then(Value::as_str).unwrap_or("none").to_owned();
            if wanted.contains(&state.as_str()) {
                return Ok(());
            }
            if bad.contains(&state.as_str()) {
                return Err(QmpError::Refused {
                    command: command.to_owned(),
                    reason: reply.to_string(),
                });
            }
            if Instant::now() >= deadline {
                return Err(QmpError::Late {
                    what: format!("{field} {wanted:?} of {command}"),
                    limit_s: limit.as_secs(),
                    last: state,
                });
            }
            std::thread::sleep(crate::process::POLL);
        }
    }

    /// Names of the events that came since the last call, oldest first.
    pub fn take_events(&mut self) -> Vec<String> {
        self.events.drain(..).collect()
    }

    fn read(&mut self, doing: &str) -> Result<Message, QmpError> {
        let mut line = String::new();
        (&mut self.reader)
            .take(MESSAGE_BYTES_MAX)
            .read_line(&mut line)
            .map_err(|cause| QmpError::Io { doing: doing.to_owned(), cause })?;
        if line.is_empty() {
            return Err(QmpError::Closed { doing: doing.to_owned() });
        }
        if !line.ends_with('\n') {
            return Err(malformed(doing, &line[..line.floor_char_boundary(120)]));
        }
        Message::parse(&line)
            .ok_or_else(|| malformed(doing, &line[..line.floor_char_boundary(400)]))
    }
}

fn malformed(doing: &str, found: &str) -> QmpError {
    QmpError::Malformed { doing: doing.to_owned(), found: found.to_owned() }
}

/// The host port of the first TCP forward in the output of the human monitor's `info usernet`.
pub(crate) fn forwarded_port(usernet: &str) -> Option<u16> {
    let line = usernet.lines().find(|line| line.contains("TCP[HOST_FORWARD]"))?;
    line.split_whitespace().nth(3)?.parse().ok().filter(|&port| port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn messages_are_sorted() {
        let parse = |line| Message::parse(line);
        assert_eq!(
            parse(r#"{"QMP": {"version": {}, "capabilities": []}}"#),
            Some(Message::Greeting)
        );
        assert_eq!(parse(r#"{"return": {}, "id": 1}"#), Some(Message::Return(json!({}))));
        assert_eq!(
            parse(r#"{"error": {"class": "GenericError", "desc": "no such device"}}"#),
            Some(Message::Error("no such device".into()))
        );
        assert_eq!(
            parse(r#"{"timestamp": {"seconds": 1}, "event": "STOP"}"#),
            Some(Message::Event("STOP".into()))
        );
        for bad in ["", "[]", "{}", "{\"error\": 1}", "{\"event\": {}}", "nonsense"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    /// Answers the greeting, then each command with the next of `replies`.
    fn with_server(replies: &'static [&'static str], check: impl FnOnce(&mut Qmp)) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("q");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut writer = stream.try_clone().unwrap();
            let mut reader = BufReader::new(stream);
            writer.write_all(b"{\"QMP\": {}}\r\n").unwrap();
            for reply in [&"{\"return\": {}}\r\n"].into_iter().chain(replies) {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                writer.write_all(reply.as_bytes()).unwrap();
            }
        });
        check(&mut Qmp::connect(&socket).unwrap());
        server.join().unwrap();
    }

    #[test]
    fn events_between_command_and_reply_are_kept() {
        with_server(
            &["{\"event\": \"STOP\"}\r\n{\"return\": {\"status\": \"paused\"}}\r\n"],
            |qmp| {
                let reply = qmp.execute("query-status", &json!({})).unwrap();
                assert_eq!(reply["status"], "paused");
                assert_eq!(qmp.take_events(), ["STOP"]);
                assert!(qmp.take_events().is_empty());
            },
        );
    }

    #[test]
    fn refusals_and_a_closed_socket_are_errors() {
        with_server(&["{\"error\": {\"class\": \"x\", \"desc\": \"no\"}}\n"], |qmp| {
            let error = qmp.execute("device_add", &json!({})).unwrap_err();
            assert_eq!(error.to_string(), "QEMU refused device_add: no");
            assert!(qmp.execute("quit", &json!({})).is_err());
        });
    }

    #[test]
    fn a_bad_state_ends_the_wait() {
        with_server(
            &[
                "{\"return\": {\"status\": \"active\"}}\n",
                "{\"return\": {\"status\": \"failed\"}}\n",
            ],
            |qmp| {
                let limit = Duration::from_secs(5);
                let error = qmp
                    .wait_state(("query-migrate", "status"), &["completed"], &["failed"], limit)
                    .unwrap_err();
                assert!(matches!(error, QmpError::Refused { .. }), "{error}");
            },
        );
    }

    #[test]
    fn the_forwarded_port_is_read_from_usernet() {
        let text = "Hub -1 (net0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                    TCP[HOST_FORWARD]  13       127.0.0.1 33445       10.0.2.15  8443     0     0\r\n";
        assert_eq!(forwarded_port(text), Some(33445));
        assert_eq!(forwarded_port("Hub -1 (net0):\r\n"), None);
    }
}
