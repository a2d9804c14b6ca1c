use std::sync::Arc;

use ipc::{Embed, EmbedInput, EngineErrorKind};
use kernels::{Isa, Pool, Scalar};
use serde_json::json;

use super::*;
use crate::encoder::request::{EmbedError, Prepared, prepare};
use crate::load::tests::{machine, message};
use crate::synthetic::encoder::{Files, VOCABULARY, files};
use crate::weights::FileBytes;

pub(crate) fn folder() -> Folder {
    read(&files()).unwrap()
}

fn read(files: &Files) -> Result<Folder, EncoderError> {
    Folder::read(|path| Ok(files.get(path).map(|bytes| Arc::new(bytes) as FileBytes)))
}

fn refusal(change: impl FnOnce(&mut Files)) -> String {
    let mut files = files();
    change(&mut files);
    let opened = read(&files)
        .and_then(|folder| Encoder::new(&folder, Isa::detect(), Pool::new(1).unwrap()).map(|_| ()));
    opened.unwrap_err().to_string()
}

fn text(tokens: usize, seed: usize) -> Vec<u32> {
    (0..tokens).map(|i| u32::try_from((i * 31 + seed) % VOCABULARY).unwrap()).collect()
}

#[test]
fn neighbours_threads_and_variants_change_no_bit() {
    let texts = [text(42, 3), text(1, 5), text(17, 7), text(42, 3), text(30, 9)];
    let all: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let bits = |isa, threads, steps: &[&[&[u32]]]| -> Vec<Vec<u32>> {
        let mut encoder = Encoder::new(&folder(), isa, Pool::new(threads).unwrap()).unwrap();
        let vectors = steps.iter().flat_map(|texts| encoder.encode(texts));
        vectors.map(|vector| vector.iter().map(|x| x.to_bits()).collect()).collect()
    };
    let alone: Vec<&[&[u32]]> = all.iter().map(std::slice::from_ref).collect();
    let truth = bits(Isa::Scalar(Scalar), 1, &alone);
    assert!(truth.iter().flatten().all(|bits| f32::from_bits(*bits).is_finite()));
    assert_eq!(truth[0], truth[3]);
    assert_ne!(truth[0], truth[4]);
    for (isa, threads) in [(Isa::detect(), 1), (Isa::detect(), 2), (Isa::Scalar(Scalar), 2)] {
        assert!(truth == bits(isa, threads, &[&all]), "{threads} threads, {}", isa.name());
        assert!(truth == bits(isa, threads, &[&all[..2], &all[2..]]));
    }
}

