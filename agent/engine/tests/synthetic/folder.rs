//! The models of [`families`](super::families) as transformers would write them: the same weights by other names, in
//! two files, with the order of rows that llama.cpp's converter changes.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "weights are computed in wider numbers, and are in range"
)]

use serde_json::{Map, Value, json};

use super::families::{EIGHTHS, plain, uniform};
use super::{File, byte_characters};

/// What transformers writes.
pub(crate) struct Folder {
    pub(crate) config: Value,
    pub(crate) tokenizer: Value,
    pub(crate) files: Vec<Vec<u8>>,
}

/// A tensor: its name, its dimensions with rows first, and its numbers.
type Tensor = (String, Vec<usize>, Vec<u8>);

/// `case` with so many tokens; from 257 on, they encode text.
pub(crate) fn folder(case: &str, vocabulary: usize) -> Folder {
    let file = plain(case, vocabulary);
    let mut tensors: Vec<Tensor> = Vec::new();
    for index in 0..file.tensors.len() {
        theirs(case, read(&file, index), &mut tensors);
    }
    join_latents(&mut tensors);
    if case == EIGHTHS {
        tensors = tensors.into_iter().flat_map(eighths).collect();
    }
    let half = tensors.len() / 2;
    let files = vec![write(&tensors[..half]), write(&tensors[half..])];
    Folder { config: config(case, vocabulary), tokenizer: tokenizer(vocabulary), files }
}

fn read(file: &File, index: usize) -> Tensor {
    let (name, format, shape, offset) = &file.tensors[index];
    assert_eq!(*format, 0, "golden models are F32");
    let shape: Vec<usize> = shape.iter().rev().map(|s| usize::try_from(*s).unwrap()).collect();
    let start = usize::try_from(*offset).unwrap();
    let bytes = &file.data[start..][..shape.iter().product::<usize>() * 4];
    (name.clone(), shape, bytes.to_vec())
}

/// Adds `tensor` by its other names.
fn theirs(case: &str, (name, shape, bytes): Tensor, out: &mut Vec<Tensor>) {
    if name.starts_with("rope_") {
        return;
    }
    let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
    else {
        let name = match name.as_str() {
            "token_embd.weight" => "model.embed_tokens.weight",
            "output_norm.weight" => "model.norm.weight",
            _ => "lm_head.weight",
        };
        out.push((name.to_owned(), shape, bytes));
        return;
    };
    let (part, kind) = part.rsplit_once('.').unwrap();
    let mixtral = case == "mixtral";
    let llama = matches!(case, "llama" | "llama3" | "linear" | "mistral" | "mixtral");
    let (bytes, heads) = match part {
        "attn_q" if llama => (bytes, 4),
        "attn_k" if llama => (bytes, 2),
        _ => (bytes, 0),
    };
    let bytes = if heads > 0 { halves(&bytes, heads, &shape) } else { bytes };
    let prefix = format!("model.layers.{layer}.");
    let expert = |part: &str, number: usize| match (mixtral, part) {
        (true, "gate") => format!("{prefix}block_sparse_moe.experts.{number}.w1.weight"),
        (true, "down") => format!("{prefix}block_sparse_moe.experts.{number}.w2.weight"),
        (true, _) => format!("{prefix}block_sparse_moe.experts.{number}.w3.weight"),
        (false, part) => format!("{prefix}mlp.experts.{number}.{part}_proj.weight"),
    };
    if let Some(part) = part.strip_prefix("ffn_").and_then(|part| part.strip_suffix("_exps")) {
        for (number, bytes) in bytes.chunks_exact(bytes.len() / shape[0]).enumerate() {
            out.push((expert(part, number), shape[1..].to_vec(), bytes.to_vec()));
        }
        return;
    }
    let theirs = match part {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_qkv" => "self_attn.qkv_proj",
        "attn_q_a" => "self_attn.q_a_proj",
        "attn_q_a_norm" => "self_attn.q_a_layernorm",
        "attn_q_b" => "self_attn.q_b_proj",
        "attn_kv_a_mqa" => "self_attn.kv_a_proj_with_mqa",
        "attn_kv_a_norm" => "self_attn.kv_a_layernorm",
        "ffn_up" if case.starts_with("phi3") => "mlp.gate_up_proj",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "ffn_gate_shexp" => "mlp.shared_experts.gate_proj",
        "ffn_up_shexp" => "mlp.shared_experts.up_proj",
        "ffn_down_shexp" => "mlp.shared_experts.down_proj",
        "ffn_gate_inp" if mixtral => "block_sparse_moe.gate",
        "ffn_gate_inp" => "mlp.gate",
        "exp_probs_b" => {
            out.push((format!("{prefix}mlp.gate.e_score_correction_bias"), shape, bytes));
            return;
        }
        // Joined later.
        other => other,
    };
    out.push((format!("{prefix}{theirs}.{kind}"), shape, bytes));
}

