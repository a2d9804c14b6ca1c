//! What sentence-transformers writes: the small files, each after its length, and the weights file.
#![no_main]

use std::sync::Arc;

use engine::encoder::{Encoder, EncoderError, Folder};
use engine::weights::FileBytes;
use kernels::{Isa, Pool};
use libfuzzer_sys::fuzz_target;

/// In the order of the seed.
const FILES: [&str; 6] = [
    "config.json",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
];

fuzz_target!(|data: &[u8]| {
    let mut rest = data;
    let mut files = Vec::new();
    for name in FILES {
        let Some((length, behind)) = rest.split_first_chunk() else { return };
        let Some((bytes, behind)) = behind.split_at_checked(u32::from_le_bytes(*length) as usize)
        else {
            return;
        };
        files.push((name, bytes.to_vec()));
        rest = behind;
    }
    files.push(("model.safetensors", rest.to_vec()));
    let folder = Folder::read(|path| {
        let file = files.iter().find(|(name, _)| *name == path);
        Ok::<_, EncoderError>(file.map(|(_, bytes)| Arc::new(bytes.clone()) as FileBytes))
    });
    // Errors are what they are for; only panics, hangs and large allocations count.
    let Ok(folder) = folder else { return };
    let tokens = folder.words.encode("Hello hé [SEP] \u{10ffff}").unwrap();
    assert!(tokens.iter().all(|token| (*token as usize) < folder.shape.vocabulary));
    let text = folder.words.around(&tokens[..tokens.len().min(folder.shape.context - 2)]);
    let Ok(pool) = Pool::new(1) else { return };
    if let Ok(mut encoder) = Encoder::new(&folder, Isa::detect(), pool) {
        assert_eq!(encoder.encode(&[&text])[0].len(), folder.shape.hidden);
    }
});
