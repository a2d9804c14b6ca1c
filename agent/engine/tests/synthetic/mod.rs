//! Small GGUF files made by tests: a writer that can lie, a tiny `llama` model with all formats, and
//! [`families`].
#![allow(dead_code, reason = "each test binary uses a part")]

use kernels::{Format, f32_to_f16};

pub(crate) mod encoder;
pub(crate) mod families;
pub(crate) mod folder;

/// Draws numbers below what it is given, for mutations; the same ones for a seed.
pub(crate) fn random(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed >> 16).unwrap() % below
    }
}

/// A GGUF file under construction.
#[derive(Default)]
pub(crate) struct File {
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, u32, Vec<u64>, u64)>,
    data: Vec<u8>,
}

const ALIGNMENT: usize = 32;

fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

impl File {
    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
        let mut bytes = kind.to_le_bytes().to_vec();
        bytes.extend(value);
        self.entries.push((key.to_owned(), bytes));
        self
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    pub(crate) fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.entry(key, 7, &[u8::from(value)])
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) -> &mut Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    pub(crate) fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.entry(key, 8, &string(value))
    }

    pub(crate) fn texts(&mut self, key: &str, values: &[impl AsRef<str>]) -> &mut Self {
        let mut bytes = 8_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(string(value.as_ref())));
        self.entry(key, 9, &bytes)
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        let mut bytes = 5_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.entry(key, 9, &bytes)
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        let mut bytes = 6_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
        self.entry(key, 9, &bytes)
    }

    pub(crate) fn remove(&mut self, key: &str) -> &mut Self {
        self.entries.retain(|(name, _)| name != key);
        self
    }

    pub(crate) fn replace_u32(&mut self, key: &str, value: u32) -> &mut Self {
        self.remove(key).u32(key, value)
    }

    /// Renames one token of the vocabulary; both names are a byte-counted string in the same entry.
    pub(crate) fn rename_token(&mut self, from: &str, to: &str) -> &mut Self {
        let (_, value) = self.entries.iter_mut().find(|e| e.0 == "tokenizer.ggml.tokens").unwrap();
        let old = string(from);
        let at = value.windows(old.len()).position(|w| w == old).unwrap();
        value.splice(at..at + old.len(), string(to));
        self
    }

    /// Adds a tensor whose bytes are `data`, whatever its shape says.
    pub(crate) fn tensor(
        &mut self,
        name: &str,
        format: Format,
        shape: &[u64],
        data: &[u8],
    ) -> &mut Self {
        let id = format.gguf().unwrap();
        self.data.resize(self.data.len().next_multiple_of(ALIGNMENT), 0);
        self.tensors.push((name.to_owned(), id, shape.to_vec(), self.data.len() as u64));
        self.data.extend(data);
        self
    }

    pub(crate) fn move_last_tensor(&mut self, offset: u64) {
        self.tensors.last_mut().unwrap().3 = offset;
    }

    pub(crate) fn rename_tensor(&mut self, from: &str, to: &str) -> &mut Self {
        self.tensors.iter_mut().find(|t| t.0 == from).unwrap().0 = to.to_owned();
        self
    }

    pub(crate) fn remove_tensor(&mut self, name: &str) -> &mut Self {
        self.tensors.retain(|t| t.0 != name);
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            bytes.extend(string(key));
            bytes.extend(value);
        }
        for (name, format, shape, offset) in &self.tensors {
            bytes.extend(string(name));
            bytes.extend(u32::try_from(shape.len()).unwrap().to_le_bytes());
            shape.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
            bytes.extend(format.to_le_bytes());
            bytes.extend(offset.to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(&self.data);
        bytes
    }
}

struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    fn weight(&mut self) -> f32 {
        ((self.next() % 2001) as f32 - 1000.0) / 4000.0
    }

    fn matrix(&mut self, format: Format, rows: usize, columns: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..rows * columns / format.block_elements() {
            let mut block: Vec<u8> =
                (0..format.block_bytes()).map(|_| self.next().to_le_bytes()[1]).collect();
            let mut half = |at: usize, value: f32| {
                block[at..at + 2].copy_from_slice(&f32_to_f16(value).to_le_bytes());
            };
            match format {
                Format::F32 => block = self.weight().to_le_bytes().to_vec(),
                Format::F16 => half(0, self.weight()),
                Format::Bf16 => block = self.weight().to_le_bytes()[2..].to_vec(),
                Format::Q4_0 | Format::Q5_0 | Format::Q8_0 => half(0, self.weight() / 16.0),
                Format::Q4_1 | Format::Q5_1 => {
                    half(0, self.weight() / 16.0);
                    half(2, self.weight() / 4.0);
                }
                Format::Q4K | Format::Q5K => {
                    half(0, self.weight() / 1024.0);
                    half(2, self.weight() / 256.0);
                }
                Format::Q6K => half(208, self.weight() / 4096.0),
                Format::F8 => panic!("GGUF has no such format"),
            }
            bytes.extend(block);
        }
        bytes
    }
}

/// The characters that stand for bytes in a byte-level vocabulary (GPT-2, `bytes_to_unicode`).
fn byte_characters() -> Vec<String> {
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let mut others = 256..;
    (0..256_u32)
        .map(|b| if printable(b) { b } else { others.next().unwrap() })
        .map(|c| char::from_u32(c).unwrap().to_string())
        .collect()
}

pub(crate) const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + \
    message['content'] + '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// Adds 256 byte tokens, some merges and three control tokens (0: end of text, 1: start of turn, 2: end of turn);
/// returns how many tokens that are.
fn vocabulary(file: &mut File) -> usize {
    let mut tokens = vec!["<|endoftext|>".to_owned(), "<|im_start|>".into(), "<|im_end|>".into()];
    let mut kinds = vec![3; 3];
    tokens.extend(byte_characters());
    tokens.extend(["he", "ll", "llo", "hello", "\u{120}hello"].map(str::to_owned));
    kinds.resize(tokens.len(), 1);
    let merges = ["h e", "l l", "ll o", "he llo", "\u{120} hello"];
    file.text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .texts("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .text("tokenizer.chat_template", TEMPLATE);
    tokens.len()
}

/// A `llama` model of random weights: two layers, every format.
pub(crate) fn model() -> File {
    let mut file = File::default();
    file.text("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .u32("llama.context_length", 128)
        .u32("llama.embedding_length", 64)
        .u32("llama.feed_forward_length", 96)
        .u32("llama.attention.head_count", 4)
        .u32("llama.attention.head_count_kv", 2)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        .f32("llama.rope.freq_base", 10_000.0);
    let vocabulary = vocabulary(&mut file);
    let mut noise = Noise(88_172_645_463_325_252);
    let mut matrix = |file: &mut File, name: &str, format, rows: usize, columns: usize| {
        let data = noise.matrix(format, rows, columns);
        file.tensor(name, format, &[columns as u64, rows as u64], &data);
    };
    matrix(&mut file, "token_embd.weight", Format::Q8_0, vocabulary, 64);
    for layer in 0..2 {
        let [a, b] = [[Format::Q4_1, Format::Q8_0], [Format::F16, Format::Q4_0]][layer];
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        matrix(&mut file, &name("attn_q"), a, 64, 64);
        matrix(&mut file, &name("attn_k"), b, 32, 64);
        matrix(&mut file, &name("attn_v"), Format::Bf16, 32, 64);
        matrix(&mut file, &name("attn_output"), a, 64, 64);
        matrix(&mut file, &name("ffn_gate"), b, 96, 64);
        matrix(&mut file, &name("ffn_up"), Format::F32, 96, 64);
        matrix(&mut file, &name("ffn_down"), a, 64, 96);
        for norm in ["attn_norm", "ffn_norm"] {
            let ones: Vec<u8> = [1_f32; 64].iter().flat_map(|v| v.to_le_bytes()).collect();
            file.tensor(&name(norm), Format::F32, &[64], &ones);
        }
    }
    let ones: Vec<u8> = [1_f32; 64].iter().flat_map(|v| v.to_le_bytes()).collect();
    file.tensor("output_norm.weight", Format::F32, &[64], &ones);
    file
}
