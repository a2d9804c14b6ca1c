//! What transformers writes: a weights file, and `config.json` and `tokenizer.json` before it, each after its length.
#![no_main]

use std::sync::Arc;

use engine::checkpoint::{Checkpoint, Texts};
use libfuzzer_sys::fuzz_target;

/// Takes what is after four bytes of length.
fn part(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_first_chunk()?;
    rest.split_at_checked(u32::from_le_bytes(*length) as usize)
}

fuzz_target!(|data: &[u8]| {
    let Some((config, rest)) = part(data) else { return };
    let Some((tokenizer, weights)) = part(rest) else { return };
    if let Ok(tensors) = engine::safetensors::parse(weights) {
        let covered: usize = tensors.values().map(|tensor| tensor.extent.len()).sum();
        assert!(covered + 8 <= weights.len() && tensors.values().all(|t| !t.extent.is_empty()));
    }
    let texts = Texts { config, tokenizer, tokenizer_config: None, chat_template: None };
    let Ok(checkpoint) = Checkpoint::read(&texts, vec![Arc::new(weights.to_vec())]) else { return };
    let view = checkpoint.view();
    // Errors are what they are for; only panics, hangs and large allocations count.
    drop(engine::tokenizer::Tokenizer::read(&view));
    if let Ok(shape) = engine::model::Shape::read(&view) {
        drop(engine::weights::Weights::find_in(&view, &shape, checkpoint.files()));
    }
});
