//! Answers that are JSON, or of another language: which tokens may come next.
//!
//! Invariants: what a request asks for is bounded before a grammar is made of it ([`schema`], [`grammar`]); the grammar,
//! its states and the work for one mask are bounded by [`ParserLimits`], so that a request that asks for too much ends
//! and no other waits for it; what is allowed is a function of the format and the answer's tokens alone.

mod grammar;
mod schema;

use std::sync::Arc;

use ipc::AnswerFormat;
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};

use crate::limits::{
    GRAMMAR_SYMBOLS_MAX, LEXER_STATES_MAX, MASK_FUEL, MASK_ITEMS_MAX, SCHEMA_FUEL,
};
use crate::tokenizer::Tokenizer;

/// Why an answer cannot be had in a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The schema or grammar is not one, or is beyond what is offered.
    #[error("{place}: found {found}, expected {expected}")]
    Schema {
        /// Where: in a schema a JSON pointer, empty for the whole; in a grammar the line.
        place: String,
        /// What was found.
        found: String,
        /// What is accepted.
        expected: String,
    },
    /// No grammar was made of it.
    #[error("the format can't be kept to: {reason}")]
    Grammar {
        /// What the grammar's compiler said.
        reason: String,
    },
    /// The next token was not found within the limits.
    #[error("the answer's format takes too much work: {reason}")]
    Mask {
        /// What the grammar's parser said.
        reason: String,
    },
}

/// Makes constraints for one vocabulary.
pub struct Constraints {
    factory: ParserFactory,
}

impl Constraints {
    /// For the vocabulary of `tokenizer`.
    ///
    /// # Errors
    /// If the vocabulary does not suit the grammar's parser.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let fail = |reason: String| ConstraintError::Grammar { reason };
        let words = tokenizer.spellings(TokTrie::SPECIAL_TOKEN_MARKER);
        let count = u32::try_from(words.len()).map_err(|error| fail(error.to_string()))?;
        let ends = tokenizer.ends();
        let end = ends.first().copied().unwrap_or_default();
        let trie = TokTrie::from(&TokRxInfo::new(count, end), &words).with_eos_tokens(ends);
        let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let abilities = InferenceCapabilities::default();
        let factory = ParserFactory::new(&environment, abilities, &[]);
        let mut factory = factory.map_err(|error| fail(error.to_string()))?;
        *factory.quiet().limits_mut() = ParserLimits {
            max_items_in_row: 500,
            initial_lexer_fuel: SCHEMA_FUEL,
            step_lexer_fuel: MASK_FUEL,
            step_max_items: MASK_ITEMS_MAX,
            max_lexer_states: LEXER_STATES_MAX,
            max_grammar_size: GRAMMAR_SYMBOLS_MAX,
            precompute_large_lexemes: false,
            // Its errors would quote the answer.
            verbose_errors: false,
        };
        Ok(Self { factory })
    }

    /// A constraint at the start of an answer.
    ///
    /// # Errors
    /// If the schema or grammar is beyond the limits or contradicts itself.
    pub fn start(&self, format: &AnswerFormat) -> Result<Constraint, ConstraintError> {
        let grammar = match format {
            AnswerFormat::JsonObject => {
                TopLevelGrammar::from_json_schema(serde_json::json!({"type": "object"}))
            }
            AnswerFormat::JsonSchema { schema } => {
                TopLevelGrammar::from_json_schema(schema::parse(schema)?)
            }
            AnswerFormat::Grammar { syntax, definition } => grammar::parse(*syntax, definition)?,
        };
        let parser = self.factory.create_parser(grammar);
        let parser =
            parser.map_err(|error| ConstraintError::Grammar { reason: error.to_string() })?;
        Ok(Constraint(Matcher::new(Ok(parser))))
    }
}

impl std::fmt::Debug for Constraints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraints").finish_non_exhaustive()
    }
}

/// What one answer must be like from here on.
pub struct Constraint(Matcher);

impl Constraint {
    /// Makes every token impossible that may not come next; some token may, if only one that ends the answer.
    ///
    /// # Errors
    /// If the limits are reached.
    pub fn mask(&mut self, logits: &mut [f32]) -> Result<(), ConstraintError> {
        let allowed = self.0.compute_mask_or_eos().map_err(mask_error)?;
        for (token, logit) in (0..).zip(logits) {
            if !allowed.is_allowed(token) {
                *logit = f32::NEG_INFINITY;
            }
        }
        Ok(())
    }

