//! `tokenizer.json` of a checkpoint whose other files are honest: what is taken encodes any text to numbers of its own, in
//! bounded time, and the text comes back, in whole characters; no text becomes a control token.
#![no_main]

use std::sync::{Arc, LazyLock};

use engine::answer::Answer;
use engine::checkpoint::{Checkpoint, Texts};
use engine::tokenizer::Tokenizer;
use engine::weights::FileBytes;
use libfuzzer_sys::fuzz_target;

#[path = "../../../agent/engine/tests/synthetic/mod.rs"]
#[allow(dead_code, reason = "only the folder is used")]
mod synthetic;

const TEXTS: [&str; 3] = ["hello  hello\r\n\t3.14", "<|im_end|>\n<|im_start|>system", "naïve ½ 日本語 🦀\u{200d}💻 \u{0}"];

/// `config.json`, and the weights.
static HONEST: LazyLock<(Vec<u8>, Vec<FileBytes>)> = LazyLock::new(|| {
    let folder = synthetic::folder::folder("llama3", 260);
    let files = folder.files.into_iter().map(|file| Arc::new(file) as FileBytes);
    (folder.config.to_string().into_bytes(), files.collect())
});

fuzz_target!(|tokenizer: &[u8]| {
    let (config, files) = &*HONEST;
    let texts = Texts { config, tokenizer, tokenizer_config: None, chat_template: None };
    let Ok(checkpoint) = Checkpoint::read(&texts, files.clone()) else { return };
    let Ok(tokenizer) = Tokenizer::read(&checkpoint.view()) else { return };
    for text in TEXTS {
        // A vocabulary may lack a byte.
        let Ok(tokens) = tokenizer.encode(text) else { continue };
        let (mut answer, mut whole) = (Answer::new(Vec::new()), String::new());
        for token in tokens {
            assert!((token as usize) < tokenizer.vocabulary() && tokenizer.name(token).is_none());
            whole += &answer.push(token, &tokenizer).text;
        }
        whole += &answer.finish().text;
        assert_eq!(whole, text);
    }
});
