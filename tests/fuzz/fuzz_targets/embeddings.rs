//! The body of a request for vectors from any client that has a certificate: what is accepted is in range, and fits a
//! frame to the engine.
#![no_main]

use gateway::limits::BODY_BYTES_MAX;
use gateway::openai::embeddings;
use ipc::{EMBED_INPUTS_MAX, EngineRequest, FRAME_BYTES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if body.len() > BODY_BYTES_MAX {
        return;
    }
    match embeddings::parse(body) {
        Ok(request) => {
            assert!((1..=EMBED_INPUTS_MAX).contains(&request.inputs.len()));
            assert!(request.inputs.iter().all(|input| !input.is_empty()));
            assert_ne!(request.dimensions, Some(0));
            let embed = EngineRequest::Embed(request.embed("ab".repeat(32)));
            assert!(ipc::encode(&embed, FRAME_BYTES_MAX).is_ok());
        }
        Err(error) => assert!(error.status().is_client_error(), "{error}"),
    }
});
