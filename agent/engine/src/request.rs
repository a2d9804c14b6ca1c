//! Checking a conversation and its parameters.

use std::sync::PoisonError;

use ipc::{AnswerFormat, Chat, EngineErrorKind, OutOfRange, Role, TOP_LOGPROBS_MAX};

use crate::constraint::{Constraint, ConstraintError};
use crate::limits::{
    MESSAGES_MAX, PARTITION_BYTES_MAX, PROMPT_BYTES_PER_TOKEN_MAX, STOP_BYTES_MAX, STOPS_MAX,
};
use crate::load::Loaded;
use crate::sampler::Sampling;
use crate::sequence::Partition;
use crate::template::{TemplateError, Turn};

/// A request that can be computed.
#[derive(Debug)]
pub struct Prepared {
    /// Tokens of the prompt; not empty, and at least one token shorter than the context.
    pub prompt: Vec<u32>,
    /// Whose request it is.
    pub partition: Partition,
    /// Lower goes first.
    pub priority: u8,
    /// Tokens of the answer at most; at least 1, and what the context leaves.
    pub answer_max: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Stop strings, none empty.
    pub stops: Vec<String>,
    /// What the answer must be like, as it was asked for and as it is kept to.
    pub format: Option<AnswerFormat>,
    /// Of [`Self::format`].
    pub constraint: Option<Constraint>,
    /// If set, each token comes with its logprob, and those of so many of the likeliest.
    pub logprobs: Option<usize>,
}

/// Why a request is turned away; shown to the client.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// A parameter is out of range.
    #[error(transparent)]
    Range(#[from] OutOfRange),
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {found} tokens; the model's context is {context} tokens, one of which is left for the answer"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        found: usize,
        /// Tokens of the context.
        context: usize,
    },
    /// The prompt is not worth encoding.
    #[error(
        "the messages have {found} bytes; the model's context of {context} tokens takes no more than {max}"
    )]
    PromptBytes {
        /// Bytes of all messages.
        found: usize,
        /// Tokens of the context.
        context: usize,
        /// Bytes that could fit it.
        max: usize,
    },
    /// The answer's format is not offered.
    #[error("response_format: {0}")]
    Format(#[from] ConstraintError),
    /// The chat template refuses the conversation.
    #[error("the model's chat template does not take this conversation: {0}")]
    Template(#[from] TemplateError),
}

impl RequestError {
    /// The kind that clients are told.
    #[must_use]
    pub fn kind(&self) -> EngineErrorKind {
        match self {
            Self::Range(_) | Self::Format(_) | Self::Template(_) => EngineErrorKind::Invalid,
            Self::PromptTooLong { .. } | Self::PromptBytes { .. } => EngineErrorKind::PromptTooLong,
        }
    }

    /// The parameter of the API that it is about.
    #[must_use]
    pub fn param(&self) -> &'static str {
        match self {
            Self::Range(OutOfRange { param, .. }) => param,
            Self::Format(_) => "response_format",
            _ => "messages",
        }
    }
}

/// Checks `chat` and encodes its prompt.
///
/// # Errors
/// If a parameter is out of range, the template refuses, or the prompt is too long.
pub fn prepare(chat: Chat, model: &Loaded) -> Result<Prepared, RequestError> {
    check(&chat, model.tokenizer.vocabulary())?;
    let context = model.info.context_tokens_max as usize;
    let found = chat.messages.iter().map(|message| message.content.len()).sum();
    let max = context.saturating_mul(PROMPT_BYTES_PER_TOKEN_MAX);
    if found > max {
        return Err(RequestError::PromptBytes { found, context, max });
    }
    let turns: Vec<Turn<'_>> = chat
        .messages
        .iter()
        .map(|message| Turn { role: role(message.role), content: &message.content })
        .collect();
    // The lock guards no data, so it cannot be poisoned in any way that matters.
    let encoding = model.encoding.lock().unwrap_or_else(PoisonError::into_inner);
    let prompt = model.template.prompt(&turns, &model.tokenizer)?;
    let constrain = |format| model.tokenizer.constraints()?.start(format);
    let constraint = chat.format.as_ref().map(constrain).transpose()?;
    drop(encoding);
    let left = context.saturating_sub(prompt.len());
    if left == 0 || prompt.is_empty() {
        return Err(RequestError::PromptTooLong { found: prompt.len(), context });
    }
    let Chat { sampling, logprobs, format, stop, max_tokens, partition, priority, .. } = chat;
    Ok(Prepared {
        prompt,
        partition: Partition::from(partition.as_str()),
        priority,
        answer_max: left.min(max_tokens as usize),
        sampling,
        stops: stop,
        format,
        constraint,
        logprobs: logprobs.map(usize::from),
    })
}

