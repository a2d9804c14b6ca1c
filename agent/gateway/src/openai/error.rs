//! What goes wrong with a request, as OpenAI clients expect to read it.
//!
//! Source: OpenAI API reference, "Error codes"; the object is `{"error":{message,type,param,code}}`.

use axum::http::StatusCode;
use ipc::EngineErrorKind;
use serde_json::{Value, json};

use crate::limits::{
    BODY_BYTES_MAX, BODY_TIMEOUT, ENGINE_SILENCE_TIMEOUT, ERROR_BYTES_MAX, EXCHANGE_TIMEOUT,
    RETRY_AFTER_S,
};

/// Why a request has no answer. Its text goes to the client; it never quotes another client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The body is not one JSON object.
    #[error("the body is not one JSON object: {found}")]
    MalformedJson {
        /// What the parser said.
        found: String,
    },
    /// A parameter has a value that is not acceptable.
    #[error("invalid {param}: {message}")]
    Invalid {
        /// Path of the parameter, such as `messages[2].content`.
        param: String,
        /// What was found and what was expected.
        message: String,
    },
    /// A parameter that would change the answer in a way that this appliance does not offer.
    #[error("unsupported {param}: {message}")]
    Unsupported {
        /// Path of the parameter.
        param: String,
        /// What is accepted instead.
        message: String,
    },
    /// A parameter that the API does not have.
    #[error("unknown parameter {param}")]
    UnknownParameter {
        /// Its name.
        param: String,
    },
    /// Prompt, or prompt and answer, do not fit the model's context.
    #[error("{message}")]
    ContextLength {
        /// The parameter with the prompt.
        param: String,
        /// What was found and the maximum.
        message: String,
    },
    /// The model asked for is not the one that is loaded.
    #[error("the model {asked:?} does not exist; this appliance serves {served:?}")]
    UnknownModel {
        /// Name asked for.
        asked: String,
        /// Name of the loaded model, empty if there is none.
        served: String,
    },
    /// The loaded model does something else.
    #[error("{message}")]
    Unsuited {
        /// What it does.
        message: String,
    },
    /// The path is none of ours.
    #[error("no such path; see /v1/models, /v1/chat/completions and /v1/embeddings")]
    UnknownPath,
    /// The path exists for another method.
    #[error("this path does not allow that method; see the Allow header")]
    MethodNotAllowed,
    /// The body did not come in time.
    #[error("the body did not arrive within {} s", BODY_TIMEOUT.as_secs())]
    BodyTimeout,
    /// The body is longer than [`BODY_BYTES_MAX`].
    #[error("the body is longer than {BODY_BYTES_MAX} bytes")]
    BodyTooLarge,
    /// The body is not declared as plain JSON.
    #[error("the body must be sent as application/json without content-encoding")]
    NotJson,
    /// Too much to do.
    #[error("the appliance is busy; try again in {RETRY_AFTER_S} s")]
    Overloaded,
    /// No bundle was admitted.
    #[error("no model is loaded: {reason}")]
    NoModel {
        /// Why not, as far as the agent says.
        reason: String,
    },
    /// The engine cannot be reached.
    #[error("the engine does not run; see the appliance's console")]
    EngineDown,
    /// The engine closed the connection in the middle of an answer.
    #[error("the engine ended before the answer was complete; what was sent of it is not complete")]
    EngineLost,
    /// The engine said nothing for too long.
    #[error("the engine said nothing for {} s", ENGINE_SILENCE_TIMEOUT.as_secs())]
    EngineSilent,
    /// The whole took too long, whoever was slow.
    #[error("the exchange took longer than {} s", EXCHANGE_TIMEOUT.as_secs())]
    TooSlow,
    /// A fault of the engine's own.
    #[error("the engine failed: {message}")]
    Engine {
        /// What it said.
        message: String,
    },
    /// The exchange could not be put in the ledger, so it has no answer.
    #[error("the exchange could not be recorded in the ledger, so its answer is withheld")]
    LedgerUnavailable,
    /// The agent did not answer a question that is not an exchange.
    #[error("the agent did not answer: {reason}")]
    AgentUnavailable {
        /// What went wrong.
        reason: String,
    },
    /// The gateway is being stopped.
    #[error("the appliance is shutting down")]
    ShuttingDown,
    /// A fault of the gateway's own.
    #[error("internal error; see the appliance's log")]
    Internal,
}

