//! JSON schemas, grammars and regular expressions from any client: what is taken ends in a grammar that says which tokens
//! may come next, in bounded time and memory; some token may, and after it another. A panic, here or in the grammar's compiler, would end the engine.
#![no_main]

use std::sync::LazyLock;

use engine::constraint::Constraints;
use engine::gguf::Gguf;
use engine::tokenizer::Tokenizer;
use ipc::{AnswerFormat, GrammarSyntax};
use libfuzzer_sys::fuzz_target;

#[path = "../../../agent/engine/tests/synthetic/mod.rs"]
#[allow(dead_code, reason = "only the model is used")]
mod synthetic;

/// Tokens of an answer that are tried.
const TOKENS: usize = 4;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let file = synthetic::model().build();
    Tokenizer::read(&Gguf::parse(&file).expect("the synthetic file is honest"))
        .expect("and so is its vocabulary")
});
static CONSTRAINTS: LazyLock<Constraints> =
    LazyLock::new(|| Constraints::new(&TOKENIZER).expect("the vocabulary is honest"));

fuzz_target!(|schema: &str| {
    let grammar = |syntax, definition: &str| AnswerFormat::Grammar { syntax, definition: definition.to_owned() };
    let format = match (schema.strip_prefix("lark "), schema.strip_prefix("regex ")) {
        (Some(definition), _) => grammar(GrammarSyntax::Lark, definition),
        (_, Some(definition)) => grammar(GrammarSyntax::Regex, definition),
        _ => AnswerFormat::JsonSchema { schema: schema.to_owned() },
    };
    let Ok(mut constraint) = CONSTRAINTS.start(&format) else { return };
    for step in 0..TOKENS {
        let mut logits = vec![0.0_f32; TOKENIZER.vocabulary()];
        if constraint.mask(&mut logits).is_err() {
            return;
        }
        let allowed: Vec<u32> =
            (0..).zip(&logits).filter(|(_, logit)| logit.is_finite()).map(|(token, _)| token).collect();
        assert!(!allowed.is_empty());
        let token = allowed[(schema.len() + step) % allowed.len()];
        if TOKENIZER.is_end(token) || constraint.accept(token).is_err() {
            return;
        }
    }
});
