//! How text is cut into pieces before byte pairs are merged, by the names that llama.cpp gives the ways
//! (`tokenizer.ggml.pre`). The patterns are those of the `tokenizer.json` that the models' authors publish.
//!
//! Each pattern cuts what the ones before it left: a match is a piece, and so is what lies between two matches.

/// A way to cut text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pieces {
    pub(super) patterns: &'static [&'static str],
    /// Whether a piece that is a token as a whole is that token, whatever its merges would give.
    pub(super) whole_first: bool,
}

/// Names that are known, for whoever reads an error.
pub(super) const KNOWN: &str = "default, gpt-2, smollm, llama-bpe, qwen2, deepseek-llm, deepseek-coder, deepseek-v3, \
    deepseek-r1-qwen, tekken, gpt-4o, dbrx, falcon, starcoder, refact, command-r, mpt, olmo and others of their kind";

pub(crate) const GPT2: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// The cased letters of the Unicode version that DeepSeek used. Those that normalisation would change are escaped.
const DEEPSEEK_LETTERS: &str = "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u{1f7d}ᾀ-ᾴᾶ-ᾼ\u{1fbe}ῂ-ῄῆ-ῌῐ-\u{1fd3}ῖ-\u{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u{2126}ℨ\u{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";
const DEEPSEEK_CJK: &str = "[一-龥\u{800}-一가-\u{d7ff}]+";

/// The way that is called `name`.
pub(super) fn named(name: &str) -> Option<Pieces> {
    let patterns: &[&str] = match name {
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "exaone4" | "modern-bert"
        | "mellum" | "gigachat" | "a.x-4.0" => &[GPT2],
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            &[r"\p{N}", GPT2]
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "lfm2"
        | "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4" => &[LLAMA3],
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "megrez" | "solar-open"
        | "grok-2" => &[QWEN2],
        "qwen35" => &[QWEN35],
        "tekken" => &[TEKKEN],
        "gpt-4o" | "llama4" => &[GPT4O],
        "deepseek-v3" | "hunyuan-dense" => &[r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        "deepseek-llm" => &[
            r"[\r\n]",
            DEEPSEEK_LETTERS,
            "\\s?[!-/:-~！-／：-～‘-‟\u{3000}-。]+",
            r"\s+$",
            DEEPSEEK_CJK,
            r"\p{N}+",
        ],
        "deepseek-coder" => &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", DEEPSEEK_CJK, r"\p{N}"],
        "falcon" => &[r"[\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"],
        "default" => &[r"[\p{P}$+<=>^~|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        _ => return None,
    };
    let whole_first = matches!(patterns, [LLAMA3 | TEKKEN])
        && !matches!(name, "dbrx" | "smaug-bpe" | "chatglm-bpe" | "glm4");
    Some(Pieces { patterns, whole_first })
}

/// Whether texts begin with a start token where the file does not say: so do the models whose pieces may be tokens as a
/// whole (llama.cpp, `llama_vocab::impl::load`).
pub(super) fn begins(name: &str) -> bool {
    named(name).is_some_and(|pieces| pieces.whole_first)
}

/// A name of the way with these patterns, if there is one; `whole_first` as in [`Pieces`].
pub(crate) fn name_of(patterns: &[&str], whole_first: bool) -> Option<&'static str> {
    const NAMES: [&str; 11] = [
        "gpt-2",
        "smollm",
        "llama-bpe",
        "dbrx",
        "qwen2",
        "qwen35",
        "tekken",
        "gpt-4o",
        "deepseek-v3",
        "deepseek-llm",
        "deepseek-coder",
    ];
    NAMES.into_iter().find(|name| {
        named(name).is_some_and(|way| way.patterns == patterns && way.whole_first == whole_first)
    })
}
