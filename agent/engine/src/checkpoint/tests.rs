use super::*;
use crate::load::open_checkpoint;
use crate::load::tests::{machine, message};
use crate::shape::{Attention, Pairs, Shape};
use crate::synthetic::TEMPLATE;
use crate::synthetic::families::{CASES, EIGHTHS, plain};
use crate::synthetic::folder::{self, Folder};
use crate::weights::Weights;

const TOKENS: usize = 260;

fn folder(case: &str) -> Folder {
    folder::folder(case, TOKENS)
}

fn read(folder: &Folder) -> Result<Checkpoint, String> {
    let config = serde_json::to_vec(&folder.config).unwrap();
    let tokenizer = serde_json::to_vec(&folder.tokenizer).unwrap();
    let more = serde_json::json!({"chat_template": TEMPLATE}).to_string();
    let texts = Texts {
        config: &config,
        tokenizer: &tokenizer,
        tokenizer_config: Some(more.as_bytes()),
        chat_template: None,
    };
    let files = folder.files.iter().map(|file| Arc::new(file.clone()) as FileBytes).collect();
    Checkpoint::read(&texts, files).map_err(|error| error.to_string())
}

fn refusal(case: &str, change: impl FnOnce(&mut Folder)) -> String {
    let mut folder = folder(case);
    change(&mut folder);
    match read(&folder) {
        Err(error) => error,
        Ok(checkpoint) => {
            open_checkpoint(&message(&[]), &checkpoint, machine(1)).unwrap_err().to_string()
        }
    }
}

#[test]
fn every_case_is_described_as_its_gguf_file_is() {
    for case in CASES {
        let checkpoint = read(&folder(case)).unwrap();
        let view = checkpoint.view();
        let mut found = Shape::read(&view).unwrap();
        let bytes = plain(case, TOKENS).build();
        let truth = Shape::read(&Gguf::parse(&bytes).unwrap()).unwrap();
        if matches!(truth.attention, Attention::Grouped(_)) {
            assert_eq!(found.rope.pairs, Pairs::Halves, "{case}");
        }
        found.rope.pairs = truth.rope.pairs;
        // GGUF's floats have 32 bits.
        let close = |a: f64, b: f64| (a - b).abs() < 1e-6 * b.abs();
        assert!(close(found.epsilon.into(), truth.epsilon.into()), "{case}");
        assert!(close(found.rope.turn_scale, truth.rope.turn_scale), "{case}");
        (found.epsilon, found.rope.turn_scale) = (truth.epsilon, truth.rope.turn_scale);
        if let (Attention::Latent(found), Attention::Latent(truth)) =
            (&mut found.attention, &truth.attention)
        {
            assert!(close(found.score_scale, truth.score_scale), "{case}");
            found.score_scale = truth.score_scale;
        }
        assert_eq!(found, truth, "{case}");
        Weights::find_in(&view, &found, checkpoint.files()).unwrap();
    }
}

#[test]
fn a_checkpoint_answers() {
    let checkpoint = read(&folder("llama3")).unwrap();
    let loaded = open_checkpoint(&message(&[]), &checkpoint, machine(1)).unwrap();
    assert_eq!((loaded.info.context_tokens_max, loaded.tokenizer.vocabulary()), (128, TOKENS));
    assert!(loaded.tokenizer.is_end(259));
    assert_eq!(loaded.tokenizer.encode("!\"").unwrap(), [33, 34]);
}

#[test]
fn what_would_be_computed_wrongly_is_refused() {
    let error = refusal("llama", |f| f.config["hidden_act"] = "gelu".into());
    assert_eq!(error, "config.json: \"hidden_act\" is \"gelu\", expected silu");
    let error = refusal("llama", |f| f.config["model_type"] = "gemma".into());
    assert!(error.contains("deepseek_v3"), "{error}");
    let error = refusal("qwen2", |f| f.config["use_sliding_window"] = true.into());
    assert!(error.contains("use_sliding_window"), "{error}");
    let error = refusal("llama", |f| f.config["quantization_config"] = serde_json::json!({}));
    assert!(error.contains("quantization_config"), "{error}");
    let error = refusal("linear", |f| f.config["rope_scaling"]["type"] = "dynamic".into());
    assert!(error.contains("rope_parameters.rope_type"), "{error}");
    let error = refusal("deepseek3", |f| f.config["rope_scaling"]["mscale"] = 0.5.into());
    assert!(error.contains("rope_parameters.mscale"), "{error}");
    let error = refusal("deepseek2", |f| f.config["v_head_dim"] = 25.into());
    assert!(
        error.contains("kv_b_proj.weight\" has shape [224, 32], expected [228, 32]"),
        "{error}"
    );
    let error = refusal("llama3", |f| f.config["tie_word_embeddings"] = 1.into());
    assert!(error.contains("true or false"), "{error}");
    let error = refusal("llama", |f| f.config["tie_word_embeddings"] = false.into());
    assert!(error.contains("output.weight"), "{error}");
    let error = refusal("llama", |f| drop(f.files.pop()));
    assert!(
        error.contains("\"token_embd.weight\" has 0 rows") || error.contains("lacks"),
        "{error}"
    );
    let error = refusal("llama", |f| f.config["vocab_size"] = 4_000_000.into());
    assert!(
        error.contains("has 260 rows, expected config.json's vocab_size of 4000000"),
        "{error}"
    );
    let error = refusal("llama3", |f| f.config["head_dim"] = 9999.into());
    assert!(error.contains("at most 4096"), "{error}");
    let error = refusal("llama", |f| f.files.push(f.files[0].clone()));
    assert!(error.contains("is there twice"), "{error}");
    let error = refusal("llama", |f| f.files[0].truncate(100));
    assert!(error.contains("weights file number 0"), "{error}");
}