fn check(chat: &Chat, vocabulary: usize) -> Result<(), OutOfRange> {
    let within = |good: bool, param, found: String, expected: String| {
        if good { Ok(()) } else { Err(OutOfRange { param, found, expected }) }
    };
    let (messages, stops) = (chat.messages.len(), chat.stop.len());
    within(
        (1..=MESSAGES_MAX).contains(&messages),
        "messages",
        messages.to_string(),
        format!("1 to {MESSAGES_MAX}"),
    )?;
    within(chat.max_tokens > 0, "max_tokens", "0".to_owned(), "at least 1".to_owned())?;
    chat.sampling.check()?;
    let last = chat.sampling.logit_bias.keys().next_back();
    within(
        last.is_none_or(|token| (*token as usize) < vocabulary),
        "logit_bias",
        format!("token {}", last.copied().unwrap_or_default()),
        format!("tokens below {vocabulary}, the model's vocabulary"),
    )?;
    within(
        chat.logprobs.is_none_or(|top| top <= TOP_LOGPROBS_MAX),
        "top_logprobs",
        chat.logprobs.unwrap_or_default().to_string(),
        format!("at most {TOP_LOGPROBS_MAX}"),
    )?;
    within(stops <= STOPS_MAX, "stop", format!("{stops} strings"), format!("at most {STOPS_MAX}"))?;
    for stop in &chat.stop {
        within(
            (1..=STOP_BYTES_MAX).contains(&stop.len()),
            "stop",
            format!("a string of {} bytes", stop.len()),
            format!("1 to {STOP_BYTES_MAX} bytes"),
        )?;
    }
    let digest = |text: &String| {
        text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    within(
        chat.receipt.as_ref().is_none_or(digest),
        "receipt",
        "another text".to_owned(),
        "64 lower-case hex digits".to_owned(),
    )?;
    within(
        chat.partition.len() <= PARTITION_BYTES_MAX,
        "partition",
        format!("{} bytes", chat.partition.len()),
        format!("at most {PARTITION_BYTES_MAX} bytes"),
    )
}

fn role(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::load::tests::{machine, message};
    use crate::synthetic;
    use ipc::Message;
    use std::sync::Arc;

    pub(crate) fn chat(text: &str) -> Chat {
        Chat {
            messages: vec![Message { role: Role::User, content: text.to_owned() }],
            max_tokens: 10,
            sampling: Sampling::greedy(),
            logprobs: None,
            format: None,
            stop: Vec::new(),
            partition: "bank".to_owned(),
            priority: 0,
            receipt: None,
        }
    }

    fn tiny() -> Loaded {
        let file = Arc::new(synthetic::model().build());
        crate::load::open(&message(&[]), file, machine(1)).unwrap()
    }

    #[test]
    fn the_answer_is_lowered_to_what_the_context_leaves() {
        let model = tiny();
        let asked =
            |n: usize, max_tokens| prepare(Chat { max_tokens, ..chat(&"x".repeat(n)) }, &model);
        // The template adds 19 tokens.
        let prepared = asked(59, 10).unwrap();
        let rest = 128 - prepared.prompt.len();
        assert_eq!(prepared.answer_max, 10);
        assert_eq!(asked(59, u32::MAX).unwrap().answer_max, rest);
        assert_eq!(asked(59 + rest - 1, 10).unwrap().answer_max, 1);
        let error = asked(59 + rest, 10).unwrap_err();
        assert_eq!(error.kind(), EngineErrorKind::PromptTooLong);
        assert!(
            error.to_string().contains("has 128 tokens; the model's context is 128"),
            "{error}"
        );
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        let model = tiny();
        let good = || chat("hello");
        let hot = Sampling { temperature: 2.5, ..Sampling::greedy() };
        let logit_bias = std::collections::BTreeMap::from([(3, 1.0), (264, 1.0)]);
        let foreign = Sampling { logit_bias, ..Sampling::greedy() };
        for (bad, word) in [
            (Chat { messages: Vec::new(), ..good() }, "messages"),
            (Chat { max_tokens: 0, ..good() }, "max_tokens"),
            (Chat { sampling: hot, ..good() }, "temperature"),
            (Chat { sampling: foreign, ..good() }, "logit_bias"),
            (Chat { logprobs: Some(21), ..good() }, "top_logprobs"),
            (Chat { stop: vec![String::new()], ..good() }, "stop"),
            (Chat { stop: vec!["x".into(); 17], ..good() }, "stop"),
            (Chat { stop: vec!["x".repeat(257)], ..good() }, "stop"),
            (Chat { partition: "x".repeat(257), ..good() }, "partition"),
            (Chat { receipt: Some("AB".repeat(32)), ..good() }, "receipt"),
        ] {
            let error = prepare(bad, &model).unwrap_err();
            assert_eq!(error.kind(), EngineErrorKind::Invalid);
            assert_eq!(error.param(), word, "{error}");
        }
    }
}