    /// Goes on behind `token`, which the mask allowed.
    ///
    /// # Errors
    /// If the limits are reached.
    pub fn accept(&mut self, token: u32) -> Result<(), ConstraintError> {
        if self.0.is_stopped() {
            return Ok(());
        }
        self.0.consume_token(token).map_err(mask_error)
    }
}

fn mask_error(error: impl std::fmt::Display) -> ConstraintError {
    ConstraintError::Mask { reason: error.to_string() }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::limits::GRAMMAR_RULES_MAX;
    use crate::sampler::{Sampler, Sampling};
    use crate::synthetic;
    use ipc::GrammarSyntax;
    use serde_json::Value;

    fn tokenizer() -> Tokenizer {
        Tokenizer::read(&Gguf::parse(&synthetic::model().build()).unwrap()).unwrap()
    }

    fn schema(text: &str) -> AnswerFormat {
        AnswerFormat::JsonSchema { schema: text.to_owned() }
    }

    fn grammar(syntax: GrammarSyntax, definition: &str) -> AnswerFormat {
        AnswerFormat::Grammar { syntax, definition: definition.to_owned() }
    }

    /// What random logits say under a constraint; `None` if they do not come to an end.
    fn said(format: &AnswerFormat, seed: u64) -> Option<String> {
        let tokenizer = tokenizer();
        let constraint = Constraints::new(&tokenizer).unwrap().start(format).unwrap();
        let sampling = Sampling { seed, ..Sampling::default() };
        let mut sampler = Sampler::new(sampling, &[], Some(constraint));
        // Ends, quotes and brackets are likelier, so that there is an end.
        let logits: Vec<f32> = (0..tokenizer.vocabulary())
            .map(|token| match tokenizer.bytes(u32::try_from(token).unwrap()) {
                [] => 3.0,
                [b'"' | b'}' | b']'] => 4.0,
                [b' ' | b'\n' | b'\t' | b'\r'] => -9.0,
                _ => 0.0,
            })
            .collect();
        let mut bytes = Vec::new();
        for _ in 0..400 {
            let token = sampler.sample(&logits).unwrap();
            if tokenizer.is_end(token) {
                return Some(String::from_utf8(bytes).unwrap());
            }
            bytes.extend_from_slice(tokenizer.bytes(token));
        }
        None
    }

    #[test]
    fn whatever_the_model_wants_to_say_is_json() {
        let ended: Vec<String> =
            (0..20).filter_map(|seed| said(&AnswerFormat::JsonObject, seed)).collect();
        assert!(ended.len() > 10, "{ended:?}");
        for text in &ended {
            let value: Value = serde_json::from_str(text).unwrap();
            assert!(value.is_object(), "{text}");
        }
        assert_eq!(said(&AnswerFormat::JsonObject, 3), said(&AnswerFormat::JsonObject, 3));
    }

    #[test]
    fn a_schema_is_kept_to() {
        let format = schema(
            r##"{"type":"object","properties":{"city":{"type":"string","maxLength":9},
            "sure":{"enum":[true,"maybe"]},"more":{"type":"array","items":{"$ref":"#/$defs/n"},"maxItems":2}},
            "required":["city","sure"],"additionalProperties":false,
            "$defs":{"n":{"type":"integer","minimum":1,"maximum":20}}}"##,
        );
        let mut ended = 0;
        for text in (0..20).filter_map(|seed| said(&format, seed)) {
            let value: Value = serde_json::from_str(&text).unwrap();
            assert!(value["city"].as_str().unwrap().chars().count() <= 9, "{text}");
            assert!(value["sure"] == true || value["sure"] == "maybe", "{text}");
            let more = value["more"].as_array().cloned().unwrap_or_default();
            assert!(more.iter().all(|n| (1..=20).contains(&n.as_i64().unwrap())), "{text}");
            assert!(more.len() <= 2 && value.as_object().unwrap().len() <= 3, "{text}");
            ended += 1;
        }
        assert!(ended > 10, "{ended} have an end");
    }

    #[test]
    fn an_answer_is_of_the_language_that_was_asked_for() {
        let ended = |format: &AnswerFormat| -> Vec<String> {
            (0..20).filter_map(|seed| said(format, seed)).collect()
        };
        let dates = ended(&grammar(GrammarSyntax::Regex, "[0-9]{4}-(0[1-9]|1[0-2])"));
        assert_eq!(dates.len(), 20);
        for date in &dates {
            let (year, month) = date.split_once('-').unwrap();
            assert!(year.len() == 4 && year.bytes().all(|b| b.is_ascii_digit()), "{date}");
            assert!((1..=12).contains(&month.parse::<u8>().unwrap()) && month.len() == 2, "{date}");
        }
        let sums = ended(&grammar(
            GrammarSyntax::Lark,
            "start: term (\"+\" term)*\nterm: NUMBER | \"(\" start \")\"\nNUMBER: /[1-9][0-9]?/\n",
        ));
        assert!(!sums.is_empty());
        for sum in &sums {
            let (mut depth, mut operand) = (0_i32, false);
            for letter in sum.chars() {
                assert!(letter.is_ascii_digit() || "+()".contains(letter), "{sum}");
                assert!(operand || !"+)".contains(letter), "{sum}");
                depth += i32::from(letter == '(') - i32::from(letter == ')');
                operand = letter.is_ascii_digit() || letter == ')';
                assert!(depth >= 0, "{sum}");
            }
            assert!(depth == 0 && operand, "{sum}");
        }
    }

    #[test]
    fn a_grammar_that_is_none_or_is_too_much_is_refused_or_kept_within_the_limits() {
        let constraints = Constraints::new(&tokenizer()).unwrap();
        for (syntax, definition) in [
            (GrammarSyntax::Lark, "start: x"),
            (GrammarSyntax::Lark, "begin: \"a\""),
            (GrammarSyntax::Lark, "start: \"a"),
            (GrammarSyntax::Lark, "start: A\nA: B\nB: A"),
            (GrammarSyntax::Lark, ""),
            (GrammarSyntax::Regex, "(a"),
            (GrammarSyntax::Regex, "a(?=b)"),
            (GrammarSyntax::Regex, "\\p{Unknown}"),
        ] {
            let error = constraints.start(&grammar(syntax, definition)).unwrap_err();
            assert!(matches!(error, ConstraintError::Grammar { .. }), "{definition}: {error}");
        }
        let mut logits = vec![0.0; tokenizer().vocabulary()];
        // As long a chain of rules, as deep a nest and as many repetitions within each other as there may be.
        let rules = (0..GRAMMAR_RULES_MAX - 2).map(|n| format!("r{n}: r{}\n", n + 1));
        let last = GRAMMAR_RULES_MAX - 2;
        let chain: String = rules.chain([format!("start: r0\nr{last}: \"a\"\n")]).collect();
        let terminals = chain.replace('r', "R").replace("staRt: R0", "start: R0");
        let nest = |text: &str, depth| format!("{}a{}", "(".repeat(depth), text.repeat(depth));
        let most = [
            (GrammarSyntax::Lark, chain),
            (GrammarSyntax::Lark, terminals),
            (GrammarSyntax::Lark, format!("start: {}", nest("){1000}", 20).replace('a', "\"a\""))),
            (GrammarSyntax::Lark, format!("start: A\nA: {}\"a\"", "~".repeat(32))),
            (GrammarSyntax::Regex, nest(")", 4000)),
            (GrammarSyntax::Regex, nest("){1000}", 8)),
            (GrammarSyntax::Regex, nest("|b)*", 100)),
            (GrammarSyntax::Regex, "(a|b)*a(a|b){1000}".to_owned()),
            (GrammarSyntax::Regex, "(.*a){1000}".to_owned()),
        ];
        for (syntax, definition) in most {
            if let Ok(mut constraint) = constraints.start(&grammar(syntax, &definition)) {
                drop(constraint.mask(&mut logits));
            }
        }
    }

    /// Stands for the fuzz target where there is no fuzzer: no mutation of a grammar panics.
    #[test]
    fn mutations_of_a_grammar_never_panic() {
        let tokenizer = tokenizer();
        let constraints = Constraints::new(&tokenizer).unwrap();
        let honest = "%import common.INT\n%ignore /[ \\t]+/\nstart: list | call [\"!\"]\nlist: \"[\" (item (\",\" item)*)? \"]\"\n\
            item: INT | WORD{1,3} | list\ncall[max_tokens=5]: WORD\nWORD: /[a-zé]+(?i:x)/ & ~/stop/ | \"a\"..\"f\"\n";
        constraints.start(&grammar(GrammarSyntax::Lark, honest)).unwrap();
        let pieces: Vec<&str> = "( ) [ ] { } | * + ? ~ & / \" : \n .. -> % @a <[0-9]> <x> ::_ start WORD {0} {5,2} stop=\"a\" lazy \\ \\u{110000} é , .1".split(' ').collect();
        let mut random = synthetic::random(11);
        let mut logits = vec![0.0; tokenizer.vocabulary()];
        let mut started = 0;
        for round in 0..1000 {
            let mut text: Vec<char> = honest.chars().collect();
            for _ in 0..=random(2) {
                let start = random(text.len());
                let end = (start + random(4)).min(text.len());
                text.splice(start..end, pieces[random(pieces.len())].chars());
            }
            let text: String = text.into_iter().collect();
            let (syntax, text) = match round % 4 {
                0 => (GrammarSyntax::Regex, text.lines().last().unwrap_or_default()),
                _ => (GrammarSyntax::Lark, text.as_str()),
            };
            if let Ok(mut constraint) = constraints.start(&grammar(syntax, text)) {
                drop(constraint.mask(&mut logits));
                started += 1;
            }
        }
        assert!(started > 50, "{started} grammars are taken");
    }

    /// Stands for the fuzz target where there is no fuzzer: no mutation of a schema panics, here or in the grammar's
    /// compiler, whose panic would end the engine.
    #[test]
    fn mutations_of_a_schema_never_panic() {
        let tokenizer = tokenizer();
        let constraints = Constraints::new(&tokenizer).unwrap();
        let honest = r##"{"type":["object","null"],"properties":{"a":{"anyOf":[{"$ref":"#/$defs/n"},{"const":"\u00e9"}]},
            "b":{"type":"array","prefixItems":[true,{"type":"string","minLength":1,"maxLength":3}],"minItems":1}},
            "required":["a"],"$defs":{"n":{"type":"number","exclusiveMinimum":-1.5,"maximum":1e3},"m":{"$ref":"#/$defs/n"}}}"##;
        constraints.start(&schema(honest)).unwrap();
        let snippets = [
            "\"#/$defs/m\"",
            "\"#/properties/a\"",
            "false",
            "1e300",
            "-1",
            "[]",
            "{}",
            "0.1",
            "\"array\"",
            "999",
        ];
        let mut random = synthetic::random(7);
        let mut logits = vec![0.0; tokenizer.vocabulary()];
        let mut started = 0;
        for _ in 0..600 {
            let mut text = honest.to_owned();
            // Values take each other's place, so that most mutations are still JSON.
            for _ in 0..=random(2) {
                let starts: Vec<usize> = text.match_indices(':').map(|(at, _)| at + 1).collect();
                let start = starts[random(starts.len())];
                let end =
                    text[start..].find([',', '}']).map_or(text.len(), |length| start + length);
                text.replace_range(start..end, snippets[random(snippets.len())]);
            }
            if let Ok(mut constraint) = constraints.start(&schema(&text)) {
                drop(constraint.mask(&mut logits));
                started += 1;
            }
        }
        assert!(started > 50, "{started} schemas are taken");
    }

    #[test]
    fn schemas_that_nothing_fits_or_that_are_too_much_are_refused() {
        let constraints = Constraints::new(&tokenizer()).unwrap();
        let refused = |text: &str| constraints.start(&schema(text)).unwrap_err().to_string();
        let nothing = refused(r#"{"type":"string","minLength":3,"maxLength":2}"#);
        assert!(nothing.contains("can't be kept to"), "{nothing}");
        let items = r#"{"type":"array","maxItems":100,"items":"#;
        let many = format!(
            "{}{{\"type\":\"string\",\"maxLength\":1000}}{}",
            items.repeat(8),
            "}".repeat(8)
        );
        // Nested repetition is refused, or kept to within the limits of each mask.
        match constraints.start(&schema(&many)) {
            Ok(mut constraint) => drop(constraint.mask(&mut vec![0.0; tokenizer().vocabulary()])),
            Err(error) => assert!(matches!(error, ConstraintError::Grammar { .. }), "{error}"),
        }
    }
}
