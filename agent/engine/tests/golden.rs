//! Logits of one tiny model of each architecture and variant, against those of Hugging Face transformers
//! (`golden/generate.py`).

#![allow(clippy::unwrap_used, reason = "a test may panic, and so may its modules")]

mod synthetic;

use std::sync::Arc;

use engine::checkpoint::{Checkpoint, Texts};
use engine::cpu::Cpu;
use engine::encoder::{Encoder, EncoderError, Folder};
use engine::gguf::Gguf;
use engine::model::{Row, Shape, forward};
use engine::weights::{FileBytes, Weights};
use kernels::{Isa, Pool};

use synthetic::families::{CASES, CONTEXT, EIGHTHS, GOLDEN_VOCABULARY, golden};
use synthetic::folder::folder;

const TOKENS: usize = 40;
/// Logits have a standard deviation of 1. The cache holds keys and values in half precision, which the reference
/// does not: rounding them there moves its own logits by up to 3.7e-3.
const ERROR_MAX: f32 = 5e-3;

fn of_gguf(case: &str) -> Vec<f32> {
    let bytes = golden(case).build();
    let gguf = Gguf::parse(&bytes).unwrap();
    logits(&gguf, vec![Arc::new(bytes.clone())])
}

fn of_checkpoint(case: &str) -> Vec<f32> {
    let folder = folder(case, GOLDEN_VOCABULARY);
    let config = serde_json::to_vec(&folder.config).unwrap();
    let tokenizer = serde_json::to_vec(&folder.tokenizer).unwrap();
    let texts = Texts {
        config: &config,
        tokenizer: &tokenizer,
        tokenizer_config: None,
        chat_template: None,
    };
    let files = folder.files.into_iter().map(|file| Arc::new(file) as FileBytes).collect();
    let checkpoint = Checkpoint::read(&texts, files).unwrap();
    logits(&checkpoint.view(), checkpoint.files())
}

fn logits(gguf: &Gguf<'_>, files: Vec<FileBytes>) -> Vec<f32> {
    let shape = Shape::read(gguf).unwrap();
    let weights = Weights::find_in(gguf, &shape, files).unwrap();
    let mut cpu =
        Cpu::new(Isa::detect(), Pool::new(2).unwrap(), shape, weights, 8, CONTEXT as usize);
    let token = |position: usize| u32::try_from((position * 37 + 11) % GOLDEN_VOCABULARY).unwrap();
    let rows: Vec<_> = (0..TOKENS)
        .map(|position| Row { token: token(position), position, table: &[5, 0, 2], logits: true })
        .collect();
    rows.chunks(16).flat_map(|rows| forward(&mut cpu, rows).to_vec()).collect()
}

fn reference(case: &str) -> Vec<f32> {
    let path = format!("{}/tests/golden/{case}.f32", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn best(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

#[test]
fn logits_of_gguf_files_are_those_of_the_reference() {
    compare(&CASES, of_gguf);
}

#[test]
fn logits_of_safetensors_are_those_of_the_reference() {
    compare(&CASES, of_checkpoint);
}

#[test]
fn logits_of_eight_bit_floats_are_those_of_the_reference() {
    compare(&[EIGHTHS], of_checkpoint);
}

fn compare(cases: &[&str], logits: impl Fn(&str) -> Vec<f32>) {
    let mut failed = Vec::new();
    for case in cases {
        let (found, reference) = (logits(case), reference(case));
        assert_eq!(found.len(), TOKENS * GOLDEN_VOCABULARY);
        assert_eq!(found.len(), reference.len(), "{case}");
        let errors = found.iter().zip(&reference).map(|(a, b)| (a - b).abs());
        let error = errors.fold(0.0, f32::max);
        let rows = found.chunks(GOLDEN_VOCABULARY).zip(reference.chunks(GOLDEN_VOCABULARY));
        let others = rows.filter(|(found, reference)| best(found) != best(reference)).count();
        println!("{case}: largest error {error:.2e}, {others} of {TOKENS} best tokens differ");
        if error.is_nan() || error > ERROR_MAX || others > 0 {
            failed.push((case, error, others));
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

/// Mean of the states at length 1, and the first state as it is, of texts of three lengths.
#[test]
fn vectors_of_an_encoder_are_those_of_the_reference() {
    let tokens = |n: usize| -> Vec<u32> {
        let token = |p: usize| u32::try_from((p * 29 + 5 * n + 7) % GOLDEN_VOCABULARY).unwrap();
        (0..n).map(token).collect()
    };
    let texts = [1, 7, 42].map(tokens);
    let vectors = |first: bool| {
        let mut files = synthetic::encoder::files();
        if first {
            files.pooling["pooling_mode_cls_token"] = true.into();
            files.pooling["pooling_mode_mean_tokens"] = false.into();
            files.modules.as_array_mut().unwrap().pop();
        }
        let folder = Folder::read(|path| {
            Ok::<_, EncoderError>(files.get(path).map(|bytes| Arc::new(bytes) as FileBytes))
        });
        let mut encoder =
            Encoder::new(&folder.unwrap(), Isa::detect(), Pool::new(2).unwrap()).unwrap();
        encoder.encode(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let reference = reference("encoder");
    let rows: Vec<&[f32]> = reference.chunks_exact(reference.len() / 6).collect();
    for (first, vectors) in [(0, vectors(false)), (1, vectors(true))] {
        for (row, vector) in rows.iter().skip(first).step_by(2).zip(&vectors) {
            assert_eq!(row.len(), vector.len());
            let errors = row.iter().zip(vector).map(|(a, b)| (a - b).abs());
            let error = errors.fold(0.0, f32::max);
            println!("encoder: largest error {error:.2e}");
            // States have a standard deviation of 1; keys and values are halves here.
            assert!(error < if first == 0 { 1e-4 } else { 2e-3 }, "{error}");
        }
    }
}

/// Cases with the same weights would not be told apart by the test above if the reference did not tell them.
#[test]
fn the_reference_tells_variants_apart() {
    for (one, other) in [("llama3", "linear"), ("phi3-short", "phi3-long")] {
        let (one, other) = (reference(one), reference(other));
        let distance = one.iter().zip(&other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance > 100.0 * ERROR_MAX, "{distance}");
    }
}
