//! A model's description, read from metadata as llama.cpp's converter writes it.

use super::keys::Keys;
use super::{
    Attention, Experts, Gating, Grouped, Latent, Pairs, Rope, Scaling, Shape, ShapeError,
    unsupported,
};
use crate::gguf::Gguf;

/// Widest feed-forward part; those of models have a few ten thousand.
const WIDTH_MAX: usize = 1 << 20;

/// What an architecture's name says, and its metadata does not. The order of rotated pairs and the tensors'
/// names are what llama.cpp's converter writes.
struct Family {
    name: &'static str,
    pairs: Pairs,
    /// Queries, keys and values have biases.
    biases: bool,
    /// Queries, keys and values are one tensor; gate and up are one tensor.
    fused: bool,
    /// Keys and values are one latent.
    latent: bool,
    /// `attention.sliding_window` holds for every layer.
    window: bool,
    /// Feed-forward parts may be experts.
    experts: bool,
    /// Weights of experts are normalised if the file does not say whether they are.
    normalised: bool,
}

const LLAMA: Family = Family {
    name: "llama",
    pairs: Pairs::Neighbours,
    biases: false,
    fused: false,
    latent: false,
    window: true,
    experts: true,
    normalised: true,
};

/// Every architecture that this engine runs.
const FAMILIES: [Family; 4] = [
    LLAMA,
    Family {
        name: "qwen2",
        pairs: Pairs::Halves,
        biases: true,
        window: false,
        experts: false,
        ..LLAMA
    },
    Family { name: "phi3", pairs: Pairs::Halves, fused: true, experts: false, ..LLAMA },
    Family { name: "deepseek2", latent: true, window: false, normalised: false, ..LLAMA },
];

impl Shape {
    /// Reads the description from metadata.
    ///
    /// # Errors
    /// If the architecture is none of ours, a number is missing, out of range or does not fit the others, or
    /// a key says something about the model that this engine does not know.
    pub fn read(gguf: &Gguf<'_>) -> Result<Self, ShapeError> {
        let name = gguf.text("general.architecture")?;
        let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
            let expected = "\"llama\", \"qwen2\", \"phi3\" or \"deepseek2\"";
            return unsupported("architecture", name, expected);
        };
        let keys = Keys::new(gguf, name);
        let hidden = keys.number("embedding_length", 1..=65_536)?;
        let heads = keys.number("attention.head_count", 1..=1024)?;
        let (attention, rope) = if family.latent {
            read_latent(&keys, family)?
        } else {
            read_grouped(&keys, family, hidden, heads)?
        };
        let layers = keys.number("block_count", 1..=512)?;
        let feed_forward = keys.number("feed_forward_length", 1..=WIDTH_MAX)?;
        let experts = match family.experts && keys.has("expert_count") {
            true => read_experts(&keys, family, layers, feed_forward)?,
            false => None,
        };
        #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
        let epsilon = keys.float("attention.layer_norm_rms_epsilon", 0.0..=1.0)? as f32;
        let context = keys.number("context_length", 1..=1 << 24)?;
        keys.end()?;
        Ok(Self {
            layers,
            hidden,
            heads,
            vocabulary: gguf.texts("tokenizer.ggml.tokens")?.len(),
            context,
            epsilon,
            attention,
            rope,
            feed_forward,
            experts,
            fused: family.fused,
        })
    }
}

fn read_grouped(
    keys: &Keys<'_, '_>,
    family: &Family,
    hidden: usize,
    heads: usize,
) -> Result<(Attention, Rope), ShapeError> {
    let kv_heads = keys.number_or("attention.head_count_kv", heads, 1..=heads)?;
    let head_dim = keys.number_or("attention.key_length", hidden / heads, 2..=1024)?;
    keys.number_or("attention.value_length", head_dim, head_dim..=head_dim)?;
    if !heads.is_multiple_of(kv_heads) || !head_dim.is_multiple_of(2) || head_dim == 0 {
        let found = format!("{heads} heads of {head_dim}, {kv_heads} for keys and values");
        return unsupported(
            "attention",
            found,
            "an even width and a whole number of queries per key",
        );
    }
    let window = match family.window {
        true => keys.number_or("attention.sliding_window", 0, 0..=1 << 24)?,
        false => 0,
    };
    let window = (window > 0).then_some(window);
    // llama.cpp's converter permutes queries and keys of `llama`; a checkpoint of transformers has them as they are.
    let pairs = match keys.flag_or("rope.halves", family.pairs == Pairs::Halves)? {
        true => Pairs::Halves,
        false => family.pairs,
    };
    let rope = read_rope(keys, pairs, head_dim)?;
    let Family { biases, fused, .. } = *family;
    Ok((Attention::Grouped(Grouped { kv_heads, head_dim, window, biases, fused }), rope))
}