#[test]
fn vocabularies_that_are_not_understood_are_refused() {
    let error = refusal("llama", |f| f.tokenizer["model"]["byte_fallback"] = true.into());
    assert!(error.contains("convert others to GGUF"), "{error}");
    let error = refusal("llama", |f| {
        f.tokenizer["pre_tokenizer"] = serde_json::json!({"type": "Metaspace"})
    });
    assert!(error.contains("pre_tokenizer"), "{error}");
    let error = refusal("llama", |f| f.tokenizer["added_tokens"][0]["id"] = 260.into());
    assert!(error.contains("a number below"), "{error}");
    let error = refusal("llama", |f| f.config["eos_token_id"] = 999.into());
    assert!(error.contains("eos_token_id"), "{error}");
}

/// Writes `bytes` into tensor `name`.
fn overwrite(folder: &mut Folder, name: &str, at: usize, bytes: &[u8]) {
    for file in &mut folder.files {
        if let Some(entry) = safetensors::parse(file).unwrap().remove(name) {
            return file[entry.extent.start + at..][..bytes.len()].copy_from_slice(bytes);
        }
    }
    panic!("no {name}");
}

/// Renames in the headers, to a name of the same length.
fn rename(folder: &mut Folder, from: &str, to: &str) {
    let file = folder.files.iter_mut().find_map(|file| {
        let at = file.windows(from.len()).position(|found| found == from.as_bytes())?;
        Some((file, at))
    });
    let (file, at) = file.unwrap();
    file[at..at + to.len()].copy_from_slice(to.as_bytes());
}

#[test]
fn eight_bit_floats_are_read_where_they_lie() {
    let checkpoint = read(&folder(EIGHTHS)).unwrap();
    let view = checkpoint.view();
    let weights = Weights::find_in(&view, &Shape::read(&view).unwrap(), checkpoint.files());
    weights.unwrap();
    let of = |name: &str| &view.tensors()[name];
    let down = of("blk.1.ffn_down_exps.3.weight");
    assert_eq!((down.format, down.file), (Format::F8, down.scales.as_ref().unwrap().file));
    assert_eq!(down.scales.as_ref().unwrap().extent.len(), 4 * 2 * 2);
    // Taken apart and transposed, blocks would be no blocks.
    assert_eq!(of("blk.1.attn_k_b.weight").format, Format::F32);
    assert_eq!(of("blk.1.ffn_gate_inp.weight").format, Format::F32);
    open_checkpoint(&message(&[]), &checkpoint, machine(1)).unwrap();
}

#[test]
fn eight_bit_floats_without_a_value_or_a_scale_are_refused() {
    const OUTPUT: &str = "model.layers.1.self_attn.o_proj.weight";
    const EXPERT: &str = "model.layers.1.mlp.experts.7.up_proj.weight_scale_inv";
    for nan in [0x7f, 0xff] {
        let error = refusal(EIGHTHS, |f| overwrite(f, OUTPUT, 5003, &[nan]));
        assert_eq!(error, format!("tensor {OUTPUT:?} is F8_E4M3, and its number 5003 is a NaN"));
    }
    for scale in [f32::NAN, f32::INFINITY, -1.0] {
        let error = refusal(EIGHTHS, |f| overwrite(f, EXPERT, 4, &scale.to_le_bytes()));
        assert!(error.contains(EXPERT) && error.contains("has a scale of"), "{error}");
    }
    let error = refusal(EIGHTHS, |f| rename(f, EXPERT, &EXPERT.replace(".7.", ".8.")));
    assert!(error.contains("is F8_E4M3, but there is no") && error.contains(EXPERT), "{error}");
    let error = refusal(EIGHTHS, |f| {
        f.files.push(folder::write(&[("x_scale_inv".to_owned(), vec![1], vec![0; 4])]));
    });
    assert!(error.contains("\"x_scale_inv\" belongs to no F8_E4M3 tensor"), "{error}");
    let error = refusal(EIGHTHS, |f| drop(f.config["quantization_config"].take()));
    assert!(error.contains("no quantization_config that says so"), "{error}");
    for (key, value) in [
        ("weight_block_size", serde_json::json!([1, 128])),
        ("activation_scheme", "static".into()),
        ("fmt", "e5m2".into()),
        ("quant_method", "awq".into()),
        ("bits", 8.into()),
    ] {
        let error = refusal(EIGHTHS, |f| f.config["quantization_config"][key] = value);
        assert!(error.contains(&format!("quantization_config.{key}")), "{error}");
    }
}
