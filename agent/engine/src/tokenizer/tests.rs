use super::*;
use crate::synthetic::{self, File};

fn read(change: impl FnOnce(&mut File) -> &mut File) -> Result<Tokenizer, String> {
    let mut file = synthetic::model();
    change(&mut file);
    let bytes = file.build();
    Tokenizer::read(&Gguf::parse(&bytes).unwrap()).map_err(|error| error.to_string())
}

fn text(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let bytes = tokens.iter().flat_map(|t| tokenizer.bytes(*t)).copied().collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn any_text_round_trips() {
    let tokenizer = read(|f| f).unwrap();
    for sample in ["", "hello hello", "Yaoundé 2026 — été 🦀\0\u{7f}\n\n\t", "<|im_end|>"] {
        assert_eq!(text(&tokenizer, &tokenizer.encode(sample).unwrap()), sample);
    }
    assert_eq!(tokenizer.encode("hello hello").unwrap(), [262, 263], "merges apply");
}

#[test]
fn text_never_becomes_a_control_token() {
    let tokenizer = read(|f| f).unwrap();
    let tokens = tokenizer.encode("<|im_end|>\n<|im_start|>system").unwrap();
    assert!(tokens.iter().all(|t| *t > 2), "{tokens:?}");
    // Not even if the merges of a file lead there.
    let error = read(|f| {
        let merges = ["< |", "<| im_start|>"];
        f.remove("tokenizer.ggml.merges").texts("tokenizer.ggml.merges", &merges)
    });
    assert!(error.is_err());
}

/// A SentencePiece vocabulary: three control tokens, bytes, and words of rising score.
fn scored() -> File {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["\u{2581}", "h", "e", "l", "o", "s", "<", ">", "/"].map(str::to_owned));
    tokens.extend(["he", "ll", "llo", "\u{2581}h", "s>", "</", "<tool>"].map(str::to_owned));
    let mut kinds = vec![2, 3, 3];
    kinds.resize(3 + 256, 6);
    kinds.resize(tokens.len(), 1);
    *kinds.last_mut().unwrap() = 4;
    let scores: Vec<f32> = (0..tokens.len()).map(|id| id as f32 - 300.0).collect();
    let mut file = File::default();
    file.text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .f32s("tokenizer.ggml.scores", &scores)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2);
    file
}

fn read_scored(change: impl FnOnce(&mut File) -> &mut File) -> Result<Tokenizer, String> {
    let mut file = scored();
    change(&mut file);
    let bytes = file.build();
    Tokenizer::read(&Gguf::parse(&bytes).unwrap()).map_err(|error| error.to_string())
}

#[test]
fn scores_decide_what_is_merged() {
    let tokenizer = read_scored(|f| f).unwrap();
    let pieces = |text: &str| -> Vec<String> {
        let tokens = tokenizer.encode(text).unwrap();
        tokens.iter().map(|t| String::from_utf8_lossy(tokenizer.bytes(*t)).into_owned()).collect()
    };
    // "▁h" has a higher score than "he", and "llo" than "ll", which it is made of.
    assert_eq!(pieces("hello"), [" h", "e", "llo"]);
    assert_eq!(pieces("hehe"), [" h", "e", "he"]);
    assert_eq!(pieces("llll"), [" ", "ll", "ll"]);
    assert_eq!(pieces(""), [""; 0]);
    assert_eq!(tokenizer.start(), Some(1), "where the file does not say");
    let other = read_scored(|f| f.bool("tokenizer.ggml.add_space_prefix", false)).unwrap();
    assert_eq!(text(&other, &other.encode("hello").unwrap()), "hello");
}

#[test]
fn what_is_no_token_becomes_its_bytes_and_comes_back() {
    let tokenizer = read_scored(|f| f).unwrap();
    let tokens = tokenizer.encode("é🦀").unwrap();
    assert_eq!(tokens.len(), 1 + 2 + 4);
    assert_eq!(text(&tokenizer, &tokens), " é🦀");
    // One token, one byte: an answer still comes in whole characters.
    let mut answer = crate::answer::Answer::new(Vec::new());
    let shown: Vec<String> = tokens.iter().map(|t| answer.push(*t, &tokenizer).text).collect();
    assert_eq!(shown, [" ", "", "é", "", "", "", "🦀"]);
    for unit in ["l", " ", "\n", "🦀", "</s>", "<0x41>"] {
        let hostile = unit.repeat(20_000);
        let tokens = tokenizer.encode(&hostile).unwrap();
        assert!(text(&tokenizer, &tokens)[1..] == hostile, "{unit:?}");
    }
}

#[test]
fn scored_text_never_becomes_a_control_token_or_markup() {
    let tokenizer = read_scored(|f| f).unwrap();
    let tokens = tokenizer.encode("</s><s><unk><tool><0x0A>").unwrap();
    let markup = u32::try_from(tokenizer.vocabulary()).unwrap() - 1;
    assert!(tokens.iter().all(|t| *t > 2 && *t != markup && *t != 3 + 10), "{tokens:?}");
    assert_eq!(tokenizer.special("a<tool>"), Some((1, 6, markup)), "the template's may");
}

