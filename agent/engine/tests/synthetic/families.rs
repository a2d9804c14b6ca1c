//! One tiny model of each architecture and variant. Weights are a formula of the tensor's name, which
//! `golden/generate.py` repeats, so that the logits of the reference are all that is stored.

#![allow(
    clippy::cast_possible_truncation,
    reason = "weights are computed in f64 or f32 and then rounded"
)]

use kernels::{Format, f32_to_f16};

use super::{File, vocabulary};

/// Every variant.
pub(crate) const CASES: [&str; 13] = [
    "llama",
    "llama3",
    "linear",
    "mistral",
    "mixtral",
    "qwen2",
    "yarn",
    "phi3",
    "phi3-short",
    "phi3-long",
    "deepseek2-lite",
    "deepseek2",
    "deepseek3",
];

/// `deepseek3`, wider, with FP8 matrices: for folders alone, since GGUF has no such format.
pub(crate) const EIGHTHS: &str = "deepseek3-fp8";

/// Tokens of the vocabulary of the models that the reference has run.
pub(crate) const GOLDEN_VOCABULARY: usize = 128;
/// Longest sequence.
pub(crate) const CONTEXT: u32 = 128;

const LAYERS: usize = 2;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const EXPERTS: usize = 8;
const PLAIN: usize = 32;
const ROTATED: usize = 16;
const VALUE: usize = 24;

/// Widths of a case.
struct Sizes {
    hidden: usize,
    wide: usize,
    expert_wide: usize,
    query_rank: usize,
    rank: usize,
}

const SIZES: Sizes = Sizes { hidden: 64, wide: 96, expert_wide: 32, query_rank: 32, rank: 32 };
/// More than one scale to a side, and none of them multiples of 128.
const SIZES_EIGHTHS: Sizes =
    Sizes { hidden: 192, wide: 160, expert_wide: 144, query_rank: 136, rank: 160 };

/// `case` as the reference knows it: plain floats, and as many tokens as it has.
pub(crate) fn golden(case: &str) -> File {
    plain(case, GOLDEN_VOCABULARY)
}

/// `case` in plain floats, with tokens that have names and no meaning.
pub(crate) fn plain(case: &str, vocabulary: usize) -> File {
    let mut maker = Maker { case, format: Format::F32, sizes: sizes(case), file: File::default() };
    let tokens: Vec<String> = (0..vocabulary).map(|i| format!("t{i}")).collect();
    maker.file.texts("tokenizer.ggml.tokens", &tokens);
    maker.make(vocabulary)
}

/// `case` with a vocabulary that encodes text; matrices are `Q8_0` where their rows are whole blocks.
pub(crate) fn quantised(case: &str) -> File {
    let mut maker = Maker { case, format: Format::Q8_0, sizes: sizes(case), file: File::default() };
    let tokens = vocabulary(&mut maker.file);
    maker.make(tokens)
}

struct Maker<'a> {
    case: &'a str,
    format: Format,
    sizes: Sizes,
    file: File,
}

fn sizes(case: &str) -> Sizes {
    if case == EIGHTHS { SIZES_EIGHTHS } else { SIZES }
}

