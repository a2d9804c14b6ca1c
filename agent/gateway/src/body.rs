//! Bodies: bounded requests in, event streams out.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderMap, header};
use hyper::body::Frame;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::exchange::{Delta, Event};
use crate::limits::{BODY_BYTES_MAX, BODY_DRAIN_BYTES_MAX, BODY_TIMEOUT};
use crate::openai::answer::Events;
use crate::openai::error::ApiError;

/// Reads the JSON body of a request.
///
/// # Errors
/// If it is not declared as JSON, is longer than [`BODY_BYTES_MAX`], or does not arrive in time.
pub async fn read_json(headers: &HeaderMap, body: Body) -> Result<Vec<u8>, ApiError> {
    if !is_plain_json(headers) {
        return Err(ApiError::NotJson);
    }
    timeout(BODY_TIMEOUT, read(body)).await.map_err(|_| ApiError::BodyTimeout)?
}

fn is_plain_json(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let essence = text(header::CONTENT_TYPE).and_then(|value| value.split(';').next());
    let plain = text(header::CONTENT_ENCODING).is_none_or(|coding| coding == "identity");
    plain && essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

async fn read(mut body: Body) -> Result<Vec<u8>, ApiError> {
    // Declared far too long: not worth draining.
    if body.size_hint().lower() > BODY_DRAIN_BYTES_MAX as u64 {
        return Err(ApiError::BodyTooLarge);
    }
    let mut bytes = Vec::new();
    let mut total = 0_usize;
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame
            .map_err(|_| ApiError::MalformedJson { found: "the body broke off".to_owned() })?;
        let Ok(data) = frame.into_data() else { continue };
        total = total.saturating_add(data.len());
        if total > BODY_DRAIN_BYTES_MAX {
            return Err(ApiError::BodyTooLarge);
        }
        if total <= BODY_BYTES_MAX {
            bytes.extend_from_slice(&data);
        }
    }
    if total > BODY_BYTES_MAX { Err(ApiError::BodyTooLarge) } else { Ok(bytes) }
}

/// Server-sent events, made as the exchange goes on. Dropping it cancels the exchange.
#[derive(Debug)]
pub struct EventStream {
    events: Events,
    source: mpsc::Receiver<Event>,
    /// Sent before anything of `source`.
    first: Option<String>,
    ended: bool,
}

impl EventStream {
    /// The stream of an exchange that was accepted.
    #[must_use]
    pub fn new(events: Events, source: mpsc::Receiver<Event>) -> Self {
        Self { first: Some(events.role()), events, source, ended: false }
    }
}

impl HttpBody for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first.into()))));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.source.poll_recv(context));
        let text = match event {
            Some(Event::Delta(Delta { text, entries })) => self.events.delta(&text, &entries),
            Some(Event::Finished(end)) => {
                self.ended = true;
                self.events.end(&end)
            }
            Some(Event::Failed(error)) => {
                self.ended = true;
                Events::error(&error)
            }
            // The exchange's task is gone, or not what it should be: both are faults of ours.
            Some(Event::Accepted(_) | Event::Vector(_)) | None => {
                self.ended = true;
                Events::error(&ApiError::Internal)
            }
        };
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.first.is_none()
    }
}