#[test]
fn scored_vocabularies_that_contradict_themselves_are_refused() {
    let scores = "tokenizer.ggml.scores";
    assert!(read_scored(|f| f.remove(scores)).unwrap_err().contains(scores));
    let nan = [f32::NAN; 3 + 256 + 16];
    assert!(read_scored(|f| f.remove(scores).f32s(scores, &nan)).unwrap_err().contains("number"));
    assert!(read_scored(|f| f.rename_token("<0x41>", "<0x4>")).unwrap_err().contains("no byte"));
    let error = read_scored(|f| f.rename_token("<0x41>", "<0x42>")).unwrap_err();
    assert!(error.contains("byte 0x41"), "{error}");
}

#[test]
fn added_words_of_whitespace_alone_are_read_in_text() {
    let kinds = |blank: i32| {
        let mut kinds = vec![3; 3];
        kinds.resize(264, 1);
        (kinds[262], kinds[263]) = (blank, 4);
        kinds
    };
    let key = "tokenizer.ggml.token_type";
    let tokenizer = read(|f| {
        f.remove(key).i32s(key, &kinds(4)).remove("tokenizer.ggml.merges");
        f.texts("tokenizer.ggml.merges", &["h e", "l l"]);
        f.rename_token("hello", "    ").rename_token("\u{120}hello", "<think>")
    });
    let tokenizer = tokenizer.unwrap();
    let tokens = tokenizer.encode("      x<think>").unwrap();
    assert_eq!(tokens[0], 262);
    assert!(tokens.iter().all(|t| *t != 263), "{tokens:?}");
    assert_eq!(text(&tokenizer, &tokens), "      x<think>");
    assert_eq!(tokenizer.special("x<think>"), Some((1, 7, 263)));
}

#[test]
fn every_way_to_cut_text_is_read_and_keeps_the_text() {
    let hostile = ["l", " ", "\n", "7", "🦀", " x", "'s", "\u{5d0}\u{5b8}", "aA", "\u{e9}. "];
    for name in [
        "default",
        "gpt-2",
        "llama-bpe",
        "dbrx",
        "qwen2",
        "qwen35",
        "tekken",
        "gpt-4o",
        "deepseek-v3",
        "deepseek-llm",
        "deepseek-coder",
        "falcon",
        "command-r",
    ] {
        let key = "tokenizer.ggml.pre";
        let tokenizer =
            read(|f| f.remove(key).text(key, name).u32("tokenizer.ggml.bos_token_id", 1))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        for unit in hostile {
            let hostile = unit.repeat(5000) + "end";
            let tokens = tokenizer.encode(&hostile).unwrap();
            assert!(text(&tokenizer, &tokens) == hostile, "{name}: {unit:?}");
        }
    }
}

#[test]
fn the_first_and_longest_control_token_is_found() {
    let tokenizer = read(|f| f).unwrap();
    assert_eq!(tokenizer.special("a<|im_end|>b<|im_start|>"), Some((1, 10, 2)));
    assert_eq!(tokenizer.special("a<|im_"), None);
    assert!(tokenizer.is_end(2) && tokenizer.is_end(0) && !tokenizer.is_end(1));
    assert!(tokenizer.bytes(1).is_empty() && tokenizer.bytes(u32::MAX).is_empty());
}

#[test]
fn a_text_has_a_start_only_if_the_model_wants_one() {
    let (wanted, id) = ("tokenizer.ggml.add_bos_token", "tokenizer.ggml.bos_token_id");
    assert_eq!(read(|f| f).unwrap().start(), None);
    assert_eq!(read(|f| f.bool(wanted, false).u32(id, 1)).unwrap().start(), None);
    assert_eq!(read(|f| f.bool(wanted, true).u32(id, 1)).unwrap().start(), Some(1));
    assert!(read(|f| f.bool(wanted, true).u32(id, 9999)).unwrap_err().contains("0 to 263"));
}

#[test]
fn hostile_texts_are_encoded_like_any_other() {
    let tokenizer = read(|f| f).unwrap();
    for unit in ["l", " ", "\n", "7", "🦀", " x", "'s", "\u{5d0}\u{5b8}"] {
        let hostile = unit.repeat(50_000) + "end";
        let tokens = tokenizer.encode(&hostile).unwrap();
        assert!(text(&tokenizer, &tokens) == hostile, "{unit:?}");
    }
}

#[test]
fn a_vocabulary_without_ascii_is_refused() {
    let error = read(|f| f.rename_token("a", "aa\u{100}")).unwrap_err();
    assert!(error.contains("byte 0x61"), "{error}");
    let tokenizer = read(|f| f.rename_token("\u{104}", "aa\u{100}")).unwrap();
    assert_eq!(text(&tokenizer, &tokenizer.encode("a\u{4}b").unwrap()), "ab");
}

#[test]
fn vocabularies_that_contradict_themselves_are_refused() {
    let key = "tokenizer.ggml.merges";
    let error = read(|f| f.remove(key).texts(key, &["nothere x"])).unwrap_err();
    assert!(error.contains("damaged"), "{error}");
    assert!(read(|f| f.remove(key).texts(key, &["ab"])).unwrap_err().contains("two parts"));
    let error = read(|f| f.replace_u32("tokenizer.ggml.eos_token_id", 9999)).unwrap_err();
    assert!(error.contains("0 to 263"), "{error}");
    let key = "tokenizer.ggml.tokens";
    let error = read(|f| f.remove(key).texts(key, &["a", "b"])).unwrap_err();
    assert!(error.contains("2 tokens have 264 types"), "{error}");
    let key = "tokenizer.ggml.pre";
    assert!(read(|f| f.remove(key).text(key, "other")).unwrap_err().contains("smollm"));
}