fn read_latent(keys: &Keys<'_, '_>, family: &Family) -> Result<(Attention, Rope), ShapeError> {
    let query_rank = keys.number_or("attention.q_lora_rank", 0, 0..=65_536)?;
    let rank = keys.number("attention.kv_lora_rank", 1..=4096)?;
    let key_dim = keys.number("attention.key_length_mla", 2..=1024)?;
    let value_dim = keys.number("attention.value_length_mla", 1..=1024)?;
    let mut rope = read_rope(keys, family.pairs, key_dim)?;
    // The same two widths as the cache sees them: one head of latent and rotated part.
    keys.number_or("attention.head_count_kv", 1, 1..=1)?;
    keys.number_or("attention.key_length", 0, rank + rope.dims..=rank + rope.dims)?;
    keys.number_or("attention.value_length", 0, rank..=rank)?;
    keys.float_or("rope.scaling.attn_factor", 1.0, 1.0..=1.0)?;
    let mut score_scale = 1.0;
    if let Scaling::Yarn { factor, .. } = rope.scaling {
        // llama.cpp's files hold 0.1 · `mscale_all_dim`. The models have `mscale` = `mscale_all_dim`, so that
        // turns are not scaled, and scores are by its square.
        let multiplier = keys.float("rope.scaling.yarn_log_multiplier", 0.0..=1.0)?;
        score_scale = (1.0 + multiplier * factor.ln()).powi(2);
        rope.turn_scale = 1.0;
    }
    let latent = Latent {
        query_rank: (query_rank > 0).then_some(query_rank),
        rank,
        plain_dim: key_dim - rope.dims,
        value_dim,
        score_scale,
    };
    if latent.plain_dim == 0 {
        return unsupported("rotated part", rope.dims, "less than a whole key");
    }
    Ok((Attention::Latent(latent), rope))
}

fn read_rope(keys: &Keys<'_, '_>, pairs: Pairs, dims_max: usize) -> Result<Rope, ShapeError> {
    let dims = keys.number_or("rope.dimension_count", dims_max, 2..=dims_max)?;
    if !dims.is_multiple_of(2) {
        return unsupported("rotated width", dims, "an even number");
    }
    let base = keys.float_or("rope.freq_base", 10_000.0, 1.0..=1e12)?;
    let original = keys.number_or("rope.scaling.original_context_length", 0, 0..=1 << 24)?;
    let mut turn_scale = keys.float_or("rope.scaling.attn_factor", 1.0, 1e-3..=1e3)?;
    let kind = match keys.has("rope.scaling.type") {
        true => keys.text("rope.scaling.type")?,
        false => "none",
    };
    let factor = || keys.float("rope.scaling.factor", 1.0..=1e4);
    let scaling = match kind {
        // LongRoPE is in the factors' tensors.
        "none" | "longrope" => Scaling::None,
        "linear" => Scaling::Linear { factor: factor()? },
        "yarn" => {
            let factor = factor()?;
            keys.number("rope.scaling.original_context_length", 1..=1 << 24)?;
            turn_scale *= 1.0 + 0.1 * factor.ln();
            Scaling::Yarn {
                factor,
                turns_fast: keys.float_or("rope.scaling.yarn_beta_fast", 32.0, 1e-3..=1e6)?,
                turns_slow: keys.float_or("rope.scaling.yarn_beta_slow", 1.0, 1e-3..=1e6)?,
            }
        }
        _ => return unsupported("rope scaling", kind, "none, linear, yarn or longrope"),
    };
    let original_context = (original > 0).then_some(original);
    Ok(Rope { pairs, dims, base, scaling, original_context, turn_scale })
}

fn read_experts(
    keys: &Keys<'_, '_>,
    family: &Family,
    layers: usize,
    feed_forward: usize,
) -> Result<Option<Experts>, ShapeError> {
    let count = keys.number("expert_count", 0..=4096)?;
    if count == 0 {
        keys.number_or("expert_used_count", 0, 0..=0)?;
        return Ok(None);
    }
    let used = keys.number("expert_used_count", 1..=count)?;
    let feed_forward = keys.number_or("expert_feed_forward_length", feed_forward, 1..=WIDTH_MAX)?;
    let shared_max = WIDTH_MAX / feed_forward;
    let shared = keys.number_or("expert_shared_count", 0, 0..=shared_max)? * feed_forward;
    let groups = keys.number_or("expert_group_count", 1, 1..=count)?;
    let groups_used = keys.number_or("expert_group_used_count", groups, 1..=groups)?;
    let gating = match keys.number_or("expert_gating_func", 1, 1..=2)? {
        1 => Gating::Softmax,
        _ => Gating::Sigmoid,
    };
    let group = count / groups;
    if !count.is_multiple_of(groups)
        || groups_used * group < used
        || (groups > 1 && gating == Gating::Sigmoid && group < 2)
    {
        let found = format!("{used} of {count}, from {groups_used} of {groups} groups");
        return unsupported("choice of experts", found, "equal groups that hold as many as chosen");
    }
    let scale = keys.float_or("expert_weights_scale", 1.0, 0.0..=1e3)?;
    #[expect(clippy::cast_possible_truncation, reason = "stored as f32")]
    Ok(Some(Experts {
        dense_layers: keys.number_or("leading_dense_block_count", 0, 0..=layers)?,
        count,
        used,
        feed_forward,
        shared,
        gating,
        groups,
        groups_used,
        normalised: keys.flag_or("expert_weights_norm", family.normalised)?,
        // As llama.cpp: 0 is not said.
        scale: if scale == 0.0 { 1.0 } else { scale as f32 },
    }))
}
