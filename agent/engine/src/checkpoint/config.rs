//! `config.json`, in the words of GGUF's metadata.

use serde_json::Value as Json;

use super::object::Object;
use super::{Checkpoint, CheckpointError};
use crate::gguf::Value;

const FILE: &str = "config.json";
/// Widest head for which factors are computed here; the description allows less.
const HEAD_DIM_MAX: usize = 4096;

/// What is needed to find tensors.
pub(super) struct Described {
    pub(super) layers: usize,
    pub(super) vocabulary: usize,
    pub(super) tied: bool,
    pub(super) latent: Option<LatentWidths>,
    /// Whether matrices may be FP8.
    pub(super) scaled: bool,
}

/// Widths of DeepSeek's `kv_b_proj`.
pub(super) struct LatentWidths {
    pub(super) heads: usize,
    pub(super) plain: usize,
    pub(super) value: usize,
    pub(super) rank: usize,
}

/// Fills metadata, and tensors that GGUF has and the folder has not.
pub(super) fn describe(json: &Json, out: &mut Checkpoint) -> Result<Described, CheckpointError> {
    let config = Object { file: FILE, json, at: "" };
    let architecture = match config.text("model_type") {
        Some("llama" | "mistral" | "mixtral") => "llama",
        Some("qwen2") => "qwen2",
        Some("phi3") => "phi3",
        Some("deepseek_v2" | "deepseek_v3") => "deepseek2",
        _ => {
            let expected = "llama, mistral, mixtral, qwen2, phi3, deepseek_v2 or deepseek_v3";
            return config.wrong("model_type", expected);
        }
    };
    refuse(&config)?;
    let scaled = quantisation(&config)?;
    out.metadata
        .insert("general.architecture".to_owned(), super::Owned::Text(architecture.to_owned()));
    let mut writer = Writer { out, architecture };
    writer.common(&config)?;
    let latent = match architecture {
        "deepseek2" => Some(writer.deepseek(&config)?),
        _ => None,
    };
    writer.rope(&config)?;
    Ok(Described {
        layers: config.size("num_hidden_layers")?,
        vocabulary: config.size("vocab_size")?,
        tied: config.flag("tie_word_embeddings")?,
        latent,
        scaled,
    })
}

/// What no key of GGUF's says. Biases that a model has besides are tensors that nobody asks for.
fn refuse(config: &Object<'_>) -> Result<(), CheckpointError> {
    config.must_be("hidden_act", &"silu".into(), "silu")?;
    config.must_be("use_sliding_window", &false.into(), "false")?;
    config.must_be("moe_layer_freq", &1.into(), "1")
}

/// Whether matrices may be FP8 with scales beside them, which is the one quantisation that is read. That activations are
/// to be rounded to FP8, too, and how (`dynamic`, `scale_fmt`), is for whoever multiplies so; here they are wider.
fn quantisation(config: &Object<'_>) -> Result<bool, CheckpointError> {
    let Some(json) = config.get("quantization_config") else { return Ok(false) };
    let quantisation = Object { file: config.file, json, at: "quantization_config." };
    let one: [(&str, Json, &'static str); 4] = [
        ("quant_method", "fp8".into(), "fp8, or no quantization_config: plain F32, F16 or BF16"),
        ("fmt", "e4m3".into(), "e4m3"),
        ("weight_block_size", vec![128, 128].into(), "[128, 128]"),
        ("activation_scheme", "dynamic".into(), "dynamic"),
    ];
    for (key, value, expected) in &one {
        match quantisation.get(key) {
            // What transformers writes lacks it; the tensors themselves say it.
            None if *key == "fmt" => (),
            Some(found) if found == value => (),
            _ => return quantisation.wrong(key, expected),
        }
    }
    let known = |key: &str| {
        one.iter().any(|(of_ours, ..)| *of_ours == key)
            || matches!(key, "modules_to_not_convert" | "scale_fmt")
    };
    match json.as_object().and_then(|keys| keys.keys().find(|key| !known(key))) {
        Some(key) => quantisation.wrong(key, "a key of FP8 checkpoints that this engine knows"),
        None => Ok(true),
    }
}

struct Writer<'o> {
    out: &'o mut Checkpoint,
    architecture: &'static str,
}

