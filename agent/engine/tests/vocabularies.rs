//! Real vocabularies with the token numbers that their models' own tokenizers give: llama.cpp's `ggml-vocab-*.gguf`,
//! `.inp` and `.out`, which are in the source of PyPI's `llama-cpp-python` (`vendor/llama.cpp/models`) and not ours to
//! keep. `CASEMATE_VOCABULARIES` names the folder.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use engine::answer::Answer;
use engine::gguf::Gguf;
use engine::tokenizer::Tokenizer;

/// Vocabularies of kinds that no model family here has.
const OTHERS: [&str; 2] = ["bert-bge", "gemma-4"];

fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CASEMATE_VOCABULARIES").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: CASEMATE_VOCABULARIES does not name llama.cpp's folder models");
    }
    folder
}

/// Each vocabulary's name and file.
fn vocabularies(folder: &Path) -> BTreeMap<String, PathBuf> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let named = files.filter_map(|path| {
        let name = path.file_name()?.to_str()?.strip_prefix("ggml-vocab-")?;
        Some((name.strip_suffix(".gguf")?.to_owned(), path.clone()))
    });
    named.collect()
}

/// Texts and the numbers of their tokens.
fn vectors(gguf: &Path) -> Option<Vec<(String, Vec<u32>)>> {
    let read = |more: &str| fs::read_to_string(format!("{}.{more}", gguf.display())).ok();
    let (texts, numbers) = (read("inp")?, read("out")?);
    let numbers =
        numbers.lines().map(|line| line.split_whitespace().map(|n| n.parse().unwrap()).collect());
    Some(texts.split("\n__ggml_vocab_test__\n").map(str::to_owned).zip(numbers).collect())
}

#[test]
fn texts_become_the_tokens_that_the_models_know() {
    let Some(folder) = folder() else { return };
    let (mut wrong, mut compared) = (Vec::new(), 0);
    for (name, path) in vocabularies(&folder) {
        // Some have no vectors, and are of older formats.
        let Some(vectors) = vectors(&path) else { continue };
        let bytes = fs::read(&path).unwrap();
        let tokenizer = match Tokenizer::read(&Gguf::parse(&bytes).unwrap()) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                println!("{name}: {error}");
                if !OTHERS.contains(&name.as_str()) {
                    wrong.push(format!("{name}: {error}"));
                }
                continue;
            }
        };
        for (text, numbers) in &vectors {
            let found = tokenizer.encode(text).unwrap();
            if found != *numbers {
                wrong.push(format!("{name}: {text:?}: found {found:?}, expected {numbers:?}"));
            }
            compared += 1;
            check_answer(&tokenizer, text, &found);
        }
        println!("{name}: {} texts", vectors.len());
    }
    assert!(compared > 500, "{compared} texts");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// The tokens of a text, as an answer that comes one by one, are that text, in pieces that are whole characters.
fn check_answer(tokenizer: &Tokenizer, text: &str, tokens: &[u32]) {
    let mut answer = Answer::new(Vec::new());
    let mut whole = String::new();
    for token in tokens {
        let piece = answer.push(*token, tokenizer).text;
        assert!(!piece.contains('\u{fffd}'), "{text:?}: half a character in {piece:?}");
        whole += &piece;
    }
    whole += &answer.finish().text;
    // SentencePiece vocabularies may begin with a space that is not there.
    assert!(whole == text || whole.strip_prefix(' ') == Some(text), "{text:?} became {whole:?}");
}