/// HTTP status, `type`, `code`, and the kind that the ledger keeps.
type Class = (StatusCode, &'static str, Option<&'static str>, &'static str);

impl ApiError {
    /// An unacceptable value of `param`.
    pub fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: param.into(), message: message.into() }
    }

    /// A parameter, or a value of it, that this appliance does not offer.
    pub fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Unsupported { param: param.into(), message: message.into() }
    }

    /// The engine's own word on a request.
    #[must_use]
    pub fn from_engine(kind: EngineErrorKind, message: String, param: Option<String>) -> Self {
        let of_prompt = || param.unwrap_or_else(|| "messages".to_owned());
        match kind {
            EngineErrorKind::NoModel => Self::NoModel { reason: message },
            EngineErrorKind::PromptTooLong => Self::ContextLength { param: of_prompt(), message },
            EngineErrorKind::Invalid => Self::invalid(of_prompt(), message),
            EngineErrorKind::Unsuited => Self::Unsuited { message },
            EngineErrorKind::Overloaded => Self::Overloaded,
            EngineErrorKind::Internal => Self::Engine { message },
        }
    }

    /// HTTP status.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        self.class().0
    }

    /// OpenAI's `code`, or the error's type where OpenAI has none.
    #[must_use]
    pub fn code(&self) -> &'static str {
        let (_, kind, code, _) = self.class();
        code.unwrap_or(kind)
    }

    /// What the ledger keeps as outcome.
    #[must_use]
    pub fn outcome(&self) -> String {
        format!("error:{}", self.class().3)
    }

    /// `{"error":{…}}`, for a response body or an event.
    #[must_use]
    pub fn object(&self) -> Value {
        let (_, kind, code, _) = self.class();
        json!({"error": {
            "message": cut(self.to_string()),
            "type": kind,
            "param": self.param().map(|param| cut(param.to_owned())),
            "code": code,
        }})
    }

    fn param(&self) -> Option<&str> {
        match self {
            Self::Invalid { param, .. }
            | Self::Unsupported { param, .. }
            | Self::UnknownParameter { param } => Some(param),
            Self::UnknownModel { .. } | Self::Unsuited { .. } => Some("model"),
            Self::ContextLength { param, .. } => Some(param),
            _ => None,
        }
    }

    fn class(&self) -> Class {
        const INVALID: &str = "invalid_request_error";
        const SERVER: &str = "server_error";
        let bad = StatusCode::BAD_REQUEST;
        let down = StatusCode::SERVICE_UNAVAILABLE;
        let fault = StatusCode::INTERNAL_SERVER_ERROR;
        match self {
            Self::MalformedJson { .. } => (bad, INVALID, None, "invalid"),
            Self::Invalid { .. } => (bad, INVALID, Some("invalid_value"), "invalid"),
            Self::Unsupported { .. } => (bad, INVALID, Some("unsupported_parameter"), "invalid"),
            Self::UnknownParameter { .. } => (bad, INVALID, Some("unknown_parameter"), "invalid"),
            Self::ContextLength { .. } => {
                (bad, INVALID, Some("context_length_exceeded"), "prompt-too-long")
            }
            Self::UnknownModel { .. } => {
                (StatusCode::NOT_FOUND, INVALID, Some("model_not_found"), "model-not-found")
            }
            Self::Unsuited { .. } => {
                (StatusCode::NOT_FOUND, INVALID, Some("model_not_supported"), "unsuited")
            }
            Self::UnknownPath => (StatusCode::NOT_FOUND, INVALID, Some("unknown_url"), "invalid"),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, INVALID, Some("method_not_allowed"), "invalid")
            }
            Self::BodyTimeout => {
                (StatusCode::REQUEST_TIMEOUT, INVALID, Some("request_timeout"), "invalid")
            }
            Self::BodyTooLarge => {
                (StatusCode::PAYLOAD_TOO_LARGE, INVALID, Some("request_too_large"), "invalid")
            }
            Self::NotJson => {
                (StatusCode::UNSUPPORTED_MEDIA_TYPE, INVALID, Some("unsupported_media"), "invalid")
            }
            Self::Overloaded => (
                StatusCode::TOO_MANY_REQUESTS,
                "rate_limit_error",
                Some("overloaded"),
                "overloaded",
            ),
            Self::NoModel { .. } => (down, SERVER, Some("model_unavailable"), "no-model"),
            Self::EngineDown => (down, SERVER, Some("engine_unavailable"), "engine-down"),
            Self::EngineLost => (fault, SERVER, Some("engine_lost"), "engine-lost"),
            Self::EngineSilent => (fault, SERVER, Some("engine_timeout"), "engine-silent"),
            Self::TooSlow => (fault, SERVER, Some("exchange_timeout"), "too-slow"),
            Self::Engine { .. } => (fault, SERVER, Some("internal_error"), "internal"),
            Self::LedgerUnavailable => (fault, SERVER, Some("ledger_unavailable"), "ledger"),
            Self::AgentUnavailable { .. } => (down, SERVER, Some("agent_unavailable"), "agent"),
            Self::ShuttingDown => (down, SERVER, Some("shutting_down"), "shutdown"),
            Self::Internal => (fault, SERVER, Some("internal_error"), "internal"),
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        let end = (0..=ERROR_BYTES_MAX).rev().find(|&at| text.is_char_boundary(at));
        text.truncate(end.unwrap_or(0));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_the_four_members_that_clients_read() {
        let object = ApiError::invalid("top_p", "found 2").object();
        assert_eq!(
            object,
            json!({"error": {"message": "invalid top_p: found 2", "type": "invalid_request_error",
                "param": "top_p", "code": "invalid_value"}})
        );
        assert_eq!(
            ApiError::MalformedJson { found: String::new() }.object()["error"]["code"],
            Value::Null
        );
    }

    #[test]
    fn a_quoted_megabyte_is_cut() {
        let object = ApiError::invalid("x".repeat(1 << 20), "é".repeat(1 << 20)).object();
        assert!(object.to_string().len() < 3 * ERROR_BYTES_MAX);
    }

    #[test]
    fn engine_kinds_become_the_statuses_that_clients_expect() {
        let status = |kind| ApiError::from_engine(kind, String::new(), None).status().as_u16();
        let kinds = [
            (EngineErrorKind::NoModel, 503),
            (EngineErrorKind::PromptTooLong, 400),
            (EngineErrorKind::Invalid, 400),
            (EngineErrorKind::Unsuited, 404),
            (EngineErrorKind::Overloaded, 429),
            (EngineErrorKind::Internal, 500),
        ];
        for (kind, expected) in kinds {
            assert_eq!(status(kind), expected, "{kind:?}");
        }
        let param = Some("input".to_owned());
        let error = ApiError::from_engine(EngineErrorKind::PromptTooLong, String::new(), param);
        assert_eq!(error.object()["error"]["param"], "input");
        let param = Some("logit_bias".to_owned());
        let error = ApiError::from_engine(EngineErrorKind::Invalid, String::new(), param);
        assert_eq!(error.object()["error"]["param"], "logit_bias");
    }
}