impl Writer<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn number(&mut self, key: &str, number: u64) {
        let key = self.key(key);
        self.out.set_number(key, number);
    }

    fn float(&mut self, key: &str, float: f64) {
        let key = self.key(key);
        self.out.set(key, Value::Float(float));
    }

    fn flag(&mut self, key: &str, flag: bool) {
        let key = self.key(key);
        self.out.set(key, Value::Bool(flag));
    }

    fn text(&mut self, key: &str, text: &str) {
        let key = self.key(key);
        self.out.metadata.insert(key, super::Owned::Text(text.to_owned()));
    }

    fn copy(
        &mut self,
        config: &Object<'_>,
        theirs: &str,
        ours: &str,
    ) -> Result<(), CheckpointError> {
        if let Some(number) = config.number(theirs)? {
            self.number(ours, number);
        }
        Ok(())
    }

    fn common(&mut self, config: &Object<'_>) -> Result<(), CheckpointError> {
        for (theirs, ours) in [
            ("num_hidden_layers", "block_count"),
            ("max_position_embeddings", "context_length"),
            ("hidden_size", "embedding_length"),
            ("intermediate_size", "feed_forward_length"),
            ("num_attention_heads", "attention.head_count"),
        ] {
            self.copy(config, theirs, ours)?;
        }
        if let Some(epsilon) = config.float("rms_norm_eps")? {
            self.float("attention.layer_norm_rms_epsilon", epsilon);
        }
        match self.architecture {
            "deepseek2" => return Ok(()),
            "llama" => self.flag("rope.halves", true),
            _ => (),
        }
        self.copy(config, "num_key_value_heads", "attention.head_count_kv")?;
        self.copy(config, "head_dim", "attention.key_length")?;
        if self.architecture != "qwen2" {
            self.copy(config, "sliding_window", "attention.sliding_window")?;
        }
        if config.text("model_type") == Some("mixtral") {
            self.copy(config, "num_local_experts", "expert_count")?;
            self.copy(config, "num_experts_per_tok", "expert_used_count")?;
        }
        Ok(())
    }

    fn deepseek(&mut self, config: &Object<'_>) -> Result<LatentWidths, CheckpointError> {
        let widths = LatentWidths {
            heads: config.size("num_attention_heads")?,
            plain: config.size("qk_nope_head_dim")?,
            value: config.size("v_head_dim")?,
            rank: config.size("kv_lora_rank")?,
        };
        let rotated = config.size("qk_rope_head_dim")?;
        for (ours, number) in [
            ("attention.kv_lora_rank", widths.rank),
            ("attention.key_length_mla", widths.plain + rotated),
            ("attention.value_length_mla", widths.value),
            ("rope.dimension_count", rotated),
        ] {
            self.number(ours, number as u64);
        }
        for (theirs, ours) in [
            ("q_lora_rank", "attention.q_lora_rank"),
            ("first_k_dense_replace", "leading_dense_block_count"),
            ("n_routed_experts", "expert_count"),
            ("num_experts_per_tok", "expert_used_count"),
            ("n_shared_experts", "expert_shared_count"),
            ("moe_intermediate_size", "expert_feed_forward_length"),
        ] {
            self.copy(config, theirs, ours)?;
        }
        let third = config.text("model_type") == Some("deepseek_v3");
        let scoring = if third { "sigmoid" } else { "softmax" };
        config.must_be("scoring_func", &scoring.into(), "sigmoid for V3, softmax for V2")?;
        self.number("expert_gating_func", if third { 2 } else { 1 });
        if third {
            self.flag("expert_weights_norm", config.flag("norm_topk_prob")?);
        } else {
            config.must_be("norm_topk_prob", &false.into(), "false for V2")?;
        }
        if config.text("topk_method") != Some("greedy") {
            self.copy(config, "n_group", "expert_group_count")?;
            self.copy(config, "topk_group", "expert_group_used_count")?;
        }
        if let Some(scale) = config.float("routed_scaling_factor")? {
            self.float("expert_weights_scale", scale);
        }
        Ok(widths)
    }

    /// `rope_theta` and `rope_scaling`, which are one object, `rope_parameters`, since transformers 5.
    fn rope(&mut self, config: &Object<'_>) -> Result<(), CheckpointError> {
        let nested = config.get("rope_parameters").or_else(|| config.get("rope_scaling"));
        let rope =
            Object { file: FILE, json: nested.unwrap_or(&Json::Null), at: "rope_parameters." };
        let base = match rope.float("rope_theta")? {
            Some(base) => base,
            None => config.float("rope_theta")?.unwrap_or(10_000.0),
        };
        self.float("rope.freq_base", base);
        let partial = match rope.float("partial_rotary_factor")? {
            Some(partial) => partial,
            None => config.float("partial_rotary_factor")?.unwrap_or(1.0),
        };
        let mut dims = config.size("hidden_size")? / config.size("num_attention_heads")?;
        if config.get("head_dim").is_some() {
            dims = config.size("head_dim")?;
        }
        if dims > HEAD_DIM_MAX {
            return config
                .wrong("head_dim", "at most 4096, and so hidden_size / num_attention_heads");
        }
        if !(0.0..=1.0).contains(&partial) {
            return rope.wrong("partial_rotary_factor", "0 to 1");
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked above; as transformers"
        )]
        let dims = (dims as f64 * partial) as usize;
        if self.architecture != "deepseek2" {
            self.number("rope.dimension_count", dims as u64);
        }
        match rope.text("rope_type").or_else(|| rope.text("type")).unwrap_or("default") {
            "default" => Ok(()),
            "linear" => {
                self.text("rope.scaling.type", "linear");
                self.float("rope.scaling.factor", rope.needed_float("factor")?);
                Ok(())
            }
            "llama3" => self.llama3(&rope, base, dims),
            "yarn" => self.yarn(&rope),
            "longrope" | "su" => self.long_rope(config, &rope),
            _ => rope.wrong("rope_type", "default, linear, llama3, yarn or longrope"),
        }
    }

    /// The factors that llama.cpp's converter stores; Llama 3.1's own code smooths between the wavelengths that turn
    /// `low_freq_factor` and `high_freq_factor` times within the original context.
    fn llama3(&mut self, rope: &Object<'_>, base: f64, dims: usize) -> Result<(), CheckpointError> {
        let factor = rope.needed_float("factor")?;
        let (low, high) =
            (rope.needed_float("low_freq_factor")?, rope.needed_float("high_freq_factor")?);
        let original = rope.size("original_max_position_embeddings")? as f64;
        if low >= high {
            return rope.wrong("low_freq_factor", "less than high_freq_factor");
        }
        let factors = (0..dims / 2).map(|i| {
            let wavelength = std::f64::consts::TAU * base.powf(2.0 * i as f64 / dims as f64);
            let turns = original / wavelength;
            let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            1.0 / ((1.0 - smooth) / factor + smooth)
        });
        self.out.add_floats("rope_freqs.weight", &factors.collect::<Vec<_>>());
        Ok(())
    }

    fn yarn(&mut self, rope: &Object<'_>) -> Result<(), CheckpointError> {
        let factor = rope.needed_float("factor")?;
        self.text("rope.scaling.type", "yarn");
        self.float("rope.scaling.factor", factor);
        self.number(
            "rope.scaling.original_context_length",
            rope.size("original_max_position_embeddings")? as u64,
        );
        for (theirs, ours) in [("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
            if let Some(turns) = rope.float(theirs)? {
                self.float(&format!("rope.scaling.{ours}"), turns);
            }
        }
        rope.must_be("truncate", &true.into(), "true")?;
        if self.architecture == "deepseek2" {
            let mscale = rope.needed_float("mscale_all_dim")?;
            rope.must_be("mscale", &mscale.into(), "as mscale_all_dim")?;
            self.float("rope.scaling.yarn_log_multiplier", 0.1 * mscale);
        } else if let Some(attention) = rope.float("attention_factor")? {
            // Ours is a factor of YaRN's own.
            self.float("rope.scaling.attn_factor", attention / (1.0 + 0.1 * factor.ln()));
        }
        Ok(())
    }

    fn long_rope(&mut self, config: &Object<'_>, rope: &Object<'_>) -> Result<(), CheckpointError> {
        let original = match rope.get("original_max_position_embeddings") {
            Some(_) => rope.size("original_max_position_embeddings")?,
            None => config.size("original_max_position_embeddings")?,
        };
        let stretched = config.size("max_position_embeddings")? as f64 / original as f64;
        let factor = rope.float("factor")?.unwrap_or(stretched);
        let attention = match rope.float("attention_factor")? {
            Some(attention) => attention,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        self.number("rope.scaling.original_context_length", original as u64);
        self.float("rope.scaling.attn_factor", attention);
        self.out.add_floats("rope_factors_short.weight", &rope.floats("short_factor")?);
        self.out.add_floats("rope_factors_long.weight", &rope.floats("long_factor")?);
        Ok(())
    }
}