impl Maker<'_> {
    fn is(&self, cases: &[&str]) -> bool {
        cases.contains(&self.case)
    }

    fn architecture(&self) -> &'static str {
        match self.case {
            "qwen2" | "yarn" => "qwen2",
            "phi3" | "phi3-short" | "phi3-long" => "phi3",
            "deepseek2-lite" | "deepseek2" | "deepseek3" | EIGHTHS => "deepseek2",
            _ => "llama",
        }
    }

    fn u32(&mut self, key: &str, value: usize) {
        let key = format!("{}.{key}", self.architecture());
        self.file.u32(&key, u32::try_from(value).unwrap());
    }

    fn f32(&mut self, key: &str, value: f32) {
        let key = format!("{}.{key}", self.architecture());
        self.file.f32(&key, value);
    }

    fn scaling(&mut self, kind: &str) {
        let key = format!("{}.rope.scaling.type", self.architecture());
        self.file.text(&key, kind);
    }

    fn make(mut self, vocabulary: usize) -> File {
        let architecture = self.architecture();
        self.file.text("general.architecture", architecture);
        self.numbers(vocabulary);
        self.matrix("token_embd.weight", &[self.sizes.hidden, vocabulary], 1.0);
        for layer in 0..LAYERS {
            self.layer(&format!("blk.{layer}."), layer);
        }
        self.vector("output_norm.weight", self.sizes.hidden, |u| 1.0 + u / 4.0);
        if !self.is(&["llama", "qwen2"]) {
            self.matrix("output.weight", &[self.sizes.hidden, vocabulary], 1.0);
        }
        self.file
    }

    fn numbers(&mut self, vocabulary: usize) {
        self.u32("vocab_size", vocabulary);
        self.u32("block_count", LAYERS);
        self.u32("context_length", CONTEXT as usize);
        self.u32("embedding_length", self.sizes.hidden);
        self.u32("feed_forward_length", self.sizes.wide);
        self.u32("attention.head_count", HEADS);
        let latent = self.architecture() == "deepseek2";
        self.u32("attention.head_count_kv", if latent { 1 } else { KV_HEADS });
        self.f32("attention.layer_norm_rms_epsilon", 1e-5);
        self.f32("rope.freq_base", 10_000.0);
        match self.case {
            "llama3" => self.llama3_factors(),
            "linear" => {
                self.scaling("linear");
                self.f32("rope.scaling.factor", 4.0);
            }
            "mistral" => {
                self.u32("attention.key_length", 32);
                self.u32("attention.value_length", 32);
                self.u32("attention.sliding_window", 7);
            }
            "mixtral" => {
                self.u32("expert_count", EXPERTS);
                self.u32("expert_used_count", 2);
            }
            "yarn" => self.yarn(None),
            "phi3" => {
                self.u32("rope.dimension_count", 12);
                self.u32("attention.sliding_window", 9);
            }
            "phi3-short" => self.long_rope(256),
            "phi3-long" => self.long_rope(16),
            "deepseek2-lite" | "deepseek2" | "deepseek3" | EIGHTHS => self.latent_numbers(),
            _ => (),
        }
    }

    fn yarn(&mut self, multiplier: Option<f32>) {
        self.scaling("yarn");
        self.f32("rope.scaling.factor", 4.0);
        self.u32("rope.scaling.original_context_length", 32);
        if let Some(multiplier) = multiplier {
            self.f32("rope.scaling.yarn_log_multiplier", multiplier);
        }
    }

    fn long_rope(&mut self, original: usize) {
        self.u32("rope.dimension_count", 12);
        self.u32("rope.scaling.original_context_length", original);
        self.f32("rope.scaling.attn_factor", 1.25);
        self.u32("attention.sliding_window", 0);
        self.vector("rope_factors_short.weight", 6, |u| 1.5 + u / 2.0);
        self.vector("rope_factors_long.weight", 6, |u| 5.0 + u * 4.0);
    }

    /// As llama.cpp's converter makes them from `rope_scaling` of type `llama3`: factor 8, 1 and 4 turns within
    /// an original context of 64.
    fn llama3_factors(&mut self) {
        let factors = (0..8_u8).map(|i| {
            let wavelength = std::f64::consts::TAU * 10_000_f64.powf(f64::from(i) / 8.0);
            let smooth = (64.0 / wavelength - 1.0) / 3.0;
            let factor = if wavelength < 16.0 {
                1.0
            } else if wavelength > 64.0 {
                8.0
            } else {
                1.0 / ((1.0 - smooth) / 8.0 + smooth)
            };
            factor as f32
        });
        let bytes: Vec<u8> = factors.flat_map(f32::to_le_bytes).collect();
        self.file.tensor("rope_freqs.weight", Format::F32, &[8], &bytes);
    }

    fn latent_numbers(&mut self) {
        if !self.is(&["deepseek2-lite"]) {
            self.u32("attention.q_lora_rank", self.sizes.query_rank);
            self.u32("expert_group_count", 4);
            self.u32("expert_group_used_count", 2);
        }
        self.u32("attention.kv_lora_rank", self.sizes.rank);
        self.u32("attention.key_length", self.sizes.rank + ROTATED);
        self.u32("attention.value_length", self.sizes.rank);
        self.u32("attention.key_length_mla", PLAIN + ROTATED);
        self.u32("attention.value_length_mla", VALUE);
        self.u32("rope.dimension_count", ROTATED);
        self.u32("leading_dense_block_count", 1);
        self.u32("expert_count", EXPERTS);
        self.u32("expert_used_count", 3);
        self.u32("expert_shared_count", 2);
        self.u32("expert_feed_forward_length", self.sizes.expert_wide);
        let third = self.is(&["deepseek3", EIGHTHS]);
        self.f32("expert_weights_scale", if third { 2.5 } else { 1.5 });
        if third {
            self.file.bool("deepseek2.expert_weights_norm", true);
        }
        self.u32("expert_gating_func", if third { 2 } else { 1 });
        self.yarn(Some(if third { 0.1 } else { 0.0707 }));
    }

    fn layer(&mut self, prefix: &str, layer: usize) {
        let name = |part: &str| format!("{prefix}{part}");
        self.vector(&name("attn_norm.weight"), self.sizes.hidden, |u| 1.0 + u / 4.0);
        self.vector(&name("ffn_norm.weight"), self.sizes.hidden, |u| 1.0 + u / 4.0);
        let attended = match self.architecture() {
            "deepseek2" => self.latent(prefix),
            _ => self.grouped(prefix),
        };
        self.matrix(&name("attn_output.weight"), &[attended, self.sizes.hidden], 1.0);
        match self.case {
            "mixtral" => self.experts(prefix, self.sizes.wide),
            "deepseek2-lite" | "deepseek2" | "deepseek3" | EIGHTHS if layer > 0 => {
                self.experts(prefix, self.sizes.expert_wide);
                self.gated(prefix, "_shexp", self.sizes.expert_wide * 2);
            }
            "phi3" | "phi3-short" | "phi3-long" => {
                self.matrix(&name("ffn_up.weight"), &[self.sizes.hidden, self.sizes.wide * 2], 1.0);
                self.matrix(&name("ffn_down.weight"), &[self.sizes.wide, self.sizes.hidden], 1.0);
            }
            _ => self.gated(prefix, "", self.sizes.wide),
        }
    }

    fn grouped(&mut self, prefix: &str) -> usize {
        let head_dim = if self.is(&["mistral"]) { 32 } else { 16 };
        let (queries, keys) = (HEADS * head_dim, KV_HEADS * head_dim);
        if self.architecture() == "phi3" {
            let rows = queries + keys * 2;
            self.matrix(&format!("{prefix}attn_qkv.weight"), &[self.sizes.hidden, rows], 1.0);
            return queries;
        }
        for (part, rows) in [("attn_q", queries), ("attn_k", keys), ("attn_v", keys)] {
            self.matrix(&format!("{prefix}{part}.weight"), &[self.sizes.hidden, rows], 1.0);
            if self.architecture() == "qwen2" {
                self.vector(&format!("{prefix}{part}.bias"), rows, |u| u / 2.0);
            }
        }
        queries
    }

    fn latent(&mut self, prefix: &str) -> usize {
        let name = |part: &str| format!("{prefix}{part}.weight");
        let queries = HEADS * (PLAIN + ROTATED);
        if self.is(&["deepseek2-lite"]) {
            self.matrix(&name("attn_q"), &[self.sizes.hidden, queries], 1.0);
        } else {
            self.matrix(&name("attn_q_a"), &[self.sizes.hidden, self.sizes.query_rank], 1.0);
            self.vector(&name("attn_q_a_norm"), self.sizes.query_rank, |u| 1.0 + u / 4.0);
            self.matrix(&name("attn_q_b"), &[self.sizes.query_rank, queries], 1.0);
        }
        self.matrix(&name("attn_kv_a_mqa"), &[self.sizes.hidden, self.sizes.rank + ROTATED], 1.0);
        self.vector(&name("attn_kv_a_norm"), self.sizes.rank, |u| 1.0 + u / 4.0);
        self.matrix(&name("attn_k_b"), &[PLAIN, self.sizes.rank, HEADS], 1.0);
        self.matrix(&name("attn_v_b"), &[self.sizes.rank, VALUE, HEADS], 1.0);
        HEADS * VALUE
    }

    fn experts(&mut self, prefix: &str, wide: usize) {
        self.matrix(&format!("{prefix}ffn_gate_inp.weight"), &[self.sizes.hidden, EXPERTS], 2.0);
        if self.is(&["deepseek3", EIGHTHS]) {
            self.vector(&format!("{prefix}exp_probs_b.bias"), EXPERTS, |u| u / 2.0);
        }
        for (part, columns, rows) in [
            ("gate", self.sizes.hidden, wide),
            ("up", self.sizes.hidden, wide),
            ("down", wide, self.sizes.hidden),
        ] {
            self.matrix(&format!("{prefix}ffn_{part}_exps.weight"), &[columns, rows, EXPERTS], 1.0);
        }
    }

    fn gated(&mut self, prefix: &str, suffix: &str, wide: usize) {
        self.matrix(&format!("{prefix}ffn_gate{suffix}.weight"), &[self.sizes.hidden, wide], 1.0);
        self.matrix(&format!("{prefix}ffn_up{suffix}.weight"), &[self.sizes.hidden, wide], 1.0);
        self.matrix(&format!("{prefix}ffn_down{suffix}.weight"), &[wide, self.sizes.hidden], 1.0);
    }

    /// Uniform numbers of variance `gain² / columns`.
    fn matrix(&mut self, name: &str, shape: &[usize], gain: f64) {
        let columns = shape[0];
        let width = ((3.0 / columns as f64).sqrt() * gain) as f32;
        let values: Vec<f32> =
            uniform(name).map(|u| u * width).take(shape.iter().product()).collect();
        let whole = columns.is_multiple_of(32) && self.format == Format::Q8_0;
        let (format, data) = match whole {
            true => (Format::Q8_0, values.chunks_exact(32).flat_map(q8_0).collect()),
            false => (Format::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()),
        };
        let shape: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        self.file.tensor(name, format, &shape, &data);
    }

    fn vector(&mut self, name: &str, elements: usize, value: impl Fn(f32) -> f32) {
        let bytes: Vec<u8> =
            uniform(name).take(elements).flat_map(|u| value(u).to_le_bytes()).collect();
        self.file.tensor(name, Format::F32, &[elements as u64], &bytes);
    }
}

/// Numbers from −1 to 1: SplitMix64 (Steele, Lea, Flood 2014), seeded with the FNV-1a hash of `name`.
pub(crate) fn uniform(name: &str) -> impl Iterator<Item = f32> {
    let fnv = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    std::iter::repeat_with(move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

fn q8_0(values: &[f32]) -> Vec<u8> {
    let largest = values.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
    let scale = f32_to_f16(largest / 127.0);
    let mut bytes = scale.to_le_bytes().to_vec();
    let inverse = 127.0 / largest;
    bytes.extend(values.iter().map(|value| ((value * inverse).round() as i8).to_le_bytes()[0]));
    bytes
}
