//! The real all-MiniLM-L6-v2 against sentence-transformers' own numbers (`minilm/generate.py`).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::PathBuf;
use std::sync::Arc;

use engine::encoder::{Encoder, EncoderError, Folder};
use engine::weights::FileBytes;
use kernels::{Isa, Pool, Scalar};
use serde_json::Value;

/// Names the folder; set by `cargo xtask test`.
const FOLDER: &str = "CASEMATE_TEST_ENCODER";

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[test]
fn vectors_are_those_of_sentence_transformers() {
    let Some(path) = std::env::var_os(FOLDER).map(PathBuf::from) else {
        println!("skipped: {FOLDER} does not name the folder of all-MiniLM-L6-v2");
        return;
    };
    let folder = Folder::read(|name| {
        let file = std::fs::read(path.join(name)).ok();
        Ok::<_, EncoderError>(file.map(|bytes| Arc::new(bytes) as FileBytes))
    });
    let folder = folder.unwrap();
    assert_eq!((folder.shape.hidden, folder.shape.context), (384, 256));
    let reference: Value = serde_json::from_str(include_str!("minilm/reference.json")).unwrap();
    let cases = reference["cases"].as_array().unwrap();
    let encode =
        |text: &Value| folder.words.around(&folder.words.encode(text.as_str().unwrap()).unwrap());
    let texts: Vec<Vec<u32>> = cases.iter().map(|case| encode(&case["text"])).collect();
    let slices: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let mut encoder = Encoder::new(&folder, Isa::detect(), Pool::new(2).unwrap()).unwrap();
    let vectors = encoder.encode(&slices);
    let wide: Vec<Vec<f64>> =
        vectors.iter().map(|v| v.iter().map(|x| f64::from(*x)).collect()).collect();
    for (number, case) in cases.iter().enumerate() {
        assert_eq!(case["tokens"].as_u64().unwrap(), texts[number].len() as u64);
        let (found, expected) = (&wide[number][..8], numbers(&case["numbers"]));
        let near = cosine(found, &expected);
        let errors = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        let error = errors.fold(0.0, f64::max);
        println!("text {number}: cosine of its first numbers {near:.7}, largest error {error:.1e}");
        assert!(near >= 0.9999 && error < 1e-4, "text {number}: {near} {error}");
        for (other, expected) in numbers(&reference["cosines"][number]).iter().enumerate() {
            let found = cosine(&wide[number], &wide[other]);
            assert!((found - expected).abs() < 1e-4, "{number}, {other}: {found} {expected}");
        }
    }
    // The same bits without vectors, on one thread and alone.
    let scalar = Isa::Scalar(Scalar);
    let mut encoder = Encoder::new(&folder, scalar, Pool::new(1).unwrap()).unwrap();
    assert!(encoder.encode(&slices[..1])[0] == vectors[0], "the scalar kernels differ");
}
