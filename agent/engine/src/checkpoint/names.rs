//! The names of tensors in transformers' files, and in GGUF.

use super::config::Described;

/// Parts of a layer; what follows, `.weight` or `.bias`, is the same.
const PARTS: [(&str, &str); 22] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ("mlp.gate", "ffn_gate_inp"),
    ("block_sparse_moe.gate", "ffn_gate_inp"),
];
/// Parts of an expert, the second three as Mixtral names them.
const EXPERT_PARTS: [(&str, &str); 6] = [
    ("gate_proj", "ffn_gate_exps"),
    ("up_proj", "ffn_up_exps"),
    ("down_proj", "ffn_down_exps"),
    ("w1", "ffn_gate_exps"),
    ("w2", "ffn_down_exps"),
    ("w3", "ffn_up_exps"),
];
/// Where experts are.
const EXPERTS: [&str; 2] = ["mlp.experts.", "block_sparse_moe.experts."];

/// GGUF's name of a tensor; none if it says nothing that the model needs. A name that is not known stays as it is, and
/// will be refused.
pub(super) fn ours(name: &str, described: &Described) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        // transformers does not read it either if it is tied.
        "lm_head.weight" => return (!described.tied).then(|| "output.weight".to_owned()),
        _ => (),
    }
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let layer = layer.and_then(|(layer, part)| Some((layer.parse::<usize>().ok()?, part)));
    let Some((layer, part)) = layer else { return Some(name.to_owned()) };
    // Layers that predict further tokens; and what is computed from the configuration.
    if layer >= described.layers || part == "self_attn.rotary_emb.inv_freq" {
        return None;
    }
    if part == "mlp.gate.e_score_correction_bias" {
        return Some(format!("blk.{layer}.exp_probs_b.bias"));
    }
    let part = of_layer(part).unwrap_or_else(|| part.to_owned());
    Some(format!("blk.{layer}.{part}"))
}

fn of_layer(part: &str) -> Option<String> {
    let (part, kind) = part.rsplit_once('.')?;
    if let Some(expert) = EXPERTS.iter().find_map(|prefix| part.strip_prefix(prefix)) {
        let (number, part) = expert.split_once('.')?;
        let number: usize = number.parse().ok()?;
        return Some(format!("{}.{number}.{kind}", named(&EXPERT_PARTS, part)?));
    }
    Some(format!("{}.{kind}", named(&PARTS, part)?))
}

fn named(parts: &[(&str, &'static str)], part: &str) -> Option<&'static str> {
    parts.iter().find(|(theirs, _)| *theirs == part).map(|(_, ours)| *ours)
}