#[test]
fn nothing_of_a_text_outlasts_its_step_and_memory_is_as_promised() {
    let folder = folder();
    let mut encoder = Encoder::new(&folder, Isa::detect(), Pool::new(1).unwrap()).unwrap();
    let texts: Vec<Vec<u32>> = (0..12).map(|i| text(42, i)).collect();
    encoder.encode(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
    let b = &encoder.buffers;
    let floats = [&b.hidden, &b.queries, &b.keys, &b.values, &b.by_head, &b.found, &b.wide];
    assert!(floats.iter().all(|floats| floats.iter().all(|x| *x == 0.0)));
    assert!(b.half_keys.iter().chain(&b.half_values).all(|byte| *byte == 0));
    let bytes: usize = floats.iter().map(|floats| floats.len() * 4).sum();
    assert!(bytes + b.half_keys.len() * 2 <= Encoder::memory(&folder.shape));
}

#[test]
fn a_vector_has_length_one_if_the_folder_says_so() {
    let length = |files: &Files| {
        let folder = read(files).unwrap();
        let mut encoder = Encoder::new(&folder, Isa::detect(), Pool::new(1).unwrap()).unwrap();
        let vector = encoder.encode(&[&text(9, 1)]).remove(0);
        vector.iter().map(|x| x * x).sum::<f32>().sqrt()
    };
    let mut files = files();
    assert!((length(&files) - 1.0).abs() < 1e-6);
    files.modules.as_array_mut().unwrap().pop();
    assert!((length(&files) - 1.0).abs() > 1e-3);
}

#[test]
fn what_is_not_known_is_refused_by_its_name() {
    type Change = fn(&mut Files);
    let cases: [(Change, &str); 17] = [
        (|f| f.config["hidden_act"] = "gelu_new".into(), "hidden_act"),
        (|f| f.config["hidden_act"] = json!(null), "hidden_act"),
        (|f| f.config["model_type"] = "roberta".into(), "model_type"),
        (
            |f| f.config["position_embedding_type"] = "relative_key".into(),
            "position_embedding_type",
        ),
        (|f| f.config["is_decoder"] = true.into(), "is_decoder"),
        (|f| f.config["num_attention_heads"] = 5.into(), "num_attention_heads"),
        (|f| f.config["layer_norm_eps"] = 1.into(), "layer_norm_eps"),
        (|f| f.config["matryoshka_dimensions"] = json!([65]), "matryoshka_dimensions"),
        (|f| f.pooling["pooling_mode_max_tokens"] = true.into(), "pooling_mode_max_tokens"),
        (|f| f.pooling["pooling_mode_weightedmean_tokens"] = true.into(), "weightedmean"),
        (|f| f.pooling["pooling_mode_cls_token"] = true.into(), "pooling_mode_"),
        (|f| f.pooling["pooling_mode_mean_tokens"] = false.into(), "pooling_mode_mean_tokens"),
        (|f| f.modules[2]["type"] = "sentence_transformers.models.Dense".into(), "Dense"),
        (|f| f.sentence["do_lower_case"] = true.into(), "do_lower_case"),
        (|f| f.prompts["default_prompt_name"] = "query".into(), "default_prompt_name"),
        (|f| f.pooling = json!(null), "1_Pooling/config.json"),
        (|f| f.config["num_hidden_layers"] = 1.into(), "encoder.layer.1."),
    ];
    for (change, word) in cases {
        let said = refusal(change);
        assert!(said.contains(word), "{word}: {said}");
    }
    let cases: [(Change, &str); 7] = [
        (|f| f.tokenizer["model"]["type"] = "BPE".into(), "model.type"),
        (|f| f.tokenizer["model"]["unk_token"] = "<unk>".into(), "model.unk_token"),
        (|f| f.tokenizer["model"]["vocab"]["z"] = 128.into(), "model.vocab"),
        (|f| f.tokenizer["normalizer"]["type"] = "NFC".into(), "normalizer"),
        (|f| f.tokenizer["pre_tokenizer"]["type"] = "ByteLevel".into(), "pre_tokenizer"),
        (|f| f.tokenizer["post_processor"]["single"][0] = json!({}), "post_processor"),
        (|f| f.tokenizer["added_tokens"][0]["special"] = false.into(), "added_tokens"),
    ];
    for (change, word) in cases {
        let said = refusal(change);
        assert!(said.contains("tokenizer.json") && said.contains(word), "{word}: {said}");
    }
}

#[test]
fn no_text_becomes_a_control_token() {
    let words = folder().words;
    let (letter, within) = (|c: u8| u32::from(c - b'a') + 5, |c: u8| u32::from(c - b'a') + 31);
    assert_eq!(words.encode("Hello hé!").unwrap(), [4, letter(b'h'), within(b'e'), 57]);
    // `[`, the letters, `]`.
    let forged = words.encode("[SEP]").unwrap();
    assert_eq!(forged, [58, letter(b's'), within(b'e'), within(b'p'), 59]);
    assert_eq!(words.encode("7 a").unwrap(), [1, letter(b'a')], "an unknown word is one token");
    assert_eq!(words.encode(&"a ".repeat(30)).unwrap().len(), 30, "nothing is cut");
    assert_eq!(words.around(&[7]), [2, 7, 3]);
}

fn embed(inputs: Vec<EmbedInput>) -> Embed {
    Embed { inputs, dimensions: None, partition: "bank".to_owned() }
}

#[test]
fn requests_are_bounded_and_say_what_is_wrong() {
    let mut files = files();
    files.config["matryoshka_dimensions"] = json!([16, 32]);
    let model = open(&message(&[]), read(&files).unwrap(), machine(1)).unwrap();
    let text = |n: usize| EmbedInput::Text("a ".repeat(n));
    let Prepared { texts, dimensions } = prepare(&embed(vec![text(40), text(1)]), &model).unwrap();
    assert_eq!((texts[0].len(), texts[1].len(), dimensions), (42, 3, 64));
    let tokens = prepare(&embed(vec![EmbedInput::Tokens(vec![5])]), &model).unwrap();
    assert_eq!(tokens.texts, [texts[1].clone()]);
    let shorter = Embed { dimensions: Some(16), ..embed(vec![text(1)]) };
    assert_eq!(prepare(&shorter, &model).unwrap().dimensions, 16);

    let error = |embed: &Embed| prepare(embed, &model).unwrap_err();
    let long = error(&embed(vec![text(1), text(41)]));
    assert!(matches!(long, EmbedError::TextTooLong { number: 1, found: 43, max: 42 }), "{long}");
    assert_eq!((long.kind(), long.param()), (EngineErrorKind::PromptTooLong, "input"));
    assert!(matches!(error(&embed(vec![text(400)])), EmbedError::TextBytes { found: 800, .. }));
    let many = error(&embed(vec![text(40); 2000]));
    assert!(matches!(many, EmbedError::TooManyTokens), "{many}");
    for (bad, param) in [
        (embed(Vec::new()), "input"),
        (embed(vec![text(1); 2049]), "input"),
        (embed(vec![text(0)]), "input"),
        (embed(vec![EmbedInput::Tokens(Vec::new())]), "input"),
        (embed(vec![EmbedInput::Tokens(vec![128])]), "input"),
        (Embed { dimensions: Some(17), ..embed(vec![text(1)]) }, "dimensions"),
        (Embed { dimensions: Some(128), ..embed(vec![text(1)]) }, "dimensions"),
        (Embed { partition: "x".repeat(257), ..embed(vec![text(1)]) }, "partition"),
    ] {
        let error = error(&bad);
        assert_eq!((error.kind(), error.param()), (EngineErrorKind::Invalid, param), "{error}");
    }
}

#[test]
fn a_shorter_vector_is_the_beginning_of_the_whole_one_at_length_one() {
    let mut vector = vec![3.0, 4.0, 12.0];
    shorten(&mut vector, 3);
    assert_eq!(vector, [3.0, 4.0, 12.0]);
    shorten(&mut vector, 2);
    assert_eq!(vector, [0.6, 0.8]);
}
