//! A sentence encoder as sentence-transformers would write it, tiny and random: weights are a formula of the tensor's
//! name, as `golden/generate.py` has them.

use serde_json::{Map, Value, json};

use super::families::uniform;
use super::folder::write;

pub(crate) const VOCABULARY: usize = 128;
const HIDDEN: usize = 64;
const LAYERS: usize = 2;
const WIDE: usize = 96;
const POSITIONS: usize = 48;

/// The small files by their paths, and the weights.
pub(crate) struct Files {
    pub(crate) config: Value,
    pub(crate) modules: Value,
    pub(crate) pooling: Value,
    pub(crate) sentence: Value,
    pub(crate) prompts: Value,
    pub(crate) tokenizer: Value,
    pub(crate) weights: Vec<u8>,
}

impl Files {
    pub(crate) fn get(&self, path: &str) -> Option<Vec<u8>> {
        let json = match path {
            "config.json" => &self.config,
            "modules.json" => &self.modules,
            "1_Pooling/config.json" => &self.pooling,
            "sentence_bert_config.json" => &self.sentence,
            "config_sentence_transformers.json" => &self.prompts,
            "tokenizer.json" => &self.tokenizer,
            "model.safetensors" => return Some(self.weights.clone()),
            _ => return None,
        };
        (!json.is_null()).then(|| serde_json::to_vec(json).unwrap())
    }
}

pub(crate) fn files() -> Files {
    Files {
        config: json!({
            "model_type": "bert", "hidden_act": "gelu", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
            "num_attention_heads": 4, "intermediate_size": WIDE, "max_position_embeddings": POSITIONS,
            "layer_norm_eps": 1e-12, "vocab_size": VOCABULARY, "type_vocab_size": 2,
            "position_embedding_type": "absolute",
        }),
        modules: json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]),
        pooling: json!({
            "word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true,
            "pooling_mode_max_tokens": false,
        }),
        sentence: json!({"max_seq_length": 42, "do_lower_case": false}),
        prompts: json!({"__version__": {}, "default_prompt_name": null}),
        tokenizer: tokenizer(),
        weights: write(&tensors()),
    }
}

/// Control tokens, letters, and the same letters within words.
fn tokenizer() -> Value {
    let controls = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "hello"].map(str::to_owned);
    let letters = ('a'..='z').map(String::from);
    let within = ('a'..='z').map(|letter| format!("##{letter}"));
    let rest = ["!", "[", "]"].map(str::to_owned);
    let words: Map<String, Value> = controls
        .into_iter()
        .chain(letters)
        .chain(within)
        .chain(rest)
        .enumerate()
        .map(|(number, word)| (word, json!(number)))
        .collect();
    let control =
        |number: usize, text: &str| json!({"id": number, "content": text, "special": true});
    let token = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
    json!({
        "truncation": {"max_length": 12}, "padding": {"strategy": {"Fixed": 12}},
        "added_tokens": [control(0, "[PAD]"), control(1, "[UNK]"), control(2, "[CLS]"), control(3, "[SEP]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [token("[CLS]"), {"Sequence": {"id": "A", "type_id": 0}}, token("[SEP]")]},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": words},
    })
}

fn tensors() -> Vec<(String, Vec<usize>, Vec<u8>)> {
    let mut all = Vec::new();
    let mut put = |name: String, shape: &[usize], value: &dyn Fn(f32) -> f32| {
        let floats = uniform(&name).take(shape.iter().product());
        let bytes = floats.flat_map(|u| value(u).to_le_bytes()).collect();
        all.push((name, shape.to_vec(), bytes));
    };
    #[expect(clippy::cast_possible_truncation, reason = "as wide as the weights are")]
    let width = |columns: usize| (3.0 / columns as f64).sqrt() as f32;
    for (name, rows) in [("word", VOCABULARY), ("position", POSITIONS), ("token_type", 2)] {
        let name = format!("embeddings.{name}_embeddings.weight");
        put(name, &[rows, HIDDEN], &|u| u * width(HIDDEN));
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in (0..LAYERS).map(|layer| format!("encoder.layer.{layer}.")) {
        for (name, rows, columns) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", WIDE, HIDDEN),
            ("output.dense", HIDDEN, WIDE),
        ] {
            put(format!("{layer}{name}.weight"), &[rows, columns], &|u| u * width(columns));
            put(format!("{layer}{name}.bias"), &[rows], &|u| u / 2.0);
        }
        norms.extend(["attention.output", "output"].map(|part| format!("{layer}{part}.LayerNorm")));
    }
    for norm in norms {
        put(format!("{norm}.weight"), &[HIDDEN], &|u| 1.0 + u / 4.0);
        put(format!("{norm}.bias"), &[HIDDEN], &|u| u / 2.0);
    }
    put("pooler.dense.weight".to_owned(), &[HIDDEN, HIDDEN], &|u| u);
    all
}
