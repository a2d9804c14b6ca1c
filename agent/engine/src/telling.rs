//! What the engine samples, as the pieces of an answer that clients are told.
//!
//! Invariant: the tokens told are those of which the text told is made: one that begins in it or before it, none that
//! lies behind a stop string, and not the token that ends the answer.

use std::collections::VecDeque;

use ipc::{EngineReply, TokenLogprob, TokenLogprobs};

use crate::answer::Shown;
use crate::sampler::Logprobs;
use crate::tokenizer::Tokenizer;

/// One answer on its way to the client.
#[derive(Debug)]
pub struct Telling<'t> {
    tokenizer: &'t Tokenizer,
    /// Tokens whose text is held back.
    held: VecDeque<TokenLogprobs>,
}

impl<'t> Telling<'t> {
    /// Nothing is told yet.
    #[must_use]
    pub fn new(tokenizer: &'t Tokenizer) -> Self {
        Self { tokenizer, held: VecDeque::new() }
    }

    /// Another token, and what is certain since; the reply that says so, if there is anything to say.
    pub fn token(
        &mut self,
        token: u32,
        logprobs: Option<Logprobs>,
        shown: Shown,
    ) -> Option<EngineReply> {
        let one = |(token, logprob): (u32, f32)| self.logprob(token, logprob);
        let told = logprobs.map(|Logprobs { logprob, top }| TokenLogprobs {
            chosen: one((token, logprob)),
            top: top.into_iter().map(one).collect(),
        });
        self.held.extend(told);
        self.shown(shown)
    }

    /// The reply that says what is certain now, if there is anything to say.
    pub fn shown(&mut self, Shown { text, tokens }: Shown) -> Option<EngineReply> {
        let tokens: Vec<_> = self.held.drain(..tokens.min(self.held.len())).collect();
        (!text.is_empty() || !tokens.is_empty()).then_some(EngineReply::Delta { text, tokens })
    }

    fn logprob(&self, token: u32, logprob: f32) -> TokenLogprob {
        match self.tokenizer.name(token) {
            Some(name) => TokenLogprob { token: name.to_owned(), bytes: None, logprob },
            None => {
                let bytes = self.tokenizer.bytes(token).to_vec();
                let token = String::from_utf8_lossy(&bytes).into_owned();
                TokenLogprob { token, bytes: Some(bytes), logprob }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Answer;
    use crate::gguf::Gguf;
    use crate::synthetic;

    /// Text and tokens told of an answer made of `tokens`.
    fn told(tokens: &[u32], stop: &str) -> (String, Vec<TokenLogprobs>) {
        let tokenizer =
            Tokenizer::read(&Gguf::parse(&synthetic::model().build()).unwrap()).unwrap();
        let mut answer = Answer::new(vec![stop.to_owned()]);
        let mut telling = Telling::new(&tokenizer);
        let mut replies = Vec::new();
        for (token, logprob) in tokens.iter().zip([-0.5, -1.0, -1.5, -2.0]) {
            let logprobs = Logprobs { logprob, top: vec![(2, -0.25)] };
            let shown = answer.push(*token, &tokenizer);
            replies.extend(telling.token(*token, Some(logprobs), shown));
        }
        replies.extend(telling.shown(answer.finish()));
        let (mut text, mut all) = (String::new(), Vec::new());
        for reply in replies {
            let EngineReply::Delta { text: more, tokens } = reply else { panic!("{reply:?}") };
            text += &more;
            all.extend(tokens);
        }
        (text, all)
    }

    const fn byte(byte: u8) -> u32 {
        byte as u32 + 3
    }

    #[test]
    fn the_tokens_told_make_the_text_told() {
        let (text, tokens) = told(&[262, byte(0xc3), byte(0xa9), byte(b'!')], "\n");
        assert_eq!(text, "helloé!");
        let bytes: Vec<u8> = tokens.iter().flat_map(|t| t.chosen.bytes.clone().unwrap()).collect();
        assert_eq!(bytes, text.as_bytes());
        let names: Vec<&str> = tokens.iter().map(|t| t.chosen.token.as_str()).collect();
        assert_eq!(names, ["hello", "\u{fffd}", "\u{fffd}", "!"]);
        assert_eq!(tokens[3].chosen.logprob, -2.0);
    }

    #[test]
    fn a_control_token_has_a_name_and_no_bytes() {
        let (_, tokens) = told(&[262], "\n");
        let expected = TokenLogprob { token: "<|im_end|>".to_owned(), bytes: None, logprob: -0.25 };
        assert_eq!(tokens[0].top, [expected]);
    }

    #[test]
    fn nothing_behind_a_stop_string_is_told() {
        let (text, tokens) = told(&[262, byte(b'\n'), byte(b'\n'), 262], "\n\n");
        assert_eq!((text.as_str(), tokens.len()), ("hello", 1));
        let (text, tokens) = told(&[262, 262], "lloh");
        assert_eq!((text.as_str(), tokens.len()), ("he", 1), "cut in the middle of a token");
    }

    #[test]
    fn without_logprobs_only_text_is_told() {
        let tokenizer =
            Tokenizer::read(&Gguf::parse(&synthetic::model().build()).unwrap()).unwrap();
        let mut telling = Telling::new(&tokenizer);
        assert!(telling.token(262, None, Shown::default()).is_none());
        let reply = telling.token(262, None, Shown { text: "x".to_owned(), tokens: 2 });
        assert!(
            matches!(&reply, Some(EngineReply::Delta { text, tokens }) if text == "x" && tokens.is_empty())
        );
    }
}