/// Rows of each head: the first of each pair, then the second.
fn halves(bytes: &[u8], heads: usize, shape: &[usize]) -> Vec<u8> {
    let rows: Vec<&[u8]> = bytes.chunks_exact(shape[1] * 4).collect();
    let mut out = Vec::new();
    for head in rows.chunks_exact(shape[0] / heads) {
        for which in [0, 1] {
            head.iter().skip(which).step_by(2).for_each(|row| out.extend(*row));
        }
    }
    out
}

/// Makes one `kv_b_proj` of the two that GGUF has.
fn join_latents(tensors: &mut Vec<Tensor>) {
    while let Some(at) = tensors.iter().position(|(name, ..)| name.ends_with("attn_k_b.weight")) {
        let (name, shape, keys) = tensors.remove(at);
        let values = name.replace("attn_k_b", "attn_v_b");
        let at = tensors.iter().position(|(name, ..)| *name == values).unwrap();
        let (_, values_shape, values) = tensors.remove(at);
        let [heads, rank, plain] = shape[..] else { panic!("{shape:?}") };
        let mut joined = Vec::new();
        for head in 0..heads {
            let number = |row: usize, column: usize| ((head * rank + row) * plain + column) * 4;
            for column in 0..plain {
                (0..rank).for_each(|row| joined.extend(&keys[number(row, column)..][..4]));
            }
            let size = values.len() / heads;
            joined.extend(&values[head * size..][..size]);
        }
        let rows = heads * (plain + values_shape[1]);
        let name = name.replace("attn_k_b", "self_attn.kv_b_proj");
        tensors.push((name, vec![rows, rank], joined));
    }
}

/// A matrix of a layer as FP8: numbers and scales are a formula of the name. What DeepSeek-V3 has in wider formats stays.
fn eighths((name, shape, bytes): Tensor) -> Vec<Tensor> {
    let wide = !name.starts_with("model.layers.") || name.contains("mlp.gate.");
    let ([rows, columns], false) = (&shape[..], wide) else { return vec![(name, shape, bytes)] };
    let codes = uniform(&name).map(|u| ((u + 1.0) * 128.0) as u8);
    let codes = codes.map(|code| if code & 0x7f == 0x7f { code ^ 1 } else { code });
    let codes: Vec<u8> = codes.take(rows * columns).collect();
    // Such numbers have a deviation of 108.
    let width = (1.0 / (108.0 * (*columns as f64).sqrt())) as f32;
    let (scales, blocks) =
        (format!("{name}_scale_inv"), [rows.div_ceil(128), columns.div_ceil(128)]);
    let numbers = uniform(&scales).take(blocks[0] * blocks[1]).map(|u| (1.0 + u / 2.0) * width);
    let numbers = numbers.flat_map(f32::to_le_bytes).collect();
    vec![(name, shape, codes), (scales, blocks.to_vec(), numbers)]
}

