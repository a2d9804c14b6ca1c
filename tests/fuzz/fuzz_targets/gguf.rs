//! Model files: parsing, and then everything that reads what was parsed.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = engine::gguf::Gguf::parse(data) else { return };
    for tensor in gguf.tensors().values() {
        assert!(tensor.extent.end <= data.len() && !tensor.extent.is_empty());
    }
    // Errors are what they are for; only panics, hangs and large allocations count.
    let shape = engine::model::Shape::read(&gguf);
    let tokenizer = engine::tokenizer::Tokenizer::read(&gguf);
    if let (Ok(shape), Ok(_)) = (shape, tokenizer) {
        let file = std::sync::Arc::new(data.to_vec());
        drop(engine::weights::Weights::find(&gguf, &shape, file));
    }
});
