use super::*;
use crate::gguf::Gguf;
use crate::synthetic::{self, File, families};

fn read(mut file: File, change: impl FnOnce(&mut File) -> &mut File) -> Result<Shape, String> {
    change(&mut file);
    let bytes = file.build();
    Shape::read(&Gguf::parse(&bytes).unwrap()).map_err(|error| error.to_string())
}

fn refusal(case: &str, change: impl FnOnce(&mut File) -> &mut File) -> String {
    read(families::golden(case), change).unwrap_err()
}

#[test]
fn the_shape_is_read() {
    let shape = read(synthetic::model(), |f| f).unwrap();
    assert_eq!((shape.layers, shape.hidden, shape.heads, shape.kv_heads()), (2, 64, 4, 2));
    assert_eq!((shape.key_dim(), shape.key_width(), shape.cache_token_bytes()), (16, 32, 256));
}

#[test]
fn every_case_is_read_as_what_it_is() {
    let shape = |case| read(families::golden(case), |f| f).unwrap();
    let grouped = |case| match shape(case).attention {
        Attention::Grouped(grouped) => grouped,
        Attention::Latent(_) => panic!("{case} is latent"),
    };
    assert_eq!((grouped("mistral").window, grouped("mistral").head_dim), (Some(7), 32));
    assert_eq!((grouped("phi3").window, grouped("phi3-long").window), (Some(9), None));
    assert!(grouped("qwen2").biases && !grouped("llama").biases && grouped("phi3").fused);
    let pairs = |case| shape(case).rope.pairs;
    assert_eq!([pairs("llama"), pairs("deepseek3")], [Pairs::Neighbours; 2]);
    assert_eq!([pairs("qwen2"), pairs("phi3")], [Pairs::Halves; 2]);
    let latent = shape("deepseek2");
    // 32 of latent and 16 that are rotated, once for keys and values of all 4 heads.
    assert_eq!((latent.key_width(), latent.cache_token_bytes()), (48, 48 * 2 * 2));
    assert!(latent.experts(0).is_none() && latent.experts(1).is_some());
    let third = shape("deepseek3").experts.unwrap();
    assert_eq!((third.gating, third.normalised, third.shared), (Gating::Sigmoid, true, 64));
    assert!(shape("mixtral").experts.unwrap().normalised);
}

#[test]
fn scores_and_turns_follow_yarn() {
    let log4 = 4_f64.ln();
    let turn_scale = read(families::golden("yarn"), |f| f).unwrap().rope.turn_scale;
    assert!((turn_scale - (1.0 + 0.1 * log4)).abs() < 1e-9);
    let third = read(families::golden("deepseek3"), |f| f).unwrap();
    let scale = f64::from(third.score_scale()) * 48_f64.sqrt();
    assert!((scale - (1.0 + 0.1 * log4).powi(2)).abs() < 1e-6);
    assert!((third.rope.turn_scale - 1.0).abs() < 1e-9);
}

#[test]
fn what_would_be_computed_wrongly_is_refused() {
    let error = refusal("llama", |f| f.text("llama.rope.scaling.type", "linear"));
    assert!(error.contains("lacks \"llama.rope.scaling.factor\""), "{error}");
    let error = refusal("llama", |f| f.text("llama.rope.scaling.type", "dynamic"));
    assert!(error.contains("rope scaling is \"dynamic\""), "{error}");
    let error = refusal("llama", |f| f.f32("llama.attn_logit_softcapping", 30.0));
    assert!(error.contains("llama.attn_logit_softcapping"), "{error}");
    let error = refusal("qwen2", |f| f.u32("qwen2.attention.sliding_window", 7));
    assert!(error.contains("qwen2.attention.sliding_window"), "{error}");
    let error = refusal("llama", |f| {
        f.remove("general.architecture").text("general.architecture", "gemma")
    });
    assert!(error.contains("\"gemma\"") && error.contains("phi3"), "{error}");
    let error = refusal("llama", |f| f.replace_u32("llama.attention.head_count_kv", 3));
    assert!(error.contains("whole number of queries"), "{error}");
    let error = refusal("llama", |f| f.replace_u32("llama.block_count", 0));
    assert!(error.contains("1 to 512"), "{error}");
    let error = refusal("phi3", |f| f.replace_u32("phi3.rope.dimension_count", 11));
    assert!(error.contains("an even number"), "{error}");
    let error = refusal("yarn", |f| f.remove("qwen2.rope.scaling.original_context_length"));
    assert!(error.contains("original_context_length"), "{error}");
}

#[test]
fn latents_and_experts_that_do_not_fit_are_refused() {
    // Files from before llama.cpp stored keys and values of heads apart.
    let error = refusal("deepseek2", |f| f.remove("deepseek2.attention.key_length_mla"));
    assert!(error.contains("lacks \"deepseek2.attention.key_length_mla\""), "{error}");
    let error = refusal("deepseek2", |f| f.replace_u32("deepseek2.attention.key_length", 40));
    assert!(error.contains("48"), "{error}");
    let error = refusal("deepseek2", |f| f.replace_u32("deepseek2.attention.kv_lora_rank", 8192));
    assert!(error.contains("1 to 4096"), "{error}");
    let error = refusal("deepseek2", |f| f.remove("deepseek2.rope.scaling.yarn_log_multiplier"));
    assert!(error.contains("yarn_log_multiplier"), "{error}");
    let error = refusal("deepseek3", |f| f.replace_u32("deepseek2.expert_group_count", 3));
    assert!(error.contains("equal groups"), "{error}");
    let error = refusal("deepseek3", |f| f.replace_u32("deepseek2.expert_group_used_count", 1));
    assert!(error.contains("3 of 8, from 1 of 4 groups"), "{error}");
    let error = refusal("deepseek3", |f| f.replace_u32("deepseek2.expert_gating_func", 3));
    assert!(error.contains("1 to 2"), "{error}");
    let error = refusal("mixtral", |f| f.replace_u32("llama.expert_used_count", 9));
    assert!(error.contains("1 to 8"), "{error}");
}
