//! A client that sends exactly the bytes it is told to.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde_json::{Value, json};

use crate::peers::{PATIENCE, model};

/// A TLS connection.
pub(crate) struct Https(StreamOwned<ClientConnection, TcpStream>);

/// A response, read to its end.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// A chat request whose last message is `text`; `more` are further members.
pub(crate) fn chat(text: &str, more: &Value) -> Value {
    let messages =
        json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]);
    let mut body = json!({"model": model().model_id, "messages": messages});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The bytes of a POST to the chat path.
pub(crate) fn post(body: &str) -> String {
    post_to("/v1/chat/completions", body)
}

/// The bytes of a POST.
pub(crate) fn post_to(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The bytes of a request without body.
pub(crate) fn bare(method: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

impl Https {
    /// Connects and finishes the handshake.
    pub(crate) fn connect(address: SocketAddr, config: Arc<ClientConfig>) -> io::Result<Self> {
        let tcp = TcpStream::connect(address)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let connection = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
        let mut stream = StreamOwned::new(connection, tcp);
        stream.flush()?;
        Ok(Self(stream))
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.0.write_all(bytes.as_ref())?;
        self.0.flush()
    }

    /// Reads until `end` was seen; returns all of it.
    pub(crate) fn read_until(&mut self, end: &str) -> String {
        let mut text = Vec::new();
        let mut byte = [0];
        while !text.ends_with(end.as_bytes()) {
            let read = self.0.read(&mut byte).unwrap_or_else(|error| {
                panic!("{error} before {end:?}: {}", String::from_utf8_lossy(&text))
            });
            assert_eq!(read, 1, "end before {end:?}: {}", String::from_utf8_lossy(&text));
            text.push(byte[0]);
        }
        String::from_utf8(text).unwrap()
    }

    /// Nothing comes for a while.
    pub(crate) fn expect_silence(&mut self) {
        self.0.sock.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
        let found = self.0.read(&mut [0; 64]);
        assert!(
            matches!(&found, Err(error) if error.kind() == ErrorKind::WouldBlock),
            "expected silence, found {found:?}"
        );
        self.0.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    }

    /// Reads to the end of the connection.
    pub(crate) fn read_to_end(&mut self) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.0.read_to_end(&mut bytes)?;
        Ok(String::from_utf8(bytes).unwrap())
    }

    /// Sends a request that closes the connection; returns the response.
    pub(crate) fn ask(mut self, request: impl AsRef<[u8]>) -> Response {
        self.send(request).unwrap();
        Response::parse(&self.read_to_end().unwrap())
    }

    /// Sends a chat request; returns the response.
    pub(crate) fn ask_chat(self, text: &str, more: &Value) -> Response {
        self.ask(post(&chat(text, more).to_string()))
    }
}

impl Response {
    pub(crate) fn parse(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").expect("a response has a head");
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap();
        let head = head.to_lowercase();
        let chunked = head.contains("transfer-encoding: chunked");
        let body = if chunked { unchunk(body) } else { body.to_owned() };
        Self { status, head, body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status and `error.code`; checks that the object is one that OpenAI clients can read.
    pub(crate) fn error(&self) -> (u16, String) {
        assert!(self.head.contains("content-type: application/json"), "{self:?}");
        let object = self.json();
        let error = object["error"].as_object().unwrap_or_else(|| panic!("{self:?}"));
        let mut members: Vec<_> = error.keys().map(String::as_str).collect();
        members.sort_unstable();
        assert_eq!(members, ["code", "message", "param", "type"]);
        assert!(error["message"].is_string() && error["type"].is_string());
        (self.status, error["code"].as_str().unwrap_or_default().to_owned())
    }

    /// The data of each event; `[DONE]` stays a string.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert!(self.head.contains("content-type: text/event-stream"), "{self:?}");
        events(&self.body)
    }
}

/// The data of each event in `stream`.
pub(crate) fn events(stream: &str) -> Vec<Value> {
    let events = stream.split("\n\n").filter(|event| !event.is_empty());
    let data = events.map(|event| event.strip_prefix("data: ").unwrap());
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
}

/// RFC 9112, section 7.1; a body without its last chunk is incomplete and a failure.
fn unchunk(mut body: &str) -> String {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n").expect("a chunk has a length");
        let length = usize::from_str_radix(length, 16).unwrap();
        if length == 0 {
            return whole;
        }
        whole.push_str(&rest[..length]);
        body = rest[length..].strip_prefix("\r\n").unwrap();
    }
}