pub(crate) fn write(tensors: &[Tensor]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::<u8>::new());
    for (name, shape, bytes) in tensors {
        let start = data.len();
        data.extend(bytes);
        let eighths = bytes.len() == shape.iter().product::<usize>();
        let dtype = if eighths { "F8_E4M3" } else { "F32" };
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        header.insert(name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file
}

/// Bytes, then names without a meaning, and the end of a turn.
fn tokenizer(vocabulary: usize) -> Value {
    let names = byte_characters().into_iter().chain((0..).map(|i| format!("name{i}")));
    let words: Map<String, Value> =
        names.take(vocabulary - 1).enumerate().map(|(i, name)| (name, json!(i))).collect();
    json!({
        "model": {"type": "BPE", "vocab": words, "merges": []},
        "added_tokens": [{"id": vocabulary - 1, "content": "<|im_end|>", "special": true}],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        ]},
    })
}

/// As `golden/generate.py` has them.
fn config(case: &str, vocabulary: usize) -> Value {
    let mut config = json!({
        "vocab_size": vocabulary, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
        "eos_token_id": [vocabulary - 1], "hidden_act": "silu", "rope_theta": 10000.0,
        "tie_word_embeddings": matches!(case, "llama" | "qwen2"),
    });
    let mut add = |more: Value| {
        let more = more.as_object().unwrap().clone();
        config.as_object_mut().unwrap().extend(more);
    };
    let deepseek = |mscale: f64| {
        json!({
            "kv_lora_rank": 32, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 24,
            "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_shared_experts": 2,
            "moe_intermediate_size": 32, "moe_layer_freq": 1, "rope_scaling": {"type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 32, "mscale": mscale, "mscale_all_dim": mscale},
        })
    };
    match case {
        "llama3" => add(
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}),
        ),
        "linear" => add(json!({"rope_scaling": {"type": "linear", "factor": 4.0}})),
        "mistral" => add(json!({"head_dim": 32, "sliding_window": 7})),
        "mixtral" => {
            add(json!({"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": null}))
        }
        "yarn" => add(
            json!({"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
            "original_max_position_embeddings": 32}}),
        ),
        "phi3" => add(json!({"sliding_window": 9, "partial_rotary_factor": 0.75})),
        "phi3-short" | "phi3-long" => {
            let factors = |name: &str| {
                let file = plain(case, vocabulary);
                let at = file.tensors.iter().position(|tensor| tensor.0 == name).unwrap();
                let (.., bytes) = read(&file, at);
                let floats = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
                floats.collect::<Vec<_>>()
            };
            add(json!({"partial_rotary_factor": 0.75, "sliding_window": null,
                "original_max_position_embeddings": if case == "phi3-long" { 16 } else { 256 },
                "rope_scaling": {"type": "longrope", "attention_factor": 1.25,
                "short_factor": factors("rope_factors_short.weight"),
                "long_factor": factors("rope_factors_long.weight")}}));
        }
        "deepseek2-lite" | "deepseek2" => {
            add(deepseek(0.707));
            add(
                json!({"routed_scaling_factor": 1.5, "norm_topk_prob": false, "scoring_func": "softmax"}),
            );
            if case == "deepseek2" {
                add(
                    json!({"q_lora_rank": 32, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}),
                );
            } else {
                add(
                    json!({"q_lora_rank": null, "topk_method": "greedy", "n_group": 1, "topk_group": 1}),
                );
            }
        }
        "deepseek3" | EIGHTHS => {
            add(deepseek(1.0));
            add(json!({"q_lora_rank": 32, "n_group": 4, "topk_group": 2, "norm_topk_prob": true,
                "routed_scaling_factor": 2.5}));
            if case == EIGHTHS {
                add(
                    json!({"hidden_size": 192, "intermediate_size": 160, "moe_intermediate_size": 144,
                    "q_lora_rank": 136, "kv_lora_rank": 160, "quantization_config": {"quant_method": "fp8",
                    "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}}),
                );
            }
        }
        _ => (),
    }
    let model_type = match case {
        "mistral" | "mixtral" | "qwen2" => case,
        "yarn" => "qwen2",
        "phi3" | "phi3-short" | "phi3-long" => "phi3",
        "deepseek2-lite" | "deepseek2" => "deepseek_v2",
        "deepseek3" | EIGHTHS => "deepseek_v3",
        _ => "llama",
    };
    add(json!({"model_type": model_type}));
    config
}
